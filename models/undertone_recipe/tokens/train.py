"""Training and measuring a token model."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..codec import Codec
from ..step import clip_gradients, computes_bf16
from .data import COUNTS, eval_codes, training_codes
from .model import Shape, TokenModel, shape_dict

FRAMES = 160  # of a training sequence; longer than the window, so that the start leaves it


def codebooks_of(codec: Codec) -> torch.Tensor:
    return torch.stack([s.codebook for s in codec.quantiser.stages])


@torch.no_grad()
def bits_by_stage(model: TokenModel, items: list[np.ndarray]) -> np.ndarray:
    """Mean bits of a code of each stage over recordings [T, S], coded from their first frame on."""
    total, frames, device = np.zeros(items[0].shape[1]), 0, next(model.parameters()).device
    for codes in items:
        c = torch.from_numpy(codes.astype(np.int64))[None].to(device)
        logits = model(c)
        bits = [F.cross_entropy(y[0].float(), c[0, :, k], reduction="sum") / np.log(2) for k, y in enumerate(logits)]
        total, frames = total + np.array([float(b) for b in bits]), frames + c.shape[1]
    return total / frames


def report(model: TokenModel, codec: Codec, folder: Path, every: int = 5, kind: str = "speech") -> dict[int, float]:
    """Prints bits by stage and the share saved against 10 bits a code, by number of stages."""
    model.eval()
    saved = {}
    for s in COUNTS:
        bits = bits_by_stage(model, eval_codes(codec, folder, kind, every, s, 4))
        saved[s] = 1 - bits.mean() / 10
        print(f"  {s} stages: {100 * saved[s]:.1f} % saved; bits by stage " + " ".join(f"{b:.2f}" for b in bits), flush=True)
    return saved


def train(
    codec: Codec,
    model_id: str,
    shape: Shape,
    data: Path,
    evaluation: Path,
    out: Path,
    *,
    minutes: float,
    hours: float,
    device: str = "cpu",
    resume: Path | None = None,
    start: TokenModel | None = None,
    rate: float = 2e-3,
    batch: int = 8,
    workers: int = 0,
) -> Path:
    """Trains for so many minutes on batches of `batch` sequences; leaves and returns the checkpoint `out`. With `workers` the audio to
    encode is made by as many processes."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    codes = training_codes(codec.to(device), model_id, data, hours, batch=batch, workers=workers)
    pool = torch.from_numpy(codes).to(device)
    steps = torch.arange(FRAMES, device=device)
    model = (start or TokenModel(shape, codebooks_of(codec))).to(device)
    if resume:
        raw = torch.load(resume, map_location=device, weights_only=True)
        model.load_state_dict(raw["model"])
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
    print(f"{model.parameters_count()} parameters, {codes[..., 0].size} frames", flush=True)
    bf16 = computes_bf16(torch.device(device))
    began = saved = time.monotonic()
    step, mean = 0, 0.0
    while (progress := (time.monotonic() - began) / (60 * minutes)) < 1:
        rows, at = rng.integers(0, len(codes), (batch, 1)), rng.integers(0, codes.shape[1] - FRAMES + 1, (batch, 1))
        x = pool[torch.from_numpy(rows).to(device), torch.from_numpy(at).to(device) + steps].long()
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 200) * max(0.01, min(1.0, (1 - progress) / 0.7))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            losses = model.losses(x)
        loss = torch.stack(losses).sum()
        optimiser.zero_grad()
        (loss / x[..., 0].numel()).backward()
        norm = clip_gradients(list(model.parameters()), 1.0, 0.0)
        optimiser.step()
        step += 1
        if step % 10 == 0:
            bits = float(loss.detach()) / int((x >= 0).sum()) / np.log(2)
            mean = 0.9 * mean + 0.1 * bits if mean else bits
        if step % 100 == 0:
            now = time.monotonic()
            print(f"{step} {(now - began) / 60:.1f} min {step / (now - began):.2f} steps/s bits a code {mean:.3f} norm {norm:.2f}", flush=True)
        if time.monotonic() - saved > 600:
            saved = time.monotonic()
            write(out, model)
            report(model, codec, evaluation)
    write(out, model)
    report(model, codec, evaluation, every=1)
    return out


def write(path: Path, model: TokenModel) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"shape": shape_dict(model.shape), "model": model.state_dict()}, partial)
    partial.replace(path)


def read(path: Path, codec: Codec) -> TokenModel:
    raw = torch.load(path, map_location="cpu", weights_only=True)
    model = TokenModel(Shape(**raw["shape"]), codebooks_of(codec))
    model.load_state_dict(raw["model"])
    return model.eval()
