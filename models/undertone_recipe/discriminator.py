"""STFT discriminators in MatMul form: bands of bins as batch, ConvNeXt blocks over time.

Two-dimensional convolutions would cost about ten times as much on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import over_time


class TimeBlock(nn.Module):
    def __init__(self, width: int, expand: int = 2, kernel: int = 5):
        super().__init__()
        self.around = kernel // 2
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.up = nn.Linear(width, width * expand)
        self.down = nn.Linear(width * expand, width)

    def forward(self, x: Tensor) -> Tensor:
        h = over_time(self.depthwise, F.pad(x, (0, 0, self.around, self.around)))
        return x + self.down(F.leaky_relu(self.up(h), 0.1))


class BandDiscriminator(nn.Module):
    window: Tensor

    def __init__(self, n_fft: int, hop: int, bands: int, width: int, blocks: int = 3):
        super().__init__()
        self.n_fft, self.hop, self.bands = n_fft, hop, bands
        self.band_bins = n_fft // 2 // bands
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.inp = nn.Parameter(torch.randn(bands, 2 * self.band_bins, width) * (2 * self.band_bins) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(bands, 1, width))
        self.blocks = nn.ModuleList(TimeBlock(width) for _ in range(blocks))
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x [B, N] -> logits [B * bands, T, 1] and the activations before them."""
        s = torch.stft(x, self.n_fft, self.hop, self.n_fft, self.window, return_complex=True)
        s = s[:, 1 : 1 + self.bands * self.band_bins]
        # Compressed magnitude (power 0.3) so that quiet bins count.
        scale = (s.real**2 + s.imag**2 + 1e-8) ** -0.35
        b, _, t = s.shape
        parts = [(p * scale).view(b, self.bands, self.band_bins, t) for p in (s.real, s.imag)]
        h = torch.matmul(torch.cat(parts, 2).transpose(2, 3), self.inp) + self.bias
        h = F.leaky_relu(h, 0.1).reshape(b * self.bands, t, -1)
        seen = [h]
        for block in self.blocks:
            h = block(h)
            seen.append(h)
        return self.out(h), seen


# Logits of a discriminator and the activations before them.
Judgement = tuple[Tensor, list[Tensor]]


class Discriminators(nn.Module):
    # Windows, hops and bands: harmonics in the first, single pulses of a voice in the last.
    SCALES = ((2048, 512, 8), (1024, 256, 6), (512, 128, 4), (256, 128, 4))

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.each = nn.ModuleList(BandDiscriminator(n, hop, bands, width) for n, hop, bands in self.SCALES)

    def forward(self, x: Tensor) -> list[Judgement]:
        return [d(x) for d in self.each]


def critic_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Hinge loss of the discriminators."""
    terms = [F.relu(1 - r[0].float()).mean() + F.relu(1 + f[0].float()).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def generator_loss(real: list[Judgement], fake: list[Judgement]) -> tuple[Tensor, Tensor]:
    """Hinge term and relative feature matching."""
    hinge = torch.stack([-f[0].float().mean() for f in fake]).mean()
    pairs = [(u.float(), v.float()) for r, f in zip(real, fake, strict=True) for u, v in zip(f[1], r[1], strict=True)]
    matching = torch.stack([(u - v).abs().mean() / (v.abs().mean() + 1e-3) for u, v in pairs]).mean()
    return hinge, matching
