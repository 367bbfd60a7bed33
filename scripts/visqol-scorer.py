#!/usr/bin/env python3
"""ViSQOL for `undertone bench rate --scorer "python3 scripts/visqol-scorer.py"`.

Needs `pip install "visqol-python[lattice]==3.8.0" numba`: ViSQOL v3 (Chinen et al. 2020) written anew in Python. Speech: speech mode at
16 kHz with the lattice mapping, which the C++ program has by default. Music: audio mode at 48 kHz with its support vector regression.
Scores of different mappings or programs must not be compared with each other.
"""

import math
import os
import sys

import soundfile
from scipy.signal import resample_poly
from visqol import VisqolApi


def main() -> None:
    # Libraries print what they like there; the answers keep a way out of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    speech, audio = VisqolApi(), VisqolApi()
    speech.create(mode="speech", use_lattice_model=True)
    audio.create(mode="audio")
    print("ViSQOL v3 (visqol-python, lattice; music: SVR)", file=answers)
    for line in sys.stdin:
        kind, *files = line.rstrip("\n").split("\t")
        api, rate = (audio, 48_000) if kind == "music" else (speech, 16_000)
        sounds = []
        for file in files:
            sound, its_rate = soundfile.read(file)
            shared = math.gcd(rate, its_rate)
            sounds.append(resample_poly(sound, rate // shared, its_rate // shared))
        print(api.measure_from_arrays(*sounds, rate).moslqo, file=answers)


if __name__ == "__main__":
    main()
