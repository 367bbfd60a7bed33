"""The decoder's last part as nodes: overlapping what is transformed, and the comb over it (postfilter.py)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from .config import FRAME, HOP, LOWEST_PITCH_HZ, SAMPLE_RATE_HZ
from .excitation import JUMP
from .network import dct4_matrix, sine_window
from .nodes import Nodes
from .postfilter import BEFORE, BOTH, CODED, DELAY, FADE, LOW_BINS, PAST, low_weights

# Parts of a decoder's state that the comb needs: of what it filters a falling half block and the last samples; held samples; pitches and
# shares of voicing.
COMB_SINGLES = (HOP, PAST, HOP, 2 * CODED)


class Taps(NamedTuple):
    """What a comb adds to each of N samples: four others, weighted, and less of the sample itself."""

    places: str  # [B, 1, 4 N] in PAST samples and the N
    weights: str  # [B, 4, N]
    own: str  # [B, 1, N]
    coded: str  # for the next call [B, 1, 2 CODED]


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
        return self.op("Add", head, self.slice(tails, 0, -1, 1)), self.slice(tails, -1, 2**31 - 1, 1)

    def low_transform(self) -> str:
        """[LOW_BINS, HOP]: bins -> what is filtered, before the overlap."""
        weighted = dct4_matrix()[:LOW_BINS] * low_weights()[:, None]
        return self.const("low_dct", np.ascontiguousarray(weighted.numpy()))

    def in_pairs(self, last: str, now: str) -> tuple[str, str, str]:
        """now [B, N, 1] and the CODED values before it [B, 1, CODED] -> values where N stretches start and end, and the last CODED."""
        all = self.op("Concat", self.reshape(last, 0, CODED, 1), now, axis=1)
        kept = self.reshape(self.slice(all, -CODED, 2**31 - 1, 1), 0, 1, CODED)
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
        share = op("Mul", share, self.ramp(HOP, *shares))
        none, one = self.const("no_steps", np.float32(0)), self.const("all_steps", np.float32(1))
        after = op("Sub", self.scalar("comb_delay", DELAY / FADE), op("Mul", period, self.scalar("per_fade", 1 / FADE)))
        after = op("Mul", op("Clip", after, none, one), self.scalar("half", 0.5))
        share = op("Mul", share, op("Add", op("Mul", after, self.scalar("comb_both", BOTH)), self.scalar("comb_before", BEFORE)))
        here = op("Add", self.samples(period), self.const("comb_start", np.array(PAST - DELAY, np.int64)))
        later = op("Mul", share, after)
        index, weights = [], []
        near = op("Min", period, self.scalar("longest_after", DELAY - 1))
        for way, distance, of in (("Sub", period, op("Sub", share, later)), ("Add", near, later)):
            whole = op("Floor", distance)
            at = op(way, here, op("Cast", whole, to=TensorProto.INT64))
            index += [at, op(way, at, self.integer(1))]
            further = op("Mul", of, op("Sub", distance, whole))
            weights += [op("Sub", of, further), further]
        together = op("Concat", pitches, voicings, axis=-1)
        return Taps(op("Concat", *index, axis=2), op("Concat", *weights, axis=1), share, together)

    def integer(self, value: int) -> str:
        return self.const(f"index_{value}".replace("-", "m"), np.array([value], np.int64))

    def comb(self, x: str, hops: str, pitch: str, voicing: str, state: list[str]) -> tuple[str, list[str]]:
        """Decoder.comb: bins x [B, 2 T, HOP], samples made of them hops [B, 2 T, HOP], parts COMB_SINGLES of the state -> samples [B, 1, N],
        and the parts for the next call."""
        op, (tail, past, held, coded) = self.op, state
        low, tail = self.overlap(op("MatMul", self.slice(x, 0, LOW_BINS, -1), self.low_transform()), tail)
        low = op("Concat", past, self.reshape(low, 0, 1, -1), axis=2)
        taps = self.comb_taps(pitch, voicing, coded)
        seen = self.reshape(op("GatherElements", low, taps.places, axis=2), 0, 4, -1)
        mixed = op("ReduceSum", op("Mul", seen, taps.weights), self.integer(1), keepdims=1)
        mixed = op("Sub", mixed, op("Mul", taps.own, self.slice(low, PAST - DELAY, -DELAY, 2)))
        held = op("Concat", held, self.reshape(hops, 0, 1, -1), axis=2)
        left = [tail, self.slice(low, -PAST, 2**31 - 1, 2), self.slice(held, -DELAY, 2**31 - 1, 2), taps.coded]
        return op("Add", self.slice(held, 0, -DELAY, 2), mixed), left

    def comb_back(self, slope: str, past: str, taps: Taps) -> tuple[str, str]:
        """Slope by the samples [B, 1, N] -> by the hops before the comb, and by those of what is filtered, both [B, 2 T, HOP]. Nothing is known
        of what comes after the end; past [B, 1, PAST] says how long what is filtered is."""
        op = self.op
        flat = self.reshape(op("Mul", taps.weights, slope), 0, 1, -1)
        nothing = op("Mul", op("Concat", past, slope, axis=2), self.scalar("silence", 0.0))
        to_low = op("ScatterElements", nothing, taps.places, flat, axis=2, reduction="add")
        later = self.slice(nothing, 0, DELAY, 2)
        back = lambda x: op("Concat", self.slice(x, DELAY, 2**31 - 1, 2), later, axis=2)
        to_low = op("Sub", self.slice(to_low, PAST, 2**31 - 1, 2), back(op("Mul", taps.own, slope)))
        hops = lambda x: self.reshape(x, 0, -1, HOP)
        return hops(back(slope)), hops(to_low)
