#!/usr/bin/env python3
"""Naturalness without a reference for `undertone bench rate --scorer "python3 scripts/mos-scorer.py dnsmos"`.

- `dnsmos`, `dnsmos-sig`, `p808`: DNSMOS P.835 overall and signal quality, and P.808 (Reddy et al. 2021, 2022). Needs `pip install
  speechmos onnxruntime librosa`.
- `distillmos`: DistillMOS (Stahl and Gamper 2025). Needs `pip install distillmos`, which brings PyTorch.

They hear the decoded sound alone, at 16 kHz: a codec that says other words in a clean voice scores well, so they are read beside PESQ
and ESTOI, never instead of them. They were trained on speech: music gets `nan`.
"""

import sys

import numpy
from scoring import read, serve

RATE = 16_000
NAMES = {"dnsmos": "DNSMOS OVRL", "dnsmos-sig": "DNSMOS SIG", "p808": "DNSMOS P.808", "distillmos": "DistillMOS"}
# What speechmos calls them.
DNSMOS = {"dnsmos": "ovrl_mos", "dnsmos-sig": "sig_mos", "p808": "p808_mos"}


def scorer(which):
    """A function from samples at 16 kHz to a score."""
    if which == "distillmos":
        import distillmos
        import torch

        model = distillmos.ConvTransformerSQAModel().eval()

        def score(sound):
            with torch.no_grad():
                return float(model(torch.from_numpy(sound)[None]))

        return score
    from speechmos import dnsmos

    return lambda sound: float(dnsmos.run(sound, RATE)[DNSMOS[which]])


def of_files(which):
    """A function from a pair of files to a score."""
    score = scorer(which)

    def of_pair(kind, _, decoded):
        return float("nan") if kind == "music" else score(numpy.clip(read(decoded, RATE, "float32"), -1, 1))

    return of_pair


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in NAMES:
        sys.exit(f"one of {', '.join(NAMES)} is wanted, not {' '.join(sys.argv[1:]) or 'nothing'}")
    serve(NAMES[sys.argv[1]], lambda: of_files(sys.argv[1]))
