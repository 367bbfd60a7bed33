"""Residual vector quantisation trained by exponential moving averages (van den Oord 2017, Zeghidour 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from .config import Network, Quantiser


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
    def learn(self, x: Tensor, a: Tensor, cfg: Quantiser) -> None:
        n = len(self.codebook)
        count = torch.bincount(a, minlength=n).float()
        total = torch.zeros_like(self.codebook).index_add_(0, a, x)
        self.count.mul_(cfg.ema_decay).add_(count, alpha=1 - cfg.ema_decay)
        self.total.mul_(cfg.ema_decay).add_(total, alpha=1 - cfg.ema_decay)
        self.codebook.copy_(self.total / self.count.clamp_min(1e-3)[:, None])
        # A batch holds fewer vectors than entries, so "dead" is relative to the fair share of an entry.
        dead = self.count < cfg.dead_count * min(1.0, len(x) / n)
        # Each vector revives at most one entry, and a batch only a part of them: late stages see few vectors, and drawing more
        # entries than there are vectors filled them with copies.
        rows = dead.nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), device=x.device)[: len(x) // 4]]
        if len(rows):
            fresh = x[torch.randperm(len(x), device=x.device)[: len(rows)]]
            share = max(len(x) / n, 1e-3)
            self.codebook[rows], self.total[rows], self.count[rows] = fresh, fresh * share, share


class ResidualQuantiser(nn.Module):
    ready: Tensor  # a bool: whether the codebooks were started
    stages: Sequence[Stage]

    def __init__(self, net: Network, cfg: Quantiser):
        super().__init__()
        self.cfg = cfg
        self.stages = cast(Sequence[Stage], nn.ModuleList(Stage(net.entries, net.latent) for _ in range(net.stages)))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def start(self, x: Tensor) -> list[float]:
        """Greedy k-means of every stage on x [N, D]; returns the share of variance left after each."""
        power, left = x.pow(2).mean(), []
        for stage in self.stages:
            stage.start(x)
            x = x - stage.codebook[nearest(x, stage.codebook)]
            left.append(float(x.pow(2).mean() / power))
        self.ready.fill_(True)
        return left

    @torch.no_grad()
    def refit(self, x: Tensor, first: int, rounds: int = 7) -> list[float]:
        """k-means of the stages from `first` on, on what the stages before leave of x [N, D], N well above the number of
        entries; returns the share of the energy left after each stage."""
        power, left = x.pow(2).mean(), []
        for k, stage in enumerate(self.stages):
            if k >= first:
                stage.start(x, rounds)
            x = x - stage.codebook[nearest(x, stage.codebook)]
            left.append(float(x.pow(2).mean() / power))
        return left

    def draw_stages(self, items: int, generator: torch.Generator) -> Tensor:
        """A random number of stages for each item (quantiser dropout)."""
        k = len(self.stages)
        any_count = torch.randint(1, k + 1, (items,), generator=generator)
        fav = torch.tensor([f for f in self.cfg.favourites if f <= k] or [k])
        pick = fav[torch.randint(0, len(fav), (items,), generator=generator)]
        return torch.where(torch.rand(items, generator=generator) < self.cfg.favourite_share, pick, any_count)

    def grade(self, counts: Tensor, pcm: Tensor, generator: torch.Generator) -> Tensor:
        """Stages of each frame [B, T] for items of counts [B] stages on average and samples [B, T, FRAME].

        Loud frames get more: an error is heard by its loudness, which grows with the level, while a stage lowers it by about
        half a decibel (docs/bitstream.md has the rule that files are encoded with).
        """
        level = 10 * torch.log10(pcm.pow(2).mean(-1) + 1e-9).cpu()
        base = counts.float()[:, None]
        slope = 0.027 * base * (0.5 + torch.rand(base.shape, generator=generator))
        graded = torch.rand(base.shape, generator=generator) < self.cfg.graded_share
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
        out = torch.zeros_like(r)
        counts = counts.to(z.device)
        depth = (counts if counts.dim() == 2 else counts[:, None].expand(b, t)).reshape(-1)
        codes = []
        for k, stage in enumerate(self.stages):
            rows = (depth > k).nonzero()[:, 0]
            if not len(rows):
                break
            x = r[rows]
            a = nearest(x, stage.codebook)
            q = stage.codebook[a]
            out.index_add_(0, rows, q)
            r.index_add_(0, rows, -q)
            full = torch.full((b * t,), -1, dtype=torch.long, device=z.device)
            full[rows] = a
            codes.append(full.view(b, t))
            if learn:
                stage.learn(x, a, self.cfg)
        q = out.view(b, t, d)
        commit = (zf - q).pow(2).mean() / zf.detach().var().clamp_min(1e-6)
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
