"""The voice source: pitch labels, pitch and tones as codes, pulses with a running phase, generated sounds, losses that hear it."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import onnxruntime as ort
import pytest
import torch
from conftest import HERE, SMOKE, voice

from undertone_recipe import filters, int8, postfilter, signals
from undertone_recipe.balance import balance, observe
from undertone_recipe.codec import Codec, decoder_noise, load
from undertone_recipe.config import CODES, DTMF_HZ, FRAME, HOP, PITCH_LATENT, PITCH_STAGE, PITCHES, SAMPLE_RATE_HZ, of_model
from undertone_recipe.data import Batches, ahead
from undertone_recipe.excitation import (
    FIRST_DIGIT,
    FIRST_PITCH,
    FIRST_TONE,
    HIGHER_TWIST,
    LEAST_LEVEL_DB,
    LEVEL_STEP_DB,
    LOWER_TWIST,
    NO_TWIST,
    RADIUS,
    RESTING_HZ,
    STEP,
    TONES,
    TOP_HZ,
    TWISTS,
    Sounds,
    coded_sound,
    level_amplitudes,
    nearest_pitch,
    nearest_tone,
    pairs,
    pitch_book,
    resting,
    sounds,
    source,
)
from undertone_recipe.export import as_shipped, export, load_exported
from undertone_recipe.gradient import gradient_graph
from undertone_recipe.graph import count_macs, decoder_graph, encoder_graph
from undertone_recipe.live import Frame, Live
from undertone_recipe.losses import Periodicity, SpectralLoss
from undertone_recipe.network import (
    LOW_LAGS,
    LOW_SHORTEST,
    VOICING_HZ,
    Decoder,
    Encoder,
    PitchReader,
    dct4_matrix,
    group_matrix,
    macs_per_frame,
    mdct,
    sine_window,
    smoothing_matrix,
)
from undertone_recipe.pitch import track
from undertone_recipe.quantiser import ResidualQuantiser
from undertone_recipe.search import Search
from undertone_recipe.sources import Graph
from undertone_recipe.tones import TonesFinder
from undertone_recipe.train import Run, train

SIZES = {"latent": SMOKE.network.latent + PITCH_LATENT, "entries": CODES, "fine_blocks": 2, "pitch_width": 32}
VOICED = dataclasses.replace(SMOKE, network=dataclasses.replace(SMOKE.network, voice=True, comb=True, **SIZES))
UNCOMBED = dataclasses.replace(VOICED.network, comb=False)  # as models up to November 2026
FREE = VOICED.network.free


def glide(low: float, high: float, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Harmonics of a pitch that rises evenly, and the pitch at the middle of each hop."""
    hz = np.linspace(low, high, int(seconds * SAMPLE_RATE_HZ))
    phase = 2 * np.pi * np.cumsum(hz) / SAMPLE_RATE_HZ
    x = sum(np.sin(k * phase) / k for k in range(1, 16)) * 0.1
    return x.astype(np.float32), hz[HOP // 2 :: HOP]


@pytest.mark.parametrize(("low", "high"), [(75.0, 95.0), (140.0, 220.0), (280.0, 460.0)])
def test_pitch_of_a_glide_is_tracked_within_a_fifth_of_a_semitone(low, high):
    x, hz = glide(low, high, 2.0)
    found = track(x)[5:-5]
    assert (found > 0).all()
    assert np.abs(1200 * np.log2(found / hz[5 : len(found) + 5])).max() < 20


def test_noise_and_silence_have_no_pitch():
    noise = np.random.default_rng(1).standard_normal(24_000).astype(np.float32) * 0.1
    assert (track(noise) > 0).mean() < 0.1
    assert (track(np.zeros(24_000, np.float32)) == 0).all()


def test_long_recordings_are_tracked_in_pieces_that_join():
    x, _ = glide(150, 170, 3.0)
    np.testing.assert_allclose(track(x, rows=2, seconds=0.5)[60:240], track(x)[60:240], rtol=0.02)


def voiced(hz: torch.Tensor) -> Sounds:
    """Voices of these pitches, 0 where there is none."""
    return Sounds(hz, torch.zeros_like(hz), torch.zeros_like(hz))


def test_pulses_are_the_sum_of_all_harmonics_from_a_running_phase():
    got, end = source(voiced(torch.full((1, 4), 187.5)))
    n = torch.arange(1, 4 * FRAME + 1, dtype=torch.float64)
    want = sum(torch.cos(2 * math.pi * k * 187.5 * n / SAMPLE_RATE_HZ) for k in range(1, int(TOP_HZ / 187.5) + 1))
    want = want * math.sqrt(187.5 / 6000)
    torch.testing.assert_close(got[0].double(), want, atol=2e-3, rtol=0)
    assert end[0, :3].tolist() == [187.5, 187.5, 4 * FRAME * 187.5 / SAMPLE_RATE_HZ % 1]
    bins, _ = mdct(got, None, dct4_matrix(), sine_window())
    assert 0.8 < float(bins[:, 2:, 20:150].pow(2).mean()) < 1.25


def test_what_sounds_cut_into_pieces_is_that_of_the_whole():
    torch.manual_seed(2)
    hz = 200 * torch.exp(0.3 * torch.randn(3, 2, 60)) * (torch.rand(3, 2, 60) < 0.6)
    heard = Sounds(hz[0], hz[1] * (hz[0] == 0), hz[2] * (hz[0] == 0) * (hz[1] > 0))
    whole, end = source(heard)
    parts, last = [], None
    for pieces in zip(*(v.split((1, 7, 25, 27), 1) for v in heard), strict=True):
        part, last = source(Sounds(*pieces), last)
        parts.append(part)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(last, end)


def test_the_phase_goes_on_where_a_pitch_follows_another_and_starts_nowhere_else():
    even, _ = source(voiced(torch.full((1, 8), 120.0)))
    # A jump of pitch is no glide: the frame after it has its own pitch from its first sample.
    jump, _ = source(voiced(torch.cat([torch.full((1, 4), 120.0), torch.full((1, 4), 300.0)], 1)))
    assert torch.equal(jump[:, : 4 * FRAME], even[:, : 4 * FRAME])
    period = SAMPLE_RATE_HZ // 300
    after = jump[0, 4 * FRAME + 2 : 8 * FRAME]
    torch.testing.assert_close(after[period:], after[:-period], atol=2e-2, rtol=0)


def test_a_pitch_holds_on_for_a_frame_and_then_pulses_rest():
    _, rest = source(voiced(torch.zeros(1, 3)))
    assert rest[0, :2].tolist() == [0.0, RESTING_HZ]
    _, voice_now = source(voiced(torch.full((1, 1), 300.0)), rest)
    for coded, pitch in (([0.0], 300.0), ([0.0, 0.0], RESTING_HZ), ([0.0, 320.0], 320.0)):
        _, end = source(voiced(torch.tensor([coded])), voice_now)
        assert end[0, :2].tolist() == [coded[-1], pitch]


def test_a_tone_is_a_cosine_and_a_digit_two():
    tone, second = torch.full((1, 5), 770.0), torch.full((1, 5), 1336.0)
    for further in (torch.zeros(1, 5), second):
        got, _ = source(Sounds(torch.zeros(1, 5), tone, further))
        n = torch.arange(1, 5 * FRAME + 1, dtype=torch.float64) / SAMPLE_RATE_HZ
        want = torch.cos(2 * math.pi * 770 * n)
        if float(further[0, 0]):
            want = want + torch.cos(2 * math.pi * 1336 * n)
        # Phases at the ends of frames are rounded to a part of a cycle.
        torch.testing.assert_close(got[0].double(), want, atol=5e-3, rtol=0)


def test_two_tones_that_frames_say_by_turns_sound_together():
    level = lambda db, twist: round((db - LEAST_LEVEL_DB) / LEVEL_STEP_DB) * TWISTS + twist
    low, high = level(-20, LOWER_TWIST), level(-26, HIGHER_TWIST)
    # A pair, one that begins with its higher tone, a frame of it lost, a single tone, a digit.
    hz = torch.tensor([[523.0, 1319, 523, 0, 1319, 523, 523, 700, 1319, 697]])
    second = torch.tensor([[0.0] * 9 + [1209]])
    levels = torch.tensor([[low, high, low, low, high, low, low, level(-30, NO_TWIST), high, level(-10, NO_TWIST)]])
    heard = Sounds(torch.zeros_like(hz), hz, second)
    found = pairs(heard, levels, level_amplitudes(), resting(hz))
    assert found.tone.tolist() == [[523, 523, 523, 0, 1319, 523, 523, 700, 1319, 697]]
    assert found.second.tolist() == [[0, 1319, 1319, 0, 0, 1319, 0, 0, 0, 1209]]
    db = 20 * torch.log10(found.amplitude[0])
    torch.testing.assert_close(db[:, 0], torch.tensor([-20.0, -20, -20, -20, -26, -20, -20, -30, -26, -10]))
    assert torch.equal(db[[1, 2, 5], 1], db[[4, 4, 4], 0]) and float(db[9, 1]) == pytest.approx(-10)


def test_every_code_is_read_back_also_with_noise():
    meant = sounds()
    assert torch.equal(nearest_pitch(meant.voice[FIRST_PITCH:FIRST_DIGIT]), torch.arange(PITCHES))
    assert torch.equal(nearest_tone(meant.tone[FIRST_TONE : FIRST_TONE + TONES]), torch.arange(TONES))
    assert nearest_pitch(torch.tensor([30.0, 60 * math.exp(40.2 * STEP), 900.0])).tolist() == [0, 40, PITCHES - 1]
    assert nearest_tone(torch.tensor([30.0, 1031.0, 9000.0])).tolist() == [0, 347, TONES - 1]
    assert (meant.voice[0], meant.tone[0]) == (0, 0) and ((meant.voice > 0) + (meant.tone > 0) <= 1).all()
    digits = {(float(a), float(b)) for a, b in zip(meant.tone[FIRST_DIGIT:FIRST_TONE], meant.second[FIRST_DIGIT:FIRST_TONE], strict=True)}
    assert digits == {(a, b) for a in DTMF_HZ[0] for b in DTMF_HZ[1]}
    book, used = pitch_book(), FIRST_TONE + TONES
    assert book.shape == (CODES, PITCH_LATENT) and torch.equal(book, book.half().float())
    torch.manual_seed(1)
    for size in (0.0, 0.05 * RADIUS):
        noisy = book[:used] + size * torch.randn(used, PITCH_LATENT)
        assert torch.equal(coded_sound(noisy, book), torch.arange(used))
        # The quantiser takes the nearest, the decoder the largest product: the same.
        assert torch.equal(torch.cdist(noisy, book).argmin(1), torch.arange(used))
    assert coded_sound(torch.zeros(PITCH_LATENT), book) == 0, "a frame that lacks the stage"


def found_tones(x: np.ndarray) -> list[int]:
    """Codes of the frames of x [N], without the first and the last two."""
    pcm, frames = torch.nn.functional.pad(torch.from_numpy(x.astype(np.float32))[None], (HOP, 0)), len(x) // FRAME
    found = TonesFinder()(pcm[:, : HOP + frames * FRAME], torch.arange(frames)[None] % 2 > 0)
    assert not (found.single & found.pair).any() and not (found.higher & ~found.pair).any()
    return found.code[0, 2:-2].tolist()


def code_of_tone(hz: float) -> int:
    return FIRST_TONE + int(nearest_tone(torch.tensor(hz)))


def test_tones_and_digits_are_found_and_voices_are_none():
    n = np.arange(10 * FRAME) / SAMPLE_RATE_HZ
    sine = lambda hz, level=0.1: level * np.sin(2 * np.pi * hz * n)
    for hz in (152.0, 440.0, 1004.0, 1031.0, 6990.0):
        assert set(found_tones(sine(hz))) == {code_of_tone(hz)}, hz
    for i, low in enumerate(DTMF_HZ[0]):
        for j, high in enumerate(DTMF_HZ[1]):
            twisted = sine(low * 1.01) + sine(high * 0.99, 0.05)
            assert set(found_tones(twisted)) == {FIRST_DIGIT + 4 * i + j}
    for low, high in ((697.0, 1000.0), (523.0, 1319.0), (2000.0, 6900.0)):
        assert found_tones(sine(low) + sine(high, 0.07)) == [code_of_tone(low), code_of_tone(high)] * 3, "frames say them by turns"
    hiss = np.random.default_rng(2).standard_normal(len(n))
    assert set(found_tones(sine(523.0) + sine(1319.0) + 0.01 * hiss)) == {0}, "not all there is"
    assert set(found_tones(sine(523.0) + sine(700.0))) == {0}, "too near to be told apart"
    assert set(found_tones(sine(523.0) + sine(1319.0) + sine(2000.0))) == {0}, "three"
    assert set(found_tones(sine(440.0, 3e-4))) == {0}, "too quiet"
    for x in (glide(120, 140, 0.3)[0], np.zeros(5000), np.random.default_rng(1).standard_normal(5000)):
        assert set(found_tones(x)) == {0}


@pytest.mark.parametrize("hz", [75.0, 150.0, 300.0])
def test_the_pitch_reader_sees_the_period_of_a_glide(hz):
    x, _ = glide(hz, hz * 1.03, 1.0)
    hops = torch.from_numpy(x).reshape(1, -1, HOP)
    reader, end = PitchReader(VOICED.network), {}
    seen = reader.seen(hops, torch.zeros(1, HOP), {}, end)[0]
    assert seen.isfinite().all() and seen[:, : 2 * LOW_LAGS].abs().max() <= 1.01
    # Both windows; a multiple of the period repeats as well.
    for found in (seen[20:, :LOW_LAGS], seen[20:, LOW_LAGS : 2 * LOW_LAGS]):
        near = found[:, : round(1.4 * 6000 / hz) - LOW_SHORTEST].max(-1)
        assert float(near.values.min()) > 0.9
        lags = (LOW_SHORTEST + near.indices).float()
        wanted = 6000 / torch.linspace(hz, hz * 1.03, len(seen))[20:]
        assert float((lags - wanted).abs().max()) < 2.5
    assert torch.equal(reader.seen(hops[:, 40:], hops[:, 39], {"low_past": reader_past(reader, hops[:, :40])}, {})[0], seen[40:])


def reader_past(reader: PitchReader, hops: torch.Tensor) -> torch.Tensor:
    state: dict = {}
    reader.seen(hops, torch.zeros(1, HOP), {}, state)
    return state["low_past"]


def test_stages_keep_to_their_dimensions_and_one_stage_has_no_voice():
    torch.manual_seed(4)
    quantiser = ResidualQuantiser(VOICED.network, VOICED.quantiser)
    pitch = pitch_book()[torch.randint(FIRST_PITCH, FIRST_DIGIT, (2, 600))]
    z = torch.cat([torch.randn(2, 600, FREE) * 10, pitch], -1)
    left = quantiser.start(z.flatten(0, 1))
    assert left == sorted(left, reverse=True)
    before = [s.codebook.clone() for s in quantiser.stages]
    for _ in range(3):
        q, commit, codes = quantiser(z, torch.tensor([4, 2]), learn=True)
    assert float(commit) > 0 and (codes[1, :, 2:] == -1).all() and (codes[0] >= 0).all()
    for k, (stage, book) in enumerate(zip(quantiser.stages, before)):
        own, other = (slice(FREE, None), slice(0, FREE)) if k == PITCH_STAGE else (slice(0, FREE), slice(FREE, None))
        assert (stage.codebook[:, other] == 0).all() and bool((stage.codebook[:, own] != 0).any())
        assert torch.equal(stage.codebook, book) == (k == PITCH_STAGE)
    torch.testing.assert_close(q[..., FREE:], pitch)
    for beam in (1, 4):
        codes = quantiser.encode(z, 4, beam)
        assert torch.equal(quantiser.decode(codes)[..., FREE:], pitch)
    code = lambda stages: coded_sound(quantiser.decode(codes[..., :stages])[..., FREE:], pitch_book())
    assert (code(1) == 0).all() and torch.equal(code(2), codes[..., PITCH_STAGE])


def test_shares_add_up_to_the_power_that_the_gains_ask_for():
    torch.manual_seed(1)
    decoder, b = Decoder(VOICED.network), 4000
    shape, voice = torch.randn(1, b, 156), torch.randn(1, b, HOP)
    noise = torch.rand(1, b, VOICED.network.block_noise) * 2 - 1
    for wave, voicing in ((0.9, 0.2), (0.0, 0.7), (0.3, 1.0)):
        share = torch.full((1, b, 18), wave)
        bins = decoder.excite(shape, share, torch.full_like(share, voicing), voice, noise)
        power = bins[..., 6:150].pow(2).mean()
        assert abs(float(power) - 1) < 0.1, (wave, voicing)
    assert torch.equal(group_matrix().sum(0), torch.ones(18)) and len(group_matrix()) == len(VOICING_HZ)
    torch.testing.assert_close(smoothing_matrix().sum(0), torch.ones(156))


def test_periodicity_hears_noise_in_place_of_a_voice_where_spectra_hardly_do():
    x, hz = glide(140, 150, 1.28)
    x, pitch = torch.from_numpy(x)[None], torch.from_numpy(hz.astype(np.float32))[None]
    measure = Periodicity()
    shares = measure.share(x, pitch)
    assert shares[:, 4:-4, :2].min() > 0.9
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) * 0.05
    assert float(measure.share(noise, pitch)[:, 4:-4].mean()) < 0.3
    assert float(measure(x, x, pitch)) == 0.0
    assert float(measure(noise, x, pitch)) > 0.3
    assert float(measure.share(x, torch.zeros_like(pitch)).abs().max()) == 0.0


def test_the_linear_distance_sees_harmonics_that_moved():
    loss = SpectralLoss()
    x, moved = (torch.from_numpy(glide(hz, hz + 0.01, 1.0)[0])[None] for hz in (150.0, 172.0))
    same, other = loss(x, x), loss(moved, x)
    assert float(same.linear) < 1e-4
    assert float(other.linear) > 0.15


def test_phase_counts_at_all_frequencies_for_generated_sounds_only():
    t = torch.arange(24_000) / SAMPLE_RATE_HZ
    x, turned = (torch.sin(2 * math.pi * 5000 * t + phase)[None] * 0.2 for phase in (0.0, 2.0))
    loss = SpectralLoss()
    speech, tone = (float(loss(turned, x, torch.tensor([flag])).complex) for flag in (False, True))
    assert tone > 5 * speech


@pytest.mark.parametrize("make", [kind for kind, _ in signals.KINDS])
def test_generated_sounds_are_finite_and_of_their_length(make):
    for seed in range(5):
        x = make(np.random.default_rng(seed), 15_840)
        assert x.shape == (15_840,) and np.isfinite(x).all() and np.abs(x).max() < 10


def test_dialling_has_the_two_tones_of_a_digit():
    x = signals.dialling(np.random.default_rng(4), 24_000)
    frames = np.lib.stride_tricks.sliding_window_view(x, 960)[::480] * np.hanning(960)
    loud = frames[(frames**2).mean(1) > 0.5 * (frames**2).mean(1).max()]
    spectrum = np.abs(np.fft.rfft(loud, 24_000)) ** 2
    for group in signals.DTMF_HZ:
        near = sum(spectrum[:, int(hz) - 30 : int(hz) + 30].sum(1) for hz in group)
        assert (near > 0.15 * spectrum.sum(1)).all()


def lively(network) -> tuple[Encoder, Decoder]:
    """An encoder and a decoder whose heads decide something."""
    torch.manual_seed(5)
    encoder, decoder = Encoder(network).eval(), Decoder(network).eval()
    with torch.no_grad():
        levels = torch.randn_like(encoder.levels).mul(12).half().float()
        encoder.levels.copy_(levels)
        decoder.levels.copy_(levels)
        encoder.levelled = True
        encoder.pitch.out.weight.normal_(0, 1)
        encoder.pitch.degree.weight.normal_(0, 0.5)
        decoder.pulse.weight.normal_(0, 0.1)
        decoder.wave.weight.normal_(0, 0.3)
        decoder.voicing.weight.normal_(0, 0.3)
        for layer in (decoder.inp, decoder.shape_skip, decoder.gain_skip):
            layer.weight[:, network.free :] *= 0.02  # or gains leave their range
        for layer in (*encoder.modules(), *decoder.modules()):
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_(layer.weight.half().float())  # as a graph has it
    return encoder, decoder


def latents(frames: int) -> torch.Tensor:
    """Latents with pitches that hold on, change and pause, tones and digits [1, frames, D]."""
    torch.manual_seed(6)
    index = (100 + torch.randn(frames).mul(4).cumsum(0)).round().long().clamp(0, PITCHES - 1)
    code = torch.where(torch.rand(frames) < 0.8, FIRST_PITCH + index, 0)
    code[3:5], code[7:9] = FIRST_TONE + 200, FIRST_DIGIT + torch.tensor([6, 7])
    return torch.cat([torch.randn(frames, FREE), pitch_book()[code]], -1)[None]


def whole_and_pieces(module, *feeds: torch.Tensor) -> torch.Tensor:
    """What a half of the codec makes of 30 frames, which is what it makes of them in pieces; feeds [1, 30 or 30 times as many rows, ..]."""
    with torch.no_grad():
        whole, _ = module(*feeds)
        parts, state = [], None
        for a, b in ((0, 1), (1, 9), (9, 30)):
            part, state = module(*(f[:, a * f.shape[1] // 30 : b * f.shape[1] // 30] for f in feeds), state=state)
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
    return whole.reshape(30, -1)


def run_graphs(make, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What the graphs of each kind make [30, width] of feeds [1, 30, width] in pieces, and with them a frame at a time."""
    made = []
    for kind, pieces in ((Graph, ((0, 1), (1, 9), (9, 30))), (Live, ((0, 12), (12, 30)))):
        run = ort.InferenceSession(make(kind).SerializeToString())
        size = next(i.shape[1] for i in run.get_inputs() if i.name == "state")
        state, out = np.zeros((1, size), np.float32), []
        for a, b in pieces:
            piece, state = run.run(None, {k: v[:, a:b] for k, v in feeds.items()} | {"state": state})
            out.append(piece[0])
        made.append(np.concatenate(out))
    run = ort.InferenceSession(make(Frame).SerializeToString())
    past = {i.name: np.zeros((1, *i.shape[1:]), np.float32) for i in run.get_inputs() if i.name.startswith("past")}
    out = []
    for t in range(30):
        piece, *new = run.run(None, {k: v[:, t : t + 1] for k, v in feeds.items()} | past)
        out.append(piece[0])
        past = {k: np.concatenate([v[:, n.shape[1] :], n], 1) for (k, v), n in zip(past.items(), new, strict=True)}
    return [*made, np.concatenate(out)]


def test_a_pitch_that_is_read_in_pieces_is_that_of_the_whole_in_torch_and_in_all_graphs():
    net, pcm = VOICED.network, voice(0.6)
    pcm[5 * FRAME : 8 * FRAME] = 0
    n = np.arange(4 * FRAME) / SAMPLE_RATE_HZ
    pcm[9 * FRAME : 13 * FRAME] = 0.1 * np.sin(2 * np.pi * 650 * n)
    pcm[14 * FRAME : 18 * FRAME] = sum(0.1 * np.sin(2 * np.pi * hz * n) for hz in (697, 1477))
    pcm[20 * FRAME : 24 * FRAME] = sum(0.1 * np.sin(2 * np.pi * hz * n) for hz in (523, 1319))
    encoder, _ = lively(net)
    whole = whole_and_pieces(encoder, torch.from_numpy(pcm)[None])
    read = set(coded_sound(whole[:, FREE:], pitch_book()).tolist())
    assert 0 in read and FIRST_DIGIT + 2 in read and code_of_tone(650.0) in read
    assert code_of_tone(523.0) in read and code_of_tone(1319.0) in read
    assert sum(FIRST_PITCH <= code < FIRST_DIGIT for code in read) > 1
    for made in run_graphs(lambda kind: encoder_graph(encoder, net, kind), {"pcm": pcm.reshape(1, 30, FRAME)}):
        np.testing.assert_allclose(made, whole.numpy(), atol=1e-3)


@pytest.fixture
def anything_is_alike(monkeypatch):
    """The comb has about half of its share also where noise is decoded."""
    for module in (postfilter, filters):
        monkeypatch.setattr(module, "LEAST_LIKENESS", -1.0)
        monkeypatch.setattr(module, "FULL_LIKENESS", 1.0)


@pytest.mark.usefixtures("anything_is_alike")
@pytest.mark.parametrize("net", [VOICED.network, UNCOMBED])
def test_a_voice_cut_into_pieces_is_that_of_the_whole_in_torch_and_in_all_graphs(net):
    q = latents(30)
    _, decoder = lively(net)
    # Two tones by turns, over the cuts, and once the same one twice.
    for t in (*range(8, 14), *range(15, 20)):
        level = 8 * 80 + (HIGHER_TWIST if t % 2 else LOWER_TWIST)
        q[0, t] = torch.cat([decoder.levels[level], pitch_book()[FIRST_TONE + (300 if t % 2 else 200)]])
    noise = decoder_noise(0, 30, net.noise_dim)
    whole = whole_and_pieces(decoder, q, torch.from_numpy(noise).reshape(1, 60, -1))
    silent = torch.cat([q[..., :FREE], torch.zeros(1, 30, PITCH_LATENT)], -1)
    with torch.no_grad():
        assert (decoder(silent, torch.from_numpy(noise).reshape(1, 60, -1))[0].reshape(30, -1) - whole).abs().max() > 0.01
    for made in run_graphs(lambda kind: decoder_graph(decoder, net, kind), {"latent": q.numpy(), "noise": noise[None]}):
        np.testing.assert_allclose(made, whole.numpy(), atol=1e-3)


def test_pulses_that_begin_near_the_pitch_of_rest_begin_alike_in_torch_and_in_a_graph():
    net = VOICED.network
    _, decoder = lively(net)
    index = nearest_pitch(torch.full((1, 30), RESTING_HZ * 1.1))
    q = torch.cat([torch.randn(1, 30, FREE), pitch_book()[FIRST_PITCH + index]], -1)
    noise = decoder_noise(0, 30, net.noise_dim)
    with torch.no_grad():
        whole, _ = decoder(q, torch.from_numpy(noise).reshape(1, 60, -1))
    made = run_graphs(lambda kind: decoder_graph(decoder, net, kind), {"latent": q.numpy(), "noise": noise[None]})
    np.testing.assert_allclose(made[0], whole.reshape(30, -1).numpy(), atol=1e-3)


def combed(x: np.ndarray, hz: np.ndarray) -> np.ndarray:
    """Samples x through the comb as if all of them were below its edge and fully voiced, at these pitches at the ends of frames."""
    n = len(hz) * FRAME
    low = torch.nn.functional.pad(torch.from_numpy(x[:n]).float()[None], (postfilter.PAST, 0))
    period, voiced = postfilter.periods(postfilter.joined(None, torch.from_numpy(hz).float()[None]))
    return (low[:, postfilter.PAST - HOP : -HOP] + postfilter.comb(low, period, voiced)[0])[0].numpy()


@pytest.mark.parametrize("hz", [75.0, 140.0, 400.0])
def test_the_comb_keeps_what_repeats_and_weakens_what_does_not_beside_it(hz):
    frames, late = 40, 2 * FRAME
    n = np.arange(frames * FRAME)
    pitch = np.full(frames, hz)
    # What is coded at the end of a frame is heard HOP samples later, and the comb's output another HOP.
    sound = sum(np.cos(2 * np.pi * k * hz * n / SAMPLE_RATE_HZ) for k in range(1, 4))
    kept = combed(sound, pitch)
    np.testing.assert_allclose(kept[late + HOP :], sound[late:-HOP], atol=0.02)
    hiss = 0.3 * np.random.default_rng(4).standard_normal(len(n))
    left = combed(sound + hiss, pitch)[late + HOP :] - sound[late:-HOP]
    both = SAMPLE_RATE_HZ / hz < HOP
    assert left.std() < (0.72 if both else 0.78) * hiss.std()
    # What does not repeat at that pitch at all, as in music with a pitch that was read into it, stays as it is.
    assert np.abs(combed(hiss, pitch)[HOP:] - hiss[:-HOP]).max() < 0.05 * np.abs(hiss).max()
    unvoiced = combed(sound + hiss, np.zeros(frames))
    np.testing.assert_array_equal(unvoiced[HOP:], (sound + hiss)[:-HOP].astype(np.float32))


def test_the_comb_follows_a_glide_and_begins_softly():
    frames = 40
    hz = np.linspace(120, 180, frames * FRAME)
    sound = np.cos(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE_HZ)
    # A frame's pitch is heard from the end of the next one on; see postfilter.periods.
    ends = hz[FRAME - 1 :: FRAME]
    kept = combed(np.concatenate([np.zeros(HOP), sound]), ends)
    assert np.abs(kept[2 * FRAME :] - sound[2 * FRAME - 2 * HOP : -2 * HOP]).max() < 0.1
    onset = combed(sound, np.where(np.arange(frames) < 20, 0.0, ends))
    assert np.abs(np.diff(onset[2 * FRAME :])).max() < 1.3 * np.abs(np.diff(sound)).max()


def shaped(x: np.ndarray, voiced: float = 0.0, cuts: tuple[int, ...] = ()) -> np.ndarray:
    """Gains in dB of samples x, as if all of them were so far voiced; cut at these hops."""
    held, state, out = torch.from_numpy(x).float()[None], (None, None), []
    for a, b in pairwise((0, *cuts, len(x) // HOP - 1)):
        piece = held[:, a * HOP : (b + 1) * HOP]
        gains, *state = postfilter.onsets(piece, torch.full((1, (b - a) * HOP), voiced), *state)
        out.append(gains)
    return 20 * np.log10(torch.cat(out, 1)[0].numpy())


def test_what_comes_before_a_knock_is_lowered_and_its_beginning_lifted():
    rng, at = np.random.default_rng(3), 10 * HOP
    x = 0.003 * rng.standard_normal(20 * HOP)
    x[at : at + 2 * HOP] *= 30
    gains = shaped(x)
    assert np.allclose(gains[2 * HOP : at - HOP], 0, atol=0.01) and np.allclose(gains[at + 2 * HOP :], 0, atol=0.01)
    assert np.allclose(gains[at - HOP + postfilter.PART : at], -5, atol=0.01), "10 ms before a rise of 30 dB"
    assert gains[at] == gains[at : at + 2 * HOP].max() == pytest.approx(10, abs=0.01)
    assert (np.diff(gains[at : at + 2 * HOP]) <= 1e-5).all() and gains[at + HOP + postfilter.PART] == pytest.approx(0, abs=0.01)
    np.testing.assert_array_equal(shaped(x, cuts=(3, 9, 10, 11, 17)), gains)
    assert shaped(x, voiced=1.0).min() > -0.01, "pulses of a deep voice are steep as well"
    assert np.abs(shaped(0.1 * rng.standard_normal(20 * HOP))[2 * HOP :]).max() < 0.01, "noise goes on as it is"
    assert np.abs(shaped(1e-4 * x)).max() < 0.01, "nor what nobody hears"


def test_compute_of_a_voice_is_counted_from_the_graph():
    net, codec = VOICED.network, Codec(VOICED)
    counted = (count_macs(encoder_graph(codec.encoder, net)), count_macs(decoder_graph(codec.decoder, net, Live)))
    for graph, formula in zip(counted, macs_per_frame(net).values(), strict=True):
        # The formula leaves out the mean power of the bands.
        assert abs(graph - formula) < 0.03 * graph


@pytest.mark.usefixtures("anything_is_alike")
@pytest.mark.parametrize("net", [VOICED.network, UNCOMBED])
def test_the_gradient_graph_of_a_voice_is_the_slope_that_torch_finds(net):
    frames, codec = 12, Codec(dataclasses.replace(VOICED, network=net)).eval()
    _, codec.decoder = lively(net)
    as_shipped(codec)
    noise = decoder_noise(0, frames, net.noise_dim)
    q = latents(frames).requires_grad_(True)
    y, _ = codec.decoder(q, torch.from_numpy(noise).reshape(1, 2 * frames, -1))
    way = torch.randn_like(y)
    (y * way).sum().backward()
    run = ort.InferenceSession(gradient_graph(decoder_graph(codec.decoder, net), net).SerializeToString())
    size = next(i.shape[1] for i in run.get_inputs() if i.name == "state")
    feed = {"latent": q.detach().numpy(), "noise": noise[None], "state": np.zeros((1, size), np.float32)}
    (slope,) = run.run(None, feed | {"pcm_gradient": way.reshape(1, frames, FRAME).numpy()})
    np.testing.assert_allclose(slope, q.grad.numpy(), atol=2e-4 * float(q.grad.abs().max()))
    assert (slope[..., FREE:] == 0).all(), "a search must not move the pitch"


def test_a_search_leaves_the_pitch():
    codec, pcm = voiced_codec().requires_grad_(False), torch.from_numpy(voice(0.24))[None]
    start, found = Search(codec, 0).latents(pcm), Search(codec, 4).latents(pcm)
    assert torch.equal(found[..., FREE:], start[..., FREE:]) and not torch.equal(found[..., :FREE], start[..., :FREE])


def voiced_codec() -> Codec:
    codec = Codec(VOICED).eval()
    codec.encoder, codec.decoder = lively(VOICED.network)
    with torch.no_grad():
        z, _ = codec.encoder(torch.from_numpy(voice(4.8))[None])
    codec.quantiser.start(z[0], rounds=2)
    return codec


def test_a_model_with_a_voice_loads_as_it_was_exported_and_its_fast_graphs_read_the_same_pitch(folder, tmp_path):
    codec = voiced_codec()
    export(codec, tmp_path, "voiced")
    back = load_exported(tmp_path, VOICED).eval()
    for key, value in codec.state_dict().items():
        if not key.endswith((".count", ".total")):
            assert torch.equal(back.state_dict()[key], value), key
    pcm = torch.from_numpy(voice(0.4))[None]
    assert torch.equal(back.round_trip(pcm, 4), codec.round_trip(pcm, 4))
    int8.write(tmp_path, codec, Batches(folder, SMOKE.data, 4, 1.0, 3), 2)
    sound = np.concatenate([glide(100, 250, 0.3)[0], voice(0.3, 5)])
    feed, z = {"pcm": sound.reshape(1, 30, FRAME)}, {}
    for kind in ("", "-int8"):
        run = ort.InferenceSession(str(tmp_path / f"encoder{kind}.onnx"))
        state = np.zeros((1, next(i.shape[1] for i in run.get_inputs() if i.name == "state")), np.float32)
        z[kind], _ = run.run(None, feed | {"state": state})
    assert not np.array_equal(z[""], z["-int8"])
    np.testing.assert_array_equal(z[""][..., FREE:], z["-int8"][..., FREE:])
    assert len(np.unique(z[""][0, :, FREE:], axis=0)) > 3


def test_a_voice_starts_from_a_model_without_and_learns(folder, tmp_path):
    plain = tmp_path / "plain"
    net = dataclasses.replace(SMOKE.network, entries=VOICED.network.entries)
    old = Codec(dataclasses.replace(SMOKE, network=net)).eval()
    old.quantiser.start(torch.randn(1500, net.latent) * 10, rounds=1)
    export(old, plain, "smoke")
    codec = load_exported(plain, VOICED).eval()
    for key in ("inp", "shape_skip", "gain_skip"):
        now, before = getattr(codec.decoder, key).weight, getattr(old.decoder, key).weight
        assert torch.equal(now[:, :FREE], before) and (now[:, FREE:] == 0).all()
    for k, was in ((0, 0), (2, 1), (3, 2)):
        assert torch.equal(codec.quantiser.stages[k].codebook[:, :FREE], old.quantiser.stages[was].codebook)
        assert (codec.quantiser.stages[k].codebook[:, FREE:] == 0).all()
    assert torch.equal(codec.quantiser.stages[PITCH_STAGE].codebook[:, FREE:], pitch_book())
    with torch.no_grad():
        pcm, noise = torch.from_numpy(voice(0.4))[None], torch.rand(1, 40, net.block_noise)
        z, before = codec.encoder(pcm)[0], old.encoder(pcm)[0]
        torch.testing.assert_close(z[..., :FREE], before)
        # The second fine block does nothing yet, and pulses are not heard.
        made = codec.decoder.hidden(z, noise, torch.randn(1, 40, HOP), {})[0]
        torch.testing.assert_close(made, old.decoder.hidden(before, noise, None, {})[0])
    assert balance(codec, observe(codec, Batches(folder, SMOKE.data, 2, 0.64, 3), 3)) is not None
    codec = load_exported(plain, VOICED)
    run = Run(folder, tmp_path / "run", 5.0, model=plain, steps=3, slim=tmp_path / "slim.pt")
    trained, raw = load(train(VOICED, run), averaged=True)
    assert raw["step"] == 3
    for key in ("encoder.pitch.out", "decoder.wave", "decoder.pulse"):
        now, before = (c.get_submodule(key).weight for c in (trained, codec))
        assert not torch.equal(now, before), key
    assert bool((trained.decoder.fine[1].scale != 0).any())
    slim, _ = load(tmp_path / "slim.pt")
    torch.testing.assert_close(slim.decoder.wave.weight, trained.decoder.wave.weight, atol=1e-3, rtol=1e-2)
    assert (tmp_path / "slim.pt").stat().st_size < 0.5 * (tmp_path / "run" / "latest.pt").stat().st_size


def test_the_shipped_model_tells_a_tone_and_its_level_with_two_stages():
    folder = HERE / "undertone-24k-v2"
    codec = load_exported(folder, of_model(folder)).eval()
    t = torch.arange(24_000) / SAMPLE_RATE_HZ
    for hz, level in ((440.0, -17), (1000.0, -35), (3000.0, -23)):
        x = math.sqrt(2) * 10 ** (level / 20) * torch.sin(2 * math.pi * hz * t)[None]
        y = codec.round_trip(x, 2)[0, 4800:-4800]
        assert abs(10 * math.log10(float(y.pow(2).mean())) - level) < 0.5, hz
        spectrum = torch.fft.rfft(y * torch.hann_window(len(y))).abs().pow(2)
        near = (torch.fft.rfftfreq(len(y), 1 / SAMPLE_RATE_HZ) - hz).abs() < 15
        assert float(spectrum[near].sum() / spectrum.sum()) > 0.9, hz


def test_batches_made_in_advance_have_labels(folder):
    data = dataclasses.replace(SMOKE.data, signal_share=0.5)
    make = lambda worker: Batches(folder, data, 4, 0.32, 3 + worker, pitched=True)
    batches = ahead(make(0), make, 1)
    seen = [next(batches) for _ in range(4)]
    assert all(b.pitch.shape == (4, b.pcm.shape[1] // HOP) for b in seen)
    assert any(b.generated.any() for b in seen) and not all(b.generated.all() for b in seen)
    assert any((b.pitch > 0).any() for b in seen)
