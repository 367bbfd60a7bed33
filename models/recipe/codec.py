"""Encoder, quantiser and decoder together, and how they are kept on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from . import config
from .network import Decoder, Encoder
from .quantiser import ResidualQuantiser

# Samples by which the decoder's output lags the encoder's input when both run frame by frame: the overlap of the MDCT.
OVERLAP_DELAY = config.HOP


class Codec(nn.Module):
    def __init__(self, cfg: config.Config):
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg.network)
        self.quantiser = ResidualQuantiser(cfg.network, cfg.quantiser)
        self.decoder = Decoder(cfg.network)

    @torch.no_grad()
    def round_trip(self, pcm: Tensor, stages: int, beam: int = 1) -> Tensor:
        """pcm [B, T * FRAME] -> decoded, delay removed, same length."""
        pad = nn.functional.pad(pcm, (0, config.FRAME))
        z, _ = self.encoder(pad)
        codes = self.quantiser.encode(z, stages, beam)
        noise = torch.zeros(z.shape[0], 2 * z.shape[1], self.cfg.network.noise, device=z.device)
        y, _ = self.decoder(self.quantiser.decode(codes), noise)
        return y[:, OVERLAP_DELAY : OVERLAP_DELAY + pcm.shape[1]]


def save(path: Path, codec: Codec, **extra) -> None:
    """Writes a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save({"config": dataclasses.asdict(codec.cfg), "codec": codec.state_dict(), **extra}, partial)
    partial.replace(path)


def load(path: Path, device: str = "cpu") -> tuple[Codec, dict]:
    """A checkpoint of ours (tensors and plain values only); raises FileNotFoundError or RuntimeError."""
    raw = torch.load(path, map_location=device, weights_only=True)
    codec = Codec(config.from_dict(raw["config"]))
    codec.load_state_dict(raw["codec"])
    return codec.to(device), raw
