"""One step of training: losses, their balance at the waveform, and the optimisers. On a GPU a step is captured as a graph and replayed,
because it consists of some thousand small kernels whose launches would take longer than they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .codec import Codec
from .config import FRAME, HOP, PITCHES, Config
from .data import Batch
from .discriminator import Discriminators, critic_loss, generator_loss
from .excitation import STEP, nearest_pitch
from .export import NEW_HEADS
from .losses import LoudnessLoss, Periodicity, SpectralLoss
from .network import Told

USUAL_WEIGHT = 0.15  # root mean square of a trained layer's weights
BALANCE_KEEP = 0.99  # of the sizes of gradients, from step to step
VOICED_GROUPS = 3  # whose mean is how much of a frame repeats, as it is coded
PITCH_SPREAD = 1.5  # of the target around the pitch, in steps of the grid


class Meter:
    """Running means, kept on the device: reading one waits for all that was asked of a GPU."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, **values: Tensor) -> None:
        for k, v in values.items():
            if k in self.values:
                self.values[k].lerp_(v.detach().float(), 0.02)
            else:
                self.values[k] = v.detach().float().clone()

    def line(self) -> str:
        return " ".join(f"{k} {float(v):.4f}" for k, v in self.values.items())


def between_hops(hz: Tensor) -> Tensor:
    """Pitch at the middle of hops [B, T] -> at their starts [B, T]; 0 where either hop beside it is unvoiced."""
    before = torch.cat([hz[:, :1], hz[:, :-1]], 1)
    return torch.where((before > 0) & (hz > 0), torch.sqrt(before * hz), torch.zeros_like(hz))


def pitch_at_ends(hz: Tensor) -> Tensor:
    """Pitch at the middle of hops [B, 2 T] -> at the ends of frames [B, T]; 0 where either hop beside the end is unvoiced."""
    now, after = hz[:, 1::2], torch.cat([hz[:, 2::2], hz[:, -1:]], 1)
    return torch.where((now > 0) & (after > 0), torch.sqrt(now * after), torch.zeros_like(now))


def pitch_loss(logits: Tensor, hz: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits [B, T, PITCHES] against the grid around hz [B, T], and the share of voiced frames within 2 %."""
    index, want = torch.arange(PITCHES, device=hz.device), nearest_pitch(hz)
    target = torch.softmax(-0.5 * ((index - want[..., None]).float() / PITCH_SPREAD).pow(2), -1)
    voiced = (hz > 0).float()
    loss = -(target * torch.log_softmax(logits, -1)).sum(-1)
    near = ((logits.argmax(-1) - want).abs() * STEP < 0.02).float()
    count = voiced.sum().clamp_min(1.0)
    return (loss * voiced).sum() / count, (near * voiced).sum() / count


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], norm: float, value: float) -> Tensor:
    """Clips by value, then by norm, each only if its limit is above 0; where any is not finite all become 0. Returns the norm before."""
    grads = [p.grad for p in parameters if p.grad is not None]
    size = torch.stack(torch._foreach_norm([g.float() for g in grads])).norm()
    finite = torch.isfinite(size)
    for g in grads:
        g.nan_to_num_(0.0, 0.0, 0.0)
        if value > 0:
            g.clamp_(-value, value)
    left = torch.stack(torch._foreach_norm(grads)).float().norm() if value > 0 else size
    share = (norm / left.clamp_min(1e-12)).clamp_max(1.0) if norm > 0 else torch.ones_like(size)
    torch._foreach_mul_(grads, torch.where(finite, share, torch.zeros_like(share)))
    return size


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


class Step:
    def __init__(self, codec: Codec, cfg: Config, *, only: tuple[str, ...] = (), learns: bool = True, encodes: bool = True, trained: bool = False):
        """`only`: prefixes of the parameters to train, all if there are none; `learns`: the codebooks too; `encodes`: the encoder is
        trained; `trained`: the codec was trained before."""
        self.cfg, self.codec, self.learns, self.encodes = cfg, codec, learns, encodes
        self.device = next(codec.parameters()).device
        self.cuda = self.device.type == "cuda"
        t = cfg.training
        self.bf16 = t.precision == "bf16" or (t.precision == "auto" and computes_bf16(self.device))
        self.critic = Discriminators(t.critic_width).to(self.device)
        self.periodicity = Periodicity().to(self.device)
        self.spectral, self.loud = SpectralLoss().to(self.device), LoudnessLoss().to(self.device)
        for name, parameter in codec.named_parameters():
            parameter.requires_grad_(not only or name.startswith(only))
        self.parameters = [p for p in codec.parameters() if p.requires_grad]
        small = shape_parameters(codec) if trained else {}
        heads = {p for part in (codec.encoder, codec.decoder) for n, p in part.named_parameters() if n.startswith(NEW_HEADS)}
        groups = [([p for p in self.parameters if p not in small and p not in heads], 1.0)]
        groups += [([p for p in self.parameters if p in heads], t.new_heads_factor)]
        groups += [([p], small[p]) for p in self.parameters if p in small]
        self.optimiser = self.adam([{"params": params, "share": share} for params, share in groups if params])
        self.critic_optimiser = self.adam([{"params": list(self.critic.parameters()), "share": 1.0}])
        self.balance = torch.zeros(2, device=self.device)  # sizes of gradients at the waveform: of the spectral losses, of the critic
        self.meter = Meter()
        self.ready = bool(codec.quantiser.ready)
        # Steps that are left before the codebooks start, and latents to start them with.
        self.plain_steps = t.plain_steps
        self.plain: list[Tensor] = []
        self.inputs: Batch | None = None
        self.graphs: dict[tuple[bool, bool], torch.cuda.CUDAGraph] = {}

    def adam(self, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
        t = self.cfg.training
        # A rate that lies on the device can change between replays of a captured step.
        rate = lambda: torch.tensor(t.learning_rate, device=self.device) if self.cuda else t.learning_rate
        for group in groups:
            group["lr"] = rate()
        return torch.optim.AdamW(groups, lr=rate(), betas=t.betas, weight_decay=t.weight_decay, fused=True, capturable=self.cuda)

    def set_rate(self, rate: float) -> None:
        """Learning rate of the codec; that of the critic goes with it."""
        critic = rate / self.cfg.training.learning_rate * self.cfg.training.critic_rate
        for optimiser, value in ((self.optimiser, rate), (self.critic_optimiser, critic)):
            for group in optimiser.param_groups:
                if self.cuda:
                    group["lr"].fill_(value * group["share"])
                else:
                    group["lr"] = value * group["share"]

    def run(self, batch: Batch, told: bool, adversarial: bool) -> None:
        """One step on a batch. `told`: the labels' pitch is coded."""
        if not self.cuda or not self.ready:
            self.take(Batch(*(v.to(self.device) for v in batch)), told, adversarial)
            return
        if self.inputs is None:
            self.inputs = Batch(*(v.to(self.device) for v in batch))
        for held, new in zip(self.inputs, batch, strict=True):
            held.copy_(new, non_blocking=True)
        if (told, adversarial) not in self.graphs:
            self.graphs[told, adversarial] = self.capture(told, adversarial)
        self.graphs[told, adversarial].replay()

    def capture(self, told: bool, adversarial: bool) -> torch.cuda.CUDAGraph:
        assert self.inputs is not None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.take(self.inputs, told, adversarial)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Threads that pin batches may allocate meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.take(self.inputs, told, adversarial)
        return graph

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=not self.cuda)

    def quantise(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        q = self.codec.quantiser
        if not self.ready and not self.start_codebooks(z):
            return z.float(), z.new_zeros(())
        counts = q.grade(q.draw_stages(len(z)), x.reshape(*z.shape[:2], FRAME))
        out, commit, _ = q(z, counts, learn=self.learns)
        plain = torch.rand(len(z), device=z.device) < q.cfg.plain_share
        return torch.where(plain[:, None, None], z.float(), out), commit

    @torch.no_grad()
    def start_codebooks(self, z: Tensor) -> bool:
        """Keeps latents until there are enough steps for networks that know what they do; then starts the codebooks by k-means."""
        self.plain = [*self.plain, z.float().reshape(-1, z.shape[-1])][-96:]
        if self.plain_steps > 0:
            self.plain_steps -= 1
            return False
        left = self.codec.quantiser.start(torch.cat(self.plain))
        print("k-means, variance left after each stage:", " ".join(f"{v:.3f}" for v in left))
        self.plain, self.ready = [], True
        return True

    def take(self, batch: Batch, told: bool, adversarial: bool) -> None:
        x, hops, generated = batch
        said = Told(pitch_at_ends(hops) if told else None)
        with self.autocast(), torch.set_grad_enabled(self.encodes):
            z, _ = self.codec.encoder(x, told=said)
        q, commit = self.quantise(z, x)
        with self.autocast():
            y, _ = self.codec.decoder(q, told=said)
        late = self.cfg.network.delay
        y, target = y.float()[:, late:], x[:, : x.shape[1] - late]
        others = y.new_zeros(())
        if self.cfg.network.voice:
            others = others + self.voice_loss(said, x, y, hops, generated)
        if self.encodes:
            scale = (z[..., : self.cfg.network.free].float().pow(2).mean() / self.cfg.quantiser.rms**2).log().pow(2)
            others = others + self.cfg.quantiser.commitment * commit + self.cfg.quantiser.scale * scale
            self.meter.add(commit=commit, scale=scale)
        slope = self.waveform_slope(y.detach(), target, generated, said.tone, adversarial)
        self.optimiser.zero_grad()
        torch.autograd.backward([y, others], [slope, torch.ones_like(others)]) if others.requires_grad else y.backward(slope)
        self.meter.add(grad=clip_gradients(self.parameters, self.cfg.training.clip_norm, self.cfg.training.clip_value))
        self.optimiser.step()

    def waveform_slope(self, y: Tensor, target: Tensor, generated: Tensor, tone: Tensor | None, adversarial: bool) -> Tensor:
        """Slope of all that is asked of the samples, by the samples [B, N]."""
        w, y = self.cfg.losses, y.requires_grad_(True)
        mel, dist, linear = self.spectral(y, target, generated, tone)
        loud = self.loud(y, target)
        loss = w.mel * mel + w.complex * dist + w.linear * linear + w.loudness * loud
        self.meter.add(mel=mel, complex=dist, linear=linear, loud=loud)
        (slope,) = torch.autograd.grad(loss, y)
        if not adversarial:
            return slope
        judged = self.judge(y, target)
        with torch.no_grad():
            sizes = torch.stack([slope.norm(), judged.norm()]).nan_to_num(1.0)
            self.balance.lerp_(sizes, 1 - BALANCE_KEEP)
            return slope + w.adversarial * (self.balance[0] / self.balance[1].clamp_min(1e-12)) * judged

    def judge(self, y: Tensor, target: Tensor) -> Tensor:
        """Slope of what the critic says of y, by y [B, N]; then a step of the critic, from the same passes."""
        parameters = list(self.critic.parameters())
        with self.autocast():
            real, fake = self.critic(target), self.critic(y)
            loss = critic_loss(real, fake)
        hinge, matching = generator_loss(real, fake)
        (slope,) = torch.autograd.grad(hinge + self.cfg.losses.matching * matching, y, retain_graph=True)
        self.critic_optimiser.zero_grad()
        for parameter, slope_of in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = slope_of
        clip_gradients(parameters, 10.0, 0.0)
        self.critic_optimiser.step()
        self.meter.add(critic=loss, hinge=hinge, matching=matching)
        return slope

    def voice_loss(self, told: Told, x: Tensor, y: Tensor, hops: Tensor, generated: Tensor) -> Tensor:
        """What the voice source decided, against the original [B, N] and its pitch [B, 2 T] at the middle of hops."""
        w, starts = self.cfg.losses, between_hops(hops)
        assert told.pitch is not None and told.degree is not None and told.wave is not None and told.voicing is not None
        with torch.no_grad():
            voiced = self.periodicity.share(x, starts)
            there = y.shape[1] // HOP
            heard = self.periodicity.share(y, starts[:, :there])
            repeats = self.periodicity.distance(heard, voiced[:, :there], starts[:, :there])
            degree = voiced[..., :VOICED_GROUPS].mean(-1).reshape(len(x), -1, 2).mean(-1)
        voicing = mse_loss(told.voicing, voiced)
        pitch, right = pitch_loss(told.pitch, pitch_at_ends(hops))
        known = mse_loss(told.degree, degree)
        coded = (told.wave[:, :, self.cfg.network.voice_band :].mean((1, 2)) * ~generated).mean()
        self.meter.add(pitch=right, degree=known, repeats=repeats, voicing=voicing, coded=coded)
        return w.pitch * (pitch + 10 * known) + w.voicing * voicing + w.coded * coded
