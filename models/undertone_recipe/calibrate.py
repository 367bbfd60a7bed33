"""Corrections of a trained decoder by constants: its level, how much of it is voice, where the waveform ends.

Log-spectral losses are content with less energy than the original has wherever noise takes the place of a peak, and a decoder that is told
how periodic the original is comes out less periodic than that, because its own pulses glide as well. Both are set right
here; nothing else moves, so codes keep their meaning.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .codec import Codec
from .config import FRAME, NOISE_BAND
from .data import Batch

STAGES = (9, 12, 16)
ROUNDS = 2
LOUD_DB = 20.0  # below the loudest frame of an item
CLOSED = -8.0  # logit of a share that is nothing
# What makes the voice's share s into about 1 - (1 - s)^3, as logits: by the panel's periodicity that is what the original's needs.
VOICE_SCALE, VOICE_SHIFT = 1.25, 1.9


def frame_levels(x: Tensor) -> Tensor:
    """x [B, T * FRAME] -> dB [B, T]."""
    return 10 * torch.log10(x.unflatten(1, (-1, FRAME)).pow(2).mean(-1) + 1e-9)


@torch.no_grad()
def level_db(codec: Codec, batches: list[Batch]) -> float:
    """Mean change of the level in the loud frames of recordings, in dB."""
    changes = []
    for i, (pcm, _, generated) in enumerate(batches):
        x = pcm[~generated]
        stages = min(STAGES[i % len(STAGES)], codec.cfg.network.stages)
        was, now = frame_levels(x), frame_levels(codec.round_trip(x, stages, 2))
        changes.append((now - was)[was > was.amax(1, keepdim=True) - LOUD_DB])
    return float(torch.cat(changes).mean())


@torch.no_grad()
def calibrate(codec: Codec, batches: list[Batch]) -> list[float]:
    """Sets the constants; returns the change of the level before each round, and after the last."""
    d, band = codec.decoder, codec.cfg.network.voice_band
    d.wave.weight[band:], d.wave.bias[band:] = 0.0, CLOSED
    d.voicing.weight.mul_(VOICE_SCALE)
    d.voicing.bias.mul_(VOICE_SCALE).add_(VOICE_SHIFT)
    changes = [level_db(codec, batches)]
    for _ in range(ROUNDS):
        d.gain.bias[:NOISE_BAND] -= changes[-1] * math.log(10) / 20
        changes.append(level_db(codec, batches))
    return changes
