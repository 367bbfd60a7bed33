"""Brings the latents of a checkpoint to the size that its configuration asks for."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..balance import rescale
from ..codec import load, save
from ..data import Batches
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", type=Path)
    p.add_argument("out", type=Path, help="checkpoint to write")
    options.training_audio(p, "to measure the latents on")
    options.threads(p)


def run(args: argparse.Namespace) -> None:
    codec, raw = load(args.checkpoint, averaged=True)
    was = rescale(codec, Batches(args.data, codec.cfg.data, 8, 4.0, 77), 8)
    print(f"latents had an RMS of {was:.2f}; now {codec.quantiser.cfg.rms:g}")
    save(args.out, codec, step=raw.get("step", 0), device_seconds=raw.get("device_seconds", 0.0))
