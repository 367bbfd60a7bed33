"""Codes of recordings: what a token model learns from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from ..codec import Codec
from ..config import FRAME, Data
from ..data import Batches, cache_dir, read_mono

COUNTS = (3, 6, 12, 16)
COUNT_SHARES = (0.3, 0.15, 0.35, 0.2)


@torch.no_grad()
def codes_of(codec: Codec, pcm: np.ndarray, stages: int, beam: int) -> np.ndarray:
    """pcm [B, N] -> codes [B, T, stages] int16."""
    n = pcm.shape[-1] // FRAME * FRAME
    z, _ = codec.encoder(torch.from_numpy(np.ascontiguousarray(pcm[..., :n])))
    return codec.quantiser.encode(z, stages, beam).numpy().astype(np.int16)


def training_codes(codec: Codec, model_id: str, folder: Path, hours: float, seed: int = 1) -> dict[int, np.ndarray]:
    """Codes [items, frames, stages] by number of stages, drawn with the codec's augmentation, cached by model id."""
    out = {}
    cached = cache_dir() / f"codes-{model_id}-{hours:g}h-{seed}.npz"
    if cached.exists():
        with np.load(cached) as z:
            return {int(k): z[k] for k in z.files}
    seconds = 6.4
    # Mixtures and noise as for the codec, but natural levels more often: that is what will be coded.
    cfg = dataclasses.replace(Data(), level_share=0.5, music_share=0.12, mixture_share=0.06)
    batches = Batches(folder, cfg, 8, seconds, seed)
    items = int(hours * 3600 / seconds)
    for s, share in zip(COUNTS, COUNT_SHARES, strict=True):
        rows = []
        while sum(map(len, rows)) < items * share:
            beam = int(batches.rng.choice([1, 2, 4, 4]))
            rows.append(codes_of(codec, next(batches), s, beam))
            if len(rows) % 20 == 0:
                print(f"{s} stages: {sum(map(len, rows))} of {items * share:.0f} items", flush=True)
        out[s] = np.concatenate(rows)
    np.savez(cached, **{str(k): v for k, v in out.items()})
    return out


def eval_codes(codec: Codec, folder: Path, kind: str, every: int, stages: int, beam: int) -> list[np.ndarray]:
    """Codes [T, stages] of recordings that were never trained on."""
    files = sorted(folder.glob(f"{kind}*.flac"))[::every]
    if not files:
        raise FileNotFoundError(f"no {kind}*.flac in {folder}")
    return [codes_of(codec, read_mono(f)[None], stages, beam)[0] for f in files]
