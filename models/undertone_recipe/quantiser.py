"""Residual vector quantisation trained by exponential moving averages (van den Oord 2017, Zeghidour 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import PITCH_STAGE, Network, Quantiser
from .excitation import pitch_book


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Index [N] of the entry of codebook [K, D] nearest to each row of x [N, D]."""
    return torch.addmm(codebook.pow(2).sum(1)[None], x, codebook.t(), alpha=-2).argmin(1)


class Stage(nn.Module):
    codebook: Tensor  # [entries, latent]
    count: Tensor  # [entries]
    total: Tensor  # [entries, latent]

    def __init__(self, entries: int, latent: int):
        super().__init__()
        self.register_buffer("codebook", torch.zeros(entries, latent))
        self.register_buffer("count", torch.ones(entries))
        self.register_buffer("total", torch.zeros(entries, latent))

    @torch.no_grad()
    def start(self, x: Tensor, rounds: int = 10) -> None:
        """k-means on x [N, D], N at least the number of entries for a useful start."""
        n = len(self.codebook)
        pick = torch.randperm(len(x), device=x.device)[:n]
        if len(pick) < n:
            pick = torch.randint(0, len(x), (n,), device=x.device)
        c = x[pick].clone()
        for _ in range(rounds):
            a = nearest(x, c)
            count = torch.bincount(a, minlength=n).float()
            total = torch.zeros_like(c).index_add_(0, a, x)
            used = count > 0
            c[used] = total[used] / count[used, None]
        self.codebook.copy_(c)
        self.total.copy_(c)
        self.count.fill_(1.0)

    @torch.no_grad()
    def learn(self, x: Tensor, a: Tensor, there: Tensor, cfg: Quantiser) -> None:
        """Moves the entries [N, D] towards the vectors x that chose them, by a [N]; rows that are not `there` [N] do not count. No value
        leaves the device, so that a step can be captured as a graph."""
        n, w = len(self.codebook), there.float()
        count = torch.zeros_like(self.count).index_add_(0, a, w)
        total = torch.zeros_like(self.codebook).index_add_(0, a, x * w[:, None])
        self.count.mul_(cfg.ema_decay).add_(count, alpha=1 - cfg.ema_decay)
        self.total.mul_(cfg.ema_decay).add_(total, alpha=1 - cfg.ema_decay)
        learnt = self.total / self.count.clamp_min(1e-3)[:, None]
        # A batch holds fewer vectors than entries, so "dead" is relative to the fair share of an entry.
        rows = w.sum()
        share = (rows / n).clamp_min(1e-3)
        dead = self.count < cfg.dead_count * share.clamp_max(1.0)
        # Each vector revives at most one entry, and a batch only a part of them: late stages see few vectors, and drawing more
        # entries than there are vectors filled them with copies.
        key = torch.rand(n, device=x.device) + (~dead)
        revived = torch.zeros_like(dead).index_put_((key.argsort(),), torch.arange(n, device=x.device) < rows / 4) & dead
        drawn = (torch.rand(len(x), device=x.device) + (1 - w)).argsort()
        drawn = drawn[torch.remainder(revived.cumsum(0), rows.clamp_min(1).long())]
        fresh = x[drawn]
        self.codebook.copy_(torch.where(revived[:, None], fresh, learnt))
        self.total.copy_(torch.where(revived[:, None], fresh * share, self.total))
        self.count.copy_(torch.where(revived, share, self.count))


class ResidualQuantiser(nn.Module):
    ready: Tensor  # a bool: whether the codebooks were started
    stages: Sequence[Stage]

    def __init__(self, net: Network, cfg: Quantiser):
        super().__init__()
        self.cfg = cfg
        self.stages = cast(Sequence[Stage], nn.ModuleList(Stage(net.entries, net.latent) for _ in range(net.stages)))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.free = net.free
        # Codebooks that are not learnt: that of the pitch, of a codec with a voice source.
        self.fixed = (PITCH_STAGE,) if net.voice else ()
        for k in self.fixed:
            self.stages[k].codebook[:, self.free :] = pitch_book()

    def part(self, k: int) -> slice:
        """Dimensions of the latents that stage k holds: the others are 0 in its entries."""
        return slice(self.free, None) if k in self.fixed else slice(0, self.free)

    @torch.no_grad()
    def start(self, x: Tensor, first: int = 0, rounds: int = 10) -> list[float]:
        """Greedy k-means of the stages from `first` on, on what the stages before leave of x [N, D], N well above the number of entries;
        returns the share of the energy left after each stage."""
        power, left = x.pow(2).mean(), []
        for k, stage in enumerate(self.stages):
            if k >= first and k not in self.fixed:
                stage.start(F.pad(x[:, : self.free], (0, x.shape[1] - self.free)), rounds)
            part = self.part(k)
            x = x.clone()
            x[:, part] -= stage.codebook[nearest(x[:, part], stage.codebook[:, part])][:, part]
            left.append(float(x.pow(2).mean() / power))
        self.ready.fill_(True)
        return left

    def draw_stages(self, items: int, generator: torch.Generator | None = None) -> Tensor:
        """A random number of stages for each item (quantiser dropout), on the device of the codebooks."""
        k, device = len(self.stages), self.ready.device
        draw = lambda high: torch.rand(items, generator=generator, device=device).mul(high).long().clamp_max(high - 1)
        fav = [f for f in self.cfg.favourites if f <= k] or [k]
        pick, liked = draw(len(fav)), 1 + draw(k)
        likes = torch.rand(items, generator=generator, device=device) < self.cfg.favourite_share
        # One by one, because a table would have to be copied to a GPU, which a captured step cannot do.
        for i, count in enumerate(fav):
            liked = torch.where(likes & (pick == i), count, liked)
        return liked

    def grade(self, counts: Tensor, pcm: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Stages of each frame [B, T] for items of counts [B] stages on average and samples [B, T, FRAME].

        Loud frames get more: an error is heard by its loudness, which grows with the level, while a stage lowers it by about
        half a decibel (docs/bitstream.md has the rule that files are encoded with).
        """
        level = 10 * torch.log10(pcm.pow(2).mean(-1) + 1e-9)
        base = counts.to(level.device).float()[:, None]
        draw = lambda: torch.rand(base.shape, generator=generator, device=level.device)
        slope = 0.027 * base * (0.5 + draw())
        graded = draw() < self.cfg.graded_share
        offset = torch.zeros_like(base)
        most = len(self.stages)
        for _ in range(6):
            depth = (base + torch.where(graded, slope * (level - level.mean(1, keepdim=True)), 0) + offset).clamp(1, most)
            offset = offset + base - depth.mean(1, keepdim=True)
        return depth.round().long()

    def forward(self, z: Tensor, counts: Tensor, learn: bool) -> tuple[Tensor, Tensor, Tensor]:
        """z [B, T, D], counts [B] or [B, T] -> quantised z with a straight-through gradient, commitment loss, codes [B, T, S].

        Commitment is measured against the latents' own variance: an absolute one lets the network win by scale.
        """
        b, t, d = z.shape
        zf = z.float()
        r = zf.detach().reshape(-1, d).clone()
        counts = counts.to(z.device)
        depth = (counts if counts.dim() == 2 else counts[:, None].expand(b, t)).reshape(-1)
        codes = []
        # All rows go through all stages, those that have enough of them without effect: on a GPU that is cheaper than finding them.
        for k, stage in enumerate(self.stages):
            there, part = depth > k, self.part(k)
            a = nearest(r[:, part], stage.codebook[:, part])
            x, q = r.clone(), stage.codebook[a] * there[:, None]
            r -= q
            codes.append(torch.where(there, a, -1).view(b, t))
            if learn and k not in self.fixed:
                x[:, self.free :] = 0
                stage.learn(x, a, there, self.cfg)
        q = (zf.detach().reshape(-1, d) - r).view(b, t, d)
        own, near = zf[..., : self.free], q[..., : self.free]
        commit = (own - near).pow(2).mean() / own.detach().var().clamp_min(1e-6)
        return zf + (q - zf).detach(), commit, torch.stack(codes, -1)

    @torch.no_grad()
    def encode(self, z: Tensor, count: int, beam: int = 1, depths: Tensor | None = None) -> Tensor:
        """Codes [B, T, count] for z [B, T, D] by beam search; beam 1 is the greedy search.

        With depths [B, T] each frame is searched for its own number of stages; stages beyond it are -1.
        """
        b, t, d = z.shape
        x = z.reshape(-1, d).float()
        wanted = (torch.full((b, t), count) if depths is None else depths).reshape(-1).to(z.device)
        out = torch.full((b * t, count), -1, dtype=torch.long, device=z.device)
        rows = torch.arange(b * t, device=z.device)
        r, codes = x[:, None], torch.zeros(len(x), 1, 0, dtype=torch.long, device=z.device)
        for k, stage in enumerate(self.stages[:count]):
            c = stage.codebook
            dist = r.pow(2).sum(-1, keepdim=True) + c.pow(2).sum(1) - 2 * r @ c.t()  # [N, W, K]
            flat = dist.flatten(1)
            best = flat.topk(min(beam, flat.shape[1]), largest=False).indices
            parent, entry = best // len(c), best % len(c)
            r = r.gather(1, parent[..., None].expand(-1, -1, d)) - c[entry]
            codes = torch.cat([codes.gather(1, parent[..., None].expand(-1, -1, codes.shape[2])), entry[..., None]], -1)
            done = wanted[rows] == k + 1
            if bool(done.any()):
                out[rows[done], : k + 1] = codes[done, 0]
                rows, r, codes = rows[~done], r[~done], codes[~done]
                if not len(rows):
                    break
        return out.reshape(b, t, count)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Sum of the entries named by codes [B, T, S]."""
        return reduce(torch.add, (self.stages[k].codebook[codes[..., k]] for k in range(codes.shape[-1])))
