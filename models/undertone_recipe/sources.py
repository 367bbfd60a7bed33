"""The voice source's part of the two graphs: what the encoder reads of pitch and tones, and what the decoder makes of it (docs/voice.md)."""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from . import tones
from .config import DTMF_HZ, FRAME, HOP, PITCH_LATENT, SAMPLE_RATE_HZ, SHAPED, Network
from .excitation import (
    EVEN_FROM_HZ,
    EVEN_STEP_HZ,
    FIRST_DIGIT,
    FIRST_PITCH,
    FIRST_TONE,
    HIGHER,
    HIGHER_TWIST,
    HIGHEST_TONE_HZ,
    JUMP,
    LEAST_LEVEL_DB,
    LEAST_TWIST_DB,
    LEVEL_STEP_DB,
    LEVELS,
    LOW_TONES,
    LOWER,
    LOWER_TWIST,
    LOWEST_TONE_HZ,
    NO_TWIST,
    PHASE_STEPS,
    RESTING_HZ,
    TONE_STEP,
    TONES,
    TOP_HZ,
    TWIST_STEP_DB,
    TWISTS,
    UNIT_HZ,
    level_amplitudes,
    pitch_book,
    sounds,
)
from .filters import Filters
from .network import (
    ENVELOPE_FLOOR,
    LEAST_DEGREE,
    LEAST_SHARE,
    LOW_FLOOR,
    LOW_HOP,
    LOW_LAGS,
    LOW_PAST,
    LOW_SEEN,
    LOW_SHORTEST,
    LOW_WINDOW,
    group_matrix,
    low_pass,
    smoothing_matrix,
)


class Heard(NamedTuple):
    """What latents say that sounds."""

    spectrum: str  # bins [B, 2 T, SHAPED]
    seen: str  # the same, without tones: what the network is shown
    tone: str  # bool [B, 2 T, 1]: blocks of tones, which have a level of their own
    left: list[str]  # for the next call
    pitch: str  # of a voice at the ends of frames [B, T, 1], 0 where there is none


class Voiced(NamedTuple):
    """What a voice source made, and what its gradient needs; in bands but for the first three, which are in bins."""

    bins: str
    wave: str  # factor of the decoded shape
    voice: str
    share: str  # of the waveform
    voicing: str
    weights: list[str]  # of waveform, voice and noise


def energy_rows(size: int) -> tuple[np.ndarray, np.ndarray]:
    """[LOW_PAST + LOW_HOP, 1] and [.., LOW_LAGS]: 1 where a sample is in the last `size`, and in those a lag before."""
    span = LOW_PAST + LOW_HOP
    at = np.arange(span)[:, None]
    start = span - size - np.array([0, *range(LOW_SHORTEST, LOW_SHORTEST + LOW_LAGS)])
    inside = ((at >= start) & (at < start + size)).astype(np.float32)
    return np.ascontiguousarray(inside[:, :1]), np.ascontiguousarray(inside[:, 1:])


class Graph(Filters):
    """Nodes of a codec, with those of a voice source."""

    def before(self, hops: str, last: str) -> str:
        """The hops before hops [B, 2 T, HOP], of which the first is last [B, 1, HOP]."""
        return self.slice(self.op("Concat", last, hops, axis=1), 0, -1, 1)

    def lagged(self, x: str) -> str:
        """x [B, N, LOW_WINDOW + LOW_LAGS - 1] -> [B, N, LOW_LAGS, more than LOW_WINDOW], each row from one value later on. Copies laid out one
        after another in rows of one value more: a tenth of the time of a gather of single values."""
        size = LOW_WINDOW + LOW_LAGS - 1
        copies = self.const("lag_copies", np.array([1, 1, LOW_LAGS + 1, 1], np.int64))
        flat = self.op("Expand", self.reshape(x, 0, -1, 1, size), copies)
        flat = self.slice(self.reshape(flat, 0, -1, (LOW_LAGS + 1) * size), 0, LOW_LAGS * (size + 1), 2)
        return self.reshape(flat, 0, -1, LOW_LAGS, size + 1)

    def hops_seen(self, hops: str, before: str, low_past: str) -> tuple[str, str]:
        """PitchReader.seen: hops [B, 2 T, HOP], the hops before them, low_past [B, 1, LOW_PAST] -> [B, T, 2 LOW_SEEN] and low_past for the
        next call."""
        fresh = self.op("MatMul", self.op("Concat", before, hops, axis=-1), self.const("low_pass", low_pass().numpy()))
        sound = self.op("Concat", low_past, self.reshape(fresh, 0, 1, -1), axis=2)
        span = LOW_PAST + LOW_HOP
        starts = self.op("Mul", self.numbers(hops), self.const("low_hop", np.array(LOW_HOP, np.int64)))
        index = self.op("Add", starts, self.const("low_span", np.arange(span, dtype=np.int64)))
        rows = self.reshape(self.op("Gather", sound, index, axis=2), 0, -1, span)
        back = self.flip(rows)  # from the last sample on
        lagged = self.lagged(self.slice(back, LOW_SHORTEST, span, 2))
        squares, found, powers = self.op("Mul", rows, rows), [], []
        for size in (LOW_WINDOW, LOW_WINDOW // 2):
            now = self.reshape(self.slice(back, 0, size, 2), 0, -1, size, 1)
            then = self.slice(lagged, 0, size, 3)
            product = self.reshape(self.op("MatMul", then, now), 0, -1, LOW_LAGS)
            of_now, of_then = energy_rows(size)
            own = self.op("MatMul", squares, self.const(f"energy_now_{size}", of_now))
            energy = self.op("Mul", self.op("MatMul", squares, self.const(f"energy_then_{size}", of_then)), own)
            energy = self.op("Sqrt", self.op("Add", energy, self.scalar(f"low_floor_{size}", LOW_FLOOR**2 * size * size)))
            found.append(self.op("Div", product, energy))
            powers.append(self.op("Mul", own, self.scalar(f"low_mean_{size}", 1 / size)))
        level = self.op("Log", self.op("Add", self.op("Concat", *powers, axis=-1), self.scalar("low_floor", LOW_FLOOR)))
        level = self.op("Add", self.op("Mul", level, self.scalar("low_level_scale", 0.2)), self.scalar("low_level_shift", 2.0))
        seen = self.reshape(self.op("Concat", *found, level, axis=-1), 0, -1, 2 * LOW_SEEN)
        return seen, self.slice(sound, -LOW_PAST, 2**31 - 1, 2)

    def read_pitch(self, net: Network, hops: str, before: str, low_past: str) -> tuple[str, str]:
        """Code of a voice [B, T, 1], 0 where there is none, and low_past for the next call."""
        seen, left = self.hops_seen(hops, before, low_past)
        x = self.linear(seen, "pitch.inp")
        for i in range(net.pitch_blocks):
            x = self.block(x, f"pitch.blocks.{i}")
        x = self.norm(x, "pitch.norm")
        index = self.op("Add", self.op("ArgMax", self.linear(x, "pitch.out"), axis=-1, keepdims=1), self.integer(FIRST_PITCH))
        degree = self.op("Sigmoid", self.linear(x, "pitch.degree"))
        voiced = self.op("Greater", degree, self.scalar("least_degree", LEAST_DEGREE))
        return self.op("Where", voiced, index, self.integer(0)), left

    def tone_code(self, hz: str) -> str:
        """FIRST_TONE + excitation.nearest_tone: Hz -> codes of the same shape."""
        steps = self.op("Log", self.op("Max", hz, self.scalar("one_hz", 1.0)))
        steps = self.op("Sub", steps, self.scalar("lowest_tone", math.log(LOWEST_TONE_HZ)))
        steps = self.op("Round", self.op("Mul", steps, self.scalar("per_tone_step", 1 / TONE_STEP)))
        low = self.op("Clip", steps, self.const("no_steps", np.float32(0)), self.const("last_low_tone", np.float32(LOW_TONES - 1)))
        even = self.op("Sub", hz, self.scalar("even_from_hz", EVEN_FROM_HZ))
        even = self.op("Round", self.op("Mul", even, self.scalar("per_even_hz", 1 / EVEN_STEP_HZ)))
        last = self.const("last_even_tone", np.float32(TONES - LOW_TONES - 1))
        even = self.op("Add", self.op("Clip", even, self.const("no_steps", np.float32(0)), last), self.scalar("low_tones", LOW_TONES))
        is_even = self.op("Greater", hz, self.scalar("even_after_hz", EVEN_FROM_HZ - EVEN_STEP_HZ / 2))
        code = self.op("Cast", self.op("Where", is_even, even, low), to=TensorProto.INT64)
        return self.op("Add", code, self.integer(FIRST_TONE))

    def digit_code(self, hz: str, other: str) -> tuple[str, str]:
        """TonesFinder.digit: two lines in any order -> the digit's code, and whether they are one's."""
        pair = self.op("Concat", self.op("Min", hz, other), self.op("Max", hz, other), axis=-1)
        away = self.op("Div", self.reshape(pair, 0, -1, 2, 1), self.const("digit_hz", np.array(DTMF_HZ, np.float32)))
        away = self.op("Abs", self.op("Sub", away, self.scalar("one_hz", 1.0)))
        last = self.integer(-1)
        worst = self.op("ReduceMax", self.op("ReduceMin", away, last, keepdims=0), last, keepdims=1)
        fits = self.op("Less", worst, self.scalar("digit_tolerance", tones.DIGIT_TOLERANCE))
        which = self.op("Mul", self.op("ArgMin", away, axis=-1, keepdims=0), self.const("digit_places", np.array([4, 1], np.int64)))
        return self.op("Add", self.op("ReduceSum", which, last, keepdims=1), self.integer(FIRST_DIGIT)), fits

    def line_hz(self, power: str, k: str) -> str:
        """TonesFinder.frequency: power [B, N, BINS], k [B, N, 1] -> Hz [B, N, 1]."""
        at = self.op("Add", k, self.const("beside", np.array([-1, 0, 1], np.int64)))
        at = self.op("Clip", at, self.const("first_bin", np.int64(0)), self.const("last_bin", np.int64(tones.BINS - 1)))
        left, top, right = self.op("Split", self.op("GatherElements", power, at, axis=-1), outputs=3, axis=-1, num_outputs=3)
        top = self.op("Max", top, self.scalar("least_line", 1e-20))
        left, right = (self.op("Sqrt", self.op("Div", x, top)) for x in (left, right))
        side, one = self.op("Max", left, right), self.scalar("one_hz", 1.0)
        away = self.op("Sub", self.op("Mul", side, self.scalar("two", 2.0)), one)
        away = self.op("Div", away, self.op("Add", side, one))
        away = self.op("Where", self.op("Greater", right, left), away, self.op("Neg", away))
        bins = self.op("Add", self.op("Cast", self.op("Add", k, self.integer(tones.FIRST_BIN)), to=TensorProto.FLOAT), away)
        return self.op("Mul", bins, self.scalar("line_hz", tones.LINE_HZ))

    def level(self, strong: str, weak: str, swapped: str, single: str, pair: str, odd: str) -> str:
        """excitation.level_code of TonesFinder.amplitudes: energies of the two strongest lines, whether the second is the lower one, whether
        there is one only or a pair, and whether the higher one's turn it is, all [B, T, 1] -> index of their levels."""
        op, finder = self.op, tones.TonesFinder()
        db = lambda x: op("Mul", op("Log", op("Max", x, self.scalar("least_line_energy", 1e-12))), self.scalar("line_db", 10 / math.log(10)))
        scaled = lambda x: op("Mul", x, self.scalar("line_scale", 2 / float(finder.weight.sum())))
        swapped = op("And", swapped, op("Not", single))
        low, high = (db(scaled(op("Where", swapped, a, b))) for a, b in ((weak, strong), (strong, weak)))
        low = op("Where", op("And", pair, odd), high, low)
        steps = lambda x, least, step, most: op(
            "Clip",
            op("Round", op("Mul", op("Sub", x, self.scalar(f"least_{step}", least)), self.scalar(f"per_{step}", 1 / step))),
            self.const("no_steps", np.float32(0)),
            self.const(f"most_{most}", np.float32(most)),
        )
        level = steps(low, LEAST_LEVEL_DB, LEVEL_STEP_DB, LEVELS - 1)
        twist = steps(op("Sub", high, low), LEAST_TWIST_DB, TWIST_STEP_DB, TWISTS - 1)
        twist = op("Where", single, self.scalar("no_twist", NO_TWIST), twist)
        said = op("Where", odd, self.scalar("higher_twist", HIGHER_TWIST), self.scalar("lower_twist", LOWER_TWIST))
        twist = op("Where", pair, said, twist)
        return op("Cast", op("Add", op("Mul", level, self.scalar("twists", TWISTS)), twist), to=TensorProto.INT64)

    def turns(self, like: str, turn: str) -> tuple[str, str]:
        """Whether it is the turn of the higher of two tones in the frames of like [B, T, C], bool [B, T, 1], and turn [B, 1, 1] after them."""
        op = self.op
        counted = op("Cast", op("Add", self.numbers(like), self.integer(1)), to=TensorProto.FLOAT)
        turns = op("Add", turn, counted)
        half = op("Floor", op("Mul", turns, self.scalar("half", 0.5)))
        turns = op("Sub", turns, op("Mul", half, self.scalar("two", 2.0)))
        return op("Greater", turns, self.scalar("half", 0.5)), self.slice(turns, -1, 2**31 - 1, 1)

    def read_tones(self, before: str, voice: str, odd: str) -> tuple[str, str, str]:
        """TonesFinder: hops before those of the frames [B, 2 T, HOP], codes [B, T, 1], turns of the higher of two tones -> codes with tones
        and digits where there are any, whether there are, and their levels."""
        op, finder = self.op, tones.TonesFinder()
        start = self.slice(self.reshape(before, 0, -1, FRAME), HOP + FRAME - tones.WINDOW, HOP, -1)
        heard = op("Concat", start, "pcm", axis=-1)
        energy = op("MatMul", op("Mul", heard, heard), self.const("line_weight", finder.weight.numpy()[:, None]))
        lines = op("MatMul", heard, self.const("line_spectrum", finder.matrix.numpy()))
        real, imaginary = op("Split", op("Mul", lines, lines), outputs=2, axis=-1, num_outputs=2)
        power = op("Add", real, imaginary)
        near = finder.near.numpy()
        strengths = op("MatMul", power, self.const("near_bins", near))
        first = op("ArgMax", power, axis=-1, keepdims=0)
        far = op("Sub", self.scalar("one_hz", 1.0), op("Gather", self.const("near_bins", near), first, axis=0))
        rest = op("Mul", power, far)
        first, second = op("Unsqueeze", first, self.integer(-1)), op("ArgMax", rest, axis=-1, keepdims=1)
        hz = self.line_hz(op("Concat", power, rest, axis=1), op("Concat", first, second, axis=1))
        hz, other = op("Split", hz, outputs=2, axis=1, num_outputs=2)
        strong, weak = (op("GatherElements", strengths, k, axis=-1) for k in (first, second))
        most = op("Mul", energy, self.scalar("least_line_share", tones.LEAST_SHARE))
        low = op("Less", hz, self.scalar("voice_hz", tones.VOICE_HZ))
        least = op("Where", low, op("Mul", energy, self.scalar("least_low_share", tones.LEAST_LOW_SHARE)), most)
        loud = op("Greater", energy, self.scalar("least_energy", finder.least_energy))
        both = lambda *tests: reduce(lambda a, b: op("And", a, b), tests)
        inside = op("GreaterOrEqual", hz, self.scalar("lowest_tone_hz", LOWEST_TONE_HZ))
        below = op("LessOrEqual", hz, self.scalar("highest_tone_hz", HIGHEST_TONE_HZ))
        single = both(loud, inside, below, op("Greater", strong, least))
        digit, fits = self.digit_code(hz, other)
        heard_twice = op("Greater", weak, op("Mul", strong, self.scalar("least_second", tones.LEAST_SECOND)))
        together = op("Add", strong, weak)
        double = both(loud, heard_twice, op("Greater", together, most), op("Not", single))
        low, high = op("Min", hz, other), op("Max", hz, other)
        places = (op("Cast", k, to=TensorProto.FLOAT) for k in (first, second))
        apart = op("Greater", op("Abs", op("Sub", *places)), self.scalar("pair_apart", tones.PAIR_APART - 0.5))
        pure = op("Greater", together, op("Mul", energy, self.scalar("least_pair_share", tones.LEAST_PAIR_SHARE)))
        inside = op("GreaterOrEqual", low, self.scalar("lowest_tone_hz", LOWEST_TONE_HZ))
        below = op("LessOrEqual", high, self.scalar("highest_tone_hz", HIGHEST_TONE_HZ))
        pair = both(double, op("Not", fits), pure, apart, inside, below)
        level = self.level(strong, weak, op("Greater", first, second), single, pair, odd)
        said = self.tone_code(op("Where", pair, op("Where", odd, high, low), hz))
        digit = op("Where", both(double, fits), digit, voice)
        tone = op("Or", single, pair)
        code = op("Where", tone, said, digit)
        return code, op("Or", tone, both(double, fits)), level

    def read(self, net: Network, latent: str, hops: str, last: str, low_past: str, turn: str) -> tuple[str, str, str]:
        """Encoder.read: latents [B, T, free] -> with those of what sounds [B, T, latent], and low_past and turn for the next call."""
        before = self.before(hops, last)
        code, left = self.read_pitch(net, hops, before, low_past)
        odd, turn = self.turns(latent, turn)
        code, tone, level = self.read_tones(before, code, odd)
        row = lambda x: self.op("Squeeze", x, self.integer(-1))
        levels = self.op("Gather", self.matrix("levels", self.weights["levels"]), row(level), axis=0)
        latent = self.op("Where", tone, levels, latent)
        sound = self.op("Gather", self.const("pitch_book", pitch_book().numpy()), row(code), axis=0)
        return self.op("Concat", latent, sound, axis=-1), left, turn

    def coded_sounds(self, latent: str) -> list[str]:
        """excitation.coded_sound: latents [B, T, D] -> Hz of a voice, of a tone and of a second one, each [B, T, 1], 0 where there is none."""
        book = self.const("pitch_book", np.ascontiguousarray(pitch_book().numpy().T))
        near = self.op("MatMul", self.slice(latent, -PITCH_LATENT, 2**31 - 1, -1), book)
        meanings = self.const("sounds", np.stack([v.numpy() for v in sounds()], 1))
        heard = self.op("Gather", meanings, self.op("ArgMax", near, axis=-1, keepdims=0), axis=0)
        return self.op("Split", heard, outputs=3, axis=-1, num_outputs=3)

    def sounding(self, hz: str) -> str:
        return self.op("Greater", hz, self.scalar("no_hz", 0.0))

    def glides(self, hz: str, last_hz: str, last_phase: str) -> tuple[str, str, str]:
        """excitation.glide of two frequencies [B, T, 2] from those before, and their phases [B, 1, 2] -> phases [B, T, 2, FRAME], frequencies
        there, and the phases at the end [B, 1, 2]."""
        op, n = self.op, np.arange(1, FRAME + 1, dtype=np.float64) / FRAME
        fraction = lambda x: op("Sub", x, op("Floor", x))
        shifted = lambda first, x: self.slice(op("Concat", first, x, axis=1), 0, -1, 1)
        widened = lambda x: self.reshape(x, 0, -1, 2, 1)
        # Before the first frame, where all is 0, what nobody hears was at rest too.
        before = shifted(op("Where", self.sounding(last_hz), last_hz, self.scalar("resting_hz", RESTING_HZ)), hz)
        ratio = op("Div", hz, op("Max", before, self.scalar("one_hz", 1.0)))
        jump = op("Greater", op("Abs", op("Log", ratio)), self.scalar("jump", JUMP))
        before = op("Where", jump, hz, before)
        frame_s = FRAME / SAMPLE_RATE_HZ
        whole = op("Mul", op("Add", before, hz), self.scalar("whole_steps", frame_s / 2 * PHASE_STEPS))
        whole = fraction(op("Mul", op("Round", whole), self.scalar("phase_step", 1 / PHASE_STEPS)))
        ends = op("Add", last_phase, op("CumSum", whole, self.const("frame_axis", np.array(1, np.int64))))
        starts = widened(fraction(shifted(last_phase, ends)))
        slope, before = widened(op("Sub", hz, before)), widened(before)
        advance = op("Mul", slope, self.const("advance_of_slope", n * n / 2 * frame_s))
        advance = op("Add", op("Mul", before, self.const("advance_of_pitch", n * frame_s)), advance)
        phase = op("Add", starts, advance)
        phase = op("Sub", phase, op("Round", phase))
        now = op("Add", before, op("Mul", slope, self.const("within", n)))
        return phase, now, fraction(self.slice(ends, -1, 2**31 - 1, 1))

    def pulses(self, phase: str, now: str) -> str:
        """Pulses of phases and frequencies of the same shape."""
        op, tiny = self.op, self.scalar("tiny_phase", 1e-6)
        phase = op("Where", op("Less", op("Abs", phase), tiny), tiny, phase)
        twice = op("Mul", op("Floor", op("Div", self.scalar("top_hz", TOP_HZ), now)), self.scalar("two", 2.0))
        turn = op("Mul", phase, self.scalar("pi", math.pi))
        upper = op("Sin", op("Mul", op("Add", twice, self.scalar("one_hz", 1.0)), turn))
        train = op("Div", upper, op("Mul", op("Sin", turn), self.scalar("two", 2.0)))
        train = op("Sub", train, self.scalar("half", 0.5))
        return op("Mul", train, op("Sqrt", op("Mul", now, self.scalar("per_unit_hz", 1 / UNIT_HZ))))

    def level_book(self) -> tuple[str, str]:
        """Entries that stand for levels of tones [free, LEVELS * TWISTS], and half of their squares."""
        levels = self.weights["levels"]
        return self.matrix("levels", levels.T), self.const("level_sizes", 0.5 * (levels * levels).sum(-1))

    def paired(self, latent: str, tone: str, second: str, last: str) -> tuple[str, str, str, str]:
        """excitation.pairs: tones [B, T, 1] and last [B, 1, SOURCE_STATE] -> tones, amplitudes [B, T, 2], and which one of a pair is said."""
        op, where = self.op, lambda *x: self.op("Where", *x)
        levels, sizes = self.level_book()
        near = op("Sub", op("MatMul", self.slice(latent, 0, -PITCH_LATENT, -1), levels), sizes)
        twist = np.arange(LEVELS * TWISTS) % TWISTS
        meant = np.column_stack([level_amplitudes().numpy(), LOWER * (twist == LOWER_TWIST) + HIGHER * (twist == HIGHER_TWIST)])
        meant = op("Gather", self.const("level_meanings", meant), op("ArgMax", near, axis=-1, keepdims=0), axis=0)
        first, other, said = op("Split", meant, outputs=3, axis=-1, num_outputs=3)
        none, is_said = self.scalar("no_hz", 0.0), self.scalar("is_said", LOWER / 2)
        higher = lambda x: op("Greater", x, self.scalar("is_higher", (LOWER + HIGHER) / 2))
        lower = lambda x: op("And", op("Greater", x, is_said), op("Not", higher(x)))
        said = where(op("And", self.sounding(tone), op("Not", self.sounding(second))), said, none)
        _, hz, _, other_hz, _, loud, other_loud, was = op("Split", last, outputs=8, axis=-1, num_outputs=8)
        beside = op("And", higher(was), self.sounding(other_loud))
        hz, loud = where(beside, other_hz, hz), where(beside, other_loud, loud)
        was, hz, loud = (self.slice(op("Concat", a, b, axis=1), 0, -1, 1) for a, b in ((was, said), (hz, tone), (loud, first)))
        under = op("And", higher(said), lower(was))
        over = op("And", lower(said), higher(was))
        lower_hz, higher_hz = where(under, hz, tone), where(under, tone, where(over, hz, second))
        both = where(under, loud, first), where(under, first, where(over, loud, other))
        return lower_hz, higher_hz, op("Concat", *both, axis=-1), said

    def amplitudes(self, level: str, tones: str, past: str) -> tuple[str, str]:
        """Amplitudes level of two tones with frequencies, both [B, T, 2], 0 where there are none; past [B, 1, 2] is the last frame's ->
        amplitudes of samples [B, T, 2, FRAME], and the last frame's."""
        op = self.op
        level = op("Where", self.sounding(tones), level, self.scalar("no_hz", 0.0))
        before = self.slice(op("Concat", past, level, axis=1), 0, -1, 1)
        before = op("Where", self.sounding(before), before, level)
        before, change = (self.reshape(v, 0, -1, 2, 1) for v in (before, op("Sub", level, before)))
        within = self.const("within", np.arange(1, FRAME + 1, dtype=np.float64) / FRAME)
        return op("Add", before, op("Mul", change, within)), self.slice(level, -1, 2**31 - 1, 1)

    def source(self, latent: str, voice: str, tone: str, second: str, last: str) -> tuple[str, str]:
        """excitation.source: what sounds [B, T, 1], last [B, 1, SOURCE_STATE] -> samples [B, T, FRAME] and what the next call takes for last."""
        op, rest = self.op, self.scalar("resting_hz", RESTING_HZ)
        tone, second, level, said = self.paired(latent, tone, second, last)
        last, past = self.slice(last, 0, 5, -1), self.slice(last, 5, 7, -1)
        parts = op("Split", last, outputs=5, axis=-1, num_outputs=5)
        pair = lambda a, b: op("Concat", a, b, axis=-1)
        held = self.slice(op("Concat", parts[0], voice, axis=1), 0, -1, 1)
        held = op("Where", self.sounding(held), held, rest)
        toned = self.sounding(tone)
        hz = op("Where", self.sounding(voice), voice, op("Where", toned, tone, held))
        two = self.sounding(second)
        hz = pair(hz, op("Where", two, second, rest))
        phases, now, end = self.glides(hz, pair(parts[1], parts[3]), pair(parts[2], parts[4]))
        split = lambda x: [self.reshape(v, 0, -1, FRAME) for v in op("Split", x, outputs=2, axis=2, num_outputs=2)]
        (phase, further), (now, _) = split(phases), split(now)
        amplitudes, left = self.amplitudes(level, pair(tone, second), past)
        first, other = split(amplitudes)
        cosine = lambda x: op("Cos", op("Mul", x, self.scalar("two_pi", 2 * math.pi)))
        chord = op("Add", op("Mul", first, cosine(phase)), op("Mul", other, cosine(further)))
        train = op("Where", toned, chord, self.pulses(phase, now))
        hz, other = op("Split", self.slice(hz, -1, 2**31 - 1, 1), outputs=2, axis=-1, num_outputs=2)
        end, other_end = op("Split", end, outputs=2, axis=-1, num_outputs=2)
        return train, op("Concat", self.slice(voice, -1, 2**31 - 1, 1), hz, end, other, other_end, left, self.slice(said, -1, 2**31 - 1, 1), axis=-1)

    def heard(self, latent: str, last_hop: str, last: str) -> Heard:
        """Decoder.voice: what the latents say that sounds."""
        voice, tone, second = self.coded_sounds(latent)
        train, left = self.source(latent, voice, tone, second, last)
        train = self.reshape(train, 0, -1, HOP)
        toned = self.sounding(self.reshape(self.op("Concat", tone, tone, axis=-1), 0, -1, 1))
        # The pulses before a tone know nothing of its level.
        was = self.op("Concat", self.sounding(self.slice(last, 5, 6, -1)), toned, axis=1)
        joined = self.op("Or", self.op("Not", toned), self.slice(was, 0, -1, 1))
        bins = self.slice(self.mdct(train, last_hop, joined), 0, SHAPED, -1)
        seen = self.op("Where", toned, self.scalar("no_hz", 0.0), bins)
        return Heard(bins, seen, toned, [self.slice(train, -1, 2**31 - 1, 1), left], voice)

    def off_tones(self, bins: str, heard: Heard, instead: str) -> str:
        """bins [B, 2 T, HOP], but a number `instead` in those of blocks of tones that a tone has to itself."""
        shaped = self.op("And", heard.tone, self.const("shaped", np.arange(HOP) < SHAPED))
        return self.op("Where", shaped, instead, bins)

    def weights_of_shares(self, h: str) -> tuple[str, str, list[str]]:
        """Shares [B, 2 T, NOISE_BAND] of the waveform, and of the voice in the rest; weights of waveform, voice and noise."""
        wave = self.op("Sigmoid", self.linear(h, "wave"))
        voicing = self.op("MatMul", self.op("Sigmoid", self.linear(h, "voicing")), self.const("groups", group_matrix().numpy()))
        rest = self.op("Sub", self.scalar("one_hz", 1.0), wave)
        voice = self.op("Mul", rest, voicing)
        floor = self.scalar("least_share", LEAST_SHARE)
        shares = (wave, voice, self.op("Sub", rest, voice))
        return wave, voicing, [self.op("Sqrt", self.op("Add", share, floor)) for share in shares]

    def excite(self, h: str, shape: str, signs: str, heard: Heard) -> Voiced:
        """The bins below the noise with a voice source: Decoder.excite, and tones as they are."""
        share, voicing, weights = self.weights_of_shares(h)
        wave = self.spread(self.op("Add", weights[0], self.op("Mul", weights[2], signs)), SHAPED)
        envelope = self.op("MatMul", self.op("Mul", shape, shape), self.const("smooth", smoothing_matrix().numpy()))
        envelope = self.op("Sqrt", self.op("Add", envelope, self.scalar("envelope_floor", ENVELOPE_FLOOR)))
        voice = self.op("Mul", self.op("Mul", self.spread(weights[1], SHAPED), envelope), heard.spectrum)
        bins = self.op("Add", self.op("Mul", wave, shape), voice)
        return Voiced(self.op("Where", heard.tone, heard.spectrum, bins), wave, voice, share, voicing, weights)
