"""Writes a checkpoint as a model folder that undertone loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import digests
from ..codec import load
from ..export import export


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--name", help="of the model, for people; that of the configuration if not given")


def run(args: argparse.Namespace) -> None:
    codec, _ = load(args.checkpoint, averaged=True)
    print("model id", export(codec, args.out, args.name or codec.cfg.name))
    digests.write(args.out)
