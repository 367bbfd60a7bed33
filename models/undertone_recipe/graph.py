"""The two ONNX graphs, written node by node: MatMul only, one packed state each, as few nodes as possible (a short call is spent between them).

Initialisers carry the names of the torch parameters, so that a shipped model can be read back and trained on.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from .config import (
    BAND_EDGES,
    BANDS,
    FEATURES,
    FRAME,
    HOP,
    LOWEST_PITCH_HZ,
    NOISE_BAND,
    NOISE_BINS,
    PITCHES,
    SAMPLE_RATE_HZ,
    SHAPED,
    Network,
)
from .excitation import JUMP, NEAREST, PHASE_STEPS, STEP, TOP_HZ, UNIT_HZ
from .network import (
    ENERGY_FLOOR,
    ENVELOPE_FLOOR,
    GAIN_RANGE,
    LEAST_SHARE,
    LOG_GAIN_SCALE,
    LOG_GAIN_SHIFT,
    LOW_BINS,
    LOW_FLOOR,
    LOW_HOP,
    LOW_LAGS,
    LOW_PAST,
    LOW_SHORTEST,
    LOW_WINDOW,
    NOISE_RMS,
    Decoder,
    Encoder,
    band_matrix,
    dct4_matrix,
    group_matrix,
    low_synthesis,
    sine_window,
    smoothing_matrix,
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


class Voiced(NamedTuple):
    """What a voice source made, and what its gradient needs; in bands but for the first three, which are in bins."""

    bins: str
    wave: str  # factor of the decoded shape
    voice: str
    share: str  # of the waveform
    voicing: str
    weights: list[str]  # of waveform, voice and noise


class Graph:
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

    def mdct(self, hops: str, last: str) -> str:
        """hops [B, T, HOP] and the hop before them [B, 1, HOP] -> coefficients [B, T, HOP]."""
        half, window = HOP // 2, sine_window().numpy()
        joined = self.op("Concat", last, hops, axis=1)
        before = self.op("Mul", self.slice(joined, 0, -1, 1), self.const("window", window))
        now = self.op("Mul", hops, self.const("window_falling", window[::-1].copy()))
        early = self.op("Sub", self.slice(before, 0, half, -1), self.flip(self.slice(before, half, HOP, -1)))
        # Both signs of the late half are moved into the transform.
        late = self.op("Add", self.flip(self.slice(now, 0, half, -1)), self.slice(now, half, HOP, -1))
        dct = dct4_matrix().numpy().copy()
        dct[:half] *= -1
        return self.op("MatMul", self.op("Concat", late, early, axis=-1), self.const("dct_folded", dct))

    def correlations(self, low: str, low_tail: str, low_past: str) -> tuple[str, str, str]:
        """PitchReader.correlations: low [B, 2 T, LOW_BINS], low_tail [B, 1, LOW_HOP], low_past [B, 1, LOW_PAST] -> [B, T, 4 LOW_LAGS] and
        the same two for the next call."""
        head, tail = (m.numpy() for m in low_synthesis())
        tails = self.op("MatMul", low, self.const("low_tail_synthesis", tail))
        before = self.slice(self.op("Concat", low_tail, tails, axis=1), 0, -1, 1)
        fresh = self.op("Add", self.op("MatMul", low, self.const("low_head_synthesis", head)), before)
        sound = self.op("Concat", low_past, self.reshape(fresh, 0, 1, -1), axis=2)
        span = LOW_PAST + LOW_HOP
        starts = self.op("Mul", self.numbers(low), self.const("low_hop", np.array(LOW_HOP, np.int64)))
        index = self.op("Add", starts, self.const("low_span", np.arange(span, dtype=np.int64)))
        rows = self.reshape(self.op("Gather", sound, index, axis=2), 0, -1, span)
        lagged = self.op("Gather", rows, self.const("lagged_rows", lagged_rows()), axis=2)
        squares, found = self.op("Mul", rows, rows), []
        for size in (LOW_WINDOW, LOW_WINDOW // 2):
            now = self.reshape(self.slice(rows, span - size, span, 2), 0, -1, size, 1)
            then = lagged if size == LOW_WINDOW else self.slice(lagged, LOW_WINDOW - size, LOW_WINDOW, 3)
            product = self.reshape(self.op("MatMul", then, now), 0, -1, LOW_LAGS)
            of_now, of_then = energy_rows(size)
            energy = self.op("MatMul", squares, self.const(f"energy_then_{size}", of_then))
            energy = self.op("Mul", energy, self.op("MatMul", squares, self.const(f"energy_now_{size}", of_now)))
            found.append(self.op("Div", product, self.op("Sqrt", self.op("Add", energy, self.scalar("low_floor", LOW_FLOOR)))))
        seen = self.reshape(self.op("Concat", *found, axis=-1), 0, -1, 4 * LOW_LAGS)
        return seen, self.slice(tails, -1, 2**31 - 1, 1), self.slice(sound, -LOW_PAST, 2**31 - 1, 2)

    def read_pitch(self, net: Network, shape: str, gain: str, slow: str, past: list[str]) -> tuple[str, list[str]]:
        """Logits of the pitch [B, T, PITCHES] from shapes and the gains of bins [B, 2 T, bins] and the network's hidden values."""
        low = self.op("Mul", self.slice(shape, 0, LOW_BINS, -1), self.slice(gain, 0, LOW_BINS, -1))
        seen, *left = self.correlations(low, *past)
        x = self.op("Add", self.linear(seen, "pitch.inp"), self.linear(slow, "pitch.hidden", bias=False))
        for i in range(net.pitch_blocks):
            x = self.block(x, f"pitch.blocks.{i}")
        return self.linear(self.norm(x, "pitch.norm"), "pitch.out"), left

    def pitch(self, logits: str) -> str:
        """excitation.read_pitch: logits [B, T, PITCHES] -> Hz [B, T, 1]."""
        best = self.op("ArgMax", logits, axis=-1, keepdims=1)
        away = self.op("Abs", self.op("Sub", self.const("pitches", np.arange(PITCHES, dtype=np.int64)), best))
        near = self.op("LessOrEqual", away, self.const("nearest", np.array([NEAREST], np.int64)))
        share = self.op("Softmax", self.op("Where", near, logits, self.scalar("unlikely", -1e4)), axis=-1)
        index = self.op("MatMul", share, self.const("eighths", np.arange(PITCHES, dtype=np.float32)[:, None] * 8))
        octave = self.op("Mul", self.op("Round", index), self.scalar("eighth_step", STEP / 8))
        return self.op("Mul", self.op("Exp", octave), self.scalar("lowest_pitch", LOWEST_PITCH_HZ))

    def pulses(self, hz: str, last: str) -> tuple[str, str]:
        """excitation.pulses: pitch [B, T, 1], last [B, 1, 2] -> pulses [B, T, FRAME] and what the next call takes for last."""
        op, n = self.op, np.arange(1, FRAME + 1, dtype=np.float64) / FRAME
        fraction = lambda x: op("Sub", x, op("Floor", x))
        shifted = lambda first, x: self.slice(op("Concat", first, x, axis=1), 0, -1, 1)
        last_hz, last_phase = op("Split", last, outputs=2, axis=-1, num_outputs=2)
        before = shifted(last_hz, hz)
        ratio = op("Div", hz, op("Max", before, self.scalar("one_hz", 1.0)))
        jump = op("Greater", op("Abs", op("Log", ratio)), self.scalar("jump", JUMP))
        before = op("Where", jump, hz, before)
        slope = op("Sub", hz, before)
        frame_s = FRAME / SAMPLE_RATE_HZ
        advance = op("Mul", slope, self.const("advance_of_slope", n * n / 2 * frame_s))
        advance = op("Add", op("Mul", before, self.const("advance_of_pitch", n * frame_s)), advance)
        whole = op("Mul", op("Add", before, hz), self.scalar("whole_steps", frame_s / 2 * PHASE_STEPS))
        whole = fraction(op("Mul", op("Round", whole), self.scalar("phase_step", 1 / PHASE_STEPS)))
        ends = op("Add", last_phase, op("CumSum", whole, self.const("frame_axis", np.array(1, np.int64))))
        phase = op("Add", fraction(shifted(last_phase, ends)), advance)
        phase = op("Sub", phase, op("Round", phase))
        tiny = self.scalar("tiny_phase", 1e-6)
        phase = op("Where", op("Less", op("Abs", phase), tiny), tiny, phase)
        now = op("Add", before, op("Mul", slope, self.const("within", n)))
        twice = op("Mul", op("Floor", op("Div", self.scalar("top_hz", TOP_HZ), now)), self.scalar("two", 2.0))
        turn = op("Mul", phase, self.scalar("pi", math.pi))
        upper = op("Sin", op("Mul", op("Add", twice, self.scalar("one_hz", 1.0)), turn))
        train = op("Div", upper, op("Mul", op("Sin", turn), self.scalar("two", 2.0)))
        train = op("Sub", train, self.scalar("half", 0.5))
        train = op("Mul", train, op("Sqrt", op("Mul", now, self.scalar("per_unit_hz", 1 / UNIT_HZ))))
        end = fraction(self.slice(ends, -1, 2**31 - 1, 1))
        return train, op("Concat", self.slice(hz, -1, 2**31 - 1, 1), end, axis=-1)

    def weights_of_shares(self, h: str) -> tuple[str, str, list[str]]:
        """Shares [B, 2 T, NOISE_BAND] of the waveform, and of the voice in the rest; weights of waveform, voice and noise."""
        wave = self.op("Sigmoid", self.linear(h, "wave"))
        voicing = self.op("MatMul", self.op("Sigmoid", self.linear(h, "voicing")), self.const("groups", group_matrix().numpy()))
        rest = self.op("Sub", self.scalar("one_hz", 1.0), wave)
        voice = self.op("Mul", rest, voicing)
        floor = self.scalar("least_share", LEAST_SHARE)
        shares = (wave, voice, self.op("Sub", rest, voice))
        return wave, voicing, [self.op("Sqrt", self.op("Add", share, floor)) for share in shares]

    def voiced(
        self, net: Network, h: str, slow: str, shape: str, gain: str, signs: str, past: list[str]
    ) -> tuple[Voiced, list[str]]:
        """The bins below the noise, with a voice source: Decoder.voice. gain [B, 2 T, HOP]; past as `decoder_singles` has it."""
        last_pulses, last_phase, *past = past
        logits, past = self.read_pitch(net, shape, gain, slow, past)
        train, phase = self.pulses(self.pitch(logits), last_phase)
        train = self.reshape(train, 0, -1, HOP)
        share, voicing, weights = self.weights_of_shares(h)
        wave = self.spread(self.op("Add", weights[0], self.op("Mul", weights[2], signs)), SHAPED)
        voice = self.voice(shape, weights[1], train, last_pulses)
        made = Voiced(self.op("Add", self.op("Mul", wave, shape), voice), wave, voice, share, voicing, weights)
        return made, [self.slice(train, -1, 2**31 - 1, 1), phase, *past]

    def voice(self, shape: str, weight: str, train: str, last: str) -> str:
        """The voice's part of the bins [B, 2 T, SHAPED]: pulses [B, 2 T, HOP] under the smoothed shape, by the weights of the bands."""
        envelope = self.op("MatMul", self.op("Mul", shape, shape), self.const("smooth", smoothing_matrix().numpy()))
        envelope = self.op("Sqrt", self.op("Add", envelope, self.scalar("envelope_floor", ENVELOPE_FLOOR)))
        spectrum = self.slice(self.mdct(train, last), 0, SHAPED, -1)
        return self.op("Mul", self.op("Mul", self.spread(weight, SHAPED), envelope), spectrum)

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


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().cpu().numpy() for k, v in module.state_dict().items()}


def encoder_histories(net: Network) -> list[History]:
    """The histories in the encoder's state, which come after the last hop."""
    return [History(tuple(f"blocks.{i}" for i in range(net.encoder_blocks)), net.kernel - 1, net.encoder_width, 1)]


def decoder_histories(net: Network) -> list[History]:
    """The histories in the decoder's state, which come after the last half block."""
    w = net.decoder_width
    blocks = [History(tuple(f"blocks.{i}" for i in range(net.decoder_blocks)), net.kernel - 1, w, 1)]
    if net.voice:
        blocks.append(History(tuple(f"pitch.blocks.{i}" for i in range(net.pitch_blocks)), net.kernel - 1, net.pitch_width, 1))
    return [*blocks, History(tuple(f"fine.{i}" for i in range(net.fine_blocks)), net.fine_kernel - 1, w, 2)]


def decoder_singles(net: Network) -> tuple[int, ...]:
    """What a decoder remembers besides histories: the half block that the next one is added to; with a voice source the last hop of
    pulses, their pitch and phase, and, for reading the pitch, the half block and the sound below 1 kHz."""
    return (HOP, HOP, 2, LOW_HOP, LOW_PAST) if net.voice else (HOP,)


def energy_rows(size: int) -> tuple[np.ndarray, np.ndarray]:
    """[LOW_PAST + LOW_HOP, 1] and [.., LOW_LAGS]: 1 where a sample is in the last `size`, and in those a lag before."""
    span = LOW_PAST + LOW_HOP
    at = np.arange(span)[:, None]
    start = span - size - np.array([0, *range(LOW_SHORTEST, LOW_SHORTEST + LOW_LAGS)])
    inside = ((at >= start) & (at < start + size)).astype(np.float32)
    return np.ascontiguousarray(inside[:, :1]), np.ascontiguousarray(inside[:, 1:])


def lagged_rows() -> np.ndarray:
    """[LOW_LAGS, LOW_WINDOW]: where in LOW_PAST + LOW_HOP samples those lie that are a lag before the last LOW_WINDOW."""
    last = np.arange(LOW_PAST + LOW_HOP - LOW_WINDOW, LOW_PAST + LOW_HOP)
    return last[None] - np.arange(LOW_SHORTEST, LOW_SHORTEST + LOW_LAGS)[:, None]


def encoder_graph(encoder: Encoder, net: Network, kind: type[Graph] = Graph) -> onnx.ModelProto:
    """pcm [B, T, FRAME], state [B, S] -> latent [B, T, D], next_state [B, S]; a kind may want T and the state otherwise."""
    g = kind(weights_of(encoder), encoder_histories(net))
    (last,) = g.begin()
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
    state = g.end(g.slice(hops, -1, 2**31 - 1, 1))
    inputs = [("pcm", ["B", g.frames, FRAME]), *g.state_inputs()]
    return g.model("encoder", inputs, [(("latent", ["B", g.frames, net.latent]), latent), *state])


def decoder_graph(decoder: Decoder, net: Network, kind: type[Graph] = Graph) -> onnx.ModelProto:
    """latent [B, T, D], noise [B, T, noise_dim], state [B, S] -> pcm [B, T, FRAME], next_state [B, S]; a kind may want T
    and the state otherwise."""
    g, half, w = kind(weights_of(decoder), decoder_histories(net), decoder_singles(net)), HOP // 2, net.decoder_width
    last, *past = g.begin()
    h = g.linear("latent", "inp")
    for i in range(net.decoder_blocks):
        h = g.block(h, f"blocks.{i}")
    slow = g.norm(h, "norm")
    h = g.reshape(g.linear(slow, "up"), 0, -1, w)
    own, high_bands, signs = g.noise(net)
    h = g.op("Add", h, g.linear(own, "noise", bias=False))
    for i in range(net.fine_blocks):
        h = g.block(h, f"fine.{i}")
    h = g.norm(h, "fine_norm")
    shape = g.op("Add", g.linear(h, "shape"), g.reshape(g.linear("latent", "shape_skip"), 0, -1, SHAPED))
    gain = g.op("Add", g.linear(h, "gain"), g.reshape(g.linear("latent", "gain_skip"), 0, -1, BANDS))
    gain = g.spread(g.gains(gain))
    if net.voice:
        voiced, past = g.voiced(net, h, slow, shape, gain, signs, past)
        bins = voiced.bins
    else:
        bins = g.op("Mul", shape, g.spread(g.signs_of_bands(signs, net), SHAPED))
    bins = g.op("Concat", bins, high_bands, axis=-1)
    x = g.op("Mul", bins, gain)
    y = g.op("MatMul", x, g.const("dct", dct4_matrix().numpy()))
    late, early = g.slice(y, 0, half, -1), g.slice(y, half, HOP, -1)
    window = sine_window().numpy()
    # The signs of the unfolded halves are moved into the windows.
    tail = g.op("Mul", g.op("Concat", g.flip(late), late, axis=-1), g.const("window_tail", -window[::-1]))
    sign = np.concatenate([np.ones(half), -np.ones(half)])
    head = g.op("Mul", g.op("Concat", early, g.flip(early), axis=-1), g.const("window_head", window * sign))
    tails = g.op("Concat", last, tail, axis=1)
    pcm = g.reshape(g.op("Add", head, g.slice(tails, 0, -1, 1)), 0, -1, FRAME)
    state = g.end(g.slice(tails, -1, 2**31 - 1, 1), *past)
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
