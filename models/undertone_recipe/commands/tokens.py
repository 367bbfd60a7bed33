"""Trains a token model on the codes of a model folder."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ..export import load_exported, model_id
from ..tokens.model import DRAFT, TARGET
from ..tokens.train import train
from ..tokens.transfer import start_from_model
from . import options

# Size -> shape of the network, and its file in a model folder.
SIZES = {"target": (TARGET, "tokens.safetensors"), "draft": (DRAFT, "draft.safetensors")}


def arguments(p: argparse.ArgumentParser) -> None:
    options.model_folder(p)
    p.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    p.add_argument("--size", choices=tuple(SIZES), default="target")
    options.training_audio(p)
    options.evaluation_audio(p)
    p.add_argument("--minutes", type=float, default=60.0)
    p.add_argument("--hours", type=float, default=6.0, help="hours of augmented audio to encode first")
    p.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    p.add_argument("--batch", type=int, default=8, help="sequences of a step; a GPU wants 64")
    p.add_argument("--workers", type=int, default=0, help="processes that make the audio to encode (0: none)")
    options.device(p)
    options.threads(p)
    begin = p.add_mutually_exclusive_group()
    begin.add_argument("--resume", type=Path, help="checkpoint to go on from")
    begin.add_argument("--from-model", type=Path, help="model folder whose token model to start from, of this codec or an older one")


def run(args: argparse.Namespace) -> None:
    codec = load_exported(args.model, options.model_config(args)).eval()
    shape, file = SIZES[args.size]
    shape = dataclasses.replace(shape, latent=codec.cfg.network.latent)
    start = start_from_model(shape, codec, args.from_model, file) if args.from_model else None
    how = {"start": start, "resume": args.resume, "device": args.device}
    how |= {"minutes": args.minutes, "hours": args.hours, "rate": args.rate, "batch": args.batch, "workers": args.workers}
    done = train(codec, model_id(args.model), shape, args.data, args.audio, args.out, **how)
    print(done)
