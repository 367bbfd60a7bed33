"""Analysis by synthesis as `undertone encode` does it (docs/synthesis.md), for a batch of recordings: what its codes look like."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .codec import Codec, decoder_noise
from .config import FRAME
from .losses import LoudnessLoss, SpectralLoss

STEP, LEASH, MOMENTS = 0.08, 8.0, (0.5, 0.9)
MEL_WEIGHT, COMPLEX_WEIGHT, LINEAR_WEIGHT, LOUDNESS_WEIGHT = 4.0, 8.0, 4.0, 6.0


class Search:
    def __init__(self, codec: Codec, steps: int):
        self.codec, self.steps = codec, steps
        self.spectral, self.loudness = SpectralLoss().to(codec.device), LoudnessLoss().to(codec.device)

    def distance(self, latents: Tensor, noise: Tensor, pcm: Tensor) -> Tensor:
        decoded, _ = self.codec.decoder(latents, noise)
        late = self.codec.cfg.network.delay
        decoded = decoded[:, late : late + pcm.shape[1]]
        d = self.spectral(decoded, pcm)
        return MEL_WEIGHT * d.mel + COMPLEX_WEIGHT * d.complex + LINEAR_WEIGHT * d.linear + LOUDNESS_WEIGHT * self.loudness(decoded, pcm)

    def latents(self, pcm: Tensor) -> Tensor:
        """pcm [B, T * FRAME] -> latents [B, T, D] that the decoder makes most like it of, by Adam from those of the encoder."""
        frames = pcm.shape[1] // FRAME
        padded = F.pad(pcm[:, : frames * FRAME], (0, FRAME))
        with torch.no_grad():
            start, _ = self.codec.encoder(padded)
        noise = torch.from_numpy(decoder_noise(0, frames + 1, self.codec.cfg.network.noise_dim))
        noise = noise.reshape(1, 2 * (frames + 1), -1).expand(len(pcm), -1, -1).to(pcm.device)
        scale = float(start[..., : self.codec.cfg.network.free].pow(2).mean().sqrt())
        moved = start.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([moved], betas=MOMENTS)
        with torch.enable_grad():
            for step in range(self.steps):
                optimiser.param_groups[0]["lr"] = STEP * scale * (1 - step / self.steps)
                loss = self.distance(moved, noise, padded[:, : frames * FRAME])
                loss = loss + LEASH * ((moved - start) / scale).pow(2).mean()
                (moved.grad,) = torch.autograd.grad(loss, moved)
                optimiser.step()
        return moved.detach()[:, :frames]
