"""The two ONNX graphs, written node by node: MatMul only, one packed state each, as few nodes as possible (a short call is spent between them).

Initialisers carry the names of the torch parameters, so that a shipped model can be read back and trained on.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from torch import nn

from .config import BANDS, FEATURES, FRAME, HOP, SHAPED, Network
from .excitation import SOURCE_STATE
from .filters import COMB_SINGLES
from .network import ENERGY_FLOOR, LOG_GAIN_SCALE, LOG_GAIN_SHIFT, LOW_PAST, Decoder, Encoder, band_matrix, dct4_matrix
from .nodes import History
from .sources import Graph


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().cpu().numpy() for k, v in module.state_dict().items()}


def encoder_histories(net: Network) -> list[History]:
    """The histories in the encoder's state, which come after `encoder_singles`."""
    blocks = [History(tuple(f"blocks.{i}" for i in range(net.encoder_blocks)), net.kernel - 1, net.encoder_width, 1)]
    if net.voice:
        blocks.append(History(tuple(f"pitch.blocks.{i}" for i in range(net.pitch_blocks)), net.kernel - 1, net.pitch_width, 1))
    return blocks


def encoder_singles(net: Network) -> tuple[int, ...]:
    """What an encoder remembers besides histories: the last hop; with a voice source also the sound below 1 kHz that the pitch is read
    from, and whose turn it is of two tones."""
    return (HOP, LOW_PAST, 1) if net.voice else (HOP,)


def decoder_histories(net: Network) -> list[History]:
    """The histories in the decoder's state, which come after `decoder_singles`."""
    w = net.decoder_width
    blocks = History(tuple(f"blocks.{i}" for i in range(net.decoder_blocks)), net.kernel - 1, w, 1)
    return [blocks, History(tuple(f"fine.{i}" for i in range(net.fine_blocks)), net.fine_kernel - 1, w, 2)]


def decoder_singles(net: Network) -> tuple[int, ...]:
    """What a decoder remembers besides histories: the half block that the next one is added to; with a voice source also the last hop
    of what it made, and the voice source's state; with a comb COMB_SINGLES."""
    sounds = (HOP, SOURCE_STATE) if net.voice else ()
    return (HOP, *sounds, *(COMB_SINGLES if net.comb else ()))


def encoder_graph(encoder: Encoder, net: Network, kind: type[Graph] = Graph) -> onnx.ModelProto:
    """pcm [B, T, FRAME], state [B, S] -> latent [B, T, D], next_state [B, S]; a kind may want T and the state otherwise."""
    g = kind(weights_of(encoder), encoder_histories(net), encoder_singles(net))
    last, *past = g.begin()
    hops = g.reshape("pcm", 0, -1, HOP)
    x = g.mdct(hops, last)
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
    if net.voice:
        latent, *past = g.read(net, latent, hops, last, *past)
    state = g.end(g.slice(hops, -1, 2**31 - 1, 1), *past)
    inputs = [("pcm", ["B", g.frames, FRAME]), *g.state_inputs()]
    return g.model("encoder", inputs, [(("latent", ["B", g.frames, net.latent]), latent), *state])


def decoder_graph(decoder: Decoder, net: Network, kind: type[Graph] = Graph) -> onnx.ModelProto:
    """latent [B, T, D], noise [B, T, noise_dim], state [B, S] -> pcm [B, T, FRAME], next_state [B, S]; a kind may want T
    and the state otherwise."""
    g, w = kind(weights_of(decoder), decoder_histories(net), decoder_singles(net)), net.decoder_width
    last, *past = g.begin()
    heard = g.heard("latent", *past[:2]) if net.voice else None
    h = g.linear("latent", "inp")
    for i in range(net.decoder_blocks):
        h = g.block(h, f"blocks.{i}")
    h = g.reshape(g.linear(g.norm(h, "norm"), "up"), 0, -1, w)
    own, high_bands, signs = g.noise(net)
    h = g.op("Add", h, g.linear(own, "noise", bias=False))
    if heard:
        h = g.op("Add", h, g.linear(heard.seen, "pulse", bias=False))
    for i in range(net.fine_blocks):
        h = g.block(h, f"fine.{i}")
    h = g.norm(h, "fine_norm")
    shape = g.op("Add", g.linear(h, "shape"), g.reshape(g.linear("latent", "shape_skip"), 0, -1, SHAPED))
    gain = g.op("Add", g.linear(h, "gain"), g.reshape(g.linear("latent", "gain_skip"), 0, -1, BANDS))
    gain = g.spread(g.gains(gain))
    if heard:
        made = g.excite(h, shape, signs, heard)
        bins = made.bins
        gain = g.off_tones(gain, heard, g.scalar("one_hz", 1.0))  # a tone has its own level
    else:
        bins = g.op("Mul", shape, g.spread(g.signs_of_bands(signs, net), SHAPED))
    bins = g.op("Concat", bins, high_bands, axis=-1)
    x = g.op("Mul", bins, gain)
    pcm, tail = g.overlap(g.op("MatMul", x, g.const("dct", dct4_matrix().numpy())), last)
    left = heard.left if heard else []
    if heard and net.comb:
        # The lowest band's voicing.
        filtered = g.filtered(x, pcm, heard.pitch, g.slice(made.voicing, 0, 1, -1), past[2:])
        pcm, left = filtered.pcm, [*left, *filtered.left]
    pcm = g.reshape(pcm, 0, -1, FRAME)
    state = g.end(tail, *left)
    inputs = [("latent", ["B", g.frames, net.latent]), ("noise", ["B", g.frames, net.noise_dim]), *g.state_inputs()]
    return g.model("decoder", inputs, [(("pcm", ["B", g.frames, FRAME]), pcm), *state])


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
