"""Has the encoder of a model folder learn what the search of `undertone encode` finds; codebooks stay as they are."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ..distil import learn, raise_level, recordings, search_with, searched
from ..export import load_exported
from . import options
from .renew import write_again


def arguments(p: argparse.ArgumentParser) -> None:
    options.model_folder(p)
    p.add_argument("out", type=Path, help="folder to write")
    p.add_argument("--undertone", type=Path, required=True, help="the program that searches")
    p.add_argument("--recordings", type=int, default=40, help="of a minute that are searched for (40); each takes about 25 s of a core")
    p.add_argument("--codes", type=Path, help="folder that keeps them, for another run with more")
    p.add_argument("--steps", type=int, default=1200, help="of training (1200)")
    p.add_argument("--rate", type=float, default=3e-4, help="learning rate (3e-4)")
    p.add_argument("--level", type=float, default=0.0, help="dB that the decoder's bands are raised by")
    p.add_argument("--seed", type=int, default=1)
    options.training_audio(p)
    options.threads(p)


def run(args: argparse.Namespace) -> None:
    cfg = options.model_config(args)
    codec = load_exported(args.model, cfg).eval().requires_grad_(False)
    draw, items = recordings(args.data, cfg.data, args.seed), []
    kept = args.codes or args.out / "searched"
    kept.mkdir(parents=True, exist_ok=True)
    for i in range(args.recordings):
        path = kept / f"{args.seed}-{i}.npz"
        if not path.exists():
            pcm = draw()
            np.savez(path, pcm=pcm, codes=search_with(args.undertone, args.model, pcm))
    for path in sorted(kept.glob("*.npz")):
        with np.load(path) as made:
            items.append(searched(codec, made["pcm"], made["codes"]))
    print(f"{len(items)} recordings are learnt from")
    before, after = learn(codec, items, args.steps, args.rate, args.seed)
    print(f"distance from what a search found, of a recording that was not learnt from: {before:.3f} before, {after:.3f} after")
    raise_level(codec, args.level)
    write_again(codec, args.model, args.out, args.data)
