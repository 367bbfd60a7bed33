"""The side of a program that scores for `undertone bench rate --scorer`: it names its metric, then answers each pair of WAV files."""

import math
import os
import sys

import soundfile
from scipy.signal import resample_poly


def read(file, rate, dtype="float64"):
    """Samples of a file at `rate`."""
    sound, its_rate = soundfile.read(file, dtype=dtype)
    shared = math.gcd(rate, its_rate)
    return resample_poly(sound, rate // shared, its_rate // shared)


def serve(name, make):
    """Tells the metric's name, then for each line "KIND<TAB>ORIGINAL<TAB>DECODED" what the function that `make` gives says of these."""
    # Libraries print what they like there; the answers keep a way out of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    score = make()
    print(name, file=answers)
    for line in sys.stdin:
        print(score(*line.rstrip("\n").split("\t")), file=answers)
