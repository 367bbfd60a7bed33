"""The training loop: time-limited, resumable, the same on CPU and GPU."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .codec import Codec, load, save, save_slim
from .config import Config
from .data import Batches, ahead
from .export import load_exported
from .step import Step

# What `finetune` trains first: the layers that give shapes and gains.
HEADS = ("decoder.fine_norm", "decoder.shape", "decoder.gain")
AVERAGE_EVERY = 10  # steps
AVERAGE_KEEP = math.exp(-1)  # of what was there `average_steps` before
PRINT_EVERY_S, EARLY_S = 15.0, 30.0  # lines of progress; more of them early


@dataclass
class Run:
    """What one call of `train` is given besides the configuration."""

    data: Path
    out: Path
    minutes: float
    device: str = "cpu"
    resume: Path | None = None
    model: Path | None = None  # folder of an exported model to start from
    steps: int = 0  # 0: until the minutes are used
    only: tuple[str, ...] = ()  # prefixes of the parameters to train; all if there are none
    # "encoder", "decoder" or "networks" (both): the rest and the codebooks stay as they are, so codes keep their meaning and token
    # models stay valid. "all": both halves, and the codebooks learn.
    part: str = "all"
    slim: Path | None = None  # also write the averaged weights there, in half precision and with nothing else
    workers: int = 0  # processes that make batches; 0: this one does


class Trainer:
    def __init__(self, cfg: Config, run: Run):
        self.cfg, self.run, t = cfg, run, cfg.training
        torch.manual_seed(t.seed)
        self.global_step, self.device_seconds = 0, 0.0
        raw: dict = {}
        if run.resume:
            self.codec, raw = load(run.resume, run.device)
            self.codec.cfg = cfg
            self.codec.quantiser.cfg = cfg.quantiser
            self.global_step = int(raw.get("step", 0))
            self.device_seconds = float(raw.get("device_seconds", 0.0))
        elif run.model:
            self.codec = load_exported(run.model, cfg).to(run.device)
        else:
            self.codec = Codec(cfg).to(run.device)
        only = run.only if run.part in ("all", "networks") else (run.part,)
        how = {"learns": run.part == "all", "encodes": run.part != "decoder", "trained": bool(run.resume or run.model)}
        self.step = Step(self.codec, cfg, only=only, **how)
        self.step.plain_steps = max(0, t.plain_steps - self.global_step)
        if raw and not only:
            self.restore(raw)
        first = self.make_batches(0)
        self.hours = first.hours()
        self.batches = ahead(first, self.make_batches, run.workers, pinned=self.step.cuda)
        self.session_step, self.judged = 0, False
        average = raw.get("average") or self.codec.state_dict()
        self.average = {k: v.detach().clone() for k, v in average.items()}

    def restore(self, raw: dict) -> None:
        """Optimisers of a checkpoint, if it trained the same parameters: another's say nothing about these."""
        shape = lambda groups: [len(g["params"]) for g in groups]
        for name in ("optimiser", "critic_optimiser"):
            optimiser = getattr(self.step, name)
            if name in raw and shape(raw[name]["param_groups"]) == shape(optimiser.param_groups):
                optimiser.load_state_dict(raw[name])
        if "critic" in raw:
            self.step.critic.load_state_dict(raw["critic"])

    def make_batches(self, worker: int) -> Batches:
        t = self.cfg.training
        seed = t.seed + self.global_step + 7919 * worker
        return Batches(self.run.data, self.cfg.data, t.batch, t.segment_s, seed, pitched=self.cfg.network.voice)

    def rate(self, progress: float) -> float:
        """Warm-up, flat, then linear to zero over the last `decay_share` of the run."""
        t = self.cfg.training
        warm = min(1.0, (self.session_step + 1) / max(1, t.warmup_steps))
        fall = min(1.0, (1 - progress) / max(1e-6, t.decay_share))
        return t.learning_rate * warm * max(0.01, fall)

    def one(self, progress: float) -> None:
        t = self.cfg.training
        self.step.set_rate(self.rate(progress))
        batch = next(self.batches)
        told = self.cfg.network.voice and self.session_step < t.told_pitch_steps
        judged = self.global_step >= t.adversarial_after_step or progress > 1 - t.adversarial_share
        self.judged |= judged
        self.step.run(batch, told, judged)
        self.global_step += 1
        self.session_step += 1
        if self.global_step % AVERAGE_EVERY == 0 or self.session_step < AVERAGE_EVERY:
            self.add_to_average()
            if self.step.cuda:
                torch.cuda.synchronize()  # or minutes of steps would be asked for in advance

    @torch.no_grad()
    def add_to_average(self) -> None:
        """Moves the running average of the weights (Polyak 1992) on; codebooks are part of it, so that they stay with the networks.

        It goes back over a third of a young run, and over average_steps of an old one.
        """
        steps = min(self.cfg.training.average_steps, self.session_step / 3)
        keep = AVERAGE_KEEP ** (AVERAGE_EVERY / steps) if steps else 0.0
        now = self.codec.state_dict()
        moving = [k for k, v in now.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in moving], [now[k] for k in moving], 1 - keep)
        for key in now.keys() - set(moving):
            self.average[key].copy_(now[key])

    def checkpoint(self, name: str, elapsed: float) -> None:
        self.run.out.mkdir(parents=True, exist_ok=True)
        extra = {"optimiser": self.step.optimiser.state_dict(), "step": self.global_step, "device": self.run.device}
        extra["device_seconds"] = self.device_seconds + elapsed
        if self.judged:
            extra |= {"critic": self.step.critic.state_dict(), "critic_optimiser": self.step.critic_optimiser.state_dict()}
        save(self.run.out / f"{name}.pt", self.codec, average=self.average, **extra)
        if self.run.slim:
            save_slim(self.run.slim, self.codec.cfg, self.average)

    def loop(self) -> Path:
        """Trains; leaves `latest.pt`, and `stable.pt` from before the rate began to fall, which is the one to resume."""
        t, start, falling = self.cfg.training, time.monotonic(), False
        saved = said = start
        print(f"{self.hours:.2f} h of audio, from step {self.global_step}, {self.run.minutes} min on {self.run.device}", flush=True)
        while True:
            now = time.monotonic()
            elapsed = now - start
            progress = max(elapsed / (60 * self.run.minutes), self.session_step / self.run.steps if self.run.steps else 0)
            if progress >= 1:
                break
            if not falling and progress > 1 - t.decay_share:
                falling = True
                self.checkpoint("stable", elapsed)
            self.one(progress)
            if now - said > (PRINT_EVERY_S if elapsed > EARLY_S else PRINT_EVERY_S / 3):
                said = now
                line = self.step.meter.line()  # waits for the device, so that the speed is that of steps done
                speed = self.session_step / (time.monotonic() - start)
                print(f"{self.global_step} {elapsed / 60:.1f} min {speed:.2f} steps/s {line}", flush=True)
            if now - saved > 60 * t.checkpoint_minutes:
                saved = now
                self.checkpoint("latest", elapsed)
        self.checkpoint("latest", time.monotonic() - start)
        return self.run.out / "latest.pt"


def train(cfg: Config, run: Run) -> Path:
    """Runs one training session and returns its checkpoint."""
    return Trainer(cfg, run).loop()
