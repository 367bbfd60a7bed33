#!/usr/bin/env python3
"""ViSQOL for `undertone bench rate --scorer "python3 scripts/visqol-scorer.py"`.

Needs `pip install "visqol-python[lattice]==3.8.0" numba`: ViSQOL v3 (Chinen et al. 2020) written anew in Python. Speech: speech mode at
16 kHz with the lattice mapping, which the C++ program has by default. Music: audio mode at 48 kHz with its support vector regression.
Scores of different mappings or programs must not be compared with each other.
"""

from scoring import read, serve
from visqol import VisqolApi


def scorer():
    """A function from a pair of files to a score."""
    speech, audio = VisqolApi(), VisqolApi()
    speech.create(mode="speech", use_lattice_model=True)
    audio.create(mode="audio")

    def score(kind, *files):
        api, rate = (audio, 48_000) if kind == "music" else (speech, 16_000)
        return api.measure_from_arrays(*(read(file, rate) for file in files), rate).moslqo

    return score


if __name__ == "__main__":
    serve("ViSQOL v3 (visqol-python, lattice; music: SVR)", scorer)
