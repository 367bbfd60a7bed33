"""Tones, pairs of them and telephone digits in what the encoder hears: one or two lines that hold nearly all of the energy.

Nothing here is learnt. A voice never looks like this for long; where it does (a whistle, a hum) a tone is what it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import DTMF_HZ, FRAME, HOP, SAMPLE_RATE_HZ
from .excitation import FIRST_DIGIT, FIRST_TONE, HIGHEST_TONE_HZ, LOWEST_TONE_HZ, nearest_tone

WINDOW = 600  # samples (25 ms), up to the end of the frame
LINE_HZ = SAMPLE_RATE_HZ / WINDOW
FIRST_BIN, BINS = 2, 176  # of the spectrum that is looked at: 80 Hz to 7.08 kHz
NEAR = 3  # bins on either side that belong to a line
LEAST_SHARE = 0.97  # of the energy in one line, or in two
VOICE_HZ, LEAST_LOW_SHARE = 600.0, 0.999  # below that a voice's fundamental can stand nearly alone; only a pure tone passes
# Two lines that are no digit: so pure that of 27 hours of voices' frames 2 in 10,000 pass, and far enough apart to be told apart.
LEAST_PAIR_SHARE, PAIR_APART = 0.997, 2 * NEAR + 1
LEAST_POWER = 1e-6  # -60 dBFS
LEAST_SECOND = 0.05  # of the stronger line's energy
DIGIT_TOLERANCE = 0.025  # of a frequency; ITU-T Q.24 wants 1.8 % accepted and 3 % refused


def spectrum_matrix() -> Tensor:
    """[WINDOW, 2 BINS]: the discrete Fourier transform under a Hann window, real parts and imaginary ones."""
    n = torch.arange(WINDOW, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * n / WINDOW)
    angle = 2 * math.pi / WINDOW * n[:, None] * torch.arange(FIRST_BIN, FIRST_BIN + BINS)
    return (torch.cat([torch.cos(angle), -torch.sin(angle)], 1) * hann[:, None]).float()


def near_matrix() -> Tensor:
    """[BINS, BINS]: 1 where two bins belong to the same line."""
    k = torch.arange(BINS)
    return ((k[:, None] - k).abs() <= NEAR).float()


class Found(NamedTuple):
    """What was found in frames, all [B, T]."""

    code: Tensor  # of a tone or a digit, 0 where there is none
    single: Tensor  # bool: one tone
    pair: Tensor  # bool: two tones, of which the code says one
    higher: Tensor  # bool: and that is the higher one


class TonesFinder(nn.Module):
    matrix: Tensor
    near: Tensor
    weight: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", spectrum_matrix(), persistent=False)
        self.register_buffer("near", near_matrix(), persistent=False)
        hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(WINDOW) / WINDOW)
        # By Parseval the sum of squares under the window, times this, is the energy of all bins.
        self.register_buffer("weight", hann * hann * (WINDOW / 2), persistent=False)
        self.register_buffer("rows", torch.tensor(DTMF_HZ[0]), persistent=False)
        self.register_buffer("columns", torch.tensor(DTMF_HZ[1]), persistent=False)
        self.least_energy = LEAST_POWER * float(self.weight.sum())

    def frequency(self, power: Tensor, k: Tensor) -> Tensor:
        """Hz [B, T] of the line with its peak at bins k [B, T] of power [B, T, BINS]: exact for a line under a Hann window."""
        at = lambda i: power.gather(-1, i.clamp(0, BINS - 1)[..., None])[..., 0]
        top = at(k).clamp_min(1e-20)
        left, right = torch.sqrt(at(k - 1) / top), torch.sqrt(at(k + 1) / top)
        side = torch.maximum(left, right)
        away = (2 * side - 1) / (side + 1)
        return (FIRST_BIN + k + torch.where(right > left, away, -away)) * LINE_HZ

    def digit(self, low: Tensor, high: Tensor) -> Tensor:
        """Code [...] of the digit whose tones these are, 0 where they are none's."""
        row, column = (low[..., None] / self.rows - 1).abs(), (high[..., None] / self.columns - 1).abs()
        fits = torch.maximum(row.amin(-1), column.amin(-1)) < DIGIT_TOLERANCE
        return torch.where(fits, FIRST_DIGIT + 4 * row.argmin(-1) + column.argmin(-1), 0)

    def amplitudes(self, pcm: Tensor) -> Tensor:
        """pcm as for `forward` -> amplitudes [B, T, 2] of the two strongest lines, the lower one first; where the second is none of a digit
        its value means nothing."""
        heard = pcm.unfold(1, HOP + FRAME, FRAME)[..., -WINDOW:]
        power = (heard @ self.matrix).pow(2).unflatten(-1, (2, BINS)).sum(-2)
        lines, first = power @ self.near, power.argmax(-1)
        second = (power * (1 - self.near[first])).argmax(-1)
        pair = torch.stack([torch.minimum(first, second), torch.maximum(first, second)], -1)
        # A line of amplitude 1 has the energy of the window's squares, times a quarter of their number.
        return torch.sqrt(lines.gather(-1, pair) * 2 / self.weight.sum())

    def forward(self, pcm: Tensor, odd: Tensor) -> Found:
        """pcm [B, HOP + T * FRAME], the hop before the frames first; bool odd [B, T]: of a pair such a frame says the higher tone."""
        heard = pcm.unfold(1, HOP + FRAME, FRAME)[..., -WINDOW:]
        real, imaginary = (heard @ self.matrix).chunk(2, -1)
        power = real * real + imaginary * imaginary
        energy = (heard * heard) @ self.weight
        lines = power @ self.near
        first = power.argmax(-1)
        rest = power * (1 - self.near[first])
        second = rest.argmax(-1)
        at = lambda k: lines.gather(-1, k[..., None])[..., 0]
        hz, other = self.frequency(power, first), self.frequency(rest, second)
        low, high = torch.minimum(hz, other), torch.maximum(hz, other)
        loud = energy > self.least_energy
        least = torch.where(hz < VOICE_HZ, LEAST_LOW_SHARE, LEAST_SHARE)
        single = loud & (at(first) > least * energy) & (hz >= LOWEST_TONE_HZ) & (hz <= HIGHEST_TONE_HZ)
        # Lines of two that stand close count twice what lies between them: no matter.
        both = at(first) + at(second)
        double = loud & (both > LEAST_SHARE * energy) & (at(second) > LEAST_SECOND * at(first)) & ~single
        digit = torch.where(double, self.digit(low, high), 0)
        pair = double & (digit == 0) & (both > LEAST_PAIR_SHARE * energy) & ((first - second).abs() >= PAIR_APART)
        pair = pair & (low >= LOWEST_TONE_HZ) & (high <= HIGHEST_TONE_HZ)
        said = torch.where(pair, torch.where(odd, high, low), hz)
        code = torch.where(single | pair, FIRST_TONE + nearest_tone(said), digit)
        return Found(code, single, pair, pair & odd)
