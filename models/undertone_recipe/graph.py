"""The two ONNX graphs, written node by node: MatMul only, one packed state each, as few nodes as possible (a short call is spent between them).

Initialisers carry the names of the torch parameters, so that a shipped model can be read back and trained on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from .config import BAND_EDGES, BANDS, FEATURES, FRAME, HOP, NOISE_BAND, NOISE_BINS, SHAPED, Network
from .network import (
    ENERGY_FLOOR,
    GAIN_RANGE,
    LOG_GAIN_SCALE,
    LOG_GAIN_SHIFT,
    NOISE_RMS,
    Decoder,
    Encoder,
    band_matrix,
    dct4_matrix,
    sine_window,
)

OPSET, IR_VERSION = 20, 10


class History(NamedTuple):
    """What blocks of one kind remember: `rows` rows of `width` values each, side by side; a frame brings `new` rows."""

    blocks: tuple[str, ...]
    rows: int
    width: int
    new: int

    @property
    def across(self) -> int:
        return len(self.blocks) * self.width


class Graph:
    """Collects nodes and initialisers; values are named after what made them."""

    frames: str | int = "T"

    def __init__(self, weights: dict[str, np.ndarray], histories: list[History] | None = None):
        self.weights = weights
        self.histories = histories or []
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

    def spread(self, bands: str) -> str:
        """A value for each band [..., BANDS] -> for each bin [..., HOP]."""
        return self.op("Gather", bands, self.const("band_of_bin", band_of_bin()), axis=-1)

    def noise(self, net: Network) -> list[str]:
        """Of the random numbers of each block: those that the network reads, the shape of the highest bands, the signs."""
        sizes = self.const("noise_sizes", np.array([net.noise, NOISE_BINS, net.signs], np.int64))
        own, high, signs = self.op("Split", self.reshape("noise", 0, -1, net.block_noise), sizes, outputs=3, axis=-1)
        high = self.op("Mul", high, self.const("noise_scale", np.array([1 / NOISE_RMS], np.float32)))
        return [own, high, self.op("Sign", signs)]

    def signed_gain(self, log_gain: str, signs: str, net: Network) -> str:
        """Gains [B, T, BANDS] of decoded log gains, with the random signs of the bands that have one."""
        low, high = (self.const(n, np.float32(v)) for n, v in zip(("gain_low", "gain_high"), GAIN_RANGE))
        gain = self.op("Exp", self.op("Clip", log_gain, low, high))
        sizes = self.const("gain_sizes", np.array([net.sign_band, net.signs, BANDS - NOISE_BAND], np.int64))
        first, middle, last = self.op("Split", gain, sizes, outputs=3, axis=-1)
        return self.op("Concat", first, self.op("Mul", middle, signs), last, axis=-1)

    def windows(self, x: str, kernel: int) -> str:
        """Rows [T, kernel] that each of the T rows of x [B, T, C] sees once kernel - 1 rows are put before them."""
        rows = self.op("Squeeze", self.op("Shape", x, start=1, end=2))
        rows = self.op("Range", self.const("zero", np.array(0, np.int64)), rows, self.const("one", np.array(1, np.int64)))
        rows = self.op("Unsqueeze", rows, self.const("last_axis", np.array([-1], np.int64)))
        return self.op("Add", rows, self.const(f"taps_{kernel}", np.arange(kernel, dtype=np.int64)))

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

    def begin(self) -> str:
        """Takes the input `state` [B, S] apart; returns its first part, the last hop [B, HOP]."""
        sizes = np.array([HOP, *(h.rows * h.across for h in self.histories)], np.int64)
        hop, *flat = self.op("Split", "state", self.const("state_sizes", sizes), outputs=len(sizes), axis=1)
        for f, (blocks, rows, width, _) in zip(flat, self.histories):
            n = len(blocks)
            f = self.reshape(f, -1, rows, n * width)
            self.past |= zip(blocks, [f] if n == 1 else self.op("Split", f, outputs=n, axis=2, num_outputs=n))
        return hop

    def end(self, hop: str) -> list[tuple[tuple[str, list], str]]:
        """Puts the output `next_state` together; hop [B, 1, HOP]."""
        flat = [self.reshape(hop, -1, HOP)]
        for blocks, rows, width, _ in self.histories:
            these = [self.kept[b] for b in blocks]
            joined = self.op("Concat", *these, axis=2) if len(these) > 1 else these[0]
            flat.append(self.reshape(joined, -1, len(these) * rows * width))
        return [(("next_state", ["B", self.state_size()]), self.op("Concat", *flat, axis=1))]

    def state_size(self) -> int:
        return HOP + sum(h.rows * h.across for h in self.histories)

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


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().cpu().numpy() for k, v in module.state_dict().items()}


def encoder_histories(net: Network) -> list[History]:
    """The histories in the encoder's state, which come after the last hop."""
    return [History(tuple(f"blocks.{i}" for i in range(net.encoder_blocks)), net.kernel - 1, net.encoder_width, 1)]


def decoder_histories(net: Network) -> list[History]:
    """The histories in the decoder's state, which come after the last half block."""
    w = net.decoder_width
    blocks = History(tuple(f"blocks.{i}" for i in range(net.decoder_blocks)), net.kernel - 1, w, 1)
    return [blocks, History(tuple(f"fine.{i}" for i in range(net.fine_blocks)), net.fine_kernel - 1, w, 2)]


def encoder_graph(encoder: Encoder, net: Network, kind: type[Graph] = Graph) -> onnx.ModelProto:
    """pcm [B, T, FRAME], state [B, S] -> latent [B, T, D], next_state [B, S]; a kind may want T and the state otherwise."""
    g, half = kind(weights_of(encoder), encoder_histories(net)), HOP // 2
    last = g.begin()
    hops = g.reshape("pcm", 0, -1, HOP)
    joined = g.op("Concat", g.reshape(last, -1, 1, HOP), hops, axis=1)
    window = sine_window().numpy()
    before = g.op("Mul", g.slice(joined, 0, -1, 1), g.const("window", window))
    now = g.op("Mul", hops, g.const("window_falling", window[::-1].copy()))
    early = g.op("Sub", g.slice(before, 0, half, -1), g.flip(g.slice(before, half, HOP, -1)))
    # Both signs of the late half are moved into the transform.
    late = g.op("Add", g.flip(g.slice(now, 0, half, -1)), g.slice(now, half, HOP, -1))
    dct = dct4_matrix().numpy().copy()
    dct[:half] *= -1
    x = g.op("MatMul", g.op("Concat", late, early, axis=-1), g.const("dct", dct))
    bands = band_matrix().numpy()
    power = g.op("MatMul", g.op("Mul", x, x), g.const("band_mean", bands / bands.sum(0)))
    power = g.op("Add", power, g.const("floor", np.array([ENERGY_FLOOR], np.float32)))
    rms = g.op("Sqrt", power)
    shape = g.op("Div", x, g.spread(rms))
    gain = g.op("Mul", g.op("Log", rms), g.const("gain_scale", np.array([LOG_GAIN_SCALE], np.float32)))
    gain = g.op("Add", gain, g.const("gain_shift", np.array([LOG_GAIN_SHIFT], np.float32)))
    f = g.reshape(g.op("Concat", shape, gain, axis=-1), 0, -1, FEATURES)
    h = g.linear(f, "inp")
    for i in range(net.encoder_blocks):
        h = g.block(h, f"blocks.{i}")
    latent = g.op("Add", g.linear(f, "skip"), g.linear(g.norm(h, "norm"), "out"))
    state = g.end(g.slice(hops, -1, 2**31 - 1, 1))
    inputs = [("pcm", ["B", g.frames, FRAME]), *g.state_inputs()]
    return g.model("encoder", inputs, [(("latent", ["B", g.frames, net.latent]), latent), *state])


def decoder_graph(decoder: Decoder, net: Network, kind: type[Graph] = Graph) -> onnx.ModelProto:
    """latent [B, T, D], noise [B, T, noise_dim], state [B, S] -> pcm [B, T, FRAME], next_state [B, S]; a kind may want T
    and the state otherwise."""
    g, half, w = kind(weights_of(decoder), decoder_histories(net)), HOP // 2, net.decoder_width
    last = g.begin()
    h = g.linear("latent", "inp")
    for i in range(net.decoder_blocks):
        h = g.block(h, f"blocks.{i}")
    h = g.reshape(g.linear(g.norm(h, "norm"), "up"), 0, -1, w)
    own, high_bands, signs = g.noise(net)
    h = g.op("Add", h, g.linear(own, "noise", bias=False))
    for i in range(net.fine_blocks):
        h = g.block(h, f"fine.{i}")
    h = g.norm(h, "fine_norm")
    shape = g.op("Add", g.linear(h, "shape"), g.reshape(g.linear("latent", "shape_skip"), 0, -1, SHAPED))
    shape = g.op("Concat", shape, high_bands, axis=-1)
    gain = g.op("Add", g.linear(h, "gain"), g.reshape(g.linear("latent", "gain_skip"), 0, -1, BANDS))
    gain = g.signed_gain(gain, signs, net)
    x = g.op("Mul", shape, g.spread(gain))
    y = g.op("MatMul", x, g.const("dct", dct4_matrix().numpy()))
    late, early = g.slice(y, 0, half, -1), g.slice(y, half, HOP, -1)
    window = sine_window().numpy()
    # The signs of the unfolded halves are moved into the windows.
    tail = g.op("Mul", g.op("Concat", g.flip(late), late, axis=-1), g.const("window_tail", -window[::-1]))
    sign = np.concatenate([np.ones(half), -np.ones(half)])
    head = g.op("Mul", g.op("Concat", early, g.flip(early), axis=-1), g.const("window_head", window * sign))
    tails = g.op("Concat", g.reshape(last, -1, 1, HOP), tail, axis=1)
    pcm = g.reshape(g.op("Add", head, g.slice(tails, 0, -1, 1)), 0, -1, FRAME)
    state = g.end(g.slice(tails, -1, 2**31 - 1, 1))
    inputs = [("latent", ["B", g.frames, net.latent]), ("noise", ["B", g.frames, net.noise_dim]), *g.state_inputs()]
    return g.model("decoder", inputs, [(("pcm", ["B", g.frames, FRAME]), pcm), *state])


def band_of_bin() -> np.ndarray:
    """Band [HOP] of each MDCT bin."""
    return np.repeat(np.arange(BANDS, dtype=np.int64), np.diff(BAND_EDGES))


def count_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of one frame of one row, counted from the graph: MatMuls, and the taps of the depthwise layers."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer} | shapes_of_one_frame(model)
    total = 0
    for node in model.graph.node:
        if node.op_type == "MatMul":
            total += int(np.prod(shapes[node.input[0]])) * shapes[node.input[1]][-1]
        elif node.op_type == "Mul" and node.input[1].endswith(".depthwise.weight"):
            total += int(np.prod(shapes[node.output[0]]))
    return total


def shapes_of_one_frame(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all values for one row of one frame, found by running the graph: shape inference stops at ranges."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {o.name for o in copy.graph.output}
    names = [name for node in copy.graph.node for name in node.output if name not in known]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {i.name: np.zeros([1 if isinstance(d, str) else d for d in i.shape], np.float32) for i in session.get_inputs()}
    out = [o.name for o in session.get_outputs()]
    return {i: v.shape for i, v in feed.items()} | {name: v.shape for name, v in zip(out, session.run(out, feed))}
