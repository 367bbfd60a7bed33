"""What several tests need: generated recordings, a network small enough for seconds, a cache of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from undertone_recipe import config
from undertone_recipe.codec import Codec

HERE = Path(__file__).resolve().parent.parent
SMOKE = config.load(HERE / "configs" / "smoke.toml")


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    n = np.arange(int(seconds * 24_000))
    tone = sum(np.sin(2 * np.pi * 140 * k * n / 24_000) / k for k in range(1, 12))
    noise = np.random.default_rng(seed).standard_normal(len(n)) * 0.1
    return ((tone * (0.6 + 0.4 * np.sin(n / 3_000)) + noise) * 0.1).astype(np.float32)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    d = tmp_path_factory.mktemp("audio")
    sf.write(d / "speech_a.wav", voice(9), 24_000)
    sf.write(d / "music_a.flac", voice(6, 1), 24_000)
    return d


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def small_codec() -> Codec:
    """A codec with k-means codebooks, as after the first steps of training."""
    torch.manual_seed(3)
    codec = Codec(SMOKE).eval()
    with torch.no_grad():
        z, _ = codec.encoder(torch.from_numpy(voice(4.8))[None])
    codec.quantiser.start(z[0])
    return codec
