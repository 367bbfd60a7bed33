"""Starting a token model from an exported one, also from that of another codec model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from ..codec import Codec
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


def start_from(shape: Shape, codec: Codec, tokens: Path, old_books: torch.Tensor) -> TokenModel:
    """A model of this shape for codec with the weights of an exported one whose codec has the codebooks old_books
    [stages, entries, D]. Stages that the old one lacks start fresh; its transformer must have the same sizes."""
    t = load_file(tokens)
    with safe_open(tokens, "np") as f:
        had = int(f.metadata()["stages"])
    books = codebooks_of(codec)
    model = TokenModel(shape, books)
    state = model.state_dict()

    def take(name: str, gain: float = 1.0, unit: float | np.ndarray = 2.0**10) -> None:
        for part, value in floats(t, name, gain, unit).items():
            if (key := f"{name}.{part}") in state:
                if state[key].shape != value.shape:
                    raise ValueError(f"{tokens}: {key} is {list(value.shape)}, wanted {list(state[key].shape)}")
                state[key] = value

    take("inp", unit=2.0**14)
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
    for k in range(min(had, shape.stages, len(old_books))):
        for part in ("up", "down", "skip"):
            take(f"depth.{k}.{part}")
        take(f"depth.{k}.table", gain=LOG2E)
        if not torch.equal(old_books[k], books[k]):
            for part in ("weight", "bias"):
                key = f"depth.{k}.table.{part}"
                state[key] = moved(state[key], old_books[k], books[k])
    model.load_state_dict(state)
    return model


def start_from_model(shape: Shape, codec: Codec, folder: Path, file: str) -> TokenModel:
    """As `start_from`, with the token model and the codebooks of a model folder."""
    books = load_file(folder / "codebooks.safetensors")["codebooks"].astype(np.float32)
    return start_from(shape, codec, folder / file, torch.from_numpy(books))
