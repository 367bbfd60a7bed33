"""Sets the level of bands and the share of the voice of a checkpoint's decoder right by constants."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from ..calibrate import calibrate
from ..codec import load, save
from ..data import Batch, Batches
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", type=Path)
    p.add_argument("out", type=Path, help="checkpoint to write")
    options.training_audio(p, "to measure on")
    p.add_argument("--batches", type=int, default=24, help="of 8 items of 2 s (24)")
    p.add_argument("--voice-band", type=int, help="first band without a waveform, instead of the configuration's")
    options.threads(p)


def run(args: argparse.Namespace) -> None:
    codec, raw = load(args.checkpoint, averaged=True)
    if args.voice_band is not None:
        codec.cfg = dataclasses.replace(codec.cfg, network=dataclasses.replace(codec.cfg.network, voice_band=args.voice_band))
    # As they are recorded: what is added in training has no pitch to measure.
    data = dataclasses.replace(codec.cfg.data, mixture_share=0, noise_share=0, talkers_share=0, room_share=0, signal_share=0, silence_share=0)
    batches = Batches(args.data, data, 8, 2.0, 77, pitched=True)
    for found in calibrate(codec, [Batch.of(batches.labelled()) for _ in range(args.batches)]):
        line = lambda values: " ".join(f"{float(v):.2f}" for v in values)
        print(f"level {line(found.level_db)} | repeats {line(found.periodic)}, original {line(found.original)}", flush=True)
    with torch.no_grad():
        save(args.out, codec, step=raw.get("step", 0), device_seconds=raw.get("device_seconds", 0.0))
