"""Adapts an exported model to a folder of recordings; every eighth is kept apart to measure with."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import config
from ..finetune import finetune
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("recordings", type=Path)
    p.add_argument("--model", type=Path, required=True, help="folder of the exported model to start from")
    p.add_argument("--config", type=Path, required=True, help="how to train it (TOML)")
    p.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    p.add_argument("--minutes", type=float, default=20.0)
    options.device(p)
    options.threads(p)
    p.add_argument("--stages", type=int, nargs="+", default=[4, 8, 16], help="numbers of stages to measure with")


def run(args: argparse.Namespace) -> None:
    cfg = config.load(args.config)
    print(finetune(cfg, args.model, args.recordings, args.out, args.minutes, args.device, args.stages))
