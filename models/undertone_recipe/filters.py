"""The decoder's last part as nodes: overlapping what is transformed, the comb over it, and gains where a sound begins (postfilter.py)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from .config import FRAME, HOP, LOWEST_PITCH_HZ, SAMPLE_RATE_HZ
from .excitation import JUMP
from .network import dct4_matrix, sine_window
from .nodes import Nodes
from .postfilter import (
    AHEAD,
    BEFORE,
    BOTH,
    CLEAR_DB,
    CODED,
    DELAY,
    FADE,
    FALL_DB,
    FULL_LIKENESS,
    LEAST_LIKENESS,
    LEAST_POWER,
    LIFT_DB,
    LIFTED,
    LOW_BINS,
    LOWER_DB,
    PART,
    PARTS,
    PAST,
    RISE_DB,
    RISE_FAR_DB,
    low_weights,
)

# Parts of a decoder's state that its last part needs: of what is filtered a falling half block and the last samples; held samples; pitches
# and shares of voicing; likeness of the last hop; powers of parts and a gain.
COMB_SINGLES = (HOP, PAST, HOP, 2 * CODED, 1, PARTS + 1)
TO_END = 2**31 - 1


class Taps(NamedTuple):
    """Of what a comb adds to each of N samples: four others, weighted, of which it is their sum less the sample itself."""

    places: str  # [B, 1, 4 N] in PAST samples and the N
    weights: str  # [B, 4, N], whose sum is 1
    share: str  # [B, 1, N] of the difference
    voiced: str  # [B, 1, N]
    coded: str  # for the next call [B, 1, 2 CODED]


class Filtered(NamedTuple):
    """The decoder's output, and what its gradient needs."""

    pcm: str  # [B, 1, N]
    taps: Taps
    gains: str  # of sounds that begin [B, 1, N]
    left: list[str]  # parts COMB_SINGLES of the state, for the next call


class Filters(Nodes):
    """Nodes of what comes after the bins."""

    def samples(self, x: str) -> str:
        """Numbers [N] of the samples of x [B, 1, N]."""
        count = self.op("Squeeze", self.op("Shape", x, start=2, end=3))
        return self.op("Range", self.const("zero", np.array(0, np.int64)), count, self.const("one", np.array(1, np.int64)))

    def overlap(self, y: str, last: str) -> tuple[str, str]:
        """Transformed blocks y [B, N, HOP] and the falling half [B, 1, HOP] before them -> hops [B, N, HOP], and the last falling half."""
        half, window = HOP // 2, sine_window().numpy()
        late, early = self.slice(y, 0, half, -1), self.slice(y, half, HOP, -1)
        # The signs of the unfolded halves are moved into the windows.
        falling = self.const("window_tail", -window[::-1])
        tail = self.op("Mul", self.op("Concat", self.flip(late), late, axis=-1), falling)
        rising = self.const("window_head", window * np.concatenate([np.ones(half), -np.ones(half)]))
        head = self.op("Mul", self.op("Concat", early, self.flip(early), axis=-1), rising)
        tails = self.op("Concat", last, tail, axis=1)
        return self.op("Add", head, self.slice(tails, 0, -1, 1)), self.slice(tails, -1, TO_END, 1)

    def low_transform(self) -> str:
        """[LOW_BINS, HOP]: bins -> what is filtered, before the overlap."""
        weighted = dct4_matrix()[:LOW_BINS] * low_weights()[:, None]
        return self.const("low_dct", np.ascontiguousarray(weighted.numpy()))

    def in_pairs(self, last: str, now: str) -> tuple[str, str, str]:
        """now [B, N, 1] and the CODED values before it [B, 1, CODED] -> values where N stretches start and end, and the last CODED."""
        all = self.op("Concat", self.reshape(last, 0, CODED, 1), now, axis=1)
        kept = self.reshape(self.slice(all, -CODED, TO_END, 1), 0, 1, CODED)
        return self.slice(all, 0, -2, 1), self.slice(all, 1, -1, 1), kept

    def ramp(self, size: int, start: str, end: str) -> str:
        """[B, N, 1] at both ends of N stretches of `size` samples -> samples [B, 1, N * size]."""
        within = self.const(f"within_{size}", np.arange(1, size + 1, dtype=np.float64) / size)
        between = self.op("Add", start, self.op("Mul", self.op("Sub", end, start), within))
        return self.reshape(between, 0, 1, -1)

    def periods(self, a: str, b: str) -> tuple[str, str]:
        """postfilter.periods: pitches [B, T, 1] at both ends -> periods and how far voiced, of samples [B, 1, T * FRAME]."""
        op, lowest, rate = self.op, self.scalar("lowest_hz", LOWEST_PITCH_HZ), self.scalar("rate_hz", SAMPLE_RATE_HZ)
        first, last = (op("Div", rate, op("Max", hz, lowest)) for hz in (a, b))
        voiced = [op("Greater", hz, self.scalar("no_hz", 0.0)) for hz in (a, b)]
        apart = op("Greater", op("Abs", op("Log", op("Div", first, last))), self.scalar("jump", JUMP))
        glides = op("And", voiced[0], op("Not", op("And", voiced[1], apart)))
        start, end = op("Where", glides, first, last), op("Where", voiced[1], last, first)
        on = [op("Where", v, self.scalar("one_hz", 1.0), self.scalar("no_hz", 0.0)) for v in voiced]
        return self.ramp(FRAME, start, end), self.ramp(FRAME, *on)

    def comb_taps(self, pitch: str, voicing: str, coded: str) -> Taps:
        """pitch [B, T, 1], voicing of the lowest bands [B, 2 T, 1], coded [B, 1, 2 CODED] from the call before."""
        op = self.op
        *ends, pitches = self.in_pairs(self.slice(coded, 0, CODED, -1), pitch)
        *shares, voicings = self.in_pairs(self.slice(coded, CODED, 2 * CODED, -1), voicing)
        period, share = self.periods(*ends)
        voiced, share = share, op("Mul", share, self.ramp(HOP, *shares))
        none, one = self.const("no_steps", np.float32(0)), self.const("all_steps", np.float32(1))
        after = op("Sub", self.scalar("comb_delay", DELAY / FADE), op("Mul", period, self.scalar("per_fade", 1 / FADE)))
        after = op("Mul", op("Clip", after, none, one), self.scalar("half", 0.5))
        share = op("Mul", share, op("Add", op("Mul", after, self.scalar("comb_both", BOTH)), self.scalar("comb_before", BEFORE)))
        sooner = op("Sub", self.scalar("one_hz", 1.0), after)
        here = op("Add", self.samples(period), self.const("comb_start", np.array(PAST - DELAY, np.int64)))
        index, weights = [], []
        near = op("Min", period, self.scalar("longest_after", DELAY - 1))
        for way, distance, of in (("Sub", period, sooner), ("Add", near, after)):
            whole = op("Floor", distance)
            at = op(way, here, op("Cast", whole, to=TensorProto.INT64))
            index += [at, op(way, at, self.integer(1))]
            further = op("Mul", of, op("Sub", distance, whole))
            weights += [op("Sub", of, further), further]
        together = op("Concat", pitches, voicings, axis=-1)
        return Taps(op("Concat", *index, axis=2), op("Concat", *weights, axis=1), share, voiced, together)

    def integer(self, value: int) -> str:
        return self.const(f"index_{value}".replace("-", "m"), np.array([value], np.int64))

    def likeness(self, x: str, y: str, last: str) -> tuple[str, str]:
        """postfilter.likeness: samples x, y [B, 1, N], last [B, 1, 1] -> share of the comb in the samples [B, 1, N], and in the last hop."""
        op, hops = self.op, lambda v: self.reshape(v, 0, -1, HOP)
        total = lambda a, b: op("ReduceSum", hops(op("Mul", a, b)), self.integer(-1), keepdims=1)
        size = op("Sqrt", op("Add", op("Mul", total(x, x), total(y, y)), self.scalar("least_likeness_power", 1e-12)))
        like = op("Sub", op("Div", total(x, y), size), self.scalar("least_likeness", LEAST_LIKENESS))
        like = op("Mul", like, self.scalar("per_likeness", 1 / (FULL_LIKENESS - LEAST_LIKENESS)))
        like = op("Clip", like, self.const("no_steps", np.float32(0)), self.const("all_steps", np.float32(1)))
        all = op("Concat", last, like, axis=1)
        return self.ramp(HOP, self.slice(all, 0, -1, 1), like), self.slice(all, -1, TO_END, 1)

    def largest(self, x: str, first: int, end: int) -> str:
        """Of x [B, 1, K] each value and the AHEAD - 1 behind it, of those from `first` to `end` (below 1) from the last."""
        found = self.slice(x, first, end - AHEAD + 1, 2)
        for i in range(1, AHEAD):
            last = end - AHEAD + 1 + i
            found = self.op("Max", found, self.slice(x, first + i, last if last < 0 else TO_END, 2))
        return found

    def clear(self, rise: str, name: str, least: float) -> str:
        """How clear a rise is, 0 to 1."""
        rise = self.op("Mul", self.op("Sub", rise, self.scalar(name, least)), self.scalar("per_clear_db", 1 / CLEAR_DB))
        return self.op("Clip", rise, self.const("no_steps", np.float32(0)), self.const("all_steps", np.float32(1)))

    def onsets(self, held: str, voiced: str, state: str) -> tuple[str, str]:
        """postfilter.onsets: held [B, 1, N + HOP], voiced [B, 1, N], state [B, 1, PARTS + 1] -> gains [B, 1, N], and the state after them."""
        op, last = self.op, self.integer(-1)
        none = self.const("no_steps", np.float32(0))
        in_parts = lambda x: self.reshape(x, 0, -1, PART)
        power = op("ReduceSum", in_parts(op("Mul", held, held)), last, keepdims=1)
        power = self.reshape(op("Mul", power, self.scalar("per_part", 1 / PART)), 0, 1, -1)
        power = op("Concat", self.slice(state, 0, PARTS, -1), power, axis=2)
        db = op("Mul", op("Log", op("Add", power, self.scalar("least_part_power", LEAST_POWER))), self.scalar("line_db", 10 / np.log(10)))
        now = self.slice(db, 2 * AHEAD - 1, -AHEAD, 2)
        lately, earlier = self.largest(db, AHEAD - 1, -AHEAD - 1), self.largest(db, 0, -2 * AHEAD)
        rise = self.clear(op("Sub", now, lately), "rise_db", RISE_DB)
        rise = op("Mul", rise, self.clear(op("Sub", now, earlier), "rise_far_db", RISE_FAR_DB))
        rise = op("Mul", rise, self.scalar("lift_db", LIFT_DB))
        lift = self.slice(rise, LIFTED - 1, TO_END, 2)
        for i in range(LIFTED - 1):
            part = op("Mul", self.slice(rise, i, i - LIFTED + 1, 2), self.scalar(f"lifted_{i}", (i + 1) / LIFTED))
            lift = op("Max", lift, part)
        coming = self.largest(db, PARTS + 1, 0)
        now, earlier = (self.slice(x, LIFTED - 1, TO_END, 2) for x in (now, earlier))
        lower = op("Sub", op("Sub", coming, now), self.scalar("fall_db", FALL_DB))
        lower = op("Clip", lower, none, self.const("lower_db", np.float32(LOWER_DB)))
        lower = op("Mul", lower, self.clear(op("Sub", coming, earlier), "rise_far_db", RISE_FAR_DB))
        unvoiced = op("Sub", self.scalar("one_hz", 1.0), self.reshape(self.slice(in_parts(voiced), PART - 1, PART, -1), 0, 1, -1))
        lower = op("Mul", lower, unvoiced)
        gain = op("Where", op("Greater", lower, self.scalar("no_hz", 0.0)), op("Neg", lower), lift)
        gain = op("Exp", op("Mul", gain, self.scalar("gain_of_db", np.log(10) / 20)))
        before = op("Add", self.slice(state, PARTS, PARTS + 1, -1), self.scalar("one_hz", 1.0))
        before = self.slice(op("Concat", before, gain, axis=2), 0, -1, 2)
        fall = op("Max", op("Sub", before, gain), self.scalar("no_hz", 0.0))
        column = lambda x: self.reshape(x, 0, -1, 1)
        within = self.const("left_of_part", 1 - np.arange(1, PART + 1, dtype=np.float64) / PART)
        gains = self.reshape(op("Add", column(gain), op("Mul", column(fall), within)), 0, 1, -1)
        kept = op("Sub", self.slice(gain, -1, TO_END, 2), self.scalar("one_hz", 1.0))
        return gains, op("Concat", self.slice(power, -PARTS - AHEAD, -AHEAD, 2), kept, axis=2)

    def filtered(self, x: str, hops: str, pitch: str, voicing: str, state: list[str]) -> Filtered:
        """Decoder.comb: bins x [B, 2 T, HOP], samples made of them hops [B, 2 T, HOP], parts COMB_SINGLES of the state."""
        op, (tail, past, held, coded, like, onset) = self.op, state
        low, tail = self.overlap(op("MatMul", self.slice(x, 0, LOW_BINS, -1), self.low_transform()), tail)
        low = op("Concat", past, self.reshape(low, 0, 1, -1), axis=2)
        taps = self.comb_taps(pitch, voicing, coded)
        seen = self.reshape(op("GatherElements", low, taps.places, axis=2), 0, 4, -1)
        near = op("ReduceSum", op("Mul", seen, taps.weights), self.integer(1), keepdims=1)
        own = self.slice(low, PAST - DELAY, -DELAY, 2)
        gate, like = self.likeness(own, near, like)
        taps = taps._replace(share=op("Mul", taps.share, gate))
        held = op("Concat", held, self.reshape(hops, 0, 1, -1), axis=2)
        gains, onset = self.onsets(held, taps.voiced, onset)
        mixed = op("Add", self.slice(held, 0, -DELAY, 2), op("Mul", taps.share, op("Sub", near, own)))
        left = [tail, self.slice(low, -PAST, TO_END, 2), self.slice(held, -DELAY, TO_END, 2), taps.coded, like, onset]
        return Filtered(op("Mul", gains, mixed), taps, gains, left)

    def filtered_back(self, slope: str, past: str, made: Filtered) -> tuple[str, str]:
        """Slope by the samples [B, 1, N] -> by the hops before the comb, and by those of what is filtered, both [B, 2 T, HOP]. Nothing is known
        of what comes after the end; past [B, 1, PAST] says how long what is filtered is. Neither the comb's share nor the gains of what
        begins are moved."""
        op, taps = self.op, made.taps
        slope = op("Mul", slope, made.gains)
        shared = op("Mul", taps.share, slope)
        flat = self.reshape(op("Mul", taps.weights, shared), 0, 1, -1)
        nothing = op("Mul", op("Concat", past, slope, axis=2), self.scalar("silence", 0.0))
        to_low = op("ScatterElements", nothing, taps.places, flat, axis=2, reduction="add")
        later = self.slice(nothing, 0, DELAY, 2)
        back = lambda x: op("Concat", self.slice(x, DELAY, TO_END, 2), later, axis=2)
        to_low = op("Sub", self.slice(to_low, PAST, TO_END, 2), back(shared))
        hops = lambda x: self.reshape(x, 0, -1, HOP)
        return hops(back(slope)), hops(to_low)
