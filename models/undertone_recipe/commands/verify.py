"""Checks a model folder: hashes, compute, parity of torch and ONNX Runtime, and with --data that all codebooks are in use."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..verify import VerifyError, verify
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    options.model_folder(p)
    p.add_argument("--data", type=Path, help="folder of recordings on which the codebooks must be in use")


def run(args: argparse.Namespace) -> None:
    try:
        verify(args.model, options.model_config(args), args.data)
    except VerifyError as e:
        sys.exit(f"verify: {e}")
