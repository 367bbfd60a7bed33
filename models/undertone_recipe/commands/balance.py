"""Brings a checkpoint's decoded shapes back to unit size and revives silent gains."""

from __future__ import annotations

import argparse

from ..balance import balance, observe
from ..codec import load, save_changed
from ..data import Batches
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    options.checkpoints(p)
    options.training_audio(p, "to observe the decoder with")
    options.threads(p)


def run(args: argparse.Namespace) -> None:
    codec, raw = load(args.checkpoint)
    revived = balance(codec, observe(codec, Batches(args.data, codec.cfg.data, 8, 4.0, 77), 24))
    print("revived: " + (", ".join(revived) or "nothing"))
    save_changed(args.out, codec, raw)
