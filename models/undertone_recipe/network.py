"""Gain-shape MDCT codec network (design and evidence: models/EXPERIMENTS.md).

Every layer has one forward that takes and returns its state, so a stream cut into pieces of any number of
frames gives what the whole gives. A state of zeros is the past before the first sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import postfilter, tones
from .config import (
    BAND_EDGES,
    BANDS,
    CODES,
    FEATURES,
    HOP,
    NOISE_BAND,
    NOISE_BINS,
    PITCH_LATENT,
    PITCHES,
    SAMPLE_RATE_HZ,
    SHAPED,
    Network,
)
from .excitation import (
    FIRST_PITCH,
    LEVELS,
    TWISTS,
    Sounds,
    coded_level,
    coded_sound,
    level_amplitudes,
    level_code,
    nearest_pitch,
    pairs,
    pitch_book,
    resting,
    sounds,
    source,
)
from .tones import TonesFinder

LOG_GAIN_SCALE, LOG_GAIN_SHIFT = 0.7, 2.0
ENERGY_FLOOR = 1e-8
GAIN_RANGE = (-12.0, 5.0)
LEAST_SHARE = 1e-4  # whose square root still has a gradient
# The pitch is read at a quarter of the sample rate.
LOW_RATE, LOW_HOP = SAMPLE_RATE_HZ // 4, HOP // 4
LOW_PASS_HZ, LOW_TAPS = 1100.0, 81
LOW_WINDOW = 180  # 30 ms
LOW_SHORTEST, LOW_LAGS = 12, 89  # lags of 500 to 60 Hz
LOW_PAST = LOW_WINDOW + LOW_SHORTEST + LOW_LAGS - 1 - LOW_HOP  # samples before a hop that its correlations need
LOW_FLOOR = 1e-7
LOW_SEEN = 2 * (LOW_LAGS + 1)  # what is read of a hop: correlations of two windows, and their levels
ENVELOPE_FLOOR = 0.02
LEAST_DEGREE = 0.2  # of voicing, from which on a frame is voiced
# Groups of bands that are voiced as a whole.
VOICING_HZ = ((80, 800), (800, 1600), (1600, 2800), (2800, 4500), (4500, 7500))
NOISE_RMS = math.sqrt(1 / 3)  # of numbers spread evenly over -1..1


def dct4_matrix() -> Tensor:
    """Orthonormal DCT-IV of size HOP; its own inverse."""
    n = torch.arange(HOP, dtype=torch.float64) + 0.5
    return (torch.cos(math.pi / HOP * n[:, None] * n[None, :]) * math.sqrt(2 / HOP)).float()


def sine_window() -> Tensor:
    """Rising half of the sine window of length 2 HOP (Princen-Bradley)."""
    n = torch.arange(HOP, dtype=torch.float64) + 0.5
    return torch.sin(math.pi * n / (2 * HOP)).float()


def band_matrix() -> Tensor:
    """[HOP, BANDS], 1 where a bin belongs to a band."""
    a = torch.zeros(HOP, BANDS)
    for b in range(BANDS):
        a[BAND_EDGES[b] : BAND_EDGES[b + 1], b] = 1
    return a


class Limit(torch.autograd.Function):
    """Clamp to GAIN_RANGE whose gradient passes where it leads back inside.

    With none, a gain that left the range stays silent for ever. With all of it, silent frames push their gains on without end, and the
    latents with them (runs v5 and v6 in EXPERIMENTS.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(*GAIN_RANGE)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        low, high = GAIN_RANGE
        return torch.where(((x < low) & (g > 0)) | ((x > high) & (g < 0)), torch.zeros_like(g), g)


class OverTime(torch.autograd.Function):
    """A depthwise convolution as sums of shifted products, for GPUs: the library's takes ten times as long, and automatic
    differentiation of the sums three times."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, taps: Tensor) -> Tensor:
        """h [B, T + kernel - 1, C], taps [kernel, C] -> [B, T, C]."""
        ctx.save_for_backward(h, taps)
        n = h.shape[1] - len(taps) + 1
        y = h[:, :n] * taps[0]
        for i in range(1, len(taps)):
            y.addcmul_(h[:, i : i + n], taps[i])
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        h, taps = ctx.saved_tensors
        k, n = len(taps), g.shape[1]
        padded = F.pad(g, (0, 0, k - 1, k - 1))
        to_h = padded[:, k - 1 :] * taps[0]
        for i in range(1, k):
            to_h.addcmul_(padded[:, k - 1 - i : k - 1 - i + n + k - 1], taps[i])
        # What a tap weighs is the diagonal of a product; computing all of it is still the fastest.
        rows = g.reshape(-1, g.shape[-1]).t()
        seen = [rows @ h[:, i : i + n].reshape(-1, h.shape[-1]) for i in range(k)]
        return to_h, torch.stack([m.diagonal() for m in seen])


def over_time(layer: nn.Conv1d, h: Tensor) -> Tensor:
    """A depthwise convolution without padding on h [B, T + kernel - 1, C] -> [B, T, C]."""
    if not h.is_cuda:
        return layer(h.transpose(1, 2)).transpose(1, 2)
    assert layer.bias is not None
    with torch.autocast("cuda", enabled=False):
        return OverTime.apply(h, layer.weight[:, 0].t().to(h.dtype)) + layer.bias.to(h.dtype)


class Block(nn.Module):
    """Causal ConvNeXt block: depthwise convolution over time, LayerNorm, two linear layers, layer scale."""

    def __init__(self, width: int, expand: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width * expand)
        self.down = nn.Linear(width * expand, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, T, C], past [B, kernel - 1, C] -> the same shapes."""
        if past is None:
            past = x.new_zeros(x.shape[0], self.kernel - 1, x.shape[2])
        h = torch.cat([past.to(x.dtype), x], 1)
        y = over_time(self.depthwise, h)
        y = self.down(F.gelu(self.up(self.norm(y))))
        return x + self.scale * y, h[:, h.shape[1] - (self.kernel - 1) :]


def group_matrix() -> Tensor:
    """[len(VOICING_HZ), NOISE_BAND]: 1 where a band belongs to a group that is voiced as a whole."""
    centre = torch.tensor([(a + b) / 2 * SAMPLE_RATE_HZ / 2 / HOP for a, b in pairwise(BAND_EDGES)])[:NOISE_BAND]
    first = torch.tensor([low for low, _ in VOICING_HZ])
    group = (torch.searchsorted(first, centre, right=True) - 1).clamp_min(0)
    return F.one_hot(group, len(VOICING_HZ)).T.float()


def smoothing_matrix() -> Tensor:
    """[SHAPED, SHAPED] weights of a bin and its neighbours in an envelope; each column sums to 1."""
    away = (torch.arange(SHAPED)[:, None] - torch.arange(SHAPED)).abs()
    weight = (3.0 - away).clamp_min(0.0)
    return weight / weight.sum(0)


def low_pass() -> Tensor:
    """[2 HOP, LOW_HOP]: two hops of samples -> the second at LOW_RATE, through a low pass (Hamming window) that delays by half its length."""
    n = torch.arange(LOW_TAPS, dtype=torch.float64) - LOW_TAPS // 2
    taps = torch.sinc(2 * LOW_PASS_HZ / SAMPLE_RATE_HZ * n) * (0.54 + 0.46 * torch.cos(2 * math.pi * n / (LOW_TAPS - 1)))
    out = torch.zeros(2 * HOP, LOW_HOP, dtype=torch.float64)
    for i in range(LOW_HOP):
        end = HOP + 4 * (i + 1)
        out[end - LOW_TAPS : end, i] = taps / taps.sum()
    return out.float()


def mdct(pcm: Tensor, last: Tensor | None, dct: Tensor, window: Tensor, joined: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """pcm [B, T * HOP] -> coefficients [B, T, HOP] and the last hop; last [B, HOP] is the hop before. Blocks that are not `joined`
    [B, T, 1] take the hop before them as silent."""
    hops = pcm.reshape(pcm.shape[0], -1, HOP)
    if last is None:
        last = pcm.new_zeros(pcm.shape[0], HOP)
    before = torch.cat([last[:, None], hops[:, :-1]], 1) * window
    if joined is not None:
        before = before * joined
    now = hops * window.flip(0)
    half = HOP // 2
    early = before[..., :half] - before[..., half:].flip(-1)
    late = -now[..., :half].flip(-1) - now[..., half:]
    return torch.cat([late, early], -1) @ dct, hops[:, -1]


class PitchReader(nn.Module):
    """Pitch at the end of each frame and how much of the frame repeats, from normalised correlations of the sound so far and a few layers
    that know where it is going: what a correlation sees is on average 15 ms old."""

    low: Tensor

    def __init__(self, net: Network):
        super().__init__()
        self.register_buffer("low", low_pass(), persistent=False)
        w = net.pitch_width
        self.inp = nn.Linear(2 * LOW_SEEN, w)
        self.blocks = nn.ModuleList(Block(w, 2, net.kernel) for _ in range(net.pitch_blocks))
        self.norm = nn.LayerNorm(w)
        self.out = nn.Linear(w, PITCHES)
        self.degree = nn.Linear(w, 1)

    def seen(self, hops: Tensor, last: Tensor, state: dict, out: dict) -> Tensor:
        """hops [B, 2 T, HOP], the hop before them [B, HOP] -> [B, 2 T, LOW_SEEN]: correlations with what was one lag earlier, at 6 kHz, of the
        last 30 ms and of the last 15, and the levels of both."""
        pairs = torch.cat([torch.cat([last[:, None], hops[:, :-1]], 1), hops], -1)
        fresh = (pairs @ self.low).reshape(len(hops), -1)
        past = state["low_past"] if "low_past" in state else fresh.new_zeros(len(fresh), LOW_PAST)
        sound = torch.cat([past, fresh], 1)
        out["low_past"] = sound[:, -LOW_PAST:]
        rows = sound.unfold(1, LOW_PAST + LOW_HOP, LOW_HOP)
        spectra, power = torch.fft.rfft(rows, 512), F.pad(rows.pow(2).cumsum(-1), (1, 0))
        found, levels = [], []
        for size in (LOW_WINDOW, LOW_WINDOW // 2):
            start = LOW_PAST + LOW_HOP - size  # of the last window
            now = torch.fft.rfft(rows[..., start:], 512)
            then = torch.arange(start - LOW_SHORTEST, start - LOW_SHORTEST - LOW_LAGS, -1, device=rows.device)
            product = torch.fft.irfft(now.conj() * spectra, 512)[..., then]
            own = (power[..., -1:] - power[..., start : start + 1]).clamp_min(0)
            energy = (power[..., then + size] - power[..., then]).clamp_min(0) * own
            found.append(product / torch.sqrt(energy + LOW_FLOOR**2 * size * size))
            levels.append(0.2 * torch.log(own / size + LOW_FLOOR) + 2.0)
        return torch.cat([*found, *levels], -1)

    def forward(self, hops: Tensor, last: Tensor, state: dict) -> tuple[Tensor, Tensor, dict]:
        """hops [B, 2 T, HOP], last [B, HOP] -> logits of the pitch [B, T, PITCHES], degree of voicing [B, T], 0 to 1, and the state."""
        out: dict = {}
        b, t = len(hops), hops.shape[1] // 2
        with torch.autocast(hops.device.type, enabled=False):
            seen = self.seen(hops, last, state, out)
        x = self.inp(seen.reshape(b, t, -1))
        for i, block in enumerate(self.blocks):
            x, out[f"pitch{i}"] = block(x, state.get(f"pitch{i}"))
        x = self.norm(x)
        return self.out(x).float(), torch.sigmoid(self.degree(x).float())[..., 0], out


@dataclass
class Told:
    """What training tells a codec with a voice source, and what it decided."""

    hz: Tensor | None = None  # [B, T]: the pitch at the ends of frames, 0 where unvoiced, instead of the one that the encoder reads
    pitch: Tensor | None = None  # logits [B, T, PITCHES]
    degree: Tensor | None = None  # of voicing [B, T]
    tone: Tensor | None = None  # bool [B, T]: frames that are tones
    wave: Tensor | None = None  # share of the waveform [B, 2 T, NOISE_BAND]
    voicing: Tensor | None = None  # [B, 2 T, groups]


class Encoder(nn.Module):
    dct: Tensor
    window: Tensor
    bands: Tensor
    book: Tensor
    levels: Tensor

    def __init__(self, net: Network):
        super().__init__()
        self.voiced, self.levelled = net.voice, False
        self.register_buffer("dct", dct4_matrix(), persistent=False)
        self.register_buffer("window", sine_window(), persistent=False)
        self.register_buffer("bands", band_matrix(), persistent=False)
        self.skip = nn.Linear(FEATURES, net.free)
        self.inp = nn.Linear(FEATURES, net.encoder_width)
        self.blocks = nn.ModuleList(Block(net.encoder_width, net.encoder_expand, net.kernel) for _ in range(net.encoder_blocks))
        self.norm = nn.LayerNorm(net.encoder_width)
        self.out = nn.Linear(net.encoder_width, net.free)
        if net.voice:
            self.register_buffer("book", pitch_book(), persistent=False)
            self.pitch = PitchReader(net)
            self.tones = TonesFinder()
            # Entries of the first stage that stand for levels of tones, once the codebooks are what is shipped; all 0 before.
            self.register_buffer("levels", torch.zeros(LEVELS * TWISTS, net.free))

    def features(self, pcm: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """pcm [B, T * 2 HOP] -> [B, T, FEATURES]: for each of two blocks the shapes, then the log gains."""
        x, last = mdct(pcm, last, self.dct, self.window)
        rms = torch.sqrt((x * x) @ (self.bands / self.bands.sum(0)) + ENERGY_FLOOR)
        shape = x / (rms @ self.bands.t())
        f = torch.cat([shape, torch.log(rms) * LOG_GAIN_SCALE + LOG_GAIN_SHIFT], -1)
        return f.reshape(f.shape[0], -1, FEATURES), last

    def read(self, pcm: Tensor, z: Tensor, state: dict, out: dict, told: Told) -> Tensor:
        """pcm [B, T * FRAME], latents z [B, T, free] -> latents with those of what sounds [B, T, latent]: entries of its codebook. Tones come
        before voices; the latents of a tone are the entry of the first stage that stands for its level."""
        last = state["pcm"] if "pcm" in state else pcm.new_zeros(len(pcm), HOP)
        told.pitch, told.degree, more = self.pitch(pcm.reshape(len(pcm), -1, HOP), last, state)
        out |= more
        index, voiced = told.pitch.argmax(-1), told.degree > LEAST_DEGREE
        if told.hz is not None:
            index, voiced = nearest_pitch(told.hz), told.hz > 0
        with torch.autocast(pcm.device.type, enabled=False), torch.no_grad():
            heard = torch.cat([last, pcm], 1)
            turn = state["turn"] if "turn" in state else pcm.new_zeros(len(pcm), 1)
            turns = (turn + torch.arange(1, told.degree.shape[1] + 1, device=pcm.device)) % 2
            out["turn"] = turns[:, -1:]
            found = self.tones(heard, turns > 0.5)
        told.tone = found.code > 0
        if self.levelled:
            low, high = self.tones.amplitudes(heard).unbind(-1)
            low = torch.where(found.single, torch.maximum(low, high), low)
            level = self.levels[level_code(low, high, found.single, found.pair, found.higher)]
            z = torch.where(told.tone[..., None], level, z)
        return torch.cat([z, self.book[torch.where(told.tone, found.code, torch.where(voiced, FIRST_PITCH + index, 0))]], -1)

    def free_latents(self, f: Tensor, state: dict, out: dict) -> Tensor:
        """Features [B, T, FEATURES] -> what the network says of them [B, T, free], before pitch and tones are read."""
        h = self.inp(f)
        for i, block in enumerate(self.blocks):
            h, out[f"block{i}"] = block(h, state.get(f"block{i}"))
        return self.skip(f).float() + self.out(self.norm(h)).float()

    def forward(self, pcm: Tensor, state: dict | None = None, told: Told | None = None) -> tuple[Tensor, dict]:
        """pcm [B, T * FRAME] in -1..1 -> latents [B, T, latent] and the state after them."""
        state = state or {}
        out = {}
        with torch.autocast(pcm.device.type, enabled=False):
            f, out["pcm"] = self.features(pcm.float(), state.get("pcm"))
        z = self.free_latents(f, state, out)
        if not self.voiced:
            return z, out
        return self.read(pcm.float(), z, state, out, told or Told()), out


class Decoder(nn.Module):
    dct: Tensor
    window: Tensor
    bands: Tensor
    groups: Tensor
    smooth: Tensor
    book: Tensor
    levels: Tensor
    amplitudes: Tensor
    low_weights: Tensor
    hz_of_voice: Tensor

    def __init__(self, net: Network):
        super().__init__()
        self.noise_width, self.block_noise, self.signs, self.voiced = net.noise, net.block_noise, net.signs, net.voice
        self.combed = net.comb
        self.register_buffer("dct", dct4_matrix(), persistent=False)
        self.register_buffer("window", sine_window(), persistent=False)
        self.register_buffer("bands", band_matrix(), persistent=False)
        w = net.decoder_width
        self.inp = nn.Linear(net.latent, w)
        self.blocks = nn.ModuleList(Block(w, net.decoder_expand, net.kernel) for _ in range(net.decoder_blocks))
        self.norm = nn.LayerNorm(w)
        self.up = nn.Linear(w, 2 * w)
        self.noise = nn.Linear(net.noise, w, bias=False)
        self.fine = nn.ModuleList(Block(w, net.fine_expand, net.fine_kernel) for _ in range(net.fine_blocks))
        self.fine_norm = nn.LayerNorm(w)
        self.shape = nn.Linear(w, SHAPED)
        self.gain = nn.Linear(w, BANDS)
        self.shape_skip = nn.Linear(net.latent, 2 * SHAPED)
        self.gain_skip = nn.Linear(net.latent, 2 * BANDS)
        nn.init.normal_(self.shape.weight, std=0.02)
        nn.init.constant_(self.gain.bias, -3.0)
        if net.voice:
            self.add_voice(net)

    @torch.no_grad()
    def add_voice(self, net: Network) -> None:
        """The layers of the voice source. They start with a waveform below voice_band, above it noise and as much voice."""
        self.register_buffer("groups", group_matrix(), persistent=False)
        self.register_buffer("smooth", smoothing_matrix(), persistent=False)
        self.register_buffer("book", pitch_book(), persistent=False)
        for name, value in zip(Sounds._fields, sounds(), strict=True):
            self.register_buffer(f"hz_of_{name}", value, persistent=False)
        self.register_buffer("amplitudes", level_amplitudes(), persistent=False)
        self.register_buffer("low_weights", postfilter.low_weights(), persistent=False)
        self.register_buffer("levels", torch.zeros(LEVELS * TWISTS, net.free))
        self.pulse = nn.Linear(SHAPED, net.decoder_width, bias=False)
        self.wave = nn.Linear(net.decoder_width, NOISE_BAND)
        self.voicing = nn.Linear(net.decoder_width, len(VOICING_HZ))
        for layer in (self.pulse, self.wave, self.voicing):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.voicing.bias)
        self.wave.bias.fill_(-4.0)
        self.wave.bias[: net.voice_band] = 4.0

    def hidden(self, q: Tensor, noise: Tensor, voice: Tensor | None, state: dict) -> tuple[Tensor, dict]:
        """q [B, T, latent], noise [B, 2 T, block_noise], bins of the voice [B, 2 T, HOP] -> what the heads read [B, 2 T, C], and the state."""
        out = {}
        b, t, _ = q.shape
        h = self.inp(q)
        for i, block in enumerate(self.blocks):
            h, out[f"block{i}"] = block(h, state.get(f"block{i}"))
        h = self.up(self.norm(h)).reshape(b, 2 * t, -1)
        h = h + self.noise(noise[..., : self.noise_width])
        if voice is not None:
            h = h + self.pulse(voice[..., :SHAPED])
        for i, block in enumerate(self.fine):
            h, out[f"fine{i}"] = block(h, state.get(f"fine{i}"))
        return self.fine_norm(h), out

    def heads(self, h: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """h [B, 2 T, C], q [B, T, latent] -> shapes [B, 2 T, SHAPED] and log gains [B, 2 T, BANDS]."""
        b, t, _ = q.shape
        shape = self.shape(h).float() + self.shape_skip(q).float().reshape(b, 2 * t, -1)
        return shape, self.gain(h).float() + self.gain_skip(q).float().reshape(b, 2 * t, -1)

    def excite(self, shape: Tensor, wave: Tensor, voicing: Tensor, voice: Tensor, noise: Tensor) -> Tensor:
        """Bins [B, 2 T, HOP] before their gains. A share `wave` [B, 2 T, NOISE_BAND] of each band's power is the decoded shape as it is;
        of the rest, `voicing` is the voice under the shape's envelope, and what is left the shape with a random sign in each
        band. Above all of them there is noise. voice [B, 2 T, HOP] is the MDCT of the pulses."""
        _, high, signs = noise.float().split([self.noise_width, NOISE_BINS, NOISE_BAND], -1)
        spread = self.bands[:SHAPED, :NOISE_BAND].t()
        root = lambda share: torch.sqrt(share + LEAST_SHARE)
        own = root(wave) + root((1 - wave) * (1 - voicing)) * signs.sign()
        # What the voice does to the shape's envelope is not learnt from: the shape is what the other two need.
        envelope = torch.sqrt((shape * shape).detach() @ self.smooth + ENVELOPE_FLOOR)
        bins = (own @ spread) * shape + (root((1 - wave) * voicing) @ spread) * envelope * voice[..., :SHAPED]
        return torch.cat([bins, high / NOISE_RMS], -1)

    def signed(self, shape: Tensor, noise: Tensor) -> Tensor:
        """Bins [B, 2 T, HOP] before their gains, without a voice source: the decoded shape, with random signs in the bands that have
        them; above noise."""
        _, high, signs = noise.float().split([self.noise_width, NOISE_BINS, self.signs], -1)
        signs = F.pad(signs.sign(), (NOISE_BAND - self.signs, 0), value=1.0)
        return torch.cat([shape * (signs @ self.bands[:SHAPED, :NOISE_BAND].t()), high / NOISE_RMS], -1)

    @torch.no_grad()
    def voice(self, q: Tensor, state: dict, out: dict) -> tuple[Tensor, Tensor]:
        """What the latents q [B, T, latent] say that sounds -> its bins [B, 2 T, HOP], and which blocks are tones [B, 2 T, 1]."""
        with torch.autocast(q.device.type, enabled=False):
            code = coded_sound(q[..., -PITCH_LATENT:].float(), self.book)
            heard = Sounds(*(getattr(self, f"hz_of_{name}")[code] for name in Sounds._fields))
            last = state["source"] if "source" in state else resting(heard.voice)
            found = pairs(heard, coded_level(q[..., :-PITCH_LATENT].float(), self.levels), self.amplitudes, last)
            heard = Sounds(heard.voice, found.tone, found.second)
            train, out["source"] = source(heard, last, found.amplitude, found.said)
            tone = (heard.tone > 0).repeat_interleave(2, 1)[..., None]
            was = state["source"][:, None, 5:6] > 0 if "source" in state else torch.zeros_like(tone[:, :1])
            # The pulses before a tone know nothing of its level.
            joined = ~tone | torch.cat([was, tone[:, :-1]], 1)
            bins, out["source_hop"] = mdct(train, state.get("source_hop"), self.dct, self.window, joined)
        return bins, tone

    def forward(self, q: Tensor, noise: Tensor | None = None, state: dict | None = None, told: Told | None = None) -> tuple[Tensor, dict]:
        """q [B, T, latent], noise [B, 2 T, block_noise] in -1..1 -> pcm [B, T * FRAME] and the state after it.

        Output lags the encoder's input by Network.delay samples on top of the frame itself. Training is told what was decided.
        """
        b, t, _ = q.shape
        state = state or {}
        if noise is None:
            noise = torch.rand(b, 2 * t, self.block_noise, device=q.device) * 2 - 1
        before: dict = {}
        voice = tone = None
        if self.voiced:
            voice, tone = self.voice(q, state, before)
            # A search that follows slopes must move neither the pitch nor the level of a tone: they have none.
            q = torch.cat([torch.where(tone[:, ::2], q.detach(), q)[..., :-PITCH_LATENT], q[..., -PITCH_LATENT:].detach()], -1)
        h, out = self.hidden(q, noise, None if voice is None or tone is None else torch.where(tone, 0.0, voice), state)
        out |= before
        shape, gain = self.heads(h, q)
        with torch.autocast(q.device.type, enabled=False):
            gain = torch.exp(Limit.apply(gain)) @ self.bands.t()
        if voice is not None and tone is not None:
            told = told or Told()
            told.wave, told.voicing = torch.sigmoid(self.wave(h).float()), torch.sigmoid(self.voicing(h).float())
            # Voicing is learnt from the original's, not from spectra, which hardly hear it.
            bins = self.excite(shape, told.wave, told.voicing.detach() @ self.groups, voice, noise)
            # A tone has its own level.
            bins = torch.cat([torch.where(tone, voice[..., :SHAPED], bins[..., :SHAPED]), bins[..., SHAPED:]], -1)
            gain = torch.cat([torch.where(tone, 1.0, gain[..., :SHAPED]), gain[..., SHAPED:]], -1)
        else:
            bins = self.signed(shape, noise)
        with torch.autocast(q.device.type, enabled=False):
            x = bins * gain
            pcm, out["tail"] = self.overlap(x @ self.dct, state.get("tail"))
            if self.combed:
                assert told is not None and told.voicing is not None  # a comb needs a voice
                pcm = self.comb(q, x, pcm, told.voicing, state, out)
        return pcm, out

    def overlap(self, y: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """Transformed blocks y [B, N, HOP], the falling half [B, HOP] of the block before them -> samples [B, N * HOP], and the last block's
        falling half."""
        half = HOP // 2
        late, early = y[..., :half], y[..., half:]
        tail = torch.cat([-late.flip(-1), -late], -1) * self.window.flip(0)
        if last is None:
            last = tail.new_zeros(len(tail), HOP)
        pcm = torch.cat([early, -early.flip(-1)], -1) * self.window
        pcm = pcm + torch.cat([last[:, None], tail[:, :-1]], 1)
        return pcm.reshape(len(y), -1), tail[:, -1]

    def comb(self, q: Tensor, x: Tensor, pcm: Tensor, voicing: Tensor, state: dict, out: dict) -> Tensor:
        """Samples [B, N], HOP later and through the comb. x [B, 2 T, HOP] are the bins that they were made of."""
        low = x[..., : postfilter.LOW_BINS] * self.low_weights
        low, out["low_tail"] = self.overlap(low @ self.dct[: postfilter.LOW_BINS], state.get("low_tail"))
        code = coded_sound(q[..., -PITCH_LATENT:].float(), self.book)
        hz = postfilter.joined(state.get("comb_hz"), self.hz_of_voice[code])
        voicing = postfilter.joined(state.get("comb_voicing"), voicing[..., 0].detach())
        early = lambda name, width: state[name] if name in state else pcm.new_zeros(len(pcm), width)
        low = torch.cat([early("low_past", postfilter.PAST), low], 1)
        held = torch.cat([early("held", HOP), pcm], 1)
        period, voiced = postfilter.periods(hz)
        out |= {"comb_hz": hz[:, -postfilter.CODED :], "comb_voicing": voicing[:, -postfilter.CODED :]}
        out |= {"low_past": low[:, -postfilter.PAST :], "held": held[:, -HOP:]}
        added, out["likeness"] = postfilter.comb(low, period, voiced * postfilter.shares(voicing), state.get("likeness"))
        gains, out["powers"], out["onset"] = postfilter.onsets(held, voiced, state.get("powers"), state.get("onset"))
        return gains * (held[:, :-HOP] + added)


def macs_per_frame(net: Network) -> dict[str, int]:
    """Multiply-accumulates of one 20 ms frame, by part."""
    e, d = net.encoder_width, net.decoder_width
    encoder = 2 * HOP * HOP + FEATURES * (e + net.free) + e * net.free
    encoder += net.encoder_blocks * (2 * e * e * net.encoder_expand + net.kernel * e)
    decoder = net.latent * d + net.decoder_blocks * (2 * d * d * net.decoder_expand + net.kernel * d)
    decoder += 2 * d * d + 2 * net.noise * d
    decoder += 2 * net.fine_blocks * (2 * d * d * net.fine_expand + net.fine_kernel * d)
    decoder += 2 * d * (SHAPED + BANDS) + 2 * net.latent * (SHAPED + BANDS) + 2 * HOP * (HOP + BANDS)
    if not net.voice:
        return {"encoder": encoder, "decoder": decoder}
    p = net.pitch_width
    encoder += 2 * (2 * HOP * LOW_HOP + LOW_LAGS * LOW_WINDOW * 3 // 2 + 2 * LOW_LAGS * (LOW_PAST + LOW_HOP))
    encoder += p * (2 * LOW_SEEN + PITCHES + 1) + net.pitch_blocks * (4 * p * p + net.kernel * p)
    decoder += 2 * d * (NOISE_BAND + len(VOICING_HZ) + SHAPED) + 2 * HOP * HOP + 4 * NOISE_BAND * SHAPED + 2 * SHAPED * SHAPED
    encoder += tones.WINDOW * 2 * tones.BINS + tones.BINS * tones.BINS
    decoder += CODES * PITCH_LATENT + LEVELS * TWISTS * net.free
    decoder += 2 * postfilter.LOW_BINS * HOP * net.comb
    return {"encoder": encoder, "decoder": decoder}
