"""The token model in integers: the specification that src/token follows bit for bit.

Fixed point: latents and activations have 10 fractional bits in int16, the residual stream 14 in int32, queries and keys 8,
logits 10 and in powers of two. A product sums int8 weights times int16 activations in int32 (at most 512 terms, so it cannot
overflow), is scaled by a row's factor of 24 fractional bits, rounded, and the row's bias is added.
"""

from __future__ import annotations

import math

import numpy as np

from .model import LATENT_SHIFT, Shape

LIMIT = 32767
QUERY = 4095
TOTAL_BITS = 20
LOG2E = 1.4426950408889634


def tables() -> dict[str, np.ndarray]:
    """gelu: x / 128 for x in -1024..1023 -> 10 fractional bits; exp2: 2^(i / 1024) with 20 fractional bits."""
    x = np.arange(-1024, 1024) / 128
    gelu = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) * 1024 for v in x]
    exp2 = [2 ** (i / 1024) * 2**20 for i in range(1024)]
    return {"gelu": np.round(gelu).astype(np.int16), "exp2": np.round(exp2).astype(np.int32)}


def quantise(weight: np.ndarray, bias: np.ndarray | None, gain: float, unit: float | np.ndarray) -> dict[str, np.ndarray]:
    """A linear layer as int8 weights, int32 factors and biases; gain multiplies the output, unit is one of its steps."""
    w = weight.astype(np.float64)
    step = np.maximum(np.abs(w).max(1), 1e-6) / 127
    b = np.zeros(len(w)) if bias is None else bias.astype(np.float64)
    return {
        "weight": np.round(w / step[:, None]).clip(-127, 127).astype(np.int8),
        "factor": np.round(step * gain * unit * 2**14).astype(np.int32),  # input has 10 fractional bits: 2^24 / 2^10
        "bias": np.round(b * gain * unit).astype(np.int32),
    }


def from_float(state: dict[str, np.ndarray], shape: Shape) -> dict[str, np.ndarray]:
    """Tensors of the integer model from the floating-point model's state."""
    out = dict(tables())

    def put(name: str, gain: float = 1.0, unit: float = 2.0**10) -> None:
        made = quantise(state[f"{name}.weight"], state.get(f"{name}.bias"), gain, unit)
        out.update({f"{name}.{k}": v for k, v in made.items()})

    put("inp", unit=2.0**14)
    out["count"] = np.round(state["count"] * 2.0**14).astype(np.int32)
    out["start"] = np.round(state["start"] * 2.0**14).astype(np.int32)
    for i in range(shape.layers):
        n = f"layers.{i}"
        rows = np.full(3 * shape.width, 2.0**10)
        rows[: 2 * shape.width] = 2.0**8
        made = quantise(state[f"{n}.qkv.weight"], state[f"{n}.qkv.bias"], 1.0, rows)
        out.update({f"{n}.qkv.{k}": v for k, v in made.items()})
        put(f"{n}.mix", unit=2.0**14)
        put(f"{n}.up")
        put(f"{n}.down", unit=2.0**14)
    for k in range(shape.stages):
        for part in ("up", "down", "skip"):
            put(f"depth.{k}.{part}")
        put(f"depth.{k}.table", gain=LOG2E)
    return out


class Reference:
    """Runs the integer model with numpy, one code after another."""

    def __init__(self, tensors: dict[str, np.ndarray], shape: Shape, codebooks: np.ndarray):
        self.t, self.s = tensors, shape
        self.books = np.round(codebooks.astype(np.float32) * np.float32(2**LATENT_SHIFT)).astype(np.int64)
        self.score = round(LOG2E / math.sqrt(shape.width // shape.heads) * 2**16)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        acc = self.t[f"{name}.weight"].astype(np.int64) @ x
        return ((acc * self.t[f"{name}.factor"] + (1 << 23)) >> 24) + self.t[f"{name}.bias"]

    @staticmethod
    def clamp(x: np.ndarray, limit: int = LIMIT) -> np.ndarray:
        return np.clip(x, -limit, limit)

    def norm(self, x: np.ndarray) -> np.ndarray:
        mean = int(x.sum()) // len(x)
        c = np.clip(x - mean, -(1 << 23), (1 << 23) - 1)
        deviation = max(16, math.isqrt((int((c * c).sum()) // len(x)) << 8))
        inverse = (1 << 40) // deviation
        return self.clamp((c * inverse + (1 << 25)) >> 26)

    def gelu(self, x: np.ndarray) -> np.ndarray:
        at = (x + 4) >> 3
        inside = self.t["gelu"].astype(np.int64)[np.clip(at, -1024, 1023) + 1024]
        return np.where(at > 1023, x, np.where(at < -1024, 0, inside))

    def exp2(self, x: np.ndarray) -> np.ndarray:
        """2^(x / 1024) with 20 fractional bits, for x <= 0."""
        shift = np.minimum(-(x >> 10), 40)
        return self.t["exp2"].astype(np.int64)[x & 1023] >> shift

    def attention(self, i: int, x: np.ndarray, past: list) -> np.ndarray:
        s, d = self.s, self.s.width // self.s.heads
        y = self.linear(f"layers.{i}.qkv", x)
        q, k = (self.clamp(v, QUERY) for v in (y[: s.width], y[s.width : 2 * s.width]))
        past.append((k, self.clamp(y[2 * s.width :])))
        del past[: -s.window]
        distance = np.arange(len(past) - 1, -1, -1)
        keys, values = (np.stack([p[j] for p in past]) for j in (0, 1))
        out = []
        for h in range(s.heads):
            part = slice(h * d, (h + 1) * d)
            score = ((keys[:, part] @ q[part]) * self.score + (1 << 21)) >> 22
            score = score - s.slopes[h] * distance
            e = self.exp2(score - score.max())
            weight = np.minimum((e * ((1 << 40) // int(e.sum()))) >> 25, LIMIT)
            out.append((weight @ values[:, part] + (1 << 14)) >> 15)
        return np.concatenate(out)

    def frame(self, x: np.ndarray, past: list[list]) -> np.ndarray:
        """One step of the transformer: input with 14 fractional bits -> output with 10."""
        for i in range(self.s.layers):
            x = x + self.linear(f"layers.{i}.mix", self.attention(i, self.norm(x), past[i]))
            x = x + self.linear(f"layers.{i}.down", self.gelu(self.clamp(self.linear(f"layers.{i}.up", self.norm(x)))))
        return self.norm(x)

    def depth(self, k: int, hidden: np.ndarray, partial: np.ndarray) -> np.ndarray:
        """Logits of stage k in 1/1024 of a factor of two."""
        n, x = f"depth.{k}", np.concatenate([hidden, self.clamp(partial)])
        up = self.gelu(self.clamp(self.linear(f"{n}.up", x)))
        return self.linear(f"{n}.table", self.clamp(self.linear(f"{n}.down", up) + self.linear(f"{n}.skip", x)))

    def frequencies(self, logits: np.ndarray) -> np.ndarray:
        """Every entry gets at least 1; the sum is 2^20; what rounding leaves goes to the first likeliest entry."""
        e = self.exp2(np.maximum(logits - logits.max(), -(1 << 20)))
        f = ((e * ((((1 << TOTAL_BITS) - len(e)) << 32) // int(e.sum()))) >> 32) + 1
        f[int(np.argmax(logits))] += (1 << TOTAL_BITS) - int(f.sum())
        return f

    def run(self, codes: np.ndarray) -> np.ndarray:
        """codes [T, S] -> cumulative frequency and frequency of every code [T, S, 2]."""
        past: list[list] = [[] for _ in range(self.s.layers)]
        x = self.t["start"].astype(np.int64)
        out = np.zeros((*codes.shape, 2), np.int64)
        s = codes.shape[1]
        for t, row in enumerate(codes):
            hidden = self.frame(x, past)
            sums = [np.zeros(self.s.latent, np.int64)]
            for k, code in enumerate(row):
                f = self.frequencies(self.depth(k, hidden, sums[-1]))
                out[t, k] = f[:code].sum(), f[code]
                sums.append(sums[-1] + self.books[k][code])
            seen = self.clamp(np.concatenate([sums[s], sums[1], sums[min(4, s)]]))
            x = self.linear("inp", seen) + self.t["count"][s - 1]
        return out
