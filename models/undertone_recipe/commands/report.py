"""PESQ-WB and ESTOI of a checkpoint on a folder of recordings, by number of stages."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report import report
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", type=Path)
    options.evaluation_audio(p)
    p.add_argument("--kind", default="speech", help="recordings whose names begin with it (speech)")
    p.add_argument("--every", type=int, default=1, help="take every so many of them (1)")
    p.add_argument("--stages", type=int, nargs="+", default=[3, 6, 12, 16])
    p.add_argument("--beam", type=int, default=1)
    options.threads(p)


def run(args: argparse.Namespace) -> None:
    report(args.checkpoint, args.audio, args.kind, args.every, args.stages, args.beam)
