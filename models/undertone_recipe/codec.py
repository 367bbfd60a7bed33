"""Encoder, quantiser and decoder together, and how they are kept on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import config
from .network import Decoder, Encoder
from .quantiser import ResidualQuantiser

SPLITMIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def decoder_noise(first_frame: int, frames: int, width: int) -> np.ndarray:
    """Noise [frames, width] in -1..1 that the decoder is fed: SplitMix64 over a counter (docs/bitstream.md)."""
    counter = np.uint64(first_frame * width) + np.arange(1, frames * width + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = counter * np.uint64(SPLITMIX[0])
        x = (x ^ (x >> np.uint64(30))) * np.uint64(SPLITMIX[1])
        x = (x ^ (x >> np.uint64(27))) * np.uint64(SPLITMIX[2])
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - 1).reshape(frames, width)


class Codec(nn.Module):
    def __init__(self, cfg: config.Config):
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg.network)
        self.quantiser = ResidualQuantiser(cfg.network, cfg.quantiser)
        self.decoder = Decoder(cfg.network)

    @property
    def device(self) -> torch.device:
        return self.quantiser.ready.device

    @torch.no_grad()
    def take_levels(self) -> None:
        """Has the entries of the first stage stand for levels of tones, in the order of the loudness that the decoder gives them, so that a
        tone's neighbours are frames of about its own level."""
        if not self.cfg.network.voice:
            return
        entries = self.quantiser.stages[0].codebook[:, : self.cfg.network.free]
        loudness = entries @ self.decoder.gain_skip.weight[:, : self.cfg.network.free].mean(0)
        for part in (self.encoder, self.decoder):
            part.levels.copy_(entries[loudness.argsort()])
        self.encoder.levelled = True

    @torch.no_grad()
    def round_trip(self, pcm: Tensor, stages: int, beam: int = 1) -> Tensor:
        """pcm [B, T * FRAME] -> decoded, delay removed, same length. 0 stages stands for unquantised."""
        pad = nn.functional.pad(pcm, (0, config.FRAME))
        z, _ = self.encoder(pad)
        q = self.quantiser.decode(self.quantiser.encode(z, stages, beam)) if stages else z
        noise = torch.from_numpy(decoder_noise(0, z.shape[1], self.cfg.network.noise_dim)).to(z.device)
        noise = noise.reshape(1, 2 * z.shape[1], -1).expand(z.shape[0], -1, -1)
        y, _ = self.decoder(q, noise)
        late = self.cfg.network.delay
        return y[:, late : late + pcm.shape[1]]


def save(path: Path, codec: Codec, **extra: Any) -> None:
    """Writes a checkpoint whole or not at all."""
    _write(path, codec.cfg, codec.state_dict(), **extra)


def save_changed(path: Path, codec: Codec, raw: dict) -> None:
    """Writes a checkpoint that was read as `raw` and whose weights a command has changed: its optimiser would no longer fit."""
    save(path, codec, step=raw.get("step", 0), device_seconds=raw.get("device_seconds", 0.0))


def save_slim(path: Path, cfg: config.Config, weights: dict[str, Tensor]) -> None:
    """A checkpoint of weights alone, in half precision: a quarter of a resumable one's size or less. `load` reads it."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    _write(path, cfg, half)


def _write(path: Path, cfg: config.Config, weights: dict[str, Tensor], **extra: Any) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"config": dataclasses.asdict(cfg), "codec": weights, **extra}, partial)
    partial.replace(path)


def load(path: Path, device: str = "cpu", averaged: bool = False) -> tuple[Codec, dict]:
    """A checkpoint of ours (tensors and plain values only), with its averaged weights if wanted and there; raises FileNotFoundError or
    RuntimeError."""
    raw = torch.load(path, map_location=device, weights_only=True)
    codec = Codec(config.from_dict(raw["config"]))
    codec.load_state_dict(raw["average"] if averaged and "average" in raw else raw["codec"])
    codec.encoder.levelled = codec.cfg.network.voice and bool(codec.encoder.levels.any())
    return codec.to(device), raw
