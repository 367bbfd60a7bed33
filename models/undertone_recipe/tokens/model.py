"""The token model in floating point, with the weights rounded as the integer model holds them.

A frame's codes enter as sums of codebook vectors; a causal transformer over frames predicts the next frame, and a depth
network predicts stage after stage from the transformer's output and the sum of the stages before. This order of prediction
(time first, then depth) is that of the RQ-Transformer (Lee et al. 2022). Positions are ALiBi's (Press et al. 2021), which
hold past the trained length. What every number means in integers is written down in integer.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT_SHIFT = 6  # latents are taken times 2^6 as 10-bit fixed point: latent / 16 is about 1
LATENT_SCALE = 2.0**LATENT_SHIFT / 1024
QUERY_LIMIT = 4095 / 256
ACTIVATION_LIMIT = 32767 / 1024


@dataclass(frozen=True)
class Shape:
    """Sizes of a token model. Inputs of every product are at most 512 wide: 32-bit sums then cannot overflow."""

    width: int = 192
    layers: int = 4
    heads: int = 4
    hidden: int = 384
    window: int = 128  # frames of context
    depth_hidden: int = 192
    rank: int = 80
    late: int = 16  # from this stage on the depth network is smaller: there is less to predict
    late_hidden: int = 64
    late_rank: int = 32
    stages: int = 24
    entries: int = 1024
    latent: int = 64

    def depth_size(self, stage: int) -> tuple[int, int]:
        """Hidden width and rank of the depth network of a stage."""
        return (self.late_hidden, self.late_rank) if stage >= self.late else (self.depth_hidden, self.rank)

    @property
    def slopes(self) -> tuple[int, ...]:
        """Penalty of a frame of distance by head, in 1/1024 of a factor of two."""
        return tuple(max(1, 2 ** round(8 - 6 * i / max(1, self.heads - 1))) for i in range(self.heads))


TARGET = Shape()
DRAFT = Shape(width=64, layers=2, heads=2, hidden=96, depth_hidden=32, rank=16, late_hidden=16, late_rank=8)


def fake_int8(w: Tensor) -> Tensor:
    """Rounds each row to 255 levels; the gradient passes straight through."""
    step = w.detach().abs().amax(-1, keepdim=True).clamp_min(1e-6) / 127
    return w + ((w / step).round() * step - w).detach()


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, fake_int8(self.weight), self.bias)


def norm(x: Tensor) -> Tensor:
    """LayerNorm without gain and shift: both would be part of the next product."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.heads = s.heads
        self.qkv = Linear(s.width, 3 * s.width)
        self.mix = Linear(s.width, s.width)
        self.up = Linear(s.width, s.hidden)
        self.down = Linear(s.hidden, s.width)
        for last in (self.mix, self.down):
            nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * s.layers))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(norm(x)).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = q.clamp(-QUERY_LIMIT, QUERY_LIMIT), k.clamp(-QUERY_LIMIT, QUERY_LIMIT)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + self.mix(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(norm(x))))


class Depth(nn.Module):
    """Logits of one stage."""

    def __init__(self, s: Shape, stage: int):
        super().__init__()
        n, (hidden, rank) = s.width + s.latent, s.depth_size(stage)
        self.up = Linear(n, hidden)
        self.down = Linear(hidden, rank)
        self.skip = Linear(n, rank, bias=False)
        self.table = Linear(rank, s.entries)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.normal_(self.skip.weight, std=0.02)
        nn.init.normal_(self.table.weight, std=0.1)
        nn.init.zeros_(self.table.bias)

    def forward(self, h: Tensor) -> Tensor:
        return self.table(self.down(F.gelu(self.up(h))) + self.skip(h))


class TokenModel(nn.Module):
    books: Tensor

    def __init__(self, shape: Shape, codebooks: Tensor):
        """codebooks [stages, entries, latent] of the codec whose codes these are."""
        super().__init__()
        self.shape = shape
        books = (codebooks * 2.0**LATENT_SHIFT).round().clamp(-32767, 32767) / 1024
        self.register_buffer("books", books, persistent=False)
        self.inp = Linear(3 * shape.latent, shape.width)
        self.count = nn.Parameter(torch.zeros(shape.stages, shape.width))
        self.start = nn.Parameter(torch.zeros(shape.width))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.depth = cast(Sequence[Depth], nn.ModuleList(Depth(shape, k) for k in range(shape.stages)))
        for k, (stage, book) in enumerate(zip(self.depth, books)):
            r = min(shape.depth_size(k)[1], shape.latent)
            with torch.no_grad():
                # The strongest directions of the codebook are the first guess of what tells entries apart.
                u, sv, _ = torch.linalg.svd(book - book.mean(0), full_matrices=False)
                stage.table.weight[:, :r] = u[:, :r] * sv[:r] / max(float(sv[0]) / math.sqrt(len(book)), 1e-6)

    def bias(self, t: int, device: torch.device) -> Tensor:
        """Attention bias [heads, t, t]: ALiBi inside the window, minus infinity elsewhere."""
        i = torch.arange(t, device=device)
        dist = i[:, None] - i[None, :]
        slopes = torch.tensor(self.shape.slopes, device=device, dtype=torch.float32) / 1024 * math.log(2)
        bias = -slopes[:, None, None] * dist
        return bias.masked_fill((dist < 0) | (dist >= self.shape.window), float("-inf"))

    def partial_sums(self, codes: Tensor) -> Tensor:
        """codes [B, T, S] -> sums of the first 0..S entries [B, T, S + 1, latent]; -1 adds nothing."""
        vectors = torch.stack([self.books[k][codes[..., k].clamp_min(0)] for k in range(codes.shape[-1])], 2)
        vectors = vectors * (codes >= 0)[..., None]
        return F.pad(vectors.cumsum(2), (0, 0, 1, 0))

    def hidden(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """codes [B, T, S], -1 where a frame has no more stages -> what the transformer says about each frame from those
        before it [B, T, width], and the partial sums of the frames."""
        b, t, s = codes.shape
        sums = self.partial_sums(codes)
        seen = torch.cat([sums[:, :, s], sums[:, :, 1], sums[:, :, min(4, s)]], -1)[:, :-1]
        depth = (codes >= 0).sum(-1)[:, :-1]
        x = self.inp(seen) + self.count[depth - 1]
        x = torch.cat([self.start.expand(b, 1, -1), x.float()], 1)
        bias = self.bias(t, codes.device)
        for layer in self.layers:
            x = layer(x, bias)
        return norm(x), sums

    def forward(self, codes: Tensor) -> list[Tensor]:
        """codes [B, T, S] -> logits [B, T, entries] of each of the S stages; frame t sees the frames before it."""
        h, sums = self.hidden(codes)
        return [self.depth[k](torch.cat([h, sums[:, :, k]], -1)) for k in range(codes.shape[-1])]

    def losses(self, codes: Tensor) -> list[Tensor]:
        """Sum of nats of the codes of each stage; frames that lack the stage are left out."""
        h, sums = self.hidden(codes)
        out = []
        for k in range(codes.shape[-1]):
            there = codes[..., k] >= 0
            if not bool(there.any()):
                break
            logits = self.depth[k](torch.cat([h[there], sums[:, :, k][there]], -1))
            out.append(F.cross_entropy(logits.float(), codes[..., k][there], reduction="sum"))
        return out

    def parameters_count(self) -> int:
        return sum(p.numel() for p in self.parameters())


def shape_dict(shape: Shape) -> dict:
    return dataclasses.asdict(shape)
