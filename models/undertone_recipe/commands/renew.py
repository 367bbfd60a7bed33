"""Writes a model folder again with what the recipe has learnt to do since: the comb, gains where sounds begin, pairs of tones.

Networks stay as they are, and codes mean what they meant.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from .. import digests, int8
from ..codec import Codec
from ..data import Batches
from ..export import export, load_exported
from ..network import VOICING_HZ
from . import options

# Token models, which say whose codes theirs are: the codes mean what they meant.
OF_CODES = ("tokens.safetensors", "draft.safetensors")


def arguments(p: argparse.ArgumentParser) -> None:
    options.model_folder(p)
    p.add_argument("out", type=Path, help="folder to write")
    groups = len(VOICING_HZ)
    p.add_argument("--voicing", type=float, nargs=groups, default=[0.0] * groups, metavar="LOGIT", help="added to the voicing of each group of bands")
    options.training_audio(p, "to observe the ranges of the layers with")
    options.threads(p)


def take_tokens(old: Path, new: Path, model_id: str) -> None:
    """The token models of one folder in another, whose codes are the same under another id."""
    for name in OF_CODES:
        if not (old / name).exists():
            continue
        with safe_open(old / name, "numpy") as file:
            meta = file.metadata() | {"codec": model_id}
        save_file(load_file(old / name), new / name, metadata=meta)


def write_again(codec: Codec, old: Path, out: Path, data: Path) -> None:
    """Writes a model folder with all that goes with it; the token models of the one it was are taken along."""
    made = export(codec, out, codec.cfg.name)
    int8.write(out, codec, Batches(data, codec.cfg.data, 8, 4.0, 77))
    take_tokens(old, out, made)
    if (old / "MODEL_CARD.md").exists():
        shutil.copy(old / "MODEL_CARD.md", out)
    digests.write(out)
    print("model id", made)


def run(args: argparse.Namespace) -> None:
    cfg = options.model_config(args)
    cfg = dataclasses.replace(cfg, network=dataclasses.replace(cfg.network, comb=cfg.network.voice))
    codec = load_exported(args.model, cfg).eval()
    if cfg.network.voice:
        codec.decoder.voicing.bias.data += torch.tensor(args.voicing)
    write_again(codec, args.model, args.out, args.data)
