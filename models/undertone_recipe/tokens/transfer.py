"""Starting a token model from an exported one, also from that of another codec model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import load_file

from ..codec import Codec
from ..config import PITCH_STAGE
from .integer import LOG2E
from .model import Shape, TokenModel
from .train import codebooks_of


def floats(tensors: dict[str, np.ndarray], name: str, gain: float = 1.0, unit: float | np.ndarray = 2.0**10) -> dict[str, torch.Tensor]:
    """Inverse of integer.quantise: weight and bias of a layer."""
    step = tensors[f"{name}.factor"].astype(np.float64) / (gain * unit * 2**14)
    weight = tensors[f"{name}.weight"].astype(np.float64) * step[:, None]
    bias = tensors[f"{name}.bias"].astype(np.float64) / (gain * unit)
    return {"weight": torch.from_numpy(weight.astype(np.float32)), "bias": torch.from_numpy(bias.astype(np.float32))}


def moved(value: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """What a head says about each entry (`value` [entries, ...]), for the entries `new` instead of `old` [entries, D].

    Training replaces entries all the time, so after more training of the codec an index means something else; but what the
    head says is mostly a linear function of the entry's vector and its length, and that function carries over.
    """

    def features(book: torch.Tensor) -> torch.Tensor:
        b = book.double()
        return torch.cat([b, torch.ones(len(b), 1, dtype=torch.double), b.pow(2).sum(1, keepdim=True)], 1)

    flat = value.double().reshape(len(value), -1)
    solution = torch.linalg.lstsq(features(old), flat).solution
    return (features(new) @ solution).reshape(value.shape).float()


def widened(weight: torch.Tensor, parts: int, old: int, new: int) -> torch.Tensor:
    """Columns [rows, ... + parts * old] of a layer whose last inputs are `parts` latents of width `old`, with zeros for those of width `new`."""
    rows, first = len(weight), weight.shape[1] - parts * old
    latents = F.pad(weight[:, first:].reshape(rows, parts, old), (0, new - old))
    return torch.cat([weight[:, :first], latents.reshape(rows, -1)], 1)


def old_stage(stage: int, voice_is_new: bool) -> int | None:
    """The stage of the old codec that says what a stage of the new one does; None for that of the pitch if the old one has none."""
    if not voice_is_new or stage < PITCH_STAGE:
        return stage
    return stage - 1 if stage > PITCH_STAGE else None


def start_from(shape: Shape, codec: Codec, tokens: Path, old_books: torch.Tensor) -> TokenModel:
    """A model of this shape for codec with the weights of an exported one whose codec has the codebooks old_books
    [stages, entries, D]. Stages that the old one lacks start fresh; its transformer must have the same sizes. A codec with a voice source
    can take over from one without, whose latents are narrower."""
    t = load_file(tokens)
    with safe_open(tokens, "np") as f:
        had = int(f.metadata()["stages"])
    books = codebooks_of(codec)
    narrow, wide = old_books.shape[2], shape.latent
    old_books = F.pad(old_books, (0, wide - narrow))
    model = TokenModel(shape, books)
    state = model.state_dict()

    def take(name: str, gain: float = 1.0, unit: float | np.ndarray = 2.0**10, to: str = "", latents: int = 0) -> None:
        """A layer, for the one named `to`; `latents`: how many of them it reads, last."""
        for part, value in floats(t, name, gain, unit).items():
            if part == "weight" and latents:
                value = widened(value, latents, narrow, wide)
            if (key := f"{to or name}.{part}") in state:
                if state[key].shape != value.shape:
                    raise ValueError(f"{tokens}: {key} is {list(value.shape)}, wanted {list(state[key].shape)}")
                state[key] = value

    take("inp", unit=2.0**14, latents=3)
    count = torch.from_numpy(t["count"].astype(np.float32) / 2**14)[: shape.stages]
    state["count"] = torch.cat([count, count[-1:].expand(shape.stages - len(count), -1)]).clone()
    state["start"] = torch.from_numpy(t["start"].astype(np.float32) / 2**14)
    rows = np.full(3 * shape.width, 2.0**10)
    rows[: 2 * shape.width] = 2.0**8
    for i in range(shape.layers):
        take(f"layers.{i}.qkv", unit=rows)
        take(f"layers.{i}.mix", unit=2.0**14)
        take(f"layers.{i}.up")
        take(f"layers.{i}.down", unit=2.0**14)
    for k in range(shape.stages):
        old = old_stage(k, narrow < wide)
        if old is None or old >= min(had, len(old_books)):
            continue
        size = (len(t[f"depth.{old}.up.weight"]), t[f"depth.{old}.table.weight"].shape[1])
        if old != k and size != shape.depth_size(k):
            continue  # the first of the smaller ones, which was a larger one
        for part in ("up", "down", "skip"):
            take(f"depth.{old}.{part}", to=f"depth.{k}.{part}", latents=0 if part == "down" else 1)
        take(f"depth.{old}.table", gain=LOG2E, to=f"depth.{k}.table")
        if not torch.equal(old_books[old], books[k]):
            for part in ("weight", "bias"):
                key = f"depth.{k}.table.{part}"
                state[key] = moved(state[key], old_books[old], books[k])
    model.load_state_dict(state)
    return model


def start_from_model(shape: Shape, codec: Codec, folder: Path, file: str) -> TokenModel:
    """As `start_from`, with the token model and the codebooks of a model folder."""
    books = load_file(folder / "codebooks.safetensors")["codebooks"].astype(np.float32)
    return start_from(shape, codec, folder / file, torch.from_numpy(books))
