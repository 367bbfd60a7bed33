"""What the decoder's output goes through last: a comb where a voice sounds, and gains where a sound begins.

Below 1 kHz the decoder sends a waveform, and the error of a waveform coded with few bits does not repeat from period to period as the
voice does. So a sample is mixed with those a period before and after it (long-term postfilter: Chen and Gersho 1995; LC3's, ETSI TS 103
634). The period is that of the coded pitch, which every decoder knows exactly. The filter looks HOP samples ahead, which the output is
late by; where a period is longer, it looks back only. Where the two do not resemble each other there is no comb.

A block of 10 ms has one gain a band, so what begins within it is heard before it begins, and begins softly. From the power of parts of 2.5
ms the filter sees where that is: it lowers what comes before a steep rise out of silence, and lifts what comes first (as codecs for music
cure pre-echo, but without a word of the encoder). docs/voice.md has what both are worth.
"""

from __future__ import annotations

import math

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
BEFORE, BOTH = 0.5, 0.15
# Correlation of a hop with its neighbours at which the comb begins, and from which on it has its whole share.
LEAST_LIKENESS, FULL_LIKENESS = 0.6, 0.95
FADE = 24.0  # samples of the period in which what comes after is faded out, below DELAY
PART = 60  # samples whose power is looked at
AHEAD = DELAY // PART  # parts that are seen of what comes
LIFTED = 4  # parts for which a rise is lifted, less and less
PARTS = 2 * AHEAD + LIFTED - 2  # that a call knows of the one before
# A sound begins in a part where the power rises by so much over the last 10 ms and by so much over the 10 ms before those; 6 dB more and it
# is lifted by all of this.
RISE_DB, RISE_FAR_DB, CLEAR_DB, LIFT_DB = 7.0, 21.0, 6.0, 10.0
# From how far below what comes, and at most by how much, it is lowered where no voice sounds.
FALL_DB, LOWER_DB = 7.0, 5.0
LEAST_POWER = 1e-7  # -70 dBFS
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


def comb(low: Tensor, period: Tensor, share: Tensor, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What is added to the output [B, N], and the likeness of its last hop [B, 1], which is `last` for the next call: low [B, PAST + N] is
    what is filtered, period and share [B, N]."""
    here = torch.arange(PAST - DELAY, low.shape[1] - DELAY, device=low.device)
    after = ((DELAY - period) / FADE).clamp(0, 1) * 0.5

    def at(sign: int, distance: Tensor) -> Tensor:
        whole = distance.floor()
        part, index = distance - whole, here + sign * whole.long()
        near = low.gather(1, index)
        return near + part * (low.gather(1, index + sign) - near)

    near = at(-1, period)
    near = near + after * (at(1, period.clamp_max(DELAY - 1)) - near)
    own = low[:, here]
    with torch.no_grad():
        like = likeness(own, near)
        last = like.new_zeros(len(like), 1) if last is None else last
        before = torch.cat([last, like[:, :-1]], 1)[..., None]
        n = torch.arange(1, HOP + 1, device=low.device) / HOP
        gate = (before + (like[..., None] - before) * n).flatten(1)
    return gate * share * (BEFORE + BOTH * after) * (near - own), like[:, -1:]


def likeness(x: Tensor, y: Tensor) -> Tensor:
    """[B, N] each -> how much of its share the comb has in each hop [B, N / HOP], 0 to 1, by the correlation of the two."""
    total = lambda v: v.reshape(len(v), -1, HOP).sum(-1)
    correlation = total(x * y) / torch.sqrt(total(x * x) * total(y * y) + 1e-12)
    return ((correlation - LEAST_LIKENESS) / (FULL_LIKENESS - LEAST_LIKENESS)).clamp(0, 1)


@torch.no_grad()
def onsets(held: Tensor, voiced: Tensor, powers: Tensor | None = None, last: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Samples held [B, N + HOP], of which the first N are heard now, and how far they are voiced [B, N] -> their gains [B, N], and for the next
    call the powers of the last parts before it [B, PARTS] and its last gain less 1 [B, 1]."""
    power = held.reshape(len(held), -1, PART).pow(2).mean(-1)
    if powers is None or last is None:
        powers, last = power.new_zeros(len(power), PARTS), power.new_zeros(len(power), 1)
    db = 10 * torch.log10(torch.cat([powers, power], 1) + LEAST_POWER)
    count = power.shape[1] - AHEAD
    highest = lambda first, count: torch.stack([db[:, i : i + count] for i in range(first, first + AHEAD)]).amax(0)
    clear = lambda rise, least: ((rise - least) / CLEAR_DB).clamp(0, 1)
    # Of parts from LIFTED - 1 before those that are heard: what was up to 10 ms ago, and what was before.
    seen = count + LIFTED - 1
    now, lately, earlier = db[:, 2 * AHEAD - 1 : -AHEAD], highest(AHEAD - 1, seen), highest(0, seen)
    lift = clear(now - lately, RISE_DB) * clear(now - earlier, RISE_FAR_DB) * LIFT_DB
    lift = torch.stack([lift[:, i : i + count] * ((i + 1) / LIFTED) for i in range(LIFTED)]).amax(0)
    coming, now, earlier = highest(PARTS + 1, count), now[:, LIFTED - 1 :], earlier[:, LIFTED - 1 :]
    lower = (coming - now - FALL_DB).clamp(0, LOWER_DB) * clear(coming - earlier, RISE_FAR_DB) * (1 - voiced[:, PART - 1 :: PART])
    gain = torch.exp(torch.where(lower > 0, -lower, lift) * (math.log(10) / 20))
    # A gain rises at once, at the first sample of a part, and falls within it.
    before = torch.cat([last + 1, gain[:, :-1]], 1)
    left = 1 - torch.arange(1, PART + 1, device=held.device) / PART
    gains = gain[..., None] + (before - gain).clamp_min(0)[..., None] * left
    return gains.flatten(1), torch.cat([powers, power], 1)[:, count : count + PARTS], gain[:, -1:] - 1
