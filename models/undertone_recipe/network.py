"""Gain-shape MDCT codec network (design and evidence: models/EXPERIMENTS.md).

Every layer has one forward that takes and returns its state, so a stream cut into pieces of any number of
frames gives what the whole gives. A state of zeros is the past before the first sample.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import BAND_EDGES, BANDS, FEATURES, HOP, NOISE_BAND, NOISE_BINS, SHAPED, Network

LOG_GAIN_SCALE, LOG_GAIN_SHIFT = 0.7, 2.0
ENERGY_FLOOR = 1e-8
GAIN_RANGE = (-12.0, 5.0)
NOISE_RMS = math.sqrt(1 / 3)  # of numbers spread evenly over -1..1


def dct4_matrix() -> Tensor:
    """Orthonormal DCT-IV of size HOP; its own inverse."""
    n = torch.arange(HOP, dtype=torch.float64) + 0.5
    return (torch.cos(math.pi / HOP * n[:, None] * n[None, :]) * math.sqrt(2 / HOP)).float()


def sine_window() -> Tensor:
    """Rising half of the sine window of length 2 HOP (Princen-Bradley)."""
    n = torch.arange(HOP, dtype=torch.float64) + 0.5
    return torch.sin(math.pi * n / (2 * HOP)).float()


def band_matrix() -> Tensor:
    """[HOP, BANDS], 1 where a bin belongs to a band."""
    a = torch.zeros(HOP, BANDS)
    for b in range(BANDS):
        a[BAND_EDGES[b] : BAND_EDGES[b + 1], b] = 1
    return a


class Limit(torch.autograd.Function):
    """Clamp to GAIN_RANGE whose gradient passes where it leads back inside.

    With none, a gain that left the range stays silent for ever. With all of it, silent frames push their gains on without end, and the
    latents with them (runs v5 and v6 in EXPERIMENTS.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(*GAIN_RANGE)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        low, high = GAIN_RANGE
        return torch.where(((x < low) & (g > 0)) | ((x > high) & (g < 0)), torch.zeros_like(g), g)


class Block(nn.Module):
    """Causal ConvNeXt block: depthwise convolution over time, LayerNorm, two linear layers, layer scale."""

    def __init__(self, width: int, expand: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width * expand)
        self.down = nn.Linear(width * expand, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, T, C], past [B, kernel - 1, C] -> the same shapes."""
        if past is None:
            past = x.new_zeros(x.shape[0], self.kernel - 1, x.shape[2])
        h = torch.cat([past.to(x.dtype), x], 1)
        y = self.depthwise(h.transpose(1, 2)).transpose(1, 2)
        y = self.down(F.gelu(self.up(self.norm(y))))
        return x + self.scale * y, h[:, h.shape[1] - (self.kernel - 1) :]


class Encoder(nn.Module):
    dct: Tensor
    window: Tensor
    bands: Tensor

    def __init__(self, net: Network):
        super().__init__()
        self.register_buffer("dct", dct4_matrix(), persistent=False)
        self.register_buffer("window", sine_window(), persistent=False)
        self.register_buffer("bands", band_matrix(), persistent=False)
        self.skip = nn.Linear(FEATURES, net.latent)
        self.inp = nn.Linear(FEATURES, net.encoder_width)
        self.blocks = nn.ModuleList(
            Block(net.encoder_width, net.encoder_expand, net.kernel) for _ in range(net.encoder_blocks)
        )
        self.norm = nn.LayerNorm(net.encoder_width)
        self.out = nn.Linear(net.encoder_width, net.latent)

    def mdct(self, pcm: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """pcm [B, T * HOP] -> coefficients [B, T, HOP]; last [B, HOP] is the hop before."""
        hops = pcm.reshape(pcm.shape[0], -1, HOP)
        if last is None:
            last = pcm.new_zeros(pcm.shape[0], HOP)
        before = torch.cat([last[:, None], hops[:, :-1]], 1) * self.window
        now = hops * self.window.flip(0)
        half = HOP // 2
        early = before[..., :half] - before[..., half:].flip(-1)
        late = -now[..., :half].flip(-1) - now[..., half:]
        return torch.cat([late, early], -1) @ self.dct, hops[:, -1]

    def features(self, pcm: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """pcm [B, T * 2 HOP] -> [B, T, FEATURES]: for each of two blocks the shapes, then the log gains."""
        x, last = self.mdct(pcm, last)
        rms = torch.sqrt((x * x) @ (self.bands / self.bands.sum(0)) + ENERGY_FLOOR)
        shape = x / (rms @ self.bands.t())
        f = torch.cat([shape, torch.log(rms) * LOG_GAIN_SCALE + LOG_GAIN_SHIFT], -1)
        return f.reshape(f.shape[0], -1, FEATURES), last

    def forward(self, pcm: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        """pcm [B, T * FRAME] in -1..1 -> latents [B, T, latent] and the state after them."""
        state = state or {}
        out = {}
        with torch.autocast(pcm.device.type, enabled=False):
            f, out["pcm"] = self.features(pcm.float(), state.get("pcm"))
        h = self.inp(f)
        for i, block in enumerate(self.blocks):
            h, out[f"block{i}"] = block(h, state.get(f"block{i}"))
        return self.skip(f).float() + self.out(self.norm(h)).float(), out


class Decoder(nn.Module):
    dct: Tensor
    window: Tensor
    bands: Tensor

    def __init__(self, net: Network):
        super().__init__()
        self.noise_width, self.block_noise, self.signs = net.noise, net.block_noise, net.signs
        self.register_buffer("dct", dct4_matrix(), persistent=False)
        self.register_buffer("window", sine_window(), persistent=False)
        self.register_buffer("bands", band_matrix(), persistent=False)
        w = net.decoder_width
        self.inp = nn.Linear(net.latent, w)
        self.blocks = nn.ModuleList(Block(w, net.decoder_expand, net.kernel) for _ in range(net.decoder_blocks))
        self.norm = nn.LayerNorm(w)
        self.up = nn.Linear(w, 2 * w)
        self.noise = nn.Linear(net.noise, w, bias=False)
        self.fine = nn.ModuleList(Block(w, net.fine_expand, net.fine_kernel) for _ in range(net.fine_blocks))
        self.fine_norm = nn.LayerNorm(w)
        self.shape = nn.Linear(w, SHAPED)
        self.gain = nn.Linear(w, BANDS)
        self.shape_skip = nn.Linear(net.latent, 2 * SHAPED)
        self.gain_skip = nn.Linear(net.latent, 2 * BANDS)
        nn.init.normal_(self.shape.weight, std=0.02)
        nn.init.constant_(self.gain.bias, -3.0)

    def hidden(self, q: Tensor, noise: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        """q [B, T, latent], noise [B, 2 T, block_noise] -> what the heads read [B, 2 T, C] and the state after it."""
        state = state or {}
        out = {}
        b, t, _ = q.shape
        h = self.inp(q)
        for i, block in enumerate(self.blocks):
            h, out[f"block{i}"] = block(h, state.get(f"block{i}"))
        h = self.up(self.norm(h)).reshape(b, 2 * t, -1)
        h = h + self.noise(noise[..., : self.noise_width])
        for i, block in enumerate(self.fine):
            h, out[f"fine{i}"] = block(h, state.get(f"fine{i}"))
        return self.fine_norm(h), out

    def heads(self, h: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """h [B, 2 T, C], q [B, T, latent] -> shapes [B, 2 T, SHAPED] and log gains [B, 2 T, BANDS]."""
        b, t, _ = q.shape
        shape = self.shape(h).float() + self.shape_skip(q).float().reshape(b, 2 * t, -1)
        return shape, self.gain(h).float() + self.gain_skip(q).float().reshape(b, 2 * t, -1)

    def forward(self, q: Tensor, noise: Tensor | None = None, state: dict | None = None) -> tuple[Tensor, dict]:
        """q [B, T, latent], noise [B, 2 T, block_noise] in -1..1 -> pcm [B, T * FRAME] and the state after it.

        Output lags the encoder's input by HOP samples on top of the frame itself.
        """
        b, t, _ = q.shape
        if noise is None:
            noise = torch.rand(b, 2 * t, self.block_noise, device=q.device) * 2 - 1
        h, out = self.hidden(q, noise, state)
        shape, gain = self.heads(h, q)
        with torch.autocast(q.device.type, enabled=False):
            _, high_bands, signs = noise.float().split([self.noise_width, NOISE_BINS, self.signs], -1)
            shape = torch.cat([shape, high_bands / NOISE_RMS], -1)
            signs = F.pad(signs.sign(), (NOISE_BAND - self.signs, BANDS - NOISE_BAND), value=1.0)
            coefficients = shape * ((torch.exp(Limit.apply(gain)) * signs) @ self.bands.t())
            y = coefficients @ self.dct
            half = HOP // 2
            late, early = y[..., :half], y[..., half:]
            tail = torch.cat([-late.flip(-1), -late], -1) * self.window.flip(0)
            last = (state or {}).get("tail")
            if last is None:
                last = tail.new_zeros(b, HOP)
            pcm = torch.cat([early, -early.flip(-1)], -1) * self.window
            pcm = pcm + torch.cat([last[:, None], tail[:, :-1]], 1)
        out["tail"] = tail[:, -1]
        return pcm.reshape(b, -1), out


def macs_per_frame(net: Network) -> dict[str, int]:
    """Multiply-accumulates of one 20 ms frame, by part."""
    e, d = net.encoder_width, net.decoder_width
    encoder = 2 * HOP * HOP + FEATURES * (e + net.latent) + e * net.latent
    encoder += net.encoder_blocks * (2 * e * e * net.encoder_expand + net.kernel * e)
    decoder = net.latent * d + net.decoder_blocks * (2 * d * d * net.decoder_expand + net.kernel * d)
    decoder += 2 * d * d + 2 * net.noise * d
    decoder += 2 * net.fine_blocks * (2 * d * d * net.fine_expand + net.fine_kernel * d)
    decoder += 2 * d * (SHAPED + BANDS) + 2 * net.latent * (SHAPED + BANDS) + 2 * HOP * (HOP + BANDS)
    return {"encoder": encoder, "decoder": decoder}
