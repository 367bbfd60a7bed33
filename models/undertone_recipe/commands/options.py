"""Options that several commands have, and the one setting behind their defaults."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..config import Config, load, of_model

# A folder with the recordings to train on in `train` and those to measure with in `eval`.
DATA_SETTING = "UNDERTONE_DATA"


def _recordings(p: argparse.ArgumentParser, option: str, part: str, use: str, required: bool) -> None:
    base = os.environ.get(DATA_SETTING)
    default = Path(base) / part if base else None
    help = f"folder of recordings {use}; ${DATA_SETTING}/{part} if not given"
    p.add_argument(option, type=Path, default=default, required=required and default is None, help=help)


def training_audio(p: argparse.ArgumentParser, use: str = "to train on") -> None:
    """--data, required unless the setting is there."""
    _recordings(p, "--data", "train", use, required=True)


def evaluation_audio(p: argparse.ArgumentParser) -> None:
    """--audio, required unless the setting is there."""
    _recordings(p, "--audio", "eval", "to measure with", required=True)


def checkpoints(p: argparse.ArgumentParser) -> None:
    """The checkpoint that a command reads, and the one that it writes."""
    p.add_argument("checkpoint", type=Path)
    p.add_argument("out", type=Path, help="checkpoint to write")


def threads(p: argparse.ArgumentParser) -> None:
    p.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch (1)")


def device(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")


def model_folder(p: argparse.ArgumentParser) -> None:
    """The folder of an exported model, and the configuration of one that does not say which it has."""
    p.add_argument("model", type=Path, help="folder of the codec's model")
    p.add_argument("--config", type=Path, help="configuration of the model, if there is no config.json in its folder")


def model_config(args: argparse.Namespace) -> Config:
    """The configuration that the model folder was made with."""
    return load(args.config) if args.config else of_model(args.model)
