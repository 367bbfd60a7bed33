"""Writes files.toml of a model folder: SHA-256 of the files that its manifest does not name. undertone refuses a file that differs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..digests import write


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", type=Path, help="model folder")


def run(args: argparse.Namespace) -> None:
    print("files.toml: " + ", ".join(write(args.model)))
