"""Training audio: decoding, caching and augmentation. Nothing here downloads."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile as sf

from .config import FRAME, SAMPLE_RATE_HZ, Data


def cache_dir() -> Path:
    """Where decoded audio and unfinished checkpoints live: outside the checkout, so that later sessions find them."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    d = Path(base) / "undertone-recipe"
    d.mkdir(parents=True, exist_ok=True)
    return d


def read_mono(path: Path) -> np.ndarray:
    """A recording as float32 mono at SAMPLE_RATE_HZ."""
    x, rate = sf.read(path, dtype="float32", always_2d=True)
    x = x.mean(1)
    if rate != SAMPLE_RATE_HZ:
        g = np.gcd(rate, SAMPLE_RATE_HZ)
        x = scipy.signal.resample_poly(x, SAMPLE_RATE_HZ // g, rate // g).astype(np.float32)
    return x


def audio_files(folder: Path, kind: str) -> list[Path]:
    """All recordings `<kind>*` below folder."""
    return sorted(p for p in folder.rglob(f"{kind}*") if p.suffix in (".opus", ".ogg", ".flac", ".wav"))


def load_kind(folder: Path, kind: str) -> np.ndarray:
    """All recordings `<kind>*` below folder as one int16 array, decoded once and cached."""
    files = audio_files(folder, kind)
    if not files:
        return np.zeros(0, np.int16)
    key = hashlib.sha256("\n".join(f"{p.name} {p.stat().st_size}" for p in files).encode()).hexdigest()[:16]
    cached = cache_dir() / f"{kind or 'all'}-{key}.npy"
    if not cached.exists():
        pcm = [(np.clip(read_mono(p), -1, 1) * 32767).astype(np.int16) for p in files]
        partial = cached.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(pcm))
        partial.rename(cached)
    return np.load(cached, mmap_mode="r")


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x * x)) + 1e-9)


def coloured_noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """Noise with a random spectral slope between white and brown, at RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n).astype(np.float32))
    f = np.maximum(np.arange(len(spectrum)), 1)
    x = np.fft.irfft(spectrum * f ** -rng.uniform(0, 1.0), n).astype(np.float32)
    return x / rms(x)


class Batches:
    """Endless random batches [B, N] float32; N is a whole number of frames."""

    def __init__(self, folder: Path, cfg: Data, batch: int, segment_s: float, seed: int):
        self.speech, self.music = load_kind(folder, "speech"), load_kind(folder, "music")
        if not len(self.speech) and not len(self.music):
            self.speech = load_kind(folder, "")
        self.cfg, self.batch = cfg, batch
        self.length = int(segment_s * SAMPLE_RATE_HZ) // FRAME * FRAME + FRAME
        if max(len(self.speech), len(self.music)) <= 2 * self.length:
            raise ValueError(f"{folder}: {len(self.speech)} samples of audio; at least {2 * self.length} are needed")
        self.rng = np.random.default_rng(seed)

    def hours(self) -> float:
        return (len(self.speech) + len(self.music)) / SAMPLE_RATE_HZ / 3600

    def cut(self, pool: np.ndarray) -> np.ndarray:
        """A segment, sometimes resampled by up to a sixth: other pitch, other vocal tract, other tempo."""
        n, rng = self.length, self.rng
        ratio = rng.uniform(0.85, 1.18) if rng.random() < self.cfg.pitch_share else 1.0
        m = int(n * ratio) // 48 * 48
        for _ in range(8):
            i = int(rng.integers(0, len(pool) - m))
            x = np.asarray(pool[i : i + m], np.float32) / 32768
            if rms(x) > 1e-3 or rng.random() < 0.05:
                break
        return x if m == n else scipy.signal.resample(x, n).astype(np.float32)

    def reverberate(self, x: np.ndarray) -> np.ndarray:
        n = int(self.rng.uniform(0.1, 0.5) * SAMPLE_RATE_HZ)
        tail = self.rng.standard_normal(n) * np.exp(-6.9 * np.arange(n) / n) * self.rng.uniform(0.005, 0.03)
        tail[0] = 1.0
        return scipy.signal.fftconvolve(x, tail)[: len(x)].astype(np.float32)

    def item(self) -> np.ndarray:
        rng, cfg = self.rng, self.cfg
        if rng.random() < cfg.silence_share:
            return np.zeros(self.length, np.float32)
        if len(self.music) and (not len(self.speech) or rng.random() < cfg.music_share):
            x = self.cut(self.music)
        else:
            x = self.cut(self.speech)
            if rng.random() < cfg.noise_share:
                x = self.reverberate(x)
            draw = rng.random()
            if draw < cfg.mixture_share and len(self.music):
                other = self.cut(self.music)
                x = x + other * (rms(x) / rms(other) * 10 ** (-rng.uniform(3, 25) / 20))
            elif draw < cfg.mixture_share + cfg.noise_share:
                x = x + coloured_noise(rng, len(x)) * (rms(x) * 10 ** (-rng.uniform(3, 30) / 20))
        draw = rng.random()
        if draw < cfg.quiet_share:
            x = x * (10 ** (rng.uniform(-65, -30) / 20) / max(rms(x), 1e-3))
        elif draw < cfg.quiet_share + cfg.level_share:
            x = x * (10 ** (rng.uniform(-30, -12) / 20) / max(rms(x), 1e-3))
        elif draw < cfg.quiet_share + cfg.level_share + cfg.loud_share:
            # Overdriven, as from a microphone that is set too high.
            return (x * (10 ** (rng.uniform(-14, -3) / 20) / max(rms(x), 1e-3))).clip(-0.98, 0.98)
        return x * min(1.0, 0.98 / max(float(np.abs(x).max()), 1e-4))

    def __next__(self) -> np.ndarray:
        return np.stack([self.item() for _ in range(self.batch)])
