"""Adds graphs with integer products to a model folder, which live streams run."""

from __future__ import annotations

import argparse

from .. import digests, int8
from ..data import Batches
from ..export import load_exported
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    options.model_folder(p)
    options.training_audio(p, "to observe the ranges of the layers with")
    options.threads(p)


def run(args: argparse.Namespace) -> None:
    cfg = options.model_config(args)
    int8.write(args.model, load_exported(args.model, cfg).eval(), Batches(args.data, cfg.data, 8, 4.0, 77))
    digests.write(args.model)
