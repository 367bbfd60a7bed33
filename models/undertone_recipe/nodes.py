"""Collecting the nodes of an ONNX graph: layers, transforms, and the state that goes on from call to call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .config import BAND_EDGES, BANDS, HOP, NOISE_BAND, NOISE_BINS, Network
from .network import GAIN_RANGE, NOISE_RMS, dct4_matrix, sine_window

OPSET, IR_VERSION = 20, 10


def band_of_bin() -> np.ndarray:
    """Band [HOP] of each MDCT bin."""
    return np.repeat(np.arange(BANDS, dtype=np.int64), np.diff(BAND_EDGES))


class History(NamedTuple):
    """What blocks of one kind remember: `rows` rows of `width` values each, side by side; a frame brings `new` rows."""

    blocks: tuple[str, ...]
    rows: int
    width: int
    new: int

    @property
    def across(self) -> int:
        return len(self.blocks) * self.width


class Nodes:
    """Collects nodes and initialisers; values are named after what made them."""

    frames: str | int = "T"

    def __init__(self, weights: dict[str, np.ndarray], histories: list[History] | None = None, singles: tuple[int, ...] = (HOP,)):
        self.weights = weights
        self.histories = histories or []
        # Widths of the parts of the state that come before the histories, of one row each.
        self.singles = singles
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.count = 0
        # By block: its history before this call, and after it.
        self.past: dict[str, str] = {}
        self.kept: dict[str, str] = {}
        # By history: the rows that each row sees.
        self.seen_rows: dict[History, str] = {}

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        self.count += 1
        names = [f"{kind.lower()}{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def const(self, name: str, value: Any) -> str:
        value = np.asarray(value)
        if value.dtype == np.float64:
            value = value.astype(np.float32)
        self.tensors[name] = value
        return name

    def weight(self, name: str) -> str:
        return self.const(name, self.weights[name])

    def matrix(self, name: str, value: np.ndarray) -> str:
        """Weights of a product, kept in half precision: the runtime widens them once, when it loads the graph."""
        return self.op("Cast", self.const(name, np.ascontiguousarray(value, np.float16)), to=TensorProto.FLOAT)

    def linear(self, x: str, name: str, bias: bool = True) -> str:
        y = self.op("MatMul", x, self.matrix(f"{name}.weight", self.weights[f"{name}.weight"].T))
        return self.op("Add", y, self.weight(f"{name}.bias")) if bias else y

    def norm(self, x: str, name: str) -> str:
        return self.op("LayerNormalization", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), axis=-1)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.const("shape_" + "_".join(map(str, shape)).replace("-", "m"), np.array(shape, np.int64)))

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        value = lambda v: self.const(f"index_{v}".replace("-", "m"), np.array([v], np.int64))
        return self.op("Slice", x, value(start), value(end), value(axis), value(step))

    def flip(self, x: str) -> str:
        return self.slice(x, -1, -(2**31), -1, -1)

    def scalar(self, name: str, value: float) -> str:
        return self.const(name, np.array([value], np.float32))

    def spread(self, bands: str, bins: int = HOP) -> str:
        """A value for each band -> for each of the first `bins` bins, which the bands end with."""
        return self.op("Gather", bands, self.const(f"band_of_bin_{bins}", band_of_bin()[:bins]), axis=-1)

    def noise(self, net: Network) -> list[str]:
        """Of the random numbers of each block: those that the network reads, the shape of the highest bands, the signs."""
        sizes = self.const("noise_sizes", np.array([net.noise, NOISE_BINS, net.signs], np.int64))
        own, high, signs = self.op("Split", self.reshape("noise", 0, -1, net.block_noise), sizes, outputs=3, axis=-1)
        high = self.op("Mul", high, self.const("noise_scale", np.array([1 / NOISE_RMS], np.float32)))
        return [own, high, self.op("Sign", signs)]

    def signs_of_bands(self, signs: str, net: Network) -> str:
        """Random signs [B, 2 T, signs] -> factors of the bands [B, 2 T, NOISE_BAND], 1 where a band has no sign."""
        place = np.eye(NOISE_BAND, dtype=np.float32)[net.sign_band :]
        ones = (np.arange(NOISE_BAND) < net.sign_band).astype(np.float32)
        placed = self.op("MatMul", signs, self.const("sign_places", np.ascontiguousarray(place)))
        return self.op("Add", placed, self.const("unsigned_bands", ones))

    def gains(self, log_gain: str) -> str:
        """Gains [B, T, BANDS] of decoded log gains."""
        low, high = (self.const(n, np.float32(v)) for n, v in zip(("gain_low", "gain_high"), GAIN_RANGE, strict=True))
        return self.op("Exp", self.op("Clip", log_gain, low, high))

    def mdct(self, hops: str, last: str, kept: str | None = None) -> str:
        """hops [B, T, HOP] and the hop before them [B, 1, HOP] -> coefficients [B, T, HOP]. Blocks that are not `kept` (bool [B, T, 1]) take
        the hop before them as silent."""
        half, window = HOP // 2, sine_window().numpy()
        joined = self.op("Concat", last, hops, axis=1)
        before = self.op("Mul", self.slice(joined, 0, -1, 1), self.const("window", window))
        if kept:
            before = self.op("Where", kept, before, self.scalar("silence", 0.0))
        now = self.op("Mul", hops, self.const("window_falling", window[::-1].copy()))
        early = self.op("Sub", self.slice(before, 0, half, -1), self.flip(self.slice(before, half, HOP, -1)))
        # Both signs of the late half are moved into the transform.
        late = self.op("Add", self.flip(self.slice(now, 0, half, -1)), self.slice(now, half, HOP, -1))
        dct = dct4_matrix().numpy().copy()
        dct[:half] *= -1
        return self.op("MatMul", self.op("Concat", late, early, axis=-1), self.const("dct_folded", dct))

    def numbers(self, x: str) -> str:
        """Numbers [T, 1] of the rows of x [B, T, C]."""
        rows = self.op("Squeeze", self.op("Shape", x, start=1, end=2))
        rows = self.op("Range", self.const("zero", np.array(0, np.int64)), rows, self.const("one", np.array(1, np.int64)))
        return self.op("Unsqueeze", rows, self.const("last_axis", np.array([-1], np.int64)))

    def windows(self, x: str, kernel: int) -> str:
        """Rows [T, kernel] that each of the T rows of x [B, T, C] sees once kernel - 1 rows are put before them."""
        return self.op("Add", self.numbers(x), self.const(f"taps_{kernel}", np.arange(kernel, dtype=np.int64)))

    def depthwise(self, joined: str, windows: str, weight: str) -> str:
        """joined [B, T + kernel - 1, C], weight [kernel, C] -> [B, T, C]. Three nodes: with a slice, a product and a sum for each
        tap the whole decoder takes twice the time in short calls, and a Conv node wants another layout of its input."""
        seen = self.op("Mul", self.op("Gather", joined, windows, axis=1), weight)
        return self.op("ReduceSum", seen, self.const("tap_axis", np.array([2], np.int64)), keepdims=0)

    def history(self, block: str) -> History:
        return next(h for h in self.histories if block in h.blocks)

    def taps(self, block: str) -> np.ndarray:
        """Weights [kernel, C] of a block's depthwise layer."""
        return np.ascontiguousarray(self.weights[f"{block}.depthwise.weight"][:, 0, :].T)

    def remember(self, x: str, name: str) -> str:
        """A block's depthwise layer on x [B, T, C], which also becomes its history."""
        history = self.history(name)
        if history not in self.seen_rows:
            self.seen_rows[history] = self.windows(x, history.rows + 1)
        joined = self.op("Concat", self.past[name], x, axis=1)
        h = self.depthwise(joined, self.seen_rows[history], self.const(f"{name}.depthwise.weight", self.taps(name)))
        self.kept[name] = joined
        return self.op("Add", h, self.weight(f"{name}.depthwise.bias"))

    def cut(self, name: str) -> None:
        """Leaves of what a block remembers what the next call needs."""
        self.kept[name] = self.slice(self.kept[name], -self.history(name).rows, 2**31 - 1, 1)

    def block(self, x: str, name: str) -> str:
        """Output [B, T, C] of a block for x of the same shape."""
        h = self.remember(x, name)
        h = self.op("Gelu", self.linear(self.norm(h, f"{name}.norm"), f"{name}.up"))
        # The layer scale is folded into the projection that it follows.
        scale = self.weights[f"{name}.scale"]
        w, b = self.weights[f"{name}.down.weight"], self.weights[f"{name}.down.bias"]
        h = self.op("MatMul", h, self.matrix(f"{name}.down.weight", (w * scale[:, None]).T))
        h = self.op("Add", h, self.const(f"{name}.down.bias", b * scale))
        h = self.op("Add", x, h)
        self.cut(name)
        return h

    def begin(self) -> list[str]:
        """Takes the input `state` [B, S] apart; returns its first parts [B, 1, width], one for each of `singles`."""
        sizes = np.array([*self.singles, *(h.rows * h.across for h in self.histories)], np.int64)
        flat = self.op("Split", "state", self.const("state_sizes", sizes), outputs=len(sizes), axis=1)
        first = [self.reshape(f, -1, 1, width) for f, width in zip(flat, self.singles, strict=False)]
        for f, (blocks, rows, width, _) in zip(flat[len(first) :], self.histories, strict=True):
            n = len(blocks)
            f = self.reshape(f, -1, rows, n * width)
            self.past |= zip(blocks, [f] if n == 1 else self.op("Split", f, outputs=n, axis=2, num_outputs=n))
        return first

    def end(self, *first: str) -> list[tuple[tuple[str, list], str]]:
        """Puts the output `next_state` together; first [B, 1, width], one for each of `singles`."""
        flat = [self.reshape(f, -1, width) for f, width in zip(first, self.singles, strict=True)]
        for blocks, rows, width, _ in self.histories:
            these = [self.kept[b] for b in blocks]
            joined = self.op("Concat", *these, axis=2) if len(these) > 1 else these[0]
            flat.append(self.reshape(joined, -1, len(these) * rows * width))
        return [(("next_state", ["B", self.state_size()]), self.op("Concat", *flat, axis=1))]

    def state_size(self) -> int:
        return sum(self.singles) + sum(h.rows * h.across for h in self.histories)

    def state_inputs(self) -> list[tuple[str, list]]:
        return [("state", ["B", self.state_size()])]

    def model(self, name: str, inputs: list, outputs: list) -> onnx.ModelProto:
        io = lambda ports: [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in ports]
        tensors = [numpy_helper.from_array(v, k) for k, v in self.tensors.items()]
        for (final, _), made in outputs:
            self.nodes.append(helper.make_node("Identity", [made], [final]))
        graph = helper.make_graph(self.nodes, name, io(inputs), io([port for port, _ in outputs]), tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="undertone-recipe")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        return model
