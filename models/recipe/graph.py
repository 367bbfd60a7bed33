"""The two ONNX graphs, written node by node: MatMul only, one packed state each, as few nodes as possible (a short call is spent between them).

Initialisers carry the names of the torch parameters, so that a shipped model can be read back and trained on.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from .config import BAND_EDGES, BANDS, FEATURES, FRAME, HOP, NOISE_BINS, SHAPED, Network
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


class Graph:
    """Collects nodes and initialisers; values are named after what made them."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.count = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes) -> str | list[str]:
        self.count += 1
        names = [f"{kind.lower()}{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def const(self, name: str, value) -> str:
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

    def block(self, x: str, name: str, past: str, windows: str) -> tuple[str, str]:
        """Returns the output [B, T, C] and the new history [B, kernel - 1, C]."""
        joined = self.op("Concat", past, x, axis=1)
        taps = np.ascontiguousarray(self.weights[f"{name}.depthwise.weight"][:, 0, :].T)
        h = self.depthwise(joined, windows, self.const(f"{name}.depthwise.weight", taps))
        h = self.op("Add", h, self.weight(f"{name}.depthwise.bias"))
        h = self.op("Gelu", self.linear(self.norm(h, f"{name}.norm"), f"{name}.up"))
        # The layer scale is folded into the projection that it follows.
        scale = self.weights[f"{name}.scale"]
        w, b = self.weights[f"{name}.down.weight"], self.weights[f"{name}.down.bias"]
        h = self.op("MatMul", h, self.matrix(f"{name}.down.weight", (w * scale[:, None]).T))
        h = self.op("Add", h, self.const(f"{name}.down.bias", b * scale))
        return self.op("Add", x, h), self.slice(joined, -(len(taps) - 1), 2**31 - 1, 1)

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

    def split_state(self, state: str, hop: int, histories: list[tuple[int, int, int]]) -> tuple[str, list[str]]:
        """state [B, S] -> its first part [B, hop], and the histories [B, rows, width] of blocks, (blocks, rows, width) of them
        side by side."""
        sizes = np.array([hop, *(n * rows * width for n, rows, width in histories)], np.int64)
        first, *flat = self.op("Split", state, self.const("state_sizes", sizes), outputs=len(sizes), axis=1)
        parts = []
        for f, (n, rows, width) in zip(flat, histories):
            f = self.reshape(f, -1, rows, n * width)
            parts += [f] if n == 1 else self.op("Split", f, outputs=n, axis=2, num_outputs=n)
        return first, parts

    def join_state(self, first: str, kept: list[str], histories: list[tuple[int, int, int]]) -> str:
        flat = [first]
        for n, rows, width in histories:
            these, kept = kept[:n], kept[n:]
            flat.append(self.reshape(self.op("Concat", *these, axis=2) if n > 1 else these[0], -1, n * rows * width))
        return self.op("Concat", *flat, axis=1)


def weights_of(module) -> dict[str, np.ndarray]:
    return {k: v.detach().cpu().numpy() for k, v in module.state_dict().items()}


def state_size(histories: list[tuple[int, int, int]]) -> int:
    return HOP + sum(n * rows * width for n, rows, width in histories)


def encoder_graph(encoder: Encoder, net: Network) -> tuple[onnx.ModelProto, int]:
    """pcm [B, T, FRAME], state [B, S] -> latent [B, T, D], next_state [B, S]; also gives S."""
    g, half = Graph(weights_of(encoder)), HOP // 2
    histories = [(net.encoder_blocks, net.kernel - 1, net.encoder_width)]
    last, past = g.split_state("state", HOP, histories)
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
    shape = g.op("Div", x, g.op("Gather", rms, g.const("band_of_bin", band_of_bin()), axis=-1))
    gain = g.op("Mul", g.op("Log", rms), g.const("gain_scale", np.array([LOG_GAIN_SCALE], np.float32)))
    gain = g.op("Add", gain, g.const("gain_shift", np.array([LOG_GAIN_SHIFT], np.float32)))
    f = g.reshape(g.op("Concat", shape, gain, axis=-1), 0, -1, FEATURES)
    h, kept = g.linear(f, "inp"), []
    windows = g.windows(h, net.kernel)
    for i in range(net.encoder_blocks):
        h, history = g.block(h, f"blocks.{i}", past[i], windows)
        kept.append(history)
    latent = g.op("Add", g.linear(f, "skip"), g.linear(g.norm(h, "norm"), "out"))
    state = g.join_state(g.reshape(g.slice(hops, -1, 2**31 - 1, 1), -1, HOP), kept, histories)
    size = state_size(histories)
    model = g.model(
        "encoder",
        [("pcm", ["B", "T", FRAME]), ("state", ["B", size])],
        [(("latent", ["B", "T", net.latent]), latent), (("next_state", ["B", size]), state)],
    )
    return model, size


def decoder_histories(net: Network) -> list[tuple[int, int, int]]:
    """Numbers, rows and widths of the histories in the decoder's state, which come after the last half block."""
    w = net.decoder_width
    return [(net.decoder_blocks, net.kernel - 1, w), (net.fine_blocks, net.fine_kernel - 1, w)]


def decoder_graph(decoder: Decoder, net: Network) -> tuple[onnx.ModelProto, int]:
    """latent [B, T, D], noise [B, T, 2 (N + NOISE_BINS)], state [B, S] -> pcm [B, T, FRAME], next_state [B, S]; also gives S."""
    g, half, w = Graph(weights_of(decoder)), HOP // 2, net.decoder_width
    histories = decoder_histories(net)
    last, past = g.split_state("state", HOP, histories)
    h, kept = g.linear("latent", "inp"), []
    windows = g.windows(h, net.kernel)
    for i in range(net.decoder_blocks):
        h, history = g.block(h, f"blocks.{i}", past[i], windows)
        kept.append(history)
    h = g.reshape(g.linear(g.norm(h, "norm"), "up"), 0, -1, w)
    random = g.reshape("noise", 0, -1, net.noise + NOISE_BINS)
    h = g.op("Add", h, g.linear(g.slice(random, 0, net.noise, -1), "noise", bias=False))
    windows = g.windows(h, net.fine_kernel)
    for i in range(net.fine_blocks):
        h, history = g.block(h, f"fine.{i}", past[net.decoder_blocks + i], windows)
        kept.append(history)
    h = g.norm(h, "fine_norm")
    shape = g.op("Add", g.linear(h, "shape"), g.reshape(g.linear("latent", "shape_skip"), 0, -1, SHAPED))
    high_bands = g.slice(random, net.noise, net.noise + NOISE_BINS, -1)
    high_bands = g.op("Mul", high_bands, g.const("noise_scale", np.array([1 / NOISE_RMS], np.float32)))
    shape = g.op("Concat", shape, high_bands, axis=-1)
    gain = g.op("Add", g.linear(h, "gain"), g.reshape(g.linear("latent", "gain_skip"), 0, -1, BANDS))
    low, high = (g.const(n, np.float32(v)) for n, v in zip(("gain_low", "gain_high"), GAIN_RANGE))
    gain = g.op("Exp", g.op("Clip", gain, low, high))
    x = g.op("Mul", shape, g.op("Gather", gain, g.const("band_of_bin", band_of_bin()), axis=-1))
    y = g.op("MatMul", x, g.const("dct", dct4_matrix().numpy()))
    late, early = g.slice(y, 0, half, -1), g.slice(y, half, HOP, -1)
    window = sine_window().numpy()
    # The signs of the unfolded halves are moved into the windows.
    tail = g.op("Mul", g.op("Concat", g.flip(late), late, axis=-1), g.const("window_tail", -window[::-1]))
    sign = np.concatenate([np.ones(half), -np.ones(half)])
    head = g.op("Mul", g.op("Concat", early, g.flip(early), axis=-1), g.const("window_head", window * sign))
    tails = g.op("Concat", g.reshape(last, -1, 1, HOP), tail, axis=1)
    pcm = g.reshape(g.op("Add", head, g.slice(tails, 0, -1, 1)), 0, -1, FRAME)
    state = g.join_state(g.reshape(g.slice(tails, -1, 2**31 - 1, 1), -1, HOP), kept, histories)
    size = state_size(histories)
    model = g.model(
        "decoder",
        [("latent", ["B", "T", net.latent]), ("noise", ["B", "T", net.noise_dim]), ("state", ["B", size])],
        [(("pcm", ["B", "T", FRAME]), pcm), (("next_state", ["B", size]), state)],
    )
    return model, size


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
