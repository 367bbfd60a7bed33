"""Brings a checkpoint's decoded shapes back to unit size and revives silent gains."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..balance import balance, observe
from ..codec import load, save
from ..data import Batches
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", type=Path)
    p.add_argument("out", type=Path, help="checkpoint to write")
    options.training_audio(p, "to observe the decoder with")
    options.threads(p)


def run(args: argparse.Namespace) -> None:
    codec, raw = load(args.checkpoint)
    revived = balance(codec, observe(codec, Batches(args.data, codec.cfg.data, 8, 4.0, 77), 24))
    print("revived: " + (", ".join(revived) or "nothing"))
    save(args.out, codec, step=raw.get("step", 0), device_seconds=raw.get("device_seconds", 0.0))
