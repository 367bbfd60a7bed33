"""Training audio: decoding, caching and augmentation. Nothing here downloads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.signal
import soundfile as sf
import torch

from .config import FRAME, HOP, SAMPLE_RATE_HZ, Data
from .pitch import track
from .signals import signal

PITCH_SEMITONES = (-4.0, 6.0)


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
    name = f"{kind or 'all'}-{digest(files)}.npy"
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # decoding gives the interpreter's lock away
        return cached(name, lambda: np.concatenate(list(pool.map(read_int16, files))))


def read_int16(path: Path) -> np.ndarray:
    return (np.clip(read_mono(path), -1, 1) * 32767).astype(np.int16)


def load_pitch(folder: Path, kind: str, pcm: np.ndarray) -> np.ndarray:
    """Pitch of what load_kind gave, in Hz, a value for each hop, 0 where unvoiced; tracked once and cached."""
    files = audio_files(folder, kind)
    return cached(f"pitch-{kind or 'all'}-{digest(files)}.npy", lambda: track(pcm)) if files else np.zeros(0, np.float32)


def digest(files: list[Path]) -> str:
    """Changes when a recording comes, goes or changes its size."""
    return hashlib.sha256("\n".join(f"{p.name} {p.stat().st_size}" for p in files).encode()).hexdigest()[:16]


def cached(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of that name in the cache, made if it is not there; written whole or not at all."""
    path = cache_dir() / name
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, make())
        partial.rename(path)
    return np.load(path, mmap_mode="r")


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x * x)) + 1e-9)


def room(impulse: np.ndarray) -> np.ndarray:
    """An impulse response from its direct sound on, which becomes 1; at most half a second."""
    start = int(np.abs(impulse).argmax())
    return impulse[start : start + SAMPLE_RATE_HZ // 2] / impulse[start]


def coloured_noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """Noise with a random spectral slope between white and brown, at RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n).astype(np.float32))
    f = np.maximum(np.arange(len(spectrum)), 1)
    x = np.fft.irfft(spectrum * f ** -rng.uniform(0, 1.0), n).astype(np.float32)
    return x / rms(x)


@dataclass(frozen=True)
class Labelled:
    """A batch, and what is known of it."""

    pcm: np.ndarray  # [B, N]
    pitch: np.ndarray  # Hz [B, N / HOP] at the middle of each hop, 0 where there is none
    generated: np.ndarray  # bool [B]: tones and the like, whose waveform counts at every frequency


class Pool(NamedTuple):
    """All recordings of a kind, one after the other."""

    pcm: np.ndarray  # int16 [N]
    pitch: np.ndarray  # Hz [N / HOP]

    @classmethod
    def of(cls, folder: Path, kind: str, pitched: bool) -> Pool:
        pcm = load_kind(folder, kind)
        # Tracking takes minutes the first time, so only who needs the labels has them made.
        return cls(pcm, load_pitch(folder, kind, pcm) if pitched else np.zeros(len(pcm) // HOP, np.float32))


class Batches:
    """Endless random batches [B, N] float32; N is a whole number of frames. Their labels have a pitch only if they are `pitched`."""

    def __init__(self, folder: Path, cfg: Data, batch: int, segment_s: float, seed: int, pitched: bool = False):
        self.speech, self.music = (Pool.of(folder, kind, pitched) for kind in ("speech", "music"))
        if not len(self.speech.pcm) and not len(self.music.pcm):
            self.speech = Pool.of(folder, "", pitched)
        self.noise = load_kind(folder, "noise")
        self.rooms = [room(read_mono(p)) for p in audio_files(folder, "rir")]
        self.cfg, self.batch = cfg, batch
        self.length = int(segment_s * SAMPLE_RATE_HZ) // FRAME * FRAME + FRAME
        longest = max(len(self.speech.pcm), len(self.music.pcm))
        if longest <= 2 * self.length:
            raise ValueError(f"{folder}: {longest} samples of audio; at least {2 * self.length} are needed")
        self.rng = np.random.default_rng(seed)
        self.telephone = scipy.signal.butter(4, (300, 3400), "bandpass", fs=SAMPLE_RATE_HZ, output="sos")

    def hours(self) -> float:
        return (len(self.speech.pcm) + len(self.music.pcm)) / SAMPLE_RATE_HZ / 3600

    def cut(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """A segment and its pitch, sometimes played faster or slower: other pitch, other vocal tract, other tempo."""
        n, rng = self.length, self.rng
        semitones = rng.uniform(*PITCH_SEMITONES) if rng.random() < self.cfg.pitch_share else 0.0
        ratio = 2 ** (semitones / 12)
        m = int(n * ratio) // HOP * HOP
        for _ in range(8):
            i = int(rng.integers(0, len(pool.pcm) - m)) // HOP
            x = np.asarray(pool.pcm[i * HOP : i * HOP + m], np.float32) / 32768
            if rms(x) > 1e-3 or rng.random() < 0.05:
                break
        pitch = pool.pitch[i : i + m // HOP]
        if m == n:
            return x, pitch
        at = np.minimum(((np.arange(n // HOP) + 0.5) * m / n).astype(int), len(pitch) - 1)
        return scipy.signal.resample(x, n).astype(np.float32), pitch[at] * (m / n)

    def background(self, x: np.ndarray, other: np.ndarray, low_db: float, high_db: float) -> np.ndarray:
        """x with `other` between low_db and high_db below it."""
        return x + other * (rms(x) / rms(other) * 10 ** (-self.rng.uniform(low_db, high_db) / 20))

    def disturb(self, x: np.ndarray, pitch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A room, a telephone, and one of music, noise or another talker behind x."""
        rng, cfg = self.rng, self.cfg
        if rng.random() < cfg.room_share:
            x = self.reverberate(x)
        draw = rng.random()
        if draw < cfg.mixture_share and len(self.music.pcm):
            x = self.background(x, self.cut(self.music)[0], 3, 25)
        elif draw < cfg.mixture_share + cfg.noise_share:
            recorded = len(self.noise) > self.length and rng.random() < 0.7
            noise = self.recorded_noise() if recorded else coloured_noise(rng, len(x))
            x = self.background(x, noise, 0, 30)
        elif draw < cfg.mixture_share + cfg.noise_share + cfg.talkers_share and len(self.speech.pcm):
            x, pitch = self.background(x, self.cut(self.speech)[0], 0, 15), np.zeros_like(pitch)
        if rng.random() < cfg.telephone_share:
            x = scipy.signal.sosfilt(self.telephone, x).astype(np.float32)
        return x, pitch

    def recorded_noise(self) -> np.ndarray:
        i = int(self.rng.integers(0, len(self.noise) - self.length))
        return np.asarray(self.noise[i : i + self.length], np.float32) / 32768

    def reverberate(self, x: np.ndarray) -> np.ndarray:
        rng = self.rng
        if self.rooms and rng.random() < 0.6:
            tail = self.rooms[int(rng.integers(len(self.rooms)))].copy()
            tail[1:] *= rng.uniform(0.1, 1.0)
        else:
            n = int(rng.uniform(0.1, 0.5) * SAMPLE_RATE_HZ)
            tail = rng.standard_normal(n) * np.exp(-6.9 * np.arange(n) / n) * rng.uniform(0.005, 0.03)
            tail[0] = 1.0
        return scipy.signal.fftconvolve(x, tail)[: len(x)].astype(np.float32)

    def level(self, x: np.ndarray) -> np.ndarray:
        rng, cfg = self.rng, self.cfg
        draw = rng.random()
        if draw < cfg.quiet_share:
            x = x * (10 ** (rng.uniform(-65, -30) / 20) / max(rms(x), 1e-3))
        elif draw < cfg.quiet_share + cfg.level_share:
            x = x * (10 ** (rng.uniform(-34, -12) / 20) / max(rms(x), 1e-3))
        elif draw < cfg.quiet_share + cfg.level_share + cfg.loud_share:
            # Overdriven, as from a microphone that is set too high.
            return (x * (10 ** (rng.uniform(-14, -3) / 20) / max(rms(x), 1e-3))).clip(-0.98, 0.98)
        return x * min(1.0, 0.98 / max(float(np.abs(x).max()), 1e-4))

    def item(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """Samples, pitch, and whether they are generated."""
        rng, cfg = self.rng, self.cfg
        unknown = np.zeros(self.length // HOP, np.float32)
        if rng.random() < cfg.silence_share:
            return np.zeros(self.length, np.float32), unknown, False
        if rng.random() < cfg.signal_share:
            return self.level(signal(rng, self.length)), unknown, True
        if len(self.music.pcm) and (not len(self.speech.pcm) or rng.random() < cfg.music_share):
            x, pitch = self.cut(self.music)
        else:
            x, pitch = self.disturb(*self.cut(self.speech))
        return self.level(x), pitch, False

    def labelled(self) -> Labelled:
        pcm, pitch, generated = zip(*(self.item() for _ in range(self.batch)), strict=True)
        return Labelled(np.stack(pcm).astype(np.float32), np.stack(pitch).astype(np.float32), np.array(generated))

    def __next__(self) -> np.ndarray:
        return self.labelled().pcm


class Batch(NamedTuple):
    """Labelled as tensors."""

    pcm: torch.Tensor
    pitch: torch.Tensor
    generated: torch.Tensor

    @classmethod
    def of(cls, labelled: Labelled) -> Batch:
        return cls(*(torch.from_numpy(v) for v in (labelled.pcm, labelled.pitch, labelled.generated)))


class Stream(torch.utils.data.IterableDataset):
    """Batches made by other processes, each with a seed of its own."""

    def __init__(self, make: Callable[[int], Batches]):
        self.make = make

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        batches = self.make(worker.id if worker else 0)
        while True:
            yield Batch.of(batches.labelled())


def ahead(first: Batches, make: Callable[[int], Batches], workers: int, pinned: bool = False) -> Iterator[Batch]:
    """Batches of `first`, made here; or with workers above 0 those of make(0) to make(workers - 1), made side by side in advance: a GPU
    takes them faster than one core makes them. `first` has then filled the caches that they read."""
    if not workers:
        return iter(lambda: Batch.of(first.labelled()), None)
    loader = torch.utils.data.DataLoader(Stream(make), batch_size=None, num_workers=workers, prefetch_factor=8, pin_memory=pinned)
    return iter(loader)
