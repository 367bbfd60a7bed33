"""Pitch of recordings, as labels for training: normalised correlation and the best path through it (Talkin 1995, RAPT).

It looks ahead as far as it likes. What decodes a stream learns to say the same from the latents alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.signal import firwin, upfirdn
from torch import Tensor

from .config import HIGHEST_PITCH_HZ, HOP, LOWEST_PITCH_HZ, SAMPLE_RATE_HZ

DECIMATION = 2
RATE = SAMPLE_RATE_HZ // DECIMATION
STEP = HOP // DECIMATION  # between two values
WINDOW = RATE // 33  # 30 ms
LAGS = (math.ceil(RATE / HIGHEST_PITCH_HZ), math.floor(RATE / LOWEST_PITCH_HZ))
LOW_PASS_HZ = 1000.0
UNVOICED_COST = 0.45  # so a correlation of 0.55 is as good as none
SWITCH_COST = 0.25  # of a change between voiced and unvoiced
JUMP_COST = 1.5  # an octave
LONG_LAG_COST = 0.06  # of the longest lag against the shortest: of equals the higher pitch
SILENCE_DB = -55.0  # below the loudest second around


def correlations(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, N] at RATE -> normalised correlation [B, T, lags] of windows centred on every STEP, and their power [B, T]."""
    shortest, longest = LAGS
    span = WINDOW + longest
    padded = torch.nn.functional.pad(x, (span // 2, span))
    frames = padded.unfold(1, span, STEP)[:, : x.shape[1] // STEP]
    frames = frames - frames.mean(-1, keepdim=True)
    n = 1 << (span + WINDOW - 1).bit_length()
    head = torch.fft.rfft(frames[..., :WINDOW], n)
    product = torch.fft.irfft(head.conj() * torch.fft.rfft(frames, n), n)[..., shortest : longest + 1]
    power = torch.nn.functional.pad(frames.pow(2).cumsum(-1), (1, 0))
    lags = torch.arange(shortest, longest + 1)
    moved = power[..., lags + WINDOW] - power[..., lags]
    floor = 1e-7 * WINDOW
    return product / torch.sqrt((power[..., WINDOW : WINDOW + 1] + floor) * (moved + floor)), frames.pow(2).mean(-1)


def best_path(voiced_cost: Tensor, unvoiced_cost: Tensor) -> Tensor:
    """Costs [B, T, lags] and [B, T] -> state [B, T]: index of the lag, or the number of lags where unvoiced (Viterbi)."""
    b, t, lags = voiced_cost.shape
    octaves = torch.log2(torch.arange(LAGS[0], LAGS[1] + 1).float())
    change = torch.full((lags + 1, lags + 1), SWITCH_COST)
    change[:lags, :lags] = JUMP_COST * (octaves[:, None] - octaves).abs()
    change[lags, lags] = 0.0
    cost = torch.cat([voiced_cost, unvoiced_cost[..., None]], -1)
    total, came = cost[:, 0], torch.zeros(b, t, lags + 1, dtype=torch.int16)
    for i in range(1, t):
        best, index = (total[:, None] + change).min(-1)
        came[:, i], total = index.to(torch.int16), best + cost[:, i]
    path = torch.empty(b, t, dtype=torch.long)
    path[:, -1] = total.argmin(-1)
    for i in range(t - 1, 0, -1):
        path[:, i - 1] = came[:, i].gather(1, path[:, i, None])[:, 0].long()
    return path


@torch.no_grad()
def track(x: np.ndarray, rows: int = 64, seconds: float = 20.0) -> np.ndarray:
    """Samples at SAMPLE_RATE_HZ, float or int16 -> pitch in Hz at the middle of every hop [N / HOP], 0 where unvoiced.

    Long recordings are cut into pieces of `seconds` that are tracked side by side, `rows` at a time.
    """
    hops = len(x) // HOP
    piece = min(int(seconds * SAMPLE_RATE_HZ) // HOP, max(1, hops)) * HOP
    taps = firwin(121, LOW_PASS_HZ, fs=SAMPLE_RATE_HZ)
    out = np.zeros(hops, np.float32)
    for start in range(0, hops * HOP, piece * rows):
        part = np.asarray(x[start : start + piece * rows], np.float32)[: (len(x) - start) // HOP * HOP]
        part *= np.float32(1 / 32768 if x.dtype == np.int16 else 1)
        low = upfirdn(taps, np.pad(part, (0, -len(part) % piece)), 1, DECIMATION)[60 // DECIMATION :]
        low = torch.from_numpy(low[: (len(part) + -len(part) % piece) // DECIMATION].astype(np.float32)).reshape(-1, piece // DECIMATION)
        f0 = track_rows(low).reshape(-1)[: len(part) // HOP]
        out[start // HOP : start // HOP + len(f0)] = f0.numpy()
    return out


def track_rows(x: Tensor) -> Tensor:
    """x [B, N] at RATE -> pitch in Hz [B, N / STEP], 0 where unvoiced."""
    correlation, power = correlations(x)
    lags = torch.arange(LAGS[0], LAGS[1] + 1).float()
    loudest = torch.nn.functional.max_pool1d(power[:, None], 201, 1, 100)[:, 0]
    quiet = power < loudest * 10 ** (SILENCE_DB / 10) + 1e-8
    path = best_path(1 - correlation + LONG_LAG_COST * lags / LAGS[1], torch.where(quiet, -1.0, UNVOICED_COST).expand_as(power))
    at = path.clamp(1, len(lags) - 2)
    left, top, right = (correlation.gather(2, (at + k)[..., None])[..., 0] for k in (-1, 0, 1))
    fine = (0.5 * (left - right) / (left - 2 * top + right).clamp(max=-1e-6)).clamp(-0.5, 0.5)
    return torch.where(path < len(lags), RATE / (lags[at] + fine), 0.0)
