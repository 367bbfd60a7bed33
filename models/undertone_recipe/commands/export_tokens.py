"""Writes a token model's checkpoint as the file that undertone loads, with a golden example."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import digests
from ..export import load_exported, model_id, test_signal
from ..tokens.data import codes_of
from ..tokens.export import export, integer_loss
from ..tokens.train import read
from . import options

GOLDEN_FRAMES, GOLDEN_STAGES = 40, 8


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", type=Path)
    options.model_folder(p)
    p.add_argument("--name", default="tokens.safetensors", help="file to write in that folder")


def run(args: argparse.Namespace) -> None:
    codec = load_exported(args.model, options.model_config(args)).eval()
    model = read(args.checkpoint, codec)
    codes = codes_of(codec, test_signal(GOLDEN_FRAMES)[None], min(GOLDEN_STAGES, codec.cfg.network.stages), 1)[0]
    integers, floats = integer_loss(model, codec, codes)
    print(f"bits a code, integers and floats: {integers:.4f} {floats:.4f}")
    print("token model id", export(model, codec, model_id(args.model), codes, args.model / args.name))
    digests.write(args.model)
