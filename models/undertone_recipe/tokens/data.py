"""Codes of recordings: what a token model learns from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from ..codec import Codec
from ..config import FRAME, Data
from ..data import Batches, ahead, cache_dir, read_mono
from ..search import Search

# Mean stages of the recordings that are coded, and how often each; rates of 1.5, 3, 6 and 8 kbit/s in files.
COUNTS = (4, 8, 17, 22)
COUNT_SHARES = (0.25, 0.25, 0.3, 0.2)
EVEN_SHARE = 0.3  # items whose frames all have the same number, as in live streams
SEARCHED_SHARE = 0.5  # batches whose latents are searched for, as in files; their codes are harder to guess
SECONDS = 6.4  # of an item
SEARCH_STEPS = 10  # half of what files get: it has the most of the effect


@torch.no_grad()
def codes_of(codec: Codec, pcm: np.ndarray, stages: int, beam: int, depths: torch.Tensor | None = None, search: Search | None = None) -> np.ndarray:
    """pcm [B, N] -> codes [B, T, stages] int16; with depths [B, T], -1 for stages that a frame does not have."""
    n = pcm.shape[-1] // FRAME * FRAME
    whole = torch.from_numpy(np.ascontiguousarray(pcm[..., :n])).to(codec.device)
    z = search.latents(whole) if search else codec.encoder(whole)[0]
    return codec.quantiser.encode(z, stages, beam, depths).cpu().numpy().astype(np.int16)


def training_codes(codec: Codec, model_id: str, folder: Path, hours: float, seed: int = 1, batch: int = 8, workers: int = 0) -> np.ndarray:
    """Codes [items, frames, stages], -1 for stages that a frame does not have, drawn with the codec's augmentation and cached
    by model id."""
    cached = cache_dir() / f"codes-{model_id}-{hours:g}h-{seed}-searched.npy"
    if cached.exists():
        return np.load(cached)
    # Mixtures and noise as for the codec, but natural levels more often: that is what will be coded.
    cfg = dataclasses.replace(Data(), level_share=0.5, music_share=0.12, mixture_share=0.06)
    make = lambda worker: Batches(folder, cfg, batch, SECONDS, seed + 7919 * worker)
    batches, rng = ahead(make(0), make, workers), np.random.default_rng(seed)
    codec.quantiser.cfg = dataclasses.replace(codec.quantiser.cfg, graded_share=1 - EVEN_SHARE)
    most, items = codec.cfg.network.stages, int(hours * 3600 / SECONDS)
    search = Search(codec.requires_grad_(False), SEARCH_STEPS)
    rows: list[np.ndarray] = []
    while sum(map(len, rows)) < items:
        pcm = next(batches).pcm
        counts = torch.from_numpy(rng.choice(COUNTS, len(pcm), p=COUNT_SHARES))
        depths = codec.quantiser.grade(counts, pcm.reshape(len(pcm), -1, FRAME))
        searched, beam = rng.random() < SEARCHED_SHARE, int(rng.choice([1, 2, 4, 4]))
        rows.append(codes_of(codec, pcm.numpy(), most, beam, depths, search if searched else None))
        if len(rows) % 20 == 0:
            print(f"codes: {sum(map(len, rows))} of {items} items", flush=True)
    out = np.concatenate(rows)
    np.save(cached, out)
    return out


def eval_codes(codec: Codec, folder: Path, kind: str, every: int, stages: int, beam: int) -> list[np.ndarray]:
    """Codes [T, stages] of recordings that were never trained on."""
    files = sorted(folder.glob(f"{kind}*.flac"))[::every]
    if not files:
        raise FileNotFoundError(f"no {kind}*.flac in {folder}")
    return [codes_of(codec, read_mono(f)[None], stages, beam)[0] for f in files]
