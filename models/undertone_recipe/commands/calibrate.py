"""Sets level and voice of a checkpoint's decoder right by constants."""

from __future__ import annotations

import argparse
import dataclasses

from ..calibrate import calibrate
from ..codec import load, save_changed
from ..data import Batch, Batches
from . import options


def arguments(p: argparse.ArgumentParser) -> None:
    options.checkpoints(p)
    options.training_audio(p, "to measure on")
    p.add_argument("--batches", type=int, default=24, help="of 8 items of 2 s (24)")
    p.add_argument("--voice-band", type=int, help="first band without a waveform, instead of the configuration's")
    options.threads(p)


def run(args: argparse.Namespace) -> None:
    codec, raw = load(args.checkpoint, averaged=True)
    if args.voice_band is not None:
        codec.cfg = dataclasses.replace(codec.cfg, network=dataclasses.replace(codec.cfg.network, voice_band=args.voice_band))
    # As they are recorded.
    shares = [f.name for f in dataclasses.fields(codec.cfg.data) if f.name.endswith("_share")]
    data = dataclasses.replace(codec.cfg.data, **dict.fromkeys(shares, 0.0))
    batches = Batches(args.data, data, 8, 2.0, 77)
    changes = calibrate(codec, [Batch.of(batches.labelled()) for _ in range(args.batches)])
    print("level of loud frames: " + ", ".join(f"{change:+.2f} dB" for change in changes))
    save_changed(args.out, codec, raw)
