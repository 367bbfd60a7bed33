"""Writing a token model file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ..codec import Codec
from .integer import Reference, from_float
from .model import TokenModel, shape_dict
from .train import codebooks_of

GOLDEN_FRAMES, GOLDEN_STAGES = 12, 8


def export(model: TokenModel, codec: Codec, model_id: str, golden: np.ndarray, out: Path) -> str:
    """Writes the integer model with a golden example (codes [T, S]) and returns its id."""
    state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    tensors = from_float(state, model.shape)
    reference = Reference(tensors, model.shape, codebooks_of(codec).numpy())
    golden = golden[:GOLDEN_FRAMES, :GOLDEN_STAGES]
    tensors["golden.codes"] = golden.astype(np.int32)
    tensors["golden.frequencies"] = reference.run(golden.astype(np.int64)).astype(np.int32)
    tensors["slopes"] = np.array(model.shape.slopes, np.int32)
    meta = {k: str(v) for k, v in shape_dict(model.shape).items()} | {"codec": model_id, "format": "1"}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out, metadata=meta)
    return hashlib.sha256(out.read_bytes()).hexdigest()[:16]


def integer_loss(model: TokenModel, codec: Codec, codes: np.ndarray) -> tuple[float, float]:
    """Mean bits of a code, by the integer model and by the floating-point model."""
    import torch

    from .train import bits_by_stage

    state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    reference = Reference(from_float(state, model.shape), model.shape, codebooks_of(codec).numpy())
    f = reference.run(codes.astype(np.int64))[..., 1]
    with torch.no_grad():
        return float(np.mean(20 - np.log2(f))), float(bits_by_stage(model, [codes]).mean())
