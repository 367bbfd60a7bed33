"""Command line of the recipe: `python -m undertone_recipe COMMAND`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m undertone_recipe", description="Training recipe of the undertone codec.")
    sub = p.add_subparsers(dest="command", required=True)
    t = sub.add_parser("train", help="train from scratch or from a checkpoint, for a number of minutes")
    t.add_argument("--config", type=Path, default=HERE / "configs" / "v2.toml")
    t.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "audio" / "train")
    t.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    t.add_argument("--minutes", type=float, default=60.0)
    t.add_argument("--steps", type=int, default=0, help="stop after so many steps (0: by time alone)")
    t.add_argument("--device", default="cpu", help="cpu or cuda")
    t.add_argument("--threads", type=int, default=1)
    start = t.add_mutually_exclusive_group()
    start.add_argument("--resume", type=Path, help="checkpoint to go on from")
    start.add_argument("--from-model", type=Path, help="folder of an exported model to start from")
    t.add_argument("--part", choices=("all", "networks", "encoder", "decoder"), default="all", help="all but `all` leave the codebooks: codes keep their meaning")
    r = sub.add_parser("report", help="PESQ-WB and ESTOI of a checkpoint on a folder of recordings")
    r.add_argument("checkpoint", type=Path)
    r.add_argument("--audio", type=Path, default=HERE.parent.parent / "shared" / "audio" / "eval")
    r.add_argument("--kind", default="speech")
    r.add_argument("--every", type=int, default=1)
    r.add_argument("--stages", type=int, nargs="+", default=[3, 6, 12, 16])
    r.add_argument("--beam", type=int, default=1)
    r.add_argument("--threads", type=int, default=1)
    f = sub.add_parser("finetune", help="adapt an exported model to a folder of recordings")
    f.add_argument("recordings", type=Path)
    f.add_argument("--model", type=Path, required=True, help="folder of the exported model to start from")
    f.add_argument("--config", type=Path, default=HERE / "configs" / "finetune.toml")
    f.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    f.add_argument("--minutes", type=float, default=20.0)
    f.add_argument("--device", default="cpu")
    f.add_argument("--threads", type=int, default=1)
    f.add_argument("--stages", type=int, nargs="+", default=[4, 8, 16])
    v = sub.add_parser("verify", help="check a model folder: hashes, compute, parity of torch and ONNX Runtime, codebooks")
    v.add_argument("model", type=Path)
    v.add_argument("--config", type=Path, default=HERE / "configs" / "v2.toml")
    v.add_argument("--data", type=Path, help="folder of recordings on which the codebooks must be in use")
    q = sub.add_parser("refit", help="fit the last stages of a checkpoint's quantiser anew, with everything else as it is")
    q.add_argument("checkpoint", type=Path)
    q.add_argument("out", type=Path, help="checkpoint to write")
    q.add_argument("--first", type=int, required=True, help="first stage to fit, from 1")
    q.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "audio" / "train")
    q.add_argument("--seconds", type=float, default=740.0, help="audio to fit on")
    q.add_argument("--threads", type=int, default=1)
    b = sub.add_parser("balance", help="bring a checkpoint's decoded shapes back to unit size and revive silent gains")
    b.add_argument("checkpoint", type=Path)
    b.add_argument("out", type=Path, help="checkpoint to write")
    b.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "audio" / "train")
    b.add_argument("--threads", type=int, default=1)
    e = sub.add_parser("export", help="write a model folder that undertone loads")
    e.add_argument("checkpoint", type=Path)
    e.add_argument("out", type=Path)
    e.add_argument("--name", default="undertone-24k-v1")
    n = sub.add_parser("int8", help="add graphs with integer products to a model folder, for live streams")
    n.add_argument("model", type=Path)
    n.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "audio" / "train")
    n.add_argument("--threads", type=int, default=1)
    k = sub.add_parser("tokens", help="train a token model on the codes of a model folder")
    k.add_argument("model", type=Path, help="folder of the codec's model")
    k.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    k.add_argument("--size", choices=("target", "draft"), default="target")
    k.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "audio" / "train")
    k.add_argument("--audio", type=Path, default=HERE.parent.parent / "shared" / "audio" / "eval")
    k.add_argument("--minutes", type=float, default=60.0)
    k.add_argument("--hours", type=float, default=6.0, help="hours of augmented audio to encode first")
    k.add_argument("--rate", type=float, default=2e-3)
    k.add_argument("--device", default="cpu")
    k.add_argument("--threads", type=int, default=1)
    begin = k.add_mutually_exclusive_group()
    begin.add_argument("--resume", type=Path, help="checkpoint to go on from")
    begin.add_argument("--from-model", type=Path, help="model folder whose token model to start from, of this codec or an older one")
    x = sub.add_parser("export-tokens", help="write a token model as undertone loads it")
    x.add_argument("checkpoint", type=Path)
    x.add_argument("model", type=Path, help="folder of the codec's model")
    x.add_argument("--name", default="tokens.safetensors", help="file to write in that folder")
    return p


def main() -> int:
    a = parser().parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(getattr(a, "threads", 1))
    if a.command == "train":
        from . import config
        from .train import Run, train

        run = Run(a.data, a.out, a.minutes, a.device, a.resume, a.from_model, a.steps, part=a.part)
        print(train(config.load(a.config), run))
    elif a.command == "report":
        from .report import report

        report(a.checkpoint, a.audio, a.kind, a.every, a.stages, a.beam)
    elif a.command == "finetune":
        from . import config
        from .finetune import finetune

        print(finetune(config.load(a.config), a.model, a.recordings, a.out, a.minutes, a.device, a.stages))
    elif a.command == "verify":
        from . import config
        from .verify import VerifyError, verify

        try:
            verify(a.model, config.load(a.config), a.data)
        except VerifyError as e:
            print(f"verify: {e}", file=sys.stderr)
            return 1
    elif a.command == "refit":
        from .codec import load, save
        from .data import Batches

        codec, raw = load(a.checkpoint)
        with torch.no_grad():
            batches = Batches(a.data, codec.cfg.data, 16, 2.56, 77)
            parts = [codec.encoder(torch.from_numpy(next(batches)))[0] for _ in range(max(1, round(a.seconds / 41)))]
        left = codec.quantiser.refit(torch.cat(parts).flatten(0, 1), a.first - 1)
        print("energy left after each stage: " + " ".join(f"{v:.4f}" for v in left))
        save(a.out, codec, step=raw.get("step", 0), device_seconds=raw.get("device_seconds", 0.0))
    elif a.command == "balance":
        from .codec import load, save
        from .data import Batches
        from .balance import balance, observe

        codec, raw = load(a.checkpoint)
        revived = balance(codec, observe(codec, Batches(a.data, codec.cfg.data, 8, 4.0, 77), 24))
        print("revived: " + (", ".join(revived) or "nothing"))
        save(a.out, codec, step=raw.get("step", 0), device_seconds=raw.get("device_seconds", 0.0))
    elif a.command == "export":
        from .codec import load
        from .export import export

        print("model id", export(load(a.checkpoint)[0], a.out, a.name))
    elif a.command == "int8":
        from . import int8
        from .config import load as load_config
        from .data import Batches
        from .export import load_exported

        cfg = load_config(HERE / "configs" / "v2.toml")
        int8.write(a.model, load_exported(a.model, cfg).eval(), Batches(a.data, cfg.data, 8, 4.0, 77))
    elif a.command == "tokens":
        from .config import load as load_config
        from .export import load_exported, sha256
        from safetensors.numpy import load_file

        from .tokens.model import DRAFT, TARGET
        from .tokens.train import train as train_tokens

        codec = load_exported(a.model, load_config(HERE / "configs" / "v2.toml")).eval()
        shape = TARGET if a.size == "target" else DRAFT
        start = None
        if a.from_model:
            from .tokens.transfer import start_from

            books = load_file(a.from_model / "codebooks.safetensors")["codebooks"].astype("float32")
            name = "tokens.safetensors" if a.size == "target" else "draft.safetensors"
            start = start_from(shape, codec, a.from_model / name, torch.from_numpy(books))
        how = {"start": start, "minutes": a.minutes, "hours": a.hours, "device": a.device, "resume": a.resume, "rate": a.rate}
        print(train_tokens(codec, sha256(a.model / "manifest.toml")[:16], shape, a.data, a.audio, a.out, **how))
    elif a.command == "export-tokens":
        from .config import load as load_config
        from .export import load_exported, sha256, test_signal
        from .tokens.data import codes_of
        from .tokens.export import export as export_tokens
        from .tokens.export import integer_loss
        from .tokens.train import read

        codec = load_exported(a.model, load_config(HERE / "configs" / "v2.toml")).eval()
        model = read(a.checkpoint, codec)
        codes = codes_of(codec, test_signal(40)[None], 8, 1)[0]
        print("bits a code, integers and floats: %.4f %.4f" % integer_loss(model, codec, codes))
        made = export_tokens(model, codec, sha256(a.model / "manifest.toml")[:16], codes, a.model / a.name)
        print("token model id", made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
