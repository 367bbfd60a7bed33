"""The decoder's gradient as an ONNX graph: what a change of the samples means for the latents.

A file encoder that searches by gradient (docs/synthesis.md) runs it. It computes the decoder again and then backwards, with the
weights of decoder.onnx: its large tensors are references into that file, so it takes some kilobytes itself.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from .config import BANDS, FRAME, HOP, NOISE_BAND, SHAPED, Network
from .graph import decoder_histories, decoder_singles
from .live import refer
from .network import band_matrix, dct4_matrix, sine_window
from .nodes import History
from .postfilter import LOW_BINS
from .sources import Graph, Voiced

DECODER_SHA256 = "decoder_sha256"  # in the graph's metadata: the file that its tensors lie in


class Backward(Graph):
    """Forward passes that keep what their gradient needs."""

    def __init__(self, tensors: dict[str, np.ndarray], histories: list[History], singles: tuple[int, ...]):
        super().__init__({}, histories, singles)
        self.found = tensors
        self.widened: dict[str, str] = {}

    def known(self, name: str) -> str:
        value = self.found[name]
        if value.dtype != np.float16:
            return self.const(name, value)
        if name not in self.widened:
            self.widened[name] = self.matrix(name, value)
        return self.widened[name]

    def transposed(self, name: str) -> str:
        return self.op("Transpose", self.known(name), perm=[1, 0])

    def forward(self, x: str, name: str, bias: bool = True) -> str:
        y = self.op("MatMul", x, self.known(f"{name}.weight"))
        return self.op("Add", y, self.known(f"{name}.bias")) if bias else y

    def linear(self, x: str, name: str, bias: bool = True) -> str:
        return self.forward(x, name, bias)

    def norm(self, x: str, name: str) -> str:
        return self.normalise(x, name)[0]

    def block(self, x: str, name: str) -> str:
        return self.block_forward(x, name, self.windows(x, self.history(name).rows + 1))[0]

    def level_book(self) -> tuple[str, str]:
        return self.known("levels"), self.known("level_sizes")

    def back(self, g: str, name: str) -> str:
        return self.op("MatMul", g, self.transposed(f"{name}.weight"))

    def normalise(self, x: str, name: str) -> tuple[str, tuple[str, str, str]]:
        """LayerNorm and what its gradient needs: the normalised values and the inverse deviation."""
        y, mean, inverse = self.op("LayerNormalization", x, self.known(f"{name}.weight"), self.known(f"{name}.bias"), outputs=3, axis=-1)
        return y, (self.op("Mul", self.op("Sub", x, mean), inverse), inverse, name)

    def normalise_back(self, g: str, kept: tuple[str, str, str]) -> str:
        """(g' - mean g' - x' mean(g' x')) / deviation, with g' = g times the layer's weight and x' the normalised values."""
        values, inverse, name = kept
        g = self.op("Mul", g, self.known(f"{name}.weight"))
        last = self.const("last_axis", np.array([-1], np.int64))
        mean = self.op("ReduceMean", g, last, keepdims=1)
        along = self.op("ReduceMean", self.op("Mul", g, values), last, keepdims=1)
        g = self.op("Sub", self.op("Sub", g, mean), self.op("Mul", values, along))
        return self.op("Mul", g, inverse)

    def gelu(self, x: str) -> tuple[str, str]:
        """x P(x) with the normal distribution P, and its derivative P(x) + x p(x)."""
        half = self.scalar("half", 0.5)
        erf = self.op("Erf", self.op("Mul", x, self.scalar("root_half", math.sqrt(0.5))))
        share = self.op("Add", self.op("Mul", erf, half), half)
        power = self.op("Mul", self.op("Mul", x, x), self.scalar("minus_half", -0.5))
        density = self.op("Mul", self.op("Exp", power), self.scalar("density", 1 / math.sqrt(2 * math.pi)))
        return self.op("Mul", x, share), self.op("Add", share, self.op("Mul", x, density))

    def overlap_back(self, blocks: str) -> str:
        """Slope by hops [B, N, HOP] -> by the transformed blocks that overlap in them, with nothing after the end."""
        half, window = HOP // 2, sine_window().numpy()
        head = self.op("Mul", blocks, self.const("window", window))
        early = self.op("Sub", self.slice(head, 0, half, -1), self.flip(self.slice(head, half, HOP, -1)))
        rows = self.op("Concat", self.op("Shape", blocks, start=0, end=1), self.const("rows_of_one", np.array([1, 1], np.int64)), axis=0)
        after = self.op("Expand", self.const("silent_block", np.zeros((1, 1, HOP), np.float32)), rows)
        tail = self.op("Concat", self.slice(blocks, 1, 2**31 - 1, 1), after, axis=1)
        tail = self.op("Mul", tail, self.const("window_tail", -window[::-1].copy()))
        late = self.op("Add", self.flip(self.slice(tail, 0, half, -1)), self.slice(tail, half, HOP, -1))
        return self.op("Concat", late, early, axis=-1)

    def low_back(self, low: str) -> str:
        """Slope by hops of what is filtered [B, N, HOP] -> by all bins: the transform is symmetric but for the weights."""
        by_bin = self.op("MatMul", self.overlap_back(low), self.op("Transpose", self.low_transform(), perm=[1, 0]))
        return self.op("Pad", by_bin, self.const("other_bins", np.array([0, 0, 0, 0, 0, HOP - LOW_BINS], np.int64)))

    def share_back(self, made: Voiced, shape: str, signs: str, to_bins: str) -> str:
        """Slope by the logits of the waveform's share [B, 2 T, NOISE_BAND] from the slope by the bins. The voicing is not moved."""
        gather = self.const("shaped_bands", np.ascontiguousarray(band_matrix().numpy()[:SHAPED, :NOISE_BAND]))
        by_shape = self.op("MatMul", self.op("Mul", to_bins, shape), gather)
        # Of the voice, what it is at weight 1.
        by_voice = self.op("Div", self.op("MatMul", self.op("Mul", to_bins, made.voice), gather), made.weights[1])
        slopes = (by_shape, by_voice, self.op("Mul", by_shape, signs))
        wave, voice, noise = (self.op("Div", slope, weight) for slope, weight in zip(slopes, made.weights, strict=True))
        rest = self.op("Add", noise, self.op("Mul", made.voicing, self.op("Sub", voice, noise)))
        slope = self.op("Mul", self.op("Sub", wave, rest), self.scalar("half", 0.5))
        return self.op("Mul", slope, self.op("Mul", made.share, self.op("Sub", self.scalar("one_hz", 1.0), made.share)))

    def block_forward(self, x: str, name: str, windows: str) -> tuple[str, tuple]:
        h = self.depthwise(self.op("Concat", self.past[name], x, axis=1), windows, self.known(f"{name}.depthwise.weight"))
        h, norm = self.normalise(self.op("Add", h, self.known(f"{name}.depthwise.bias")), f"{name}.norm")
        h, slope = self.gelu(self.forward(h, f"{name}.up"))
        return self.op("Add", x, self.forward(h, f"{name}.down")), (name, norm, slope, windows)

    def block_back(self, g: str, kept: tuple) -> str:
        name, norm, slope, windows = kept
        h = self.op("Mul", self.back(g, f"{name}.down"), slope)
        h = self.normalise_back(self.back(h, f"{name}.up"), norm)
        # What a frame does to those after it: the taps in reverse, with nothing after the end.
        kernel, width = self.found[f"{name}.depthwise.weight"].shape
        none = self.const(f"after_{kernel}_{width}", np.zeros((1, kernel - 1, width), np.float32))
        rows = self.op("Shape", h, start=0, end=1)
        after = self.op("Expand", none, self.op("Concat", rows, self.const("rows_of_one", np.array([1, 1], np.int64)), axis=0))
        taps = self.known(f"{name}.depthwise.weight")
        reverse = self.slice(taps, -1, -(2**31), 0, -1)
        return self.op("Add", g, self.depthwise(self.op("Concat", h, after, axis=1), windows, reverse))


def gradient_graph(decoder: onnx.ModelProto, net: Network) -> onnx.ModelProto:
    """latent [B, T, D], noise [B, T, N], state [B, S], pcm_gradient [B, T, FRAME] -> latent_gradient [B, T, D].

    All tensors are in the graph; `write` moves the large ones out.
    """
    tensors = {t.name: numpy_helper.to_array(t) for t in decoder.graph.initializer}
    g, w = Backward(tensors, decoder_histories(net), decoder_singles(net)), net.decoder_width
    last, *past = g.begin()
    kept = []
    heard = g.heard("latent", *past[:2]) if net.voice else None
    h = g.forward("latent", "inp")
    windows = g.windows(h, net.kernel)
    for i in range(net.decoder_blocks):
        h, k = g.block_forward(h, f"blocks.{i}", windows)
        kept.append(k)
    h, norm = g.normalise(h, "norm")
    h = g.reshape(g.forward(h, "up"), 0, -1, w)
    own, high_bands, signs = g.noise(net)
    h = g.op("Add", h, g.forward(own, "noise", bias=False))
    if heard:
        h = g.op("Add", h, g.forward(heard.seen, "pulse", bias=False))
    fine = []
    windows = g.windows(h, net.fine_kernel)
    for i in range(net.fine_blocks):
        h, k = g.block_forward(h, f"fine.{i}", windows)
        fine.append(k)
    h, fine_norm = g.normalise(h, "fine_norm")
    shape = g.op("Add", g.forward(h, "shape"), g.reshape(g.forward("latent", "shape_skip"), 0, -1, SHAPED))
    gain = g.gains(g.op("Add", g.forward(h, "gain"), g.reshape(g.forward("latent", "gain_skip"), 0, -1, BANDS)))
    spread = g.spread(gain)
    if heard:
        made = g.excite(h, shape, signs, heard)
        bins, wave = made.bins, made.wave
    else:
        wave = g.spread(g.signs_of_bands(signs, net), SHAPED)
        bins = g.op("Mul", wave, shape)
    bins = g.op("Concat", bins, high_bands, axis=-1)

    # Backwards: comb, overlap-add, window, transform.
    dct = g.const("dct", dct4_matrix().numpy())
    if heard and net.comb:
        x = g.op("Mul", bins, g.off_tones(spread, heard, g.scalar("one_hz", 1.0)))
        hops, _ = g.overlap(g.op("MatMul", x, dct), last)
        filtered = g.filtered(x, hops, heard.pitch, g.slice(made.voicing, 0, 1, -1), past[2:])
        blocks, low = g.filtered_back(g.reshape("pcm_gradient", 0, 1, -1), past[3], filtered)
        coefficients = g.op("Add", g.op("MatMul", g.overlap_back(blocks), dct), g.low_back(low))
    else:
        coefficients = g.op("MatMul", g.overlap_back(g.reshape("pcm_gradient", 0, -1, HOP)), dct)
    # Gains, shares and shapes.
    bands = band_matrix().numpy()
    by_gain = g.op("Mul", coefficients, bins)
    if heard:
        by_gain = g.off_tones(by_gain, heard, g.scalar("no_hz", 0.0))
    to_gain = g.op("Mul", g.op("MatMul", by_gain, g.const("bands", bands)), gain)
    to_bins = g.slice(g.op("Mul", coefficients, spread), 0, SHAPED, -1)
    if heard:
        to_bins = g.op("Where", heard.tone, g.scalar("no_hz", 0.0), to_bins)
    to_shape = g.op("Mul", to_bins, wave)
    to_heads = g.op("Add", g.back(to_shape, "shape"), g.back(to_gain, "gain"))
    if heard:
        to_heads = g.op("Add", to_heads, g.back(g.share_back(made, shape, signs, to_bins), "wave"))
    h = g.normalise_back(to_heads, fine_norm)
    for k in reversed(fine):
        h = g.block_back(h, k)
    h = g.back(g.reshape(h, 0, -1, 2 * w), "up")
    h = g.normalise_back(h, norm)
    for k in reversed(kept):
        h = g.block_back(h, k)
    total = g.op("Add", g.back(h, "inp"), g.back(g.reshape(to_shape, 0, -1, 2 * SHAPED), "shape_skip"))
    total = g.op("Add", total, g.back(g.reshape(to_gain, 0, -1, 2 * BANDS), "gain_skip"))
    if heard:
        # A search must not move the pitch, because a step of it changes all phases after it, which no gradient says; nor the level of a
        # tone, which is the nearest of some entries.
        total = g.op("Where", g.slice(heard.tone, 0, 2**31 - 1, 1, 2), g.scalar("no_hz", 0.0), total)
        total = g.op("Mul", total, g.const("free_latents", (np.arange(net.latent) < net.free).astype(np.float32)))
    inputs = [("latent", ["B", "T", net.latent]), ("noise", ["B", "T", net.noise_dim])]
    inputs += [*g.state_inputs(), ("pcm_gradient", ["B", "T", FRAME])]
    return g.model("decoder_gradient", inputs, [(("latent_gradient", ["B", "T", net.latent]), total)])


def write(decoder: Path, out: Path, net: Network, sha256: str) -> None:
    """Writes the gradient of the decoder graph in file `decoder`, whose hash is given, to `out` beside it."""
    content = decoder.read_bytes()
    model = gradient_graph(onnx.load_model_from_string(content), net)
    refer(model, content, decoder.name)
    entry = model.metadata_props.add()
    entry.key, entry.value = DECODER_SHA256, sha256
    out.write_bytes(model.SerializeToString())
