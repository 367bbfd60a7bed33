"""The two graphs with products in 8-bit integers, for live streams: less to read from memory, and twice the products an instruction.

Weights of the wide layers are rounded by column to 7 bits (AVX2 adds pairs of products in 16 bits, which 8 would overflow), what is
multiplied with them to 8 bits over the range that it has on recordings. Ranges are fixed, so a row's result does not depend on
the rows beside it, and integers add up to the same on every machine. (Jacob et al. 2018: affine quantisation, integer products.)
The heads that make levels, and what reads samples and latents, stay as they are.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from .codec import Codec, decoder_noise
from .config import FRAME
from .data import Batches
from .export import sha256
from .graph import decoder_graph, encoder_graph
from .live import Frame, Live, refer

WEIGHT_LIMIT = 63
# Of what is multiplied, this share at either end may lie outside the range.
OUTSIDE = 5e-5
# In the graph's metadata: the graph that it was made from.
FLOAT_SHA256 = "float_sha256"
# In that of a graph for single frames: the graph whose file its weights lie in.
WEIGHTS_SHA256 = "weights_sha256"
STAGES = (4, 8, 16, 24)  # of the latents that the decoder is observed with
WIDE = (".up.weight", ".down.weight")
ALSO_WIDE = ("up.weight", "shape.weight")
EXACT = "pitch."  # what reads the pitch decides between codes: a rounded decision is another pitch


def products(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """The MatMuls that are to be done in integers: their result -> what is multiplied, and the tensor of weights."""
    widened = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    found = {n.output[0]: (n.input[0], widened.get(n.input[1], "")) for n in model.graph.node if n.op_type == "MatMul"}
    wide = lambda name: name in ALSO_WIDE or (name.endswith(WIDE) and not name.startswith(EXACT))
    return {result: v for result, v in found.items() if wide(v[1])}


def observe(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> tuple[dict[str, tuple[float, float]], list[np.ndarray]]:
    """Ranges of what the wide layers read, by their tensors of weights, and the graph's first output for each feed."""
    readers = {name: x for x, name in products(model).values()}
    names = sorted(set(readers.values()))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    ranges, outputs = dict.fromkeys(names, (0.0, 0.0)), []
    for feed in feeds:
        first, _, *seen = session.run(None, feed)
        outputs.append(first)
        for name, values in zip(names, seen, strict=True):
            low, high = np.quantile(values, [OUTSIDE, 1 - OUTSIDE])
            ranges[name] = (min(ranges[name][0], float(low)), max(ranges[name][1], float(high)))
    return {name: ranges[x] for name, x in readers.items()}, outputs


def convert(model: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> onnx.ModelProto:
    """A copy of the graph with integer products. Standard operators only."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    tensors = {t.name: t for t in out.graph.initializer}
    chosen = products(model)
    nodes: list[onnx.NodeProto] = []
    made: dict[str, np.ndarray] = {}
    for node in out.graph.node:
        result = node.output[0]
        if result not in chosen:
            nodes.append(node)
            continue
        x, name = chosen[result]
        low, high = ranges[name]
        step = (high - low) / 255
        if f"{x}_step" not in made:
            made |= {f"{x}_step": np.array(step, np.float32), f"{x}_zero": np.array(round(-low / step), np.uint8)}
            nodes.append(helper.make_node("QuantizeLinear", [x, f"{x}_step", f"{x}_zero"], [f"{x}_u8"]))
        weight = numpy_helper.to_array(tensors[name]).astype(np.float64)
        scale = np.maximum(np.abs(weight).max(0), 1e-9) / WEIGHT_LIMIT
        made |= {f"{name}_i8": np.round(weight / scale).astype(np.int8), f"{name}_scale": (scale * step).astype(np.float32)}
        nodes.append(helper.make_node("MatMulInteger", [f"{x}_u8", f"{name}_i8", f"{x}_zero"], [f"{result}_i32"]))
        nodes.append(helper.make_node("Cast", [f"{result}_i32"], [f"{result}_f32"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{result}_f32", f"{name}_scale"], [result]))
    used = {i for n in nodes for i in n.input}
    nodes = [n for n in nodes if n.op_type != "Cast" or n.output[0] in used]
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    used = {i for n in nodes for i in n.input}
    kept = [t for t in out.graph.initializer if t.name in used]
    del out.graph.initializer[:]
    out.graph.initializer.extend([*kept, *(numpy_helper.from_array(np.asarray(v), k) for k, v in made.items())])
    onnx.checker.check_model(out)
    return out


def silence(model: onnx.ModelProto, rows: int) -> np.ndarray:
    """The state before the first frame [rows, S]."""
    size = next(p.type.tensor_type.shape.dim[-1].dim_value for p in model.graph.input if p.name == "state")
    return np.zeros((rows, size), np.float32)


def note(model: onnx.ModelProto, key: str, value: str) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = key, value


def write(folder: Path, codec: Codec, batches: Batches, count: int = 6) -> None:
    """Writes encoder-int8.onnx, decoder-int8.onnx and, with the weights of those, encoder-frame.onnx and decoder-frame.onnx for
    calls of one frame into the model folder that `codec` was read from; ranges are those of `count` batches of recordings."""
    net = codec.cfg.network
    make = {"encoder": partial(encoder_graph, codec.encoder, net), "decoder": partial(decoder_graph, codec.decoder, net)}
    whole = {part: graph(Live) for part, graph in make.items()}
    pcm = [p.reshape(len(p), -1, FRAME) for p in (next(batches) for _ in range(count))]
    ranges = {}
    ranges["encoder"], latents = observe(whole["encoder"], [{"pcm": p, "state": silence(whole["encoder"], len(p))} for p in pcm])
    feeds = []
    for i, z in enumerate(latents):
        q = codec.quantiser
        stages = min(STAGES[i % len(STAGES)], len(q.stages))
        z = q.decode(q.encode(torch.from_numpy(z), stages, 1)).detach().numpy()
        noise = np.broadcast_to(decoder_noise(0, z.shape[1], net.noise_dim), (*z.shape[:2], net.noise_dim))
        feeds.append({"latent": z, "noise": np.ascontiguousarray(noise), "state": silence(whole["decoder"], len(z))})
    ranges["decoder"], _ = observe(whole["decoder"], feeds)
    for part, graph in make.items():
        path = folder / f"{part}-int8.onnx"
        model = convert(whole[part], ranges[part])
        note(model, FLOAT_SHA256, sha256(folder / f"{part}.onnx"))
        path.write_bytes(model.SerializeToString())
        frame = convert(graph(Frame), ranges[part])
        note(frame, WEIGHTS_SHA256, sha256(path))
        refer(frame, path.read_bytes(), path.name)
        (folder / f"{part}-frame.onnx").write_bytes(frame.SerializeToString())
