"""Writing a model folder, and reading one back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from . import config
from .codec import Codec, decoder_noise
from .gradient import write as write_gradient
from .graph import count_macs, decoder_graph, encoder_graph
from .network import Block, Decoder
from .quantiser import ResidualQuantiser


def test_signal(frames: int) -> np.ndarray:
    """A swept voice-like tone with noise [frames * FRAME]: no recording is needed for the golden example."""
    n = np.arange(frames * config.FRAME)
    t = n / config.SAMPLE_RATE_HZ
    phase = 2 * np.pi * (110 * t + 60 * t * t)
    x = sum(np.sin(k * phase) / k for k in range(1, 25)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
    x = x + np.random.default_rng(7).standard_normal(len(n)) * 0.1
    return (x * 0.08).astype(np.float32)


def golden(codec: Codec, frames: int = 50) -> dict[str, np.ndarray]:
    """Input, latents, greedy codes and output of the test signal, computed by torch."""
    net = codec.cfg.network
    pcm = test_signal(frames)
    with torch.no_grad():
        z, _ = codec.encoder(torch.from_numpy(pcm)[None])
        codes = codec.quantiser.encode(z, net.stages)
        noise = decoder_noise(0, frames, net.noise_dim).reshape(1, 2 * frames, -1)
        y, _ = codec.decoder(codec.quantiser.decode(codes), torch.from_numpy(noise))
    return {
        "pcm": pcm,
        "latent": z[0].numpy().copy(),
        "codes": codes[0].numpy().astype(np.int32),
        "decoded": y[0].numpy().copy(),
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_id(folder: Path) -> str:
    """The id of the model in a folder: the first 8 bytes of its manifest's SHA-256, in hexadecimal."""
    return sha256(folder / "manifest.toml")[:16]


@torch.no_grad()
def as_shipped(codec: Codec) -> None:
    """Rounds what is shipped in half precision, so that all that follows uses what will be read back: codebooks, and the matrices of
    linear layers with the layer scales folded in."""
    for stage in codec.quantiser.stages:
        stage.codebook.copy_(stage.codebook.half().float())
    for module in (*codec.encoder.modules(), *codec.decoder.modules()):
        if isinstance(module, Block):
            module.down.weight.mul_(module.scale[:, None])
            module.down.bias.mul_(module.scale)
            module.scale.fill_(1.0)
        elif isinstance(module, nn.Linear):  # comes after the block it lies in
            module.weight.copy_(module.weight.half().float())
    codec.take_levels()


def export(codec: Codec, out: Path, name: str) -> str:
    """Writes encoder, decoder, codebooks, golden example, manifest and configuration; returns the model id."""
    codec = codec.cpu().eval()
    net = codec.cfg.network
    as_shipped(codec)
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "# What this model's codes mean. The first 8 bytes of this file's SHA-256 are the model id: never edit it.",
        "format = 1",
        f'name = "{name}"',
        f"sample_rate_hz = {config.SAMPLE_RATE_HZ}",
        f"frame_samples = {config.FRAME}",
        f"delay_samples = {config.FRAME + net.delay}",
        f"latent_dim = {net.latent}",
        f"stages = {net.stages}",
        f"entries = {net.entries}",
        f"noise_dim = {net.noise_dim}",
    ]
    for part, model in {
        "encoder": encoder_graph(codec.encoder, net),
        "decoder": decoder_graph(codec.decoder, net),
    }.items():
        state = model.graph.input[-1].type.tensor_type.shape.dim[-1].dim_value
        path = out / f"{part}.onnx"
        onnx.save(model, path)
        lines += ["", f"[{part}]", f'path = "{path.name}"', f'sha256 = "{sha256(path)}"']
        lines += [f"state_size = {state}", f"macs_per_frame = {count_macs(model)}"]
    # Not in the manifest: it changes how files are searched for, not what codes mean.
    write_gradient(out / "decoder.onnx", out / "gradient.onnx", net, sha256(out / "decoder.onnx"))
    books = np.stack([s.codebook.numpy().astype(np.float16) for s in codec.quantiser.stages])
    save_file({"codebooks": books}, out / "codebooks.safetensors")
    save_file(golden(codec), out / "golden.safetensors")
    for part in ("codebooks", "golden"):
        path = out / f"{part}.safetensors"
        lines += ["", f"[{part}]", f'path = "{path.name}"', f'sha256 = "{sha256(path)}"']
    (out / "manifest.toml").write_text("\n".join(lines) + "\n")
    # Not in the manifest either: it is for what trains on, not for what codes mean.
    (out / config.MODEL_CONFIG).write_text(json.dumps(dataclasses.asdict(codec.cfg), indent=2) + "\n")
    return model_id(out)


# Of a codec with a voice source; models from before it (27 November 2026) lack them.
NEW_HEADS = ("wave.", "voicing.", "pulse.", "pitch.")
# What reads latents: models from before the voice source have fewer of them, and the pitch says nothing at first.
READS_LATENTS = ("inp.weight", "shape_skip.weight", "gain_skip.weight")


def widened(value: Tensor, width: int) -> Tensor:
    """The last axis with zeros up to this width."""
    return nn.functional.pad(value, (0, width - value.shape[-1]))


def exported_state(module: nn.Module, path: Path, latent: int) -> dict[str, Tensor]:
    """Parameters of an encoder or decoder from an exported graph. The layer scales come back as 1: they are folded in. Heads of a voice source
    that the graph lacks are left as they are; so are further blocks at 10 ms, which do nothing at first."""
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    state = module.state_dict()
    for key, old in state.items():
        if key.endswith(".scale"):
            if key.removesuffix("scale") + "down.weight" in found:
                state[key] = torch.ones_like(old)
            elif key.startswith("fine."):
                state[key] = torch.zeros_like(old)
            continue
        if key == "levels" or (key not in found and key.startswith((*NEW_HEADS, "fine."))):
            continue
        value = found[key]
        if key.endswith(".depthwise.weight"):
            value = value.T[:, None]
        elif value.ndim == 2:
            value = value.T
        tensor = torch.from_numpy(np.array(value, dtype=np.float32, order="C"))
        state[key] = widened(tensor, latent) if key in READS_LATENTS and isinstance(module, Decoder) else tensor
    return state


def take_codebooks(quantiser: ResidualQuantiser, books: Tensor) -> None:
    """Codebooks [stages, entries, D] of a model. Those of a model without a voice go to the stages besides that of the pitch, as many
    as there are."""
    stages, latent = quantiser.stages, quantiser.stages[0].codebook.shape[1]
    if books.shape[2] < latent:
        stages = [s for k, s in enumerate(stages) if k not in quantiser.fixed]
        books = widened(books, latent)[: len(stages)]
    for stage, book in zip(stages, books, strict=True):
        stage.codebook.copy_(book)
        stage.total.copy_(book)
        stage.count.fill_(1.0)
    quantiser.ready.fill_(True)


def load_exported(folder: Path, cfg: config.Config) -> Codec:
    """A codec with the weights of a model folder, to be trained on; a codec with a voice source starts from a model without, too."""
    codec = Codec(cfg)
    for part in ("encoder", "decoder"):
        module = getattr(codec, part)
        module.load_state_dict(exported_state(module, folder / f"{part}.onnx", cfg.network.latent))
    books = load_file(folder / "codebooks.safetensors")["codebooks"]
    take_codebooks(codec.quantiser, torch.from_numpy(books.astype(np.float32)))
    codec.take_levels()
    return codec
