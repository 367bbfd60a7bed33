"""The voice source: pitch labels, pulses with a running phase, what is read from decoded sound, generated sounds, losses that hear it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnxruntime as ort
import pytest
import torch
from conftest import SMOKE, small_codec

from undertone_recipe import signals
from undertone_recipe.codec import Codec, decoder_noise, load
from undertone_recipe.config import FRAME, HOP, PITCHES, SAMPLE_RATE_HZ
from undertone_recipe.data import Batches, ahead
from undertone_recipe.excitation import STEP, TOP_HZ, nearest_pitch, pulses, read_pitch
from undertone_recipe.export import as_shipped, export, load_exported
from undertone_recipe.gradient import gradient_graph
from undertone_recipe.graph import Graph, decoder_graph
from undertone_recipe.live import Frame, Live
from undertone_recipe.losses import Periodicity, SpectralLoss
from undertone_recipe.network import VOICING_HZ, Decoder, PitchReader, dct4_matrix, group_matrix, mdct, sine_window, smoothing_matrix
from undertone_recipe.pitch import track
from undertone_recipe.train import Run, train

VOICED = dataclasses.replace(SMOKE, network=dataclasses.replace(SMOKE.network, voice=True))


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


def test_pulses_are_the_sum_of_all_harmonics_from_a_running_phase():
    hz = torch.full((1, 4), 187.5)
    got, end = pulses(hz)
    n = torch.arange(1, 4 * FRAME + 1, dtype=torch.float64)
    want = sum(torch.cos(2 * math.pi * k * 187.5 * n / SAMPLE_RATE_HZ) for k in range(1, int(TOP_HZ / 187.5) + 1))
    want = want * math.sqrt(187.5 / 6000)
    torch.testing.assert_close(got[0].double(), want, atol=2e-3, rtol=0)
    assert end[0].tolist() == [187.5, 4 * FRAME * 187.5 / SAMPLE_RATE_HZ % 1]
    bins, _ = mdct(got, None, dct4_matrix(), sine_window())
    assert 0.8 < float(bins[:, 2:, 20:150].pow(2).mean()) < 1.25


def test_pulses_cut_into_pieces_are_those_of_the_whole():
    torch.manual_seed(2)
    hz = 200 * torch.exp(0.3 * torch.randn(2, 60))
    whole, end = pulses(hz)
    parts, last = [], None
    for piece in hz.split((1, 7, 25, 27), 1):
        part, last = pulses(piece, last)
        parts.append(part)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(last, end)


def test_the_phase_goes_on_where_a_pitch_follows_another_and_starts_nowhere_else():
    even, _ = pulses(torch.full((1, 8), 120.0))
    # A jump of pitch is no glide: the frame after it has its own pitch from its first sample.
    jump, _ = pulses(torch.cat([torch.full((1, 4), 120.0), torch.full((1, 4), 300.0)], 1))
    assert torch.equal(jump[:, : 4 * FRAME], even[:, : 4 * FRAME])
    period = SAMPLE_RATE_HZ // 300
    after = jump[0, 4 * FRAME + 2 : 8 * FRAME]
    torch.testing.assert_close(after[period:], after[:-period], atol=2e-2, rtol=0)


def test_a_pitch_between_two_of_the_grid_is_read_between_them():
    logits = torch.full((1, 1, PITCHES), -8.0)
    logits[..., 40], logits[..., 41] = 3.0, 3.0
    hz = read_pitch(logits)
    grid = lambda i: 60 * math.exp(i * STEP)
    assert grid(40.3) < float(hz) < grid(40.7)
    logits[..., 90] = 2.9  # far from the likeliest: has no say
    assert torch.equal(read_pitch(logits), hz)
    assert nearest_pitch(torch.tensor([30.0, 60.0, grid(40.2), 900.0])).tolist() == [0, 0, 40, PITCHES - 1]


def test_the_pitch_reader_sees_the_period_of_what_was_decoded():
    x, _ = glide(150, 150.01, 1.0)
    bins, _ = mdct(torch.from_numpy(x)[None], None, dct4_matrix(), sine_window())
    reader = PitchReader(SMOKE.network)
    seen = reader.correlations(bins[..., :20], {}, {})[0, 20:]
    assert seen.abs().max() <= 1.001
    best = 12 + seen[:, :89].argmax(-1)  # lags of the window of 30 ms at 6 kHz
    assert set(best.tolist()) <= {40, 80}, "150 Hz is a period of 40 samples"
    assert float(seen[:, 40 - 12].min()) > 0.95


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
        near = sum(spectrum[:, hz - 30 : hz + 30].sum(1) for hz in group)
        assert (near > 0.15 * spectrum.sum(1)).all()


def lively(network) -> Decoder:
    """A decoder whose heads decide something."""
    torch.manual_seed(5)
    decoder = Decoder(network).eval()
    with torch.no_grad():
        decoder.pitch.out.weight.normal_(0, 1)
        decoder.wave.weight.normal_(0, 0.3)
        decoder.voicing.weight.normal_(0, 0.3)
    return decoder


def test_a_voice_cut_into_pieces_is_that_of_the_whole_in_torch_and_in_all_graphs():
    net, frames = VOICED.network, 30
    decoder, q, noise = lively(net), torch.randn(1, frames, net.latent), decoder_noise(0, frames, net.noise_dim)
    with torch.no_grad():
        whole, _ = decoder(q, torch.from_numpy(noise).reshape(1, 2 * frames, -1))
        parts, state = [], None
        for a, b in ((0, 1), (1, 9), (9, frames)):
            part, state = decoder(q[:, a:b], torch.from_numpy(noise[a:b]).reshape(1, 2 * (b - a), -1), state)
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
    for kind, pieces in ((Graph, ((0, 1), (1, 9), (9, frames))), (Live, ((0, 12), (12, frames)))):
        run = ort.InferenceSession(decoder_graph(decoder, net, kind).SerializeToString())
        size = next(i.shape[1] for i in run.get_inputs() if i.name == "state")
        state, made = np.zeros((1, size), np.float32), []
        for a, b in pieces:
            out, state = run.run(None, {"latent": q[:, a:b].numpy(), "noise": noise[None, a:b], "state": state})
            made.append(out.reshape(1, -1))
        np.testing.assert_allclose(np.concatenate(made, 1), whole.numpy(), atol=1e-3)
    run = ort.InferenceSession(decoder_graph(decoder, net, Frame).SerializeToString())
    past = {i.name: np.zeros((1, *i.shape[1:]), np.float32) for i in run.get_inputs() if i.name.startswith("past")}
    made = []
    for t in range(frames):
        out, *new = run.run(None, {"latent": q[:, t : t + 1].numpy(), "noise": noise[None, t : t + 1], **past})
        made.append(out.reshape(1, -1))
        past = {k: np.concatenate([v[:, n.shape[1] :], n], 1) for (k, v), n in zip(past.items(), new, strict=True)}
    np.testing.assert_allclose(np.concatenate(made, 1), whole.numpy(), atol=1e-3)


def test_the_gradient_graph_of_a_voice_is_the_slope_that_torch_finds():
    net, frames = VOICED.network, 8
    codec = Codec(VOICED).eval()
    codec.decoder = lively(net)
    as_shipped(codec)
    noise = decoder_noise(0, frames, net.noise_dim)
    q = torch.randn(1, frames, net.latent, requires_grad=True)
    y, _ = codec.decoder(q, torch.from_numpy(noise).reshape(1, 2 * frames, -1))
    way = torch.randn_like(y)
    (y * way).sum().backward()
    run = ort.InferenceSession(gradient_graph(decoder_graph(codec.decoder, net), net).SerializeToString())
    size = next(i.shape[1] for i in run.get_inputs() if i.name == "state")
    feed = {"latent": q.detach().numpy(), "noise": noise[None], "state": np.zeros((1, size), np.float32)}
    (slope,) = run.run(None, feed | {"pcm_gradient": way.reshape(1, frames, FRAME).numpy()})
    np.testing.assert_allclose(slope, q.grad.numpy(), atol=2e-4 * float(q.grad.abs().max()))


def test_a_decoder_with_a_voice_starts_from_a_model_without_and_learns(folder, tmp_path):
    plain = tmp_path / "plain"
    export(small_codec(), plain, "smoke")
    codec = load_exported(plain, VOICED)
    assert torch.equal(codec.decoder.shape.weight, load_exported(plain, SMOKE).decoder.shape.weight)
    run = Run(folder, tmp_path / "run", 5.0, model=plain, steps=3, part="decoder", slim=tmp_path / "slim.pt")
    trained, raw = load(train(VOICED, run), averaged=True)
    assert raw["step"] == 3
    assert not torch.equal(trained.decoder.wave.weight, codec.decoder.wave.weight)
    slim, _ = load(tmp_path / "slim.pt")
    torch.testing.assert_close(slim.decoder.wave.weight, trained.decoder.wave.weight, atol=1e-3, rtol=1e-2)
    assert (tmp_path / "slim.pt").stat().st_size < 0.5 * (tmp_path / "run" / "latest.pt").stat().st_size


def test_batches_made_in_advance_have_labels(folder):
    data = dataclasses.replace(SMOKE.data, signal_share=0.5)
    make = lambda worker: Batches(folder, data, 4, 0.32, 3 + worker, pitched=True)
    batches = ahead(make(0), make, 1)
    seen = [next(batches) for _ in range(4)]
    assert all(b.pitch.shape == (4, b.pcm.shape[1] // HOP) for b in seen)
    assert any(b.generated.any() for b in seen) and not all(b.generated.all() for b in seen)
    assert any((b.pitch > 0).any() for b in seen)
