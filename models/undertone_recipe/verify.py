"""Whether a model folder is whole, and whether ONNX Runtime computes what torch does."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from safetensors.numpy import load_file

from . import config, digests
from .balance import dead_gains, observe
from .codec import Codec, decoder_noise
from .data import Batches
from .export import load_exported, model_id, sha256
from .graph import count_macs
from .quantiser import nearest

TOLERANCE = 2e-3  # of full scale, as `undertone model verify` asks
MOST_MMACS = 350.0
LEAST_PERPLEXITY = 0.1  # of what is possible; below it a stage has collapsed


class VerifyError(ValueError):
    """What is wrong with a model folder."""


def check(ok: bool, what: str) -> None:
    if not ok:
        raise VerifyError(what)


def session(folder: Path, part: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(folder / f"{part}.onnx", options, providers=["CPUExecutionProvider"])


def parity(codec: Codec, folder: Path, sizes: dict[str, int]) -> dict[str, float]:
    """Largest difference between torch and ONNX Runtime on the golden example, a frame at a time for the latter."""
    golden = load_file(folder / "golden.safetensors")
    frames = len(golden["codes"])
    with torch.no_grad():
        z, _ = codec.encoder(torch.from_numpy(golden["pcm"])[None])
        q = codec.quantiser.decode(torch.from_numpy(golden["codes"].astype(np.int64))[None])
        noise = decoder_noise(0, frames, codec.cfg.network.noise_dim)
        y, _ = codec.decoder(q, torch.from_numpy(noise).reshape(1, 2 * frames, -1))
    worst = {}
    for part, want in (("encoder", z), ("decoder", y)):
        run, state, out = session(folder, part), np.zeros((1, sizes[part]), np.float32), []
        for t in range(frames):
            piece = {"state": state}
            if part == "encoder":
                piece["pcm"] = golden["pcm"][None, None, t * config.FRAME : (t + 1) * config.FRAME]
            else:
                piece |= {"latent": q[:, t : t + 1].numpy(), "noise": noise[None, t : t + 1]}
            made, state = run.run(None, piece)
            out.append(made.reshape(1, -1))
        worst[part] = float(np.abs(np.concatenate(out, 1) - want.reshape(1, -1).numpy()).max())
    return worst


@torch.no_grad()
def perplexities(codec: Codec, batches: Batches, rounds: int = 24) -> list[float]:
    """Share of the possible perplexity that the greedy codes of each stage have on training audio."""
    x = torch.cat([codec.encoder(torch.from_numpy(next(batches)))[0].reshape(-1, codec.cfg.network.latent) for _ in range(rounds)])
    out = []
    for stage in codec.quantiser.stages:
        a = nearest(x, stage.codebook)
        p = torch.bincount(a, minlength=len(stage.codebook)).double() / len(a)
        entropy = -(p[p > 0] * p[p > 0].log2()).sum()
        out.append(float(2**entropy) / min(len(stage.codebook), len(a)))
        x = x - stage.codebook[a]
    return out


def verify(folder: Path, cfg: config.Config, data: Path | None) -> None:
    """Prints what was checked; raises VerifyError on the first thing that is wrong."""
    manifest = tomllib.loads((folder / "manifest.toml").read_text())
    parts = ("encoder", "decoder", "codebooks", "golden")
    for part in parts:
        entry = manifest[part]
        check(sha256(folder / entry["path"]) == entry["sha256"], f"{entry['path']}: its hash is not the manifest's")
    faults = digests.wrong(folder)
    check(not faults, "; ".join(faults))
    print(f"hashes       ok, {len(parts)} files; model id {model_id(folder)}")
    rate = manifest["sample_rate_hz"] / manifest["frame_samples"] / 1e6
    macs = {part: count_macs(onnx.load(folder / f"{part}.onnx")) * rate for part in ("encoder", "decoder")}
    check(sum(macs.values()) <= MOST_MMACS, f"{sum(macs.values()):.1f} MMAC/s, at most {MOST_MMACS:.0f} are allowed")
    print("compute      " + ", ".join(f"{part} {v:.1f}" for part, v in macs.items()) + f", {sum(macs.values()):.1f} MMAC/s in all")
    codec = load_exported(folder, cfg).eval()
    worst = parity(codec, folder, {part: manifest[part]["state_size"] for part in ("encoder", "decoder")})
    check(worst["decoder"] <= TOLERANCE, f"decoder: ONNX Runtime differs by {worst['decoder']:.6f} of full scale, allowed {TOLERANCE}")
    print(f"parity       torch and ONNX Runtime differ by {worst['encoder']:.6f} (latents), {worst['decoder']:.6f} (of full scale)")
    if data is not None:
        shares = perplexities(codec, Batches(data, cfg.data, 8, 1.28, 1))
        for k, share in enumerate(shares):
            # A fixed codebook cannot collapse, and most of its entries are pitches that few have.
            sound = share >= LEAST_PERPLEXITY or k in codec.quantiser.fixed
            check(sound, f"stage {k + 1} has collapsed: {100 * share:.0f} % of the possible perplexity")
        dead = dead_gains(observe(codec, Batches(data, cfg.data, 8, 1.28, 2), 12))
        check(not dead, "silent bands (band, block of the frame): " + ", ".join(map(str, dead)))
        print("gains        no band is silent")
        print("perplexity   " + " ".join(f"{100 * v:.0f}" for v in shares) + " % of what is possible, by stage")
