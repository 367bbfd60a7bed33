"""The two graphs as live streams run them: the same networks, with less to copy.

A stream that sends a frame at a time has one new row in each block, but six rows of history: half of the time of a call of `Graph` goes into
taking the state apart, joining each history with its new row, and putting the state together again. `Frame` weighs all histories of
a kind in one product and sum, and gives back only what is new; the caller moves the histories on.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from .config import HOP
from .network import band_matrix
from .nodes import History
from .sources import Graph

# Smaller tensors are kept in the graph: shape inference cannot read others.
SMALLEST_REFERENCE_BYTES = 1024


def spread_matrix(bins: int) -> np.ndarray:
    """[bands, bins], 1 where a bin belongs to a band; as many bands as the bins need."""
    bands = band_matrix().numpy()[:bins]
    return np.ascontiguousarray(bands[:, bands.any(0)].T)


class Live(Graph):
    """As Graph, for any number of frames."""

    def spread(self, bands: str, bins: int = HOP) -> str:
        # Products with 1 and sums with 0 are exact, and a tenth of the time of a gather along the last axis.
        return self.op("MatMul", bands, self.const(f"band_rows_{bins}", spread_matrix(bins)))


class Frame(Live):
    """One frame a call. Part i of the state comes as `past_i` [B, rows, width] and what it is to be followed by goes out as `new_i`
    [B, new, width]: the first `new` rows of the part leave, the others move up, these come behind them."""

    frames = 1

    def begin(self) -> list[str]:
        for i, h in enumerate(self.histories, len(self.singles)):
            if h.new == 1:
                self.weigh(f"past_{i}", h)
            else:
                self.past |= zip(h.blocks, self.parted(f"past_{i}", h))
                rows = np.arange(h.new)[:, None] + np.arange(h.rows + 1)
                self.seen_rows[h] = self.const(f"rows_{i}", rows)
        return [f"past_{i}" for i in range(len(self.singles))]

    def parted(self, x: str, history: History) -> list[str]:
        n = len(history.blocks)
        return [x] if n == 1 else self.op("Split", x, outputs=n, axis=2, num_outputs=n)

    def weigh(self, past: str, history: History) -> None:
        """What the histories bring to the depthwise layers: for each block, the sum of its past rows by their taps, and the bias."""
        first = history.blocks[0]
        taps = np.concatenate([self.taps(b)[:-1] for b in history.blocks], 1)
        bias = np.concatenate([self.weights[f"{b}.depthwise.bias"] for b in history.blocks])
        seen = self.op("Mul", past, self.const(f"{first}.past_taps", taps))
        seen = self.op("ReduceSum", seen, self.const("row_axis", np.array([1], np.int64)), keepdims=1)
        seen = self.op("Add", seen, self.const(f"{first}.past_bias", bias))
        self.past |= zip(history.blocks, self.parted(seen, history))

    def remember(self, x: str, name: str) -> str:
        if self.history(name).new > 1:
            h = super().remember(x, name)
        else:
            now = self.const(f"{name}.now", np.ascontiguousarray(self.taps(name)[-1]))
            h = self.op("Add", self.op("Mul", x, now), self.past[name])
        self.kept[name] = x
        return h

    def cut(self, name: str) -> None:
        """The caller does."""

    def parts(self) -> list[tuple[int, int, int]]:
        """Rows, width and new rows of the parts of the state."""
        return [*((1, width, 1) for width in self.singles), *((h.rows, h.across, h.new) for h in self.histories)]

    def state_inputs(self) -> list[tuple[str, list]]:
        return [(f"past_{i}", ["B", rows, width]) for i, (rows, width, _) in enumerate(self.parts())]

    def end(self, *first: str) -> list[tuple[tuple[str, list], str]]:
        made = list(first)
        for h in self.histories:
            these = [self.kept[b] for b in h.blocks]
            made.append(self.op("Concat", *these, axis=2) if len(these) > 1 else these[0])
        return [((f"new_{i}", ["B", new, width]), m) for i, (m, (_, width, new)) in enumerate(zip(made, self.parts()))]


def refer(model: onnx.ModelProto, content: bytes, name: str) -> None:
    """Moves tensors out of a graph that lie in the file of that name and content: the graph refers to them from then on."""
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        at = content.find(raw) if len(raw) >= SMALLEST_REFERENCE_BYTES else -1
        if at < 0:
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", str(at)), ("length", str(len(raw)))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
