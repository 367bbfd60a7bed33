"""The training loop: time-limited, resumable, the same on CPU and GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .codec import OVERLAP_DELAY, Codec, load, save, save_slim
from .config import Config
from .data import Batches, ahead
from .discriminator import Discriminators, critic_loss, generator_loss
from .excitation import nearest_pitch, read_pitch
from .export import NEW_HEADS, load_exported
from .losses import LoudnessLoss, Periodicity, SpectralLoss
from .network import Told

# What `finetune` trains first: the layers that give shapes and gains.
HEADS = ("decoder.fine_norm", "decoder.shape", "decoder.gain")


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


class Meter:
    """Running means for the progress line."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, **values: float) -> None:
        for k, v in values.items():
            old = self.values.get(k)
            self.values[k] = v if old is None else 0.98 * old + 0.02 * v

    def line(self) -> str:
        return " ".join(f"{k} {v:.4f}" for k, v in self.values.items())


def between_hops(hz: Tensor) -> Tensor:
    """Pitch at the middle of hops [B, T] -> at their starts [B, T]; 0 where either hop beside it is unvoiced."""
    before = torch.cat([hz[:, :1], hz[:, :-1]], 1)
    return torch.where((before > 0) & (hz > 0), torch.sqrt(before * hz), torch.zeros_like(hz))


def pitch_at_ends(hz: Tensor) -> Tensor:
    """Pitch at the middle of hops [B, 2 T] -> at the ends of frames [B, T]; 0 where either hop beside the end is unvoiced."""
    now, after = hz[:, 1::2], torch.cat([hz[:, 2::2], hz[:, -1:]], 1)
    return torch.where((now > 0) & (after > 0), torch.sqrt(now * after), torch.zeros_like(now))


def pitch_loss(logits: Tensor, hz: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits [B, T, PITCHES] against the grid's neighbours of hz [B, T], and the share of frames within 2 %."""
    index = torch.arange(logits.shape[-1], device=hz.device)
    target = torch.softmax(-0.5 * (index - nearest_pitch(hz)[..., None]).float().pow(2), -1)
    voiced = (hz > 0).float()
    loss = -(target * torch.log_softmax(logits, -1)).sum(-1)
    with torch.no_grad():
        near = ((read_pitch(logits) / hz.clamp_min(1.0)).log().abs() < 0.02).float()
    count = voiced.sum().clamp_min(1.0)
    return (loss * voiced).sum() / count, (near * voiced).sum() / count


AVERAGE_EVERY = 10  # steps
AVERAGE_KEEP = math.exp(-1)  # of what was there `average_steps` before
USUAL_WEIGHT = 0.15  # root mean square of a trained layer's weights


def clip_gradients(parameters: Sequence[Tensor], norm: float, value: float) -> float:
    """Clips by value, then by norm, each only if its limit is above 0. Returns the norm before clipping."""
    grads = [p.grad for p in parameters if p.grad is not None]
    before = torch.stack([g.float().pow(2).sum() for g in grads]).sum().sqrt()
    if value > 0:
        torch.nn.utils.clip_grad_value_(parameters, value)
    if norm > 0:
        torch.nn.utils.clip_grad_norm_(parameters, norm)
    return float(before)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; without that autocast costs six times what it saves."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def shape_parameters(codec: Codec) -> dict[Tensor, float]:
    """The layers that decode shapes -> the share of the learning rate that they get.

    `balance` makes them 70 times smaller than training had left them, and Adam moves every weight by the same: at the full rate
    they would be somewhere else after a thousand steps (they were, in run v5).
    """
    shares: dict[Tensor, float] = {}
    for layer in (codec.decoder.shape, codec.decoder.shape_skip):
        size = float(layer.weight.detach().pow(2).mean().sqrt())
        shares |= dict.fromkeys((layer.weight, layer.bias), min(1.0, size / USUAL_WEIGHT))
    return shares


class Trainer:
    def __init__(self, cfg: Config, run: Run):
        self.cfg, self.run, t = cfg, run, cfg.training
        torch.manual_seed(t.seed)
        self.device = torch.device(run.device)
        self.bf16 = t.precision == "bf16" or (t.precision == "auto" and computes_bf16(self.device))
        self.step, self.device_seconds = 0, 0.0
        raw: dict = {}
        if run.resume:
            self.codec, raw = load(run.resume, run.device)
            self.codec.cfg = cfg
            self.codec.quantiser.cfg = cfg.quantiser
            self.step = int(raw.get("step", 0))
            self.device_seconds = float(raw.get("device_seconds", 0.0))
        elif run.model:
            self.codec = load_exported(run.model, cfg).to(self.device)
        else:
            self.codec = Codec(cfg).to(self.device)
        self.critic = Discriminators().to(self.device)
        self.periodicity = Periodicity().to(self.device)
        self.spectral, self.loud = SpectralLoss().to(self.device), LoudnessLoss().to(self.device)
        only = run.only if run.part in ("all", "networks") else (run.part,)
        for name, parameter in self.codec.named_parameters():
            parameter.requires_grad_(not only or name.startswith(only))
        self.parameters = [p for p in self.codec.parameters() if p.requires_grad]
        options: dict[str, Any] = {"lr": t.learning_rate, "betas": t.betas, "fused": True}
        small = shape_parameters(self.codec) if run.resume or run.model else {}
        heads = {p for n, p in self.codec.decoder.named_parameters() if n.startswith(NEW_HEADS)}
        groups = [{"params": [p for p in self.parameters if p not in small and p not in heads], "share": 1.0}]
        groups += [{"params": [p for p in self.parameters if p in heads], "share": t.new_heads_factor}]
        groups += [{"params": [p], "share": small[p]} for p in self.parameters if p in small]
        self.optimiser = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=t.weight_decay, **options)
        self.critic_optimiser = torch.optim.AdamW(self.critic.parameters(), **options)
        # A checkpoint of a run that trained fewer parameters says nothing about the others.
        shape = lambda groups: [len(g["params"]) for g in groups]
        if "optimiser" in raw and not only and shape(raw["optimiser"]["param_groups"]) == shape(self.optimiser.param_groups):
            self.optimiser.load_state_dict(raw["optimiser"])
        if "critic" in raw:
            self.critic.load_state_dict(raw["critic"])
            self.critic_optimiser.load_state_dict(raw["critic_optimiser"])
        first = self.make_batches(0)
        self.hours = first.hours()
        self.batches = ahead(first, self.make_batches, run.workers)
        self.draw = torch.Generator().manual_seed(t.seed + self.step)
        self.plain: list[Tensor] = []
        self.meter = Meter()
        self.session_step = 0
        average = raw.get("average") or self.codec.state_dict()
        self.average = {k: v.detach().clone() for k, v in average.items()}

    def make_batches(self, worker: int) -> Batches:
        t = self.cfg.training
        seed = t.seed + self.step + 7919 * worker
        return Batches(self.run.data, self.cfg.data, t.batch, t.segment_s, seed, pitched=self.cfg.network.voice)

    def rate(self, progress: float) -> float:
        """Warm-up, flat, then linear to zero over the last `decay_share` of the run."""
        t = self.cfg.training
        warm = min(1.0, (self.session_step + 1) / max(1, t.warmup_steps))
        fall = min(1.0, (1 - progress) / max(1e-6, t.decay_share))
        return t.learning_rate * warm * max(0.01, fall)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def quantise(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        q = self.codec.quantiser
        if not bool(q.ready):
            self.plain = [*self.plain, z.detach().float().reshape(-1, z.shape[-1])][-96:]
            if self.step < self.cfg.training.plain_steps:
                return z.float(), z.new_zeros(())
            print("k-means, variance left after each stage:", " ".join(f"{v:.3f}" for v in q.start(torch.cat(self.plain))))
            self.plain = []
        counts = q.grade(q.draw_stages(z.shape[0], self.draw), x.reshape(*z.shape[:2], -1), self.draw)
        out, commit, _ = q(z, counts, learn=self.run.part == "all")
        plain = torch.rand(len(z), generator=self.draw) < q.cfg.plain_share
        return torch.where(plain.to(z.device)[:, None, None], z.float(), out), commit

    def voice_loss(self, told: Told, x: Tensor, y: Tensor, hops: Tensor, generated: Tensor) -> Tensor:
        """What the voice source decided, against the original [B, N] and its pitch [B, T] at the middle of hops."""
        w, starts = self.cfg.losses, between_hops(hops)
        assert told.pitch is not None and told.wave is not None and told.voicing is not None
        with torch.no_grad():
            voiced = self.periodicity.share(x, starts)
            repeats = self.periodicity(y, x[:, : y.shape[1]], starts)
        voicing = mse_loss(told.voicing, voiced)
        pitch, right = pitch_loss(told.pitch, pitch_at_ends(hops))
        coded = (told.wave[:, :, self.cfg.network.voice_band :].mean((1, 2)) * ~generated).mean()
        self.meter.add(pitch=right.item(), repeats=repeats.item(), voicing=voicing.item(), coded=coded.item())
        return w.pitch * pitch + w.voicing * voicing + w.coded * coded

    def critic_step(self, y: Tensor, x: Tensor) -> None:
        with self.autocast():
            loss = critic_loss(self.critic(x), self.critic(y.detach()))
        self.critic_optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.critic.parameters(), 10.0)
        self.critic_optimiser.step()
        self.meter.add(critic=loss.item())

    def one(self, progress: float) -> None:
        t, w = self.cfg.training, self.cfg.losses
        rate = self.rate(progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["share"]
        for group in self.critic_optimiser.param_groups:
            group["lr"] = rate / 2
        batch = next(self.batches)
        x, generated, hops = (torch.as_tensor(v).to(self.device) for v in (batch.pcm, batch.generated, batch.pitch))
        with self.autocast(), torch.set_grad_enabled(self.run.part != "decoder"):
            z, _ = self.codec.encoder(x)
        q, commit = self.quantise(z, x)
        told = Told(pitch_at_ends(hops) if self.step < t.told_pitch_steps else None)
        with self.autocast():
            y, _ = self.codec.decoder(q, told=told)
        y, target = y.float()[:, OVERLAP_DELAY:], x[:, : x.shape[1] - OVERLAP_DELAY]
        mel, dist, linear = self.spectral(y, target, generated)
        loud = self.loud(y, target)
        loss = w.mel * mel + w.complex * dist + w.linear * linear + w.loudness * loud
        self.meter.add(mel=mel.item(), complex=dist.item(), linear=linear.item(), loud=loud.item())
        if self.cfg.network.voice:
            loss = loss + self.voice_loss(told, x, y, hops, generated)
        if self.run.part != "decoder":
            scale = z.float().pow(2).mean().log().pow(2)
            loss = loss + self.cfg.quantiser.commitment * commit + self.cfg.quantiser.scale * scale
            self.meter.add(commit=commit.item(), scale=scale.item())
        if self.step >= t.adversarial_after_step:
            self.critic_step(y, target)
            self.critic.requires_grad_(False)
            with self.autocast():
                fake = self.critic(y)
                with torch.no_grad():
                    real = self.critic(target)
            hinge, matching = generator_loss(real, fake)
            self.critic.requires_grad_(True)
            loss = loss + w.adversarial * hinge + w.matching * matching
            self.meter.add(hinge=hinge.item(), matching=matching.item())
        if not torch.isfinite(loss):
            self.meter.add(skipped=1.0)
            return
        self.optimiser.zero_grad()
        loss.backward()
        self.meter.add(grad=clip_gradients(self.parameters, t.clip_norm, t.clip_value))
        self.optimiser.step()
        self.step += 1
        self.session_step += 1
        if self.step % AVERAGE_EVERY == 0 or self.session_step < AVERAGE_EVERY:
            self.add_to_average()

    @torch.no_grad()
    def add_to_average(self) -> None:
        """Moves the running average of the weights (Polyak 1992) on; codebooks are part of it, so that they stay with the networks.

        It goes back over a third of a young run, and over average_steps of an old one.
        """
        steps = min(self.cfg.training.average_steps, self.session_step / 3)
        keep = AVERAGE_KEEP ** (AVERAGE_EVERY / steps) if steps else 0.0
        for key, value in self.codec.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - keep)
            else:
                self.average[key].copy_(value)

    def checkpoint(self, name: str, elapsed: float) -> None:
        self.run.out.mkdir(parents=True, exist_ok=True)
        extra = {"optimiser": self.optimiser.state_dict(), "step": self.step, "device": self.run.device}
        extra["device_seconds"] = self.device_seconds + elapsed
        if self.step >= self.cfg.training.adversarial_after_step:
            extra |= {"critic": self.critic.state_dict(), "critic_optimiser": self.critic_optimiser.state_dict()}
        save(self.run.out / f"{name}.pt", self.codec, average=self.average, **extra)
        if self.run.slim:
            save_slim(self.run.slim, self.codec.cfg, self.average)

    def loop(self) -> Path:
        """Trains; leaves `latest.pt`, and `stable.pt` from before the rate began to fall, which is the one to resume."""
        t, start, saved, falling = self.cfg.training, time.monotonic(), time.monotonic(), False
        print(f"{self.hours:.2f} h of audio, from step {self.step}, {self.run.minutes} min on {self.run.device}", flush=True)
        while True:
            elapsed = time.monotonic() - start
            progress = max(elapsed / (60 * self.run.minutes), self.session_step / self.run.steps if self.run.steps else 0)
            if progress >= 1:
                break
            if not falling and progress > 1 - t.decay_share:
                falling = True
                self.checkpoint("stable", elapsed)
            self.one(progress)
            if self.session_step % 100 == 0:
                print(f"{self.step} {elapsed / 60:.1f} min {self.session_step / elapsed:.2f} steps/s {self.meter.line()}", flush=True)
            if time.monotonic() - saved > 60 * t.checkpoint_minutes:
                saved = time.monotonic()
                self.checkpoint("latest", elapsed)
        self.checkpoint("latest", time.monotonic() - start)
        return self.run.out / "latest.pt"


def train(cfg: Config, run: Run) -> Path:
    """Runs one training session and returns its checkpoint."""
    return Trainer(cfg, run).loop()
