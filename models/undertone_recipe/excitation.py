"""The decoder's voice source: pulses with a running phase (Wang, Takaki and Yamagishi 2019, in the MDCT domain; docs/voice.md).

The network says the pitch at the end of each frame; within the frame it moves evenly. The phase goes on from frame to frame, through
silence and losses too. Arithmetic is arranged so that a stream cut into pieces gives what the whole gives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import FRAME, HIGHEST_PITCH_HZ, LOWEST_PITCH_HZ, PITCHES, SAMPLE_RATE_HZ

TOP_HZ = 7900.0  # no harmonics above
UNIT_HZ = SAMPLE_RATE_HZ / 4  # a pulse train of this pitch has power 1/2 and so unit power in each bin
JUMP = 0.2  # ln; pitches further apart are two voices, between which nothing glides
PHASE_STEPS = 2.0**14  # a cycle; phases at the ends of frames are multiples, whose sums are exact
STEP = math.log(HIGHEST_PITCH_HZ / LOWEST_PITCH_HZ) / (PITCHES - 1)  # between two pitches, ln
NEAREST = 2  # pitches on either side of the likeliest that have a say in the value


def nearest_pitch(hz: Tensor) -> Tensor:
    """Index of the nearest of the PITCHES, which lie evenly in octaves."""
    return (torch.log(hz.clamp_min(1.0) / LOWEST_PITCH_HZ) / STEP).round().long().clamp(0, PITCHES - 1)


def read_pitch(logits: Tensor) -> Tensor:
    """logits [..., PITCHES] -> Hz [...]: the mean, in octaves, over the likeliest pitch and its neighbours, to an eighth of a step, so that
    processors that round otherwise find the same."""
    index = torch.arange(PITCHES, device=logits.device)
    best = logits.argmax(-1, keepdim=True)
    near = (index - best).abs() <= NEAREST
    p = torch.softmax(logits.masked_fill(~near, -1e4), -1)
    fine = torch.round((p * index).sum(-1) * 8) / 8
    return LOWEST_PITCH_HZ * torch.exp(fine * STEP)


def pulses(hz: Tensor, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pitch at the ends of frames [B, T] and (pitch, phase in cycles) [B, 2] at the end of the frame before -> pulses [B, T * FRAME],
    cosines of all harmonics up to TOP_HZ at unit power a bin, and [B, 2] for the next call."""
    if last is None:
        last = torch.stack([hz[:, 0], torch.zeros_like(hz[:, 0])], 1)
    before = torch.cat([last[:, :1], hz[:, :-1]], 1)
    before = torch.where((hz / before.clamp_min(1.0)).log().abs() > JUMP, hz, before)
    n = torch.arange(1, FRAME + 1, device=hz.device) / FRAME
    slope = (hz - before)[..., None]
    advance = (before[..., None] * n + slope * (n * n / 2)) * (FRAME / SAMPLE_RATE_HZ)
    whole = torch.round((before + hz) * (FRAME / SAMPLE_RATE_HZ / 2 * PHASE_STEPS)) / PHASE_STEPS
    whole = whole - torch.floor(whole)
    ends = last[:, 1:] + whole.cumsum(1)
    starts = torch.cat([last[:, 1:], ends[:, :-1]], 1)
    phase = (starts - torch.floor(starts))[..., None] + advance
    phase = phase - torch.round(phase)
    phase = torch.where(phase.abs() < 1e-6, torch.full_like(phase, 1e-6), phase)
    now = before[..., None] + slope * n
    harmonics = torch.floor(TOP_HZ / now)
    # Sum of cos(2 pi k phase), k from 1 to `harmonics`, in closed form (Dirichlet's kernel).
    train = torch.sin(math.pi * (2 * harmonics + 1) * phase) / (2 * torch.sin(math.pi * phase)) - 0.5
    train = train * torch.sqrt(now / UNIT_HZ)
    end = ends[:, -1] - torch.floor(ends[:, -1])
    return train.reshape(hz.shape[0], -1), torch.stack([hz[:, -1], end], 1)
