"""The voice source: a pitch or tones as one code, and what sounds from it with a running phase (neural source-filter, Wang, Takaki and
Yamagishi 2019, in the MDCT domain; docs/voice.md).

The encoder says what sounds at the end of each frame; within the frame a frequency moves evenly. The phase goes on from frame to frame,
through silence and losses too. Arithmetic is arranged so that a stream cut into pieces gives what the whole gives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .config import CODES, DTMF_HZ, FRAME, HIGHEST_PITCH_HZ, LOWEST_PITCH_HZ, PITCH_LATENT, PITCHES, SAMPLE_RATE_HZ

TOP_HZ = 7900.0  # no harmonics above
UNIT_HZ = SAMPLE_RATE_HZ / 4  # a pulse train of this pitch has power 1/2 and so unit power in each bin
JUMP = 0.2  # ln; frequencies further apart are two sounds, between which nothing glides
RESTING_HZ = 110.0  # of what nobody hears
PHASE_STEPS = 2.0**14  # a cycle; phases at the ends of frames are multiples, whose sums are exact
STEP = math.log(HIGHEST_PITCH_HZ / LOWEST_PITCH_HZ) / (PITCHES - 1)  # between two pitches, ln
# Tones lie 0.55 % apart up to 1 kHz, 20 Hz above.
LOWEST_TONE_HZ, HIGHEST_TONE_HZ, TONE_STEP, EVEN_FROM_HZ, EVEN_STEP_HZ = 150.0, 7000.0, math.log(1.0055), 1020.0, 20.0
LOW_TONES = 346
TONES = LOW_TONES + int((HIGHEST_TONE_HZ - EVEN_FROM_HZ) / EVEN_STEP_HZ) + 1
# Codes of the pitch's stage: nothing sounds, a voice of each pitch, the digits of a telephone, tones. The rest is not used.
FIRST_PITCH, FIRST_DIGIT = 1, 1 + PITCHES
FIRST_TONE = FIRST_DIGIT + 16
# A pitch or tone lies on three circles, which it goes round so often from the lowest to the highest: neighbours are told apart by the
# last, what is further apart by the others. The radius makes the RMS of these dimensions about that of the others (14).
PITCH_TURNS, DIGIT_TURNS, TONE_TURNS = (0.9, 7.1, 45.0), (0.9, 1.7, 3.1), (0.9, 9.0, 85.0)
RADIUS = 24.0


# Levels of tones, as the first stage says them: 128 of half a decibel, times 8 of the higher of two tones beside the lower, 2 dB apart.
LEVELS, LEAST_LEVEL_DB, LEVEL_STEP_DB = 128, -64.0, 0.5
TWISTS, LEAST_TWIST_DB, TWIST_STEP_DB = 8, -8.0, 2.0
NO_TWIST = round(-LEAST_TWIST_DB / TWIST_STEP_DB)
# A single tone has no twist. Where it is given one of these it is the lower or the higher of two tones, which frames say by turns.
LOWER_TWIST, HIGHER_TWIST = 0, TWISTS - 1
LOWER, HIGHER = 1.0, 2.0  # what the state says of the frame before
SOURCE_STATE = 8


class Sounds(NamedTuple):
    """What codes [...] of the pitch's stage, or all of them, mean."""

    voice: Tensor  # Hz, 0 where it is no voice
    tone: Tensor  # Hz of a tone or of the lower of two, 0 where there is none
    second: Tensor  # Hz of the higher of two tones, 0 where there is none


def nearest_pitch(hz: Tensor) -> Tensor:
    """Index of the nearest of the PITCHES, which lie evenly in octaves."""
    return (torch.log(hz.clamp_min(1.0) / LOWEST_PITCH_HZ) / STEP).round().long().clamp(0, PITCHES - 1)


def nearest_tone(hz: Tensor) -> Tensor:
    """Index of the nearest tone."""
    low = (torch.log(hz.clamp_min(1.0) / LOWEST_TONE_HZ) / TONE_STEP).round().clamp(0, LOW_TONES - 1)
    even = LOW_TONES + ((hz - EVEN_FROM_HZ) / EVEN_STEP_HZ).round().clamp(0, TONES - LOW_TONES - 1)
    return torch.where(hz > EVEN_FROM_HZ - EVEN_STEP_HZ / 2, even, low).long()


def sounds() -> Sounds:
    """What each code means [CODES]."""
    voice, tone, second = torch.zeros(CODES), torch.zeros(CODES), torch.zeros(CODES)
    voice[FIRST_PITCH:FIRST_DIGIT] = LOWEST_PITCH_HZ * torch.exp(torch.arange(PITCHES) * STEP)
    rows, columns = (torch.tensor(hz) for hz in DTMF_HZ)
    tone[FIRST_DIGIT:FIRST_TONE] = rows.repeat_interleave(4)
    second[FIRST_DIGIT:FIRST_TONE] = columns.repeat(4)
    low = LOWEST_TONE_HZ * torch.exp(torch.arange(LOW_TONES) * TONE_STEP)
    tone[FIRST_TONE : FIRST_TONE + TONES] = torch.cat([low, torch.arange(EVEN_FROM_HZ, HIGHEST_TONE_HZ + 1, EVEN_STEP_HZ)])
    return Sounds(voice, tone, second)


def circles(count: int, turns: tuple[float, ...]) -> Tensor:
    """[count, 2 len(turns)]: places of `count` values on circles of radius RADIUS."""
    angle = 2 * math.pi * torch.arange(count)[:, None] / (count - 1) * torch.tensor(turns)
    return RADIUS * torch.cat([torch.cos(angle), torch.sin(angle)], 1)


def pitch_book() -> Tensor:
    """Codebook [CODES, PITCH_LATENT] of the pitch's stage. All entries in use have the same length, so that the nearest is the one with the
    largest product; latents of nothing but zeros, of a frame that lacks the stage, are nearest to the first: nothing sounds. The last
    two dimensions tell voices, digits and tones apart."""
    book = torch.zeros(CODES, PITCH_LATENT)
    book[0, -2] = -2 * RADIUS
    kinds = (
        (FIRST_PITCH, PITCHES, PITCH_TURNS, (RADIUS, 0.0)),
        (FIRST_DIGIT, 16, DIGIT_TURNS, (-RADIUS * 0.6, -RADIUS * 0.8)),
        (FIRST_TONE, TONES, TONE_TURNS, (0.0, RADIUS)),
    )
    for first, count, turns, kind in kinds:
        book[first : first + count, :-2] = circles(count, turns)
        book[first : first + count, -2:] = torch.tensor(kind)
    return book.half().float()


def level_code(low: Tensor, high: Tensor, single: Tensor, pair: Tensor, higher: Tensor) -> Tensor:
    """Amplitudes [...] of the lower and the higher of two tones, the same for a single one -> index [...] of their levels; of a pair's tones,
    which are said by turns, of that of the higher or the lower."""
    low = torch.where(higher, high, low)
    db = 20 * torch.log10(low.clamp_min(1e-6))
    level = torch.round((db - LEAST_LEVEL_DB) / LEVEL_STEP_DB).clamp(0, LEVELS - 1).long()
    twist = (20 * torch.log10(high.clamp_min(1e-6)) - db - LEAST_TWIST_DB) / TWIST_STEP_DB
    twist = torch.where(single, NO_TWIST, torch.round(twist).clamp(0, TWISTS - 1).long())
    twist = torch.where(pair, torch.where(higher, HIGHER_TWIST, LOWER_TWIST), twist)
    return level * TWISTS + twist


def level_amplitudes() -> Tensor:
    """Amplitudes [LEVELS * TWISTS, 2] of two tones by the index of their levels."""
    level = LEAST_LEVEL_DB + LEVEL_STEP_DB * torch.arange(LEVELS).repeat_interleave(TWISTS)
    twist = LEAST_TWIST_DB + TWIST_STEP_DB * torch.arange(TWISTS).repeat(LEVELS)
    return 10 ** (torch.stack([level, level + twist], 1) / 20)


def coded_level(free: Tensor, levels: Tensor) -> Tensor:
    """Latents [..., free] -> index [...] of the nearest of the entries levels [LEVELS * TWISTS, free]."""
    return (free @ levels.t() - 0.5 * levels.pow(2).sum(-1)).argmax(-1)


def coded_sound(p: Tensor, book: Tensor) -> Tensor:
    """Latents of the pitch [..., PITCH_LATENT] -> the code [...] that they are."""
    return (p @ book.t()).argmax(-1)


def glide(hz: Tensor, before: Tensor, phase: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A frequency at the ends of frames [B, T], the one before the first and its phase in cycles, both [B] -> phases [B, T, FRAME] between
    -1/2 and 1/2, frequencies there, and the phase at the end [B]."""
    before = torch.cat([before[:, None], hz[:, :-1]], 1)
    before = torch.where((hz / before.clamp_min(1.0)).log().abs() > JUMP, hz, before)
    n = torch.arange(1, FRAME + 1, device=hz.device) / FRAME
    slope = (hz - before)[..., None]
    advance = (before[..., None] * n + slope * (n * n / 2)) * (FRAME / SAMPLE_RATE_HZ)
    whole = torch.round((before + hz) * (FRAME / SAMPLE_RATE_HZ / 2 * PHASE_STEPS)) / PHASE_STEPS
    whole = whole - torch.floor(whole)
    ends = phase[:, None] + whole.cumsum(1)
    starts = torch.cat([phase[:, None], ends[:, :-1]], 1)
    now = (starts - torch.floor(starts))[..., None] + advance
    return now - torch.round(now), before[..., None] + slope * n, ends[:, -1] - torch.floor(ends[:, -1])


class Pairs(NamedTuple):
    """Tones of frames [B, T] after those that are said by turns have been put together."""

    tone: Tensor  # Hz, 0 where there is none
    second: Tensor
    amplitude: Tensor  # [B, T, 2], of both
    said: Tensor  # LOWER, HIGHER or 0


def pairs(heard: Sounds, level: Tensor, amplitudes: Tensor, last: Tensor) -> Pairs:
    """Of two tones that frames say by turns each sounds on in the next frame, if that says the other. level [B, T] is the index of the tones'
    levels, whose amplitudes are level_amplitudes(); last [B, SOURCE_STATE] the state at the end of the frame before."""
    single, twist, amplitude = (heard.tone > 0) & (heard.second == 0), level % TWISTS, amplitudes[level]
    lower, higher = single & (twist == LOWER_TWIST), single & (twist == HIGHER_TWIST)
    said = lower * LOWER + higher * HIGHER
    # What the frame before said of a pair: a higher tone without its lower one sounded in the place of a single one.
    alone = last[:, 6:7] == 0
    hz = torch.where((last[:, 7:] == HIGHER) & ~alone, last[:, 3:4], last[:, 1:2])
    loud = torch.where((last[:, 7:] == HIGHER) & ~alone, last[:, 6:7], last[:, 5:6])
    before = lambda first, x: torch.cat([first, x], 1)[:, :-1]
    was, hz, loud = before(last[:, 7:], said), before(hz, heard.tone), before(loud, amplitude[..., 0])
    under, over = higher & (was == LOWER), lower & (was == HIGHER)
    tone = torch.where(under, hz, heard.tone)
    second = torch.where(under, heard.tone, torch.where(over, hz, heard.second))
    first = torch.where(under, loud, amplitude[..., 0])
    other = torch.where(under, amplitude[..., 0], torch.where(over, loud, amplitude[..., 1]))
    return Pairs(tone, second, torch.stack([first, other], -1), said)


def resting(like: Tensor) -> Tensor:
    """The state [B, SOURCE_STATE] before the first frame; like [B, T]."""
    state = like.new_zeros(len(like), SOURCE_STATE)
    state[:, 1] = state[:, 3] = RESTING_HZ
    return state


def source(heard: Sounds, last: Tensor | None = None, amplitude: Tensor | None = None, said: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What sounds at the ends of frames [B, T], and the state [B, SOURCE_STATE] at the end of the frame before (a voice's pitch or 0;
    frequency and phase of what sounded; the same of a second tone; amplitudes of both tones; which one of a pair it said) -> samples
    [B, T * FRAME] and the state for the next call. said [B, T]: which tone of a pair frames say, as Pairs has it.

    A voice is pulses: cosines of all harmonics up to TOP_HZ at unit power a bin. Where it ends, its pitch holds on for a frame. A tone is a
    cosine of amplitude [B, T, 2], or of 1, which changes evenly while it sounds.
    """
    voice, tone, second = heard
    last = resting(voice) if last is None else last
    said = torch.zeros_like(voice) if said is None else said
    sounding = torch.stack([tone > 0, second > 0], -1).float()
    amplitude = sounding if amplitude is None else sounding * amplitude
    past = torch.cat([last[:, None, 5:7], amplitude[:, :-1]], 1)
    past = torch.where(past > 0, past, amplitude)[..., None]
    level = past + (amplitude[..., None] - past) * (torch.arange(1, FRAME + 1, device=tone.device) / FRAME)
    held = torch.cat([last[:, :1], voice[:, :-1]], 1)
    held = torch.where(held > 0, held, RESTING_HZ)
    hz = torch.where(voice > 0, voice, torch.where(tone > 0, tone, held))
    other = torch.where(second > 0, second, RESTING_HZ)
    phase, now, end = glide(hz, last[:, 1], last[:, 2])
    further, _, other_end = glide(other, last[:, 3], last[:, 4])
    safe = torch.where(phase.abs() < 1e-6, 1e-6, phase)
    harmonics = torch.floor(TOP_HZ / now)
    # Sum of cos(2 pi k phase), k from 1 to `harmonics`, in closed form (Dirichlet's kernel).
    pulses = torch.sin(math.pi * (2 * harmonics + 1) * safe) / (2 * torch.sin(math.pi * safe)) - 0.5
    pulses = pulses * torch.sqrt(now / UNIT_HZ)
    tones = level[:, :, 0] * torch.cos(2 * math.pi * phase) + level[:, :, 1] * torch.cos(2 * math.pi * further)
    train = torch.where((tone > 0)[..., None], tones, pulses)
    state = torch.cat([torch.stack([voice[:, -1], hz[:, -1], end, other[:, -1], other_end], 1), amplitude[:, -1], said[:, -1:]], 1)
    return train.reshape(hz.shape[0], -1), state
