"""Small corrections of a trained decoder that its losses leave out: level of each band, how much of it is voice, where the waveform ends.

Log-spectral losses are content with less energy than the original has wherever noise takes the place of a peak, and a decoder that is told
how periodic the original is comes out less periodic than that, because its own pulses glide as well. Both are measured on
training audio and set right by constants; nothing else moves, so codes keep their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .codec import OVERLAP_DELAY, Codec, decoder_noise
from .config import BANDS, NOISE_BAND
from .data import Batch
from .losses import Periodicity
from .network import VOICING_HZ, mdct
from .step import between_hops

STAGES = (8, 12, 16)
ROUNDS = 4
LOUD_DB = 20.0  # below the loudest frame of an item
MOST_DB, MOST_LOGITS = 6.0, 4.0  # that a round may move a constant by
CLOSED = -8.0  # logit of a share that is nothing


@dataclass(frozen=True)
class Found:
    """Decoded over original."""

    level_db: Tensor  # [BANDS], in loud blocks
    periodic: Tensor  # [groups]: share that repeats, decoded
    original: Tensor  # [groups]: the same of the original


@torch.no_grad()
def observe(codec: Codec, batches: list[Batch], measure: Periodicity) -> Found:
    d, net = codec.decoder, codec.cfg.network
    energy, repeats = torch.zeros(2, BANDS), torch.zeros(2, len(VOICING_HZ))
    for i, (pcm, pitch, generated) in enumerate(batches):
        keep = ~generated
        x, hops = pcm[keep], pitch[keep]
        z, _ = codec.encoder(x)
        q = codec.quantiser.decode(codec.quantiser.encode(z, min(STAGES[i % len(STAGES)], net.stages), 2))
        noise = torch.from_numpy(decoder_noise(0, z.shape[1], net.noise_dim)).reshape(1, 2 * z.shape[1], -1).expand(len(x), -1, -1)
        y = d(q, noise)[0][:, OVERLAP_DELAY:]
        n = y.shape[1] // (2 * OVERLAP_DELAY) * 2 * OVERLAP_DELAY
        bins = [mdct(v[:, :n], None, d.dct, d.window)[0].pow(2) @ d.bands for v in (x, y)]
        level = bins[0].sum(-1)
        loud = level > level.amax(1, keepdim=True) * 10 ** (-LOUD_DB / 10)
        energy += torch.stack([b[loud].sum(0) for b in bins])
        starts = between_hops(hops)[:, : n // OVERLAP_DELAY]
        shares = [measure.share(v[:, :n], starts)[starts > 0] for v in (x, y)]
        repeats += torch.stack([s.sum(0) for s in shares]) / max(1, len(shares[0]))
    repeats /= len(batches)
    return Found(10 * torch.log10(energy[1] / energy[0]), repeats[1], repeats[0])


@torch.no_grad()
def calibrate(codec: Codec, batches: list[Batch]) -> list[Found]:
    """Sets the constants in some rounds; returns what was found before each, and after the last."""
    d, band = codec.decoder, codec.cfg.network.voice_band
    d.wave.weight[band:], d.wave.bias[band:] = 0.0, CLOSED
    measure, told = Periodicity(), [observe(codec, batches, Periodicity())]
    for _ in range(ROUNDS):
        found = told[-1]
        # What is above the shaped bands is noise whose level nobody hears as too soft.
        change = (-found.level_db).clamp(-MOST_DB, MOST_DB)[:NOISE_BAND]
        d.gain.bias[:NOISE_BAND] += change * (torch.log(torch.tensor(10.0)) / 20)
        logit = lambda share: torch.logit(share.clamp(0.02, 0.98))
        d.voicing.bias += (logit(found.original) - logit(found.periodic)).clamp(-MOST_LOGITS, MOST_LOGITS)
        told.append(observe(codec, batches, measure))
    return told
