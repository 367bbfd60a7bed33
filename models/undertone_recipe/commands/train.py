"""Trains a codec from scratch, from a checkpoint or from an exported model, for a number of minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import config
from ..train import Run, train
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--config", type=Path, required=True, help="sizes of the networks and how they are trained (TOML)")
    options.training_audio(p)
    p.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    p.add_argument("--minutes", type=float, default=60.0)
    p.add_argument("--steps", type=int, default=0, help="stop after so many steps (0: by time alone)")
    options.device(p)
    options.threads(p)
    start = p.add_mutually_exclusive_group()
    start.add_argument("--resume", type=Path, help="checkpoint to go on from")
    start.add_argument("--from-model", type=Path, help="folder of an exported model to start from")
    p.add_argument("--slim", type=Path, help="also write the averaged weights there at every checkpoint, in half precision")
    p.add_argument("--workers", type=int, default=0, help="processes that make batches in advance (0: none); a GPU wants about ten")
    parts = ("all", "networks", "encoder", "decoder")
    p.add_argument("--part", choices=parts, default="all", help="all but `all` leave the codebooks: codes keep their meaning")


def run(args: argparse.Namespace) -> None:
    cfg = config.load(args.config)
    more = {"part": args.part, "slim": args.slim, "workers": args.workers}
    print(train(cfg, Run(args.data, args.out, args.minutes, args.device, args.resume, args.from_model, args.steps, **more)))
