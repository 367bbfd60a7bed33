"""Fits the last stages of a checkpoint's quantiser anew, with everything else as it is."""

from __future__ import annotations

import argparse

import torch

from ..codec import load, save_changed
from ..data import Batches
from . import options

BATCH, SEGMENT_S = 16, 2.56


def arguments(p: argparse.ArgumentParser) -> None:
    options.checkpoints(p)
    p.add_argument("--first", type=int, required=True, help="first stage to fit, from 1")
    options.training_audio(p)
    p.add_argument("--seconds", type=float, default=740.0, help="audio to fit on")
    options.threads(p)


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    codec, raw = load(args.checkpoint)
    batches = Batches(args.data, codec.cfg.data, BATCH, SEGMENT_S, 77)
    count = max(1, round(args.seconds / (BATCH * SEGMENT_S)))
    latents = [codec.encoder(torch.from_numpy(next(batches)))[0] for _ in range(count)]
    left = codec.quantiser.start(torch.cat(latents).flatten(0, 1), args.first - 1)
    print("energy left after each stage: " + " ".join(f"{v:.4f}" for v in left))
    save_changed(args.out, codec, raw)
