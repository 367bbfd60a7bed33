"""The encoder learns what a search finds: analysis by synthesis with many steps (docs/synthesis.md) moves latents; their regression on the
sound is an encoder that gives, at once and live, part of what the search gives (amortised inference; how much: EXPERIMENTS.md). No
decoder is needed in training, so a core makes about ten steps a second.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torch.nn.functional as F
from torch import Tensor

from .codec import Codec
from .config import FRAME, NOISE_BAND, SAMPLE_RATE_HZ, Data
from .container import packed_codes
from .data import Batches
from .network import Encoder

# Parts of the encoder that learn; pitch and tones stay.
LEARNING = ("skip", "inp", "blocks", "norm", "out")
ITEM_S, ITEMS = 5.76, 10  # of a recording that is searched for
STAGES, STEPS, BEAM = 24, 20, 4
SEGMENT, BATCH, SETTLED = 96, 8, 8  # frames, items, and frames in which the encoder has no past yet
HUBER = 6.0  # latents further away count linearly; their RMS is 15
AVERAGE = 300  # steps


@dataclass
class Searched:
    """A recording, and the latents that a search found for it."""

    pcm: Tensor  # [T * FRAME]
    latents: Tensor  # [T, free]
    counts: Tensor  # [T, 1]: 1, or 0 for tones, whose latents are no network's


def recordings(folder: Path, data: Data, seed: int) -> Callable[[], np.ndarray]:
    """Makes recordings of augmented items, with natural levels, one after the other."""
    data = replace(data, signal_share=0.0, silence_share=0.0, quiet_share=min(data.quiet_share, 0.05))
    batches = Batches(folder, data, 1, ITEM_S, seed)
    return lambda: np.concatenate([batches.labelled().pcm[0] for _ in range(ITEMS)])


def search_with(binary: Path, model: Path, pcm: np.ndarray) -> np.ndarray:
    """Codes [T, STAGES] of pcm, searched for by undertone itself: ten times as fast as search.py."""
    with tempfile.TemporaryDirectory() as folder:
        wav, codes = Path(folder) / "in.wav", Path(folder) / "out.utn"
        sf.write(wav, pcm, SAMPLE_RATE_HZ, subtype="FLOAT")
        how = ["--packed", "--stages", str(STAGES), "--beam", str(BEAM), "--refine", str(STEPS)]
        subprocess.run([binary, "encode", wav, codes, "--model", model, *how], check=True, stdout=subprocess.DEVNULL)
        return packed_codes(codes.read_bytes())


@torch.no_grad()
def searched(codec: Codec, pcm: np.ndarray, codes: np.ndarray) -> Searched:
    """What is learnt of a recording and its codes; the last frame, which is padded, is left out."""
    frames, free = min(len(codes), len(pcm) // FRAME), codec.cfg.network.free
    sound = torch.from_numpy(pcm[: frames * FRAME].astype(np.float32))
    found = codec.quantiser.decode(torch.from_numpy(codes[None, :frames].astype(np.int64)))[0, :, :free]
    start = codec.encoder(sound[None])[0][0, :, :free]
    # A tone's latents are the entry of its level, which is quantised to itself.
    tone = (found - start).pow(2).mean(-1) < 1e-6
    return Searched(sound, found, (~tone)[:, None].float())


def free_latents(encoder: Encoder, pcm: Tensor) -> Tensor:
    """pcm [B, T * FRAME] from the beginning of a stream -> latents [B, T, free], before pitch and tones."""
    return encoder.free_latents(encoder.features(pcm, None)[0], {}, {})


def distance(encoder: Encoder, pcm: Tensor, latents: Tensor, counts: Tensor) -> Tensor:
    away = F.huber_loss(free_latents(encoder, pcm), latents, reduction="none", delta=HUBER) * counts
    return away[:, SETTLED:].mean()


def learn(codec: Codec, items: list[Searched], steps: int, rate: float, seed: int = 0) -> tuple[float, float]:
    """Trains the encoder on all items but the first, and leaves it with the weights averaged over steps. Returns the distance from what was
    found for the first item, before and after."""
    encoder, rng = codec.encoder, np.random.default_rng(seed)
    learning = [p for name, p in encoder.named_parameters() if name.split(".")[0] in LEARNING]
    for p in learning:
        p.requires_grad_(True)
    optimiser = torch.optim.Adam(learning, lr=rate, betas=(0.9, 0.99))
    average = [p.detach().clone() for p in learning]
    held = (items[0].pcm[None], items[0].latents[None], items[0].counts[None])
    with torch.no_grad():
        before = float(distance(encoder, *held))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50) * min(1.0, (1 - step / steps) / 0.7)
        optimiser.zero_grad()
        distance(encoder, *batch_of(items[1:], rng)).backward()
        optimiser.step()
        with torch.no_grad():
            for mean, p in zip(average, learning, strict=True):
                mean.lerp_(p, 1 / min(step + 11, AVERAGE))
    with torch.no_grad():
        for mean, p in zip(average, learning, strict=True):
            p.copy_(mean)
            p.requires_grad_(False)
        return before, float(distance(encoder, *held))


def batch_of(items: list[Searched], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Segments of items drawn at random: pcm, latents, counts."""
    rows = []
    for _ in range(BATCH):
        item = items[int(rng.integers(len(items)))]
        a = int(rng.integers(len(item.latents) - SEGMENT + 1))
        b = a + SEGMENT
        rows.append((item.pcm[a * FRAME : b * FRAME], item.latents[a:b], item.counts[a:b]))
    pcm, latents, counts = (torch.stack(part) for part in zip(*rows, strict=True))
    return pcm, latents, counts


def raise_level(codec: Codec, db: float) -> None:
    """All decoded bands by so much. The mean of what was found is quieter than each of it."""
    codec.decoder.gain.bias.data[:NOISE_BAND] += db * float(np.log(10)) / 20
