"""A comb over the decoder's output where a voice sounds: what quantisation put between the harmonics becomes less.

Below 1 kHz the decoder sends a waveform, and the error of a waveform coded with few bits does not repeat from period to period as the
voice does. So a sample is mixed with those a period before and after it (long-term postfilter: Chen and Gersho 1995; LC3's, ETSI TS 103
634). The period is that of the coded pitch, which every decoder knows exactly. The filter looks HOP samples ahead, which the output is
late by; where a period is longer, it looks back only. docs/voice.md has what it is worth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import FRAME, HOP, LOWEST_PITCH_HZ, SAMPLE_RATE_HZ
from .excitation import JUMP

DELAY = HOP
LOW_BINS = 24  # MDCT bins that are filtered, the upper eight less and less
EDGE_HZ, SLOPE_HZ = 1000.0, 400.0
LONGEST = int(SAMPLE_RATE_HZ / LOWEST_PITCH_HZ)  # period, samples
PAST = DELAY + LONGEST + 1  # samples before a call's that its output reads
# Share of the neighbours in the mixture, of a fully voiced sound: those before alone, and what it grows by where both are heard.
BEFORE, BOTH = 0.4, 0.15
FADE = 24.0  # samples of the period in which what comes after is faded out, below DELAY
CODED = 2  # pitches, and shares of voicing, that go on from call to call


def low_weights() -> Tensor:
    """[LOW_BINS] weights of bins in what is filtered."""
    hz = (torch.arange(LOW_BINS) + 0.5) * (SAMPLE_RATE_HZ / 2 / HOP)
    return ((EDGE_HZ + SLOPE_HZ / 2 - hz) / SLOPE_HZ).clamp(0, 1)


def joined(last: Tensor | None, now: Tensor) -> Tensor:
    """now [B, N] after the CODED values before it, which are 0 at first."""
    return torch.cat([now.new_zeros(len(now), CODED) if last is None else last, now], 1)


def periods(hz: Tensor) -> tuple[Tensor, Tensor]:
    """Pitch at the ends of frames [B, T + CODED], 0 where unvoiced -> for the samples [B, T * FRAME] that are heard between the first and the
    last but one of them: their period, and how far they are voiced, 0 to 1."""
    a, b = hz[:, :-2], hz[:, 1:-1]
    first, last = (SAMPLE_RATE_HZ / v.clamp_min(LOWEST_PITCH_HZ) for v in (a, b))
    # As the source does it: nothing glides over a jump, and a voice that ends keeps its pitch.
    apart = (first / last).log().abs() > JUMP
    start = torch.where((a > 0) & ((b == 0) | ~apart), first, last)
    end = torch.where(b > 0, last, first)
    n = torch.arange(1, FRAME + 1, device=hz.device) / FRAME
    ramp = lambda x, y: (x[..., None] + (y - x)[..., None] * n).flatten(1)
    return ramp(start, end), ramp((a > 0).to(hz.dtype), (b > 0).to(hz.dtype))


def shares(voicing: Tensor) -> Tensor:
    """Voicing of blocks [B, 2 T + CODED] -> of the samples [B, T * FRAME] that are heard between the first and the last but one."""
    a, b = voicing[:, :-2], voicing[:, 1:-1]
    n = torch.arange(1, HOP + 1, device=voicing.device) / HOP
    return (a[..., None] + (b - a)[..., None] * n).flatten(1)


def comb(low: Tensor, period: Tensor, share: Tensor) -> Tensor:
    """What is added to the output [B, N]: low [B, PAST + N] is what is filtered, period and share [B, N]."""
    here = torch.arange(PAST - DELAY, low.shape[1] - DELAY, device=low.device)
    after = ((DELAY - period) / FADE).clamp(0, 1) * 0.5

    def at(sign: int, distance: Tensor) -> Tensor:
        whole = distance.floor()
        part, index = distance - whole, here + sign * whole.long()
        near = low.gather(1, index)
        return near + part * (low.gather(1, index + sign) - near)

    near = at(-1, period)
    near = near + after * (at(1, period.clamp_max(DELAY - 1)) - near)
    return share * (BEFORE + BOTH * after) * (near - low[:, here])
