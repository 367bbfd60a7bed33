"""Brings the latents of a checkpoint to the size that its configuration asks for."""

from __future__ import annotations

import argparse

from ..balance import rescale
from ..codec import load, save_changed
from ..data import Batches
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    options.checkpoints(p)
    options.training_audio(p, "to measure the latents on")
    options.threads(p)


def run(args: argparse.Namespace) -> None:
    codec, raw = load(args.checkpoint, averaged=True)
    was = rescale(codec, Batches(args.data, codec.cfg.data, 8, 4.0, 77), 8)
    print(f"latents had an RMS of {was:.2f}; now {codec.quantiser.cfg.rms:g}")
    save_changed(args.out, codec, raw)
