"""Scores of a checkpoint on recordings it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.signal
import torch
from pesq import pesq
from pystoi import stoi

from .codec import load
from .config import FRAME
from .data import audio_files, read_mono


def scores(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(PESQ-WB, ESTOI) of y against x, both 24 kHz."""
    a, b = (scipy.signal.resample_poly(v, 2, 3).astype(np.float32) for v in (x, y))
    return pesq(16000, a, b, "wb"), stoi(a, b, 16000, extended=True)


def report(checkpoint: Path, audio: Path, kind: str, every: int, stages: list[int], beam: int) -> dict[int, tuple[float, float]]:
    """Prints and returns mean (PESQ-WB, ESTOI) by number of stages; 0 stages stands for unquantised."""
    codec, raw = load(checkpoint, averaged=True)
    codec.eval()
    files = audio_files(audio, kind)[::every]
    if not files:
        raise FileNotFoundError(f"no recordings {kind}* in {audio}")
    rows: dict[int, list] = {s: [] for s in stages}
    for f in files:
        x = read_mono(f)
        n = len(x) // FRAME * FRAME
        for s in stages:
            y = codec.round_trip(torch.from_numpy(x[:n])[None], s, beam)[0].numpy()
            rows[s].append(scores(x[:n], y))
    print(f"step {raw.get('step')} {raw.get('device_seconds', 0) / 60:.0f} min {kind} n={len(files)} beam={beam}")
    result = {}
    for s, r in rows.items():
        m = np.nanmean(np.array(r), 0)
        result[s] = (float(m[0]), float(m[1]))
        print(f"  {s / 2:.1f} kbit/s PESQ-WB {m[0]:.3f} ESTOI {m[1]:.3f}")
    return result
