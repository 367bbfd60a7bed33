"""Reconstruction losses: multi-scale log-mel, complex STFT, and a perceptual loudness distance."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import FRAME, HOP, SAMPLE_RATE_HZ
from .network import VOICING_HZ


def mel_filters(n_fft: int, bands: int) -> Tensor:
    """Triangular mel filters [bands, n_fft / 2 + 1], each with unit sum."""
    f = np.linspace(0, SAMPLE_RATE_HZ / 2, n_fft // 2 + 1)
    top = 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    edge = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    low, mid, high = edge[:-2, None], edge[1:-1, None], edge[2:, None]
    w = np.clip(np.minimum((f - low) / (mid - low), (high - f) / (high - mid)), 0, None)
    return torch.tensor(w / np.maximum(w.sum(1, keepdims=True), 1e-6), dtype=torch.float32)


class Spectral(NamedTuple):
    """Distances of SpectralLoss."""

    mel: Tensor
    complex: Tensor
    linear: Tensor


class SpectralLoss(nn.Module):
    """Three distances between spectrograms.

    mel: log-mel L1 at four windows: levels and envelopes. complex: distance of complex STFTs at two windows, below about 1.2 kHz, where
    phase can be carried; for generated sounds at all frequencies. linear: L1 of log magnitudes on a linear frequency axis, at
    windows long enough to see harmonics and frames that repeat.
    """

    SCALES = ((2048, 512, 80), (1024, 256, 80), (512, 128, 40), (256, 64, 20))
    COMPLEX = (1024, 512)
    LINEAR = (2048, 1024, 512)
    PHASE_HZ, LINEAR_HZ = 1200.0, 7800.0

    def __init__(self) -> None:
        super().__init__()
        for i, (n, _, mels) in enumerate(self.SCALES):
            self.register_buffer(f"window{i}", torch.hann_window(n), persistent=False)
            self.register_buffer(f"mel{i}", mel_filters(n, mels), persistent=False)
            f = torch.linspace(0, SAMPLE_RATE_HZ / 2, n // 2 + 1)[:, None]
            self.register_buffer(f"phase{i}", 1 / (1 + (f / self.PHASE_HZ) ** 4) + 0.02, persistent=False)
            self.register_buffer(f"flat{i}", 1 / (1 + (f / 6000) ** 2), persistent=False)
            self.register_buffer(f"linear{i}", (f < self.LINEAR_HZ) * (0.4 + 0.6 / (1 + (f / 4000) ** 2)), persistent=False)

    def forward(self, y: Tensor, x: Tensor, generated: Tensor | None = None, tone: Tensor | None = None) -> Spectral:
        """y decoded, x original, [B, N]; generated [B] marks items whose phase counts at every frequency, tone [B, T] frames whose phase
        counts at none, because it runs on by itself."""
        if tone is not None:
            phased = 1 - F.max_pool1d(tone.float()[:, None], 3, 1, 1)
        mel, dist, linear = y.new_zeros(()), y.new_zeros(()), y.new_zeros(())
        for i, (n, hop, _) in enumerate(self.SCALES):
            window, filters = getattr(self, f"window{i}"), getattr(self, f"mel{i}")
            ys = torch.stft(y, n, hop, n, window, return_complex=True)
            xs = torch.stft(x, n, hop, n, window, return_complex=True)
            ya = torch.sqrt(ys.real**2 + ys.imag**2 + 1e-8)
            xa = torch.sqrt(xs.real**2 + xs.imag**2 + 1e-8)
            mel = mel + F.l1_loss(torch.log10((filters @ ya).clamp_min(1e-4)), torch.log10((filters @ xa).clamp_min(1e-4)))
            mean = xa.mean((1, 2), keepdim=True).clamp_min(1e-3)
            if n in self.COMPLEX:
                weight = getattr(self, f"phase{i}")[None]
                if generated is not None:
                    weight = torch.where(generated[:, None, None], getattr(self, f"flat{i}"), weight)
                if tone is not None:
                    at = torch.arange(xs.shape[-1], device=x.device) * hop // FRAME
                    weight = weight * phased[..., at.clamp_max(tone.shape[1] - 1)]
                err = torch.sqrt((ys.real - xs.real) ** 2 + (ys.imag - xs.imag) ** 2 + 1e-8 * mean * mean)
                dist = dist + (weight * err / torch.sqrt((xa + 0.3 * mean) * mean)).mean()
            if n in self.LINEAR:
                # Quiet frames count less: what differs there is noise.
                loud = (xa.mean(1, keepdim=True) / mean).clamp(max=1.0).sqrt()
                floor = 0.03 * mean
                linear = linear + (getattr(self, f"linear{i}") * loud * (torch.log10(ya + floor) - torch.log10(xa + floor)).abs()).mean()
        return Spectral(mel, dist, linear)


class Periodicity(nn.Module):
    """How much of each band repeats with a given pitch: normalised autocorrelation of 43 ms at that lag, by groups of bands.

    Spectra hardly see it: a spectrogram of noise with the right envelope is nearly as near to a voice as another voice is.
    """

    window: Tensor
    own: Tensor
    hz: Tensor
    bands: Tensor

    WINDOW, N_FFT, STEP = 1024, 2048, HOP  # twice the window, so that what is shifted does not come in again at the other end

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(self.WINDOW)
        self.register_buffer("window", window, persistent=False)
        own = torch.fft.irfft(torch.fft.rfft(window, self.N_FFT).abs().pow(2))[: self.WINDOW // 2]
        self.register_buffer("own", own / own[0], persistent=False)
        f = torch.linspace(0, SAMPLE_RATE_HZ / 2, self.N_FFT // 2 + 1)
        self.register_buffer("hz", f, persistent=False)
        self.register_buffer("bands", torch.stack([((f >= a) & (f < b)).float() for a, b in VOICING_HZ], 1), persistent=False)

    def correlation(self, x: Tensor, turn: Tensor) -> Tensor:
        """x [B, N], turn [B, T, F]: cosine of each bin's phase after a period -> share of each band that repeats [B, T, bands]."""
        power = torch.stft(x, self.N_FFT, self.STEP, self.WINDOW, self.window, return_complex=True).abs().pow(2).transpose(1, 2)
        power = power[:, : turn.shape[1]] + 1e-9
        return ((power * turn) @ self.bands) / (power @ self.bands)

    def share(self, x: Tensor, pitch: Tensor) -> Tensor:
        """x [B, N], pitch in Hz at every STEP [B, T], 0 where unvoiced -> share of each group [B, T, groups] that repeats, 0 there."""
        turn = torch.cos(2 * math.pi * self.hz / pitch.clamp_min(1.0)[..., None])
        # A window repeats itself the less the further it is shifted.
        lag = (SAMPLE_RATE_HZ / pitch.clamp_min(1.0)).round().long().clamp_max(len(self.own) - 1)
        return (self.correlation(x, turn) / self.own[lag][..., None]).clamp(0, 1) * (pitch > 0)[..., None]

    def forward(self, y: Tensor, x: Tensor, pitch: Tensor) -> Tensor:
        """y decoded, x original, [B, N]; pitch in Hz at every STEP [B, T], 0 where unvoiced -> mean difference in voiced frames."""
        pitch = pitch[:, : x.shape[1] // self.STEP]
        return self.distance(self.share(y, pitch), self.share(x, pitch), pitch)

    @staticmethod
    def distance(decoded: Tensor, original: Tensor, pitch: Tensor) -> Tensor:
        """Mean difference in voiced frames of what `share` says, [B, T, groups]."""
        voiced = (pitch > 0).float()
        return ((decoded - original).abs().mean(-1) * voiced).sum() / voiced.sum().clamp_min(1.0)


class LoudnessLoss(nn.Module):
    """Disturbance between loudness patterns, after the perceptual model of ITU-T P.862 (PESQ).

    A differentiable simplification: Bark bands up to 8 kHz, threshold in quiet (Terhardt 1979), Zwicker's power law,
    a dead zone a quarter of the smaller loudness wide, and a second term that counts only added components. No level,
    time or filter compensation: the codec is asked to keep those.
    """

    window: Tensor
    share: Tensor
    quiet: Tensor
    N_FFT, HOP, BANDS, LISTENING_DB = 768, 384, 49, 79.0
    SONE_SCALE = 0.1866  # makes 1 kHz at 40 dB SPL about one sone, as in P.862

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(self.N_FFT), persistent=False)
        f = np.linspace(0, SAMPLE_RATE_HZ / 2, self.N_FFT // 2 + 1)
        bark = 6 * np.arcsinh(f / 600)
        edge = np.linspace(6 * np.arcsinh(60 / 600), 6 * np.arcsinh(8000 / 600), self.BANDS + 1)
        # A band takes the share of each bin that lies inside it.
        width = np.gradient(bark)
        low, high = bark - width / 2, bark + width / 2
        share = np.clip(np.minimum(high, edge[1:, None]) - np.maximum(low, edge[:-1, None]), 0, None) / width
        centre = 600 * np.sinh((edge[1:] + edge[:-1]) / 12) / 1000
        quiet_db = 3.64 * centre**-0.8 - 6.5 * np.exp(-0.6 * (centre - 3.3) ** 2) + 1e-3 * centre**4
        self.register_buffer("share", torch.tensor(share, dtype=torch.float32), persistent=False)
        self.register_buffer("quiet", torch.tensor(10 ** (quiet_db / 10), dtype=torch.float32)[:, None], persistent=False)
        self.band_width = float(edge[1] - edge[0])
        self.power_scale = 2.0 / (self.N_FFT * float(self.window.pow(2).sum()))

    def pattern(self, x: Tensor, gain: Tensor) -> Tensor:
        s = torch.stft(x, self.N_FFT, self.HOP, self.N_FFT, self.window, return_complex=True)
        return (self.share @ (s.real**2 + s.imag**2)) * (self.power_scale * gain)

    def loudness(self, p: Tensor) -> Tensor:
        return self.SONE_SCALE * (self.quiet / 0.5) ** 0.23 * ((0.5 + 0.5 * p / self.quiet) ** 0.23 - 1)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y decoded, x original, [B, N] -> mean loss, about (4.5 - PESQ) in scale."""
        # Loudest third of 16 ms pieces sets the level, so that pauses do not.
        level = x[:, : x.shape[1] // 384 * 384].reshape(x.shape[0], -1, 384).pow(2).mean(-1)
        active = level.topk(max(1, level.shape[1] // 3), 1).values.mean(1).clamp_min(1e-7)
        gain = (10 ** (self.LISTENING_DB / 10) / active)[:, None, None]
        px, py = self.pattern(x, gain), self.pattern(y, gain)
        lx, ly = self.loudness(px), self.loudness(py)
        d = ly - lx
        d = torch.sign(d) * F.relu(d.abs() - 0.25 * torch.minimum(lx, ly))
        added = ((py + 50) / (px + 50)) ** 1.2
        added = torch.where(added < 3, torch.zeros_like(added), added.clamp_max(12.0))
        energy = ((px.sum(1) + 1e5) / 1e7) ** 0.04
        symmetric = torch.sqrt((d.pow(2) * self.band_width).sum(1) + 1e-6) * math.sqrt(self.BANDS * self.band_width)
        asymmetric = (d.abs() * added).sum(1) * self.band_width
        symmetric, asymmetric = ((v / energy).clamp_max(45.0) for v in (symmetric, asymmetric))
        return 0.1 * self.over_time(symmetric) + 0.0309 * self.over_time(asymmetric)

    def over_time(self, d: Tensor) -> Tensor:
        """d [B, T] by frame -> mean over items. As in P.862 a bad frame outweighs its neighbours: the sixth power within
        0.3 s, the square over them."""
        n = min(20, d.shape[1])
        pieces = (d + 1e-3).unfold(1, n, max(1, n // 2))
        loudest = pieces.amax(-1, keepdim=True).detach()
        within = loudest[..., 0] * (pieces / loudest).pow(6).mean(-1).pow(1 / 6)
        return within.pow(2).mean(1).sqrt().mean()
