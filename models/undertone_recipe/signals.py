"""Generated sounds that recordings of speech and music lack: tones, dialling, beeps, bells, sirens, knocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.signal

from .config import DTMF_HZ, SAMPLE_RATE_HZ

TONES_HZ = (150.0, 7000.0)

Rng = np.random.Generator


def between(rng: Rng, low: float, high: float) -> float:
    """Spread evenly in octaves."""
    return float(low * (high / low) ** rng.random())


def tone(rng: Rng, hz: float | np.ndarray, n: int) -> np.ndarray:
    """A sine [n] of a frequency, or of one for each sample, from a random phase."""
    step = np.broadcast_to(np.asarray(hz, np.float64), n) / SAMPLE_RATE_HZ
    return np.sin(2 * np.pi * (np.cumsum(step) + rng.random()))


def gate(rng: Rng, n: int, on_s: tuple[float, float], off_s: tuple[float, float]) -> np.ndarray:
    """1 while on, 0 while off, with flanks of 1 to 5 ms."""
    out, at = np.zeros(n), -int(rng.uniform(0, on_s[1]) * SAMPLE_RATE_HZ)
    while at < n:
        end = at + int(rng.uniform(*on_s) * SAMPLE_RATE_HZ)
        out[max(at, 0) : max(end, 0)] = 1
        at = end + int(rng.uniform(*off_s) * SAMPLE_RATE_HZ)
    flank = np.hanning(2 + int(rng.uniform(0.001, 0.005) * SAMPLE_RATE_HZ))
    return np.convolve(out, flank / flank.sum(), "same")


def steady(rng: Rng, n: int) -> np.ndarray:
    return tone(rng, between(rng, *TONES_HZ), n)


def beeps(rng: Rng, n: int) -> np.ndarray:
    return steady(rng, n) * gate(rng, n, (0.03, 0.3), (0.03, 0.3))


def dialling(rng: Rng, n: int) -> np.ndarray:
    """DTMF (ITU-T Q.23): a digit after the other."""
    on, off = rng.uniform(0.045, 0.12), rng.uniform(0.045, 0.12)
    out, at = np.zeros(n), -int(rng.uniform(0, on) * SAMPLE_RATE_HZ)
    while at < n:
        end = at + int(on * SAMPLE_RATE_HZ)
        a, b = max(at, 0), min(max(end, 0), n)
        twist = 10 ** (rng.uniform(-4, 3) / 20)
        out[a:b] = tone(rng, rng.choice(DTMF_HZ[0]), b - a) + twist * tone(rng, rng.choice(DTMF_HZ[1]), b - a)
        at = end + int(off * SAMPLE_RATE_HZ)
    return out


def chord(rng: Rng, n: int) -> np.ndarray:
    count = int(rng.integers(2, 6))
    return sum((tone(rng, between(rng, 150, 3500), n) * rng.uniform(0.3, 1) for _ in range(count)), np.zeros(n))


def call_progress(rng: Rng, n: int) -> np.ndarray:
    x = tone(rng, rng.uniform(350, 480), n) + rng.integers(0, 2) * tone(rng, rng.uniform(440, 620), n)
    return x * gate(rng, n, (0.2, 1.0), (0.1, 1.0))


def sweep(rng: Rng, n: int) -> np.ndarray:
    a, b = between(rng, *TONES_HZ), between(rng, *TONES_HZ)
    return tone(rng, a * (b / a) ** np.linspace(0, 1, n), n)


def siren(rng: Rng, n: int) -> np.ndarray:
    """A whistle or a siren: one frequency that moves, some breath."""
    t = np.arange(n) / SAMPLE_RATE_HZ
    hz = between(rng, 400, 4000) * 2 ** (rng.uniform(0, 0.4) * np.sin(2 * np.pi * (rng.uniform(0.5, 8) * t + rng.random())))
    return tone(rng, hz, n) + rng.uniform(0, 0.1) * rng.standard_normal(n)


def bell(rng: Rng, n: int) -> np.ndarray:
    """Partials that are no harmonics, each dying away in its own time."""
    t, out, base = np.arange(n) / SAMPLE_RATE_HZ, np.zeros(n), between(rng, 200, 2000)
    strike = rng.uniform(-0.2, 0.4)
    for ratio in np.cumprod(np.r_[1.0, rng.uniform(1.2, 1.9, int(rng.integers(2, 6)))]):
        if base * ratio < 9000:
            decay = np.where(t >= strike, np.exp(-(t - strike) / rng.uniform(0.05, 1.0)), 0)
            out += tone(rng, base * ratio, n) * decay * rng.uniform(0.2, 1)
    return out


def knocks(rng: Rng, n: int) -> np.ndarray:
    """Castanets, claps, knocks: a resonance and noise that die away in some milliseconds."""
    out, t = np.zeros(n), np.arange(SAMPLE_RATE_HZ // 10) / SAMPLE_RATE_HZ
    for at in rng.integers(0, n, int(rng.integers(1, 6))):
        knock = np.cos(2 * np.pi * between(rng, 400, 5000) * t) * rng.uniform(0, 1) + rng.uniform(0.1, 0.7) * rng.standard_normal(len(t))
        end = min(n, at + len(t))
        out[at:end] += (knock * np.exp(-t / rng.uniform(0.002, 0.02)))[: end - at]
    return out


def buzzer(rng: Rng, n: int) -> np.ndarray:
    """Square waves and pulses, as of alarms."""
    hz = between(rng, 100, 2500)
    phase = (np.arange(n) * hz / SAMPLE_RATE_HZ + rng.random()) % 1
    x = (phase < rng.uniform(0.1, 0.5)) * 1.0
    return scipy.signal.lfilter(*scipy.signal.butter(2, 9000, fs=SAMPLE_RATE_HZ), x - x.mean()) * gate(rng, n, (0.1, 0.5), (0.0, 0.5))


# What is drawn, and how often.
KINDS: tuple[tuple[Callable[[Rng, int], np.ndarray], float], ...] = (
    (steady, 0.2), (beeps, 0.14), (dialling, 0.22), (chord, 0.1), (call_progress, 0.06), (sweep, 0.06),
    (siren, 0.06), (bell, 0.06), (knocks, 0.07), (buzzer, 0.03),
)  # fmt: skip


def signal(rng: Rng, n: int) -> np.ndarray:
    """One generated sound [n], of RMS 1 unless it is silent."""
    make = KINDS[rng.choice(len(KINDS), p=[share for _, share in KINDS])][0]
    x = make(rng, n).astype(np.float32)
    return x / max(float(np.sqrt(np.mean(x * x))), 1e-3)
