"""Transfer learning: a shipped model adapted to a folder of somebody's own recordings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .codec import save
from .config import Config
from .data import audio_files
from .export import load_exported
from .report import report
from .train import HEADS, Run, train

HELD_OUT = 8  # every so many recordings are kept apart for the report
STAGE_TWO_RATE = 0.25  # of the learning rate of the first stage
STAGE_ONE_SHARE = 0.4  # of the minutes


def split(folder: Path, out: Path) -> tuple[Path, Path]:
    """Links the recordings of folder into out/train and out/held; raises ValueError for fewer than two."""
    files = audio_files(folder, "")
    if len(files) < 2:
        raise ValueError(f"{folder}: {len(files)} recordings, at least 2 are needed: one of them is kept for the report")
    parts = out / "train", out / "held"
    for part in parts:
        part.mkdir(parents=True, exist_ok=True)
        for old in part.iterdir():
            old.unlink()
    for i, f in enumerate(files):
        part = parts[1] if i % HELD_OUT == HELD_OUT - 1 or (i == len(files) - 1 and len(files) < HELD_OUT) else parts[0]
        (part / f"{i:05}{f.suffix}").symlink_to(f.resolve())
    return parts


def finetune(cfg: Config, model: Path, folder: Path, out: Path, minutes: float, device: str, stages: list[int]) -> Path:
    """Two stages: codebooks and output heads with everything else frozen, then all parameters at a lower rate.

    Prints scores on recordings kept apart, before, between and after; returns the checkpoint to export.
    """
    training, held = split(folder, out)
    start = out / "start.pt"
    save(start, load_exported(model, cfg))
    scores = {"before": report(start, held, "", 1, stages, 4)}
    one = Run(training, out / "heads", minutes * STAGE_ONE_SHARE, device, start, only=HEADS)
    first = train(cfg, one)
    scores["heads"] = report(first, held, "", 1, stages, 4)
    rate = cfg.training.learning_rate * STAGE_TWO_RATE
    two = replace(cfg, training=replace(cfg.training, learning_rate=rate))
    done = train(two, Run(training, out / "all", minutes * (1 - STAGE_ONE_SHARE), device, first))
    scores["all"] = report(done, held, "", 1, stages, 4)
    print("stages   " + "   ".join(f"{k:>16}" for k in scores) + "   (PESQ-WB / ESTOI)")
    for s in stages:
        print(f"{s:>6}   " + "   ".join(f"{v[s][0]:>8.3f} / {v[s][1]:.3f}" for v in scores.values()))
    return done
