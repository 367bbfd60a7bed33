"""Tests of the recipe: generated signals only, a network small enough for seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import soundfile as sf
import torch
from conftest import HERE, SMOKE, small_codec, voice
from safetensors.numpy import load_file

from undertone_recipe import config, digests, int8
from undertone_recipe.balance import balance, dead_gains, observe
from undertone_recipe.codec import Codec, decoder_noise, load, save
from undertone_recipe.config import FRAME, ConfigError
from undertone_recipe.data import Batches
from undertone_recipe.discriminator import Discriminators, critic_loss, generator_loss
from undertone_recipe.export import export, load_exported, sha256
from undertone_recipe.finetune import finetune
from undertone_recipe.graph import count_macs, decoder_graph, encoder_graph
from undertone_recipe.losses import LoudnessLoss, SpectralLoss
from undertone_recipe.network import GAIN_RANGE, Limit, macs_per_frame, mdct
from undertone_recipe.quantiser import Stage, nearest
from undertone_recipe.search import Search
from undertone_recipe.step import clip_gradients
from undertone_recipe.train import HEADS, Run, Trainer, train
from undertone_recipe.verify import VerifyError, verify


def test_one_step_trains_and_resume_goes_on(folder, tmp_path):
    run = Run(folder, tmp_path / "run", minutes=5, steps=8)
    trainer = Trainer(SMOKE, run)
    before = {k: v.clone() for k, v in trainer.codec.state_dict().items()}
    path = trainer.loop()
    after, raw = load(path)
    assert raw["step"] == 8 and bool(after.quantiser.ready)
    changed = [k for k, v in after.state_dict().items() if not torch.equal(v, before[k])]
    assert any(k.startswith("encoder") for k in changed) and any(k.startswith("decoder") for k in changed)
    assert all(v.isfinite() for v in trainer.step.meter.values.values())
    again = train(SMOKE, replace(run, resume=path, steps=3))
    assert load(again)[1]["step"] == 11


def test_only_what_is_asked_for_is_trained(folder, tmp_path):
    path = tmp_path / "start.pt"
    save(path, small_codec())
    done = train(SMOKE, Run(folder, tmp_path / "run", minutes=5, steps=2, resume=path, only=HEADS))
    old, new = load(path)[0].state_dict(), load(done)[0].state_dict()
    changed = {k for k in old if not torch.equal(old[k], new[k])}
    assert all(k.startswith((*HEADS, "quantiser")) for k in changed), changed
    assert "decoder.shape.weight" in changed and any(k.endswith("codebook") for k in changed)
    # Going on with all parameters works from there.
    more = train(SMOKE, Run(folder, tmp_path / "more", minutes=5, steps=2, resume=done))
    assert not torch.equal(load(more)[0].encoder.inp.weight, load(done)[0].encoder.inp.weight)


@pytest.mark.parametrize("part", ["encoder", "decoder", "networks"])
def test_training_a_part_keeps_the_meaning_of_codes(part, folder, tmp_path):
    before = small_codec()
    save(tmp_path / "start.pt", before, step=9)
    run = Run(folder, tmp_path / "out", 5, resume=tmp_path / "start.pt", steps=2, part=part)
    after, _ = load(train(SMOKE, run))
    moved = {k for k, v in before.state_dict().items() if not torch.equal(v, after.state_dict()[k])}
    halves = {"encoder", "decoder"} if part == "networks" else {part}
    assert {k.split(".")[0] for k in moved} == halves, moved


def test_integer_graphs_say_nearly_what_the_float_graphs_say_and_rows_do_not_meet(folder, tmp_path):
    codec = small_codec()
    export(codec, tmp_path, "small")
    int8.write(tmp_path, codec, Batches(folder, SMOKE.data, 4, 1.0, 3), 2)
    pcm = np.stack([voice(1.0, 5), 0.1 * voice(1.0, 6)]).reshape(2, -1, FRAME)
    latents = np.empty(0)  # the encoder's, for the decoder
    for part in ("encoder", "decoder"):
        whole, fast = (ort.InferenceSession(str(tmp_path / f"{part}{kind}.onnx")) for kind in ("", "-int8"))
        assert fast.get_modelmeta().custom_metadata_map[int8.FLOAT_SHA256] == sha256(tmp_path / f"{part}.onnx")
        ports = {i.name: i.shape[-1] for i in whole.get_inputs()}
        if part == "encoder":
            feed = {"pcm": pcm}
        else:
            noise = np.tile(decoder_noise(0, pcm.shape[1], ports["noise"]), (2, 1, 1))
            feed = {"latent": latents, "noise": noise}
        feed["state"] = np.zeros((2, ports["state"]), np.float32)
        latents, got = whole.run(None, feed)[0], fast.run(None, feed)[0]
        assert np.square(got - latents).mean() < 0.02 * np.square(latents).mean()
        alone = fast.run(None, {k: v[1:, :7] if k != "state" else v[1:] for k, v in feed.items()})[0]
        np.testing.assert_array_equal(alone[0], got[1, :7])
        # A frame a call, whose histories are moved on by the caller.
        step = ort.InferenceSession(str(tmp_path / f"{part}-frame.onnx"))
        assert step.get_modelmeta().custom_metadata_map[int8.WEIGHTS_SHA256] == sha256(tmp_path / f"{part}-int8.onnx")
        parts = [i for i in step.get_inputs() if i.name.startswith("past_")]
        state = [np.zeros((2, *i.shape[1:]), np.float32) for i in parts]
        assert sum(s[0].size for s in state) == ports["state"]
        for t in range(7):
            frame = {k: v[:, t : t + 1] for k, v in feed.items() if k != "state"}
            out, *new = step.run(None, frame | {i.name: s for i, s in zip(parts, state)})
            state = [np.concatenate([s[:, n.shape[1] :], n], 1) for s, n in zip(state, new, strict=True)]
            assert np.abs(out[:, 0] - got[:, t]).max() < 0.02 * np.abs(got).max()
        assert (tmp_path / f"{part}-frame.onnx").stat().st_size < (tmp_path / f"{part}-int8.onnx").stat().st_size
    nodes = [n.op_type for n in onnx.load(tmp_path / "decoder-int8.onnx").graph.node]
    assert nodes.count("MatMulInteger") == len(int8.products(onnx.load(tmp_path / "decoder.onnx"))) > 2


def test_a_search_brings_what_is_decoded_nearer_to_the_recording():
    codec = small_codec().requires_grad_(False)
    pcm = torch.from_numpy(np.stack([voice(0.24), 0.5 * voice(0.24, 1)]))
    search = Search(codec, 15)
    start, found = Search(codec, 0).latents(pcm), search.latents(pcm)
    noise = torch.from_numpy(decoder_noise(0, 13, codec.cfg.network.noise_dim)).reshape(1, 26, -1).expand(2, -1, -1)
    last = found.new_zeros(2, 1, found.shape[-1])
    before, after = (float(search.distance(torch.cat([z, last], 1), noise, pcm)) for z in (start, found))
    assert found.shape == (2, 12, codec.cfg.network.latent) and after < 0.95 * before, (before, after)
    torch.testing.assert_close(start, codec.encoder(pcm)[0])


def test_the_gradient_graph_says_what_torch_says_with_the_weights_of_the_decoders_file(tmp_path):
    codec, frames = small_codec(), 7
    export(codec, tmp_path, "small")
    # It holds no weights of its own.
    assert (tmp_path / "gradient.onnx").stat().st_size < 0.8 * (tmp_path / "decoder.onnx").stat().st_size
    net = codec.cfg.network
    q = torch.randn(1, frames, net.latent, requires_grad=True)
    noise = torch.rand(1, 2 * frames, net.noise_dim // 2) * 2 - 1
    slope = torch.randn(1, frames * FRAME)
    # From the middle of a stream: the state before counts, and has no gradient.
    before = torch.randn(1, 5, net.latent)
    with torch.no_grad():
        _, state = codec.decoder(before, torch.zeros(1, 10, net.noise_dim // 2))
        side_by_side = lambda name, n: torch.cat([state[f"{name}{i}"] for i in range(n)], -1)
        parts = [state["tail"], side_by_side("block", net.decoder_blocks), side_by_side("fine", net.fine_blocks)]
        packed = torch.cat([p.reshape(1, -1) for p in parts], 1)
    y, _ = codec.decoder(q, noise, state)
    (y * slope).sum().backward()
    session = ort.InferenceSession(str(tmp_path / "gradient.onnx"))
    feeds = {"latent": q.detach(), "noise": noise.reshape(1, frames, -1), "state": packed, "pcm_gradient": slope.reshape(1, frames, FRAME)}
    (got,) = session.run(None, {k: v.numpy() for k, v in feeds.items()})
    worst = float(q.grad.abs().max())
    assert worst > 0 and np.abs(got - q.grad.numpy()).max() < 1e-4 * worst
    assert session.get_modelmeta().custom_metadata_map["decoder_sha256"] == sha256(tmp_path / "decoder.onnx")


def test_shapes_that_balance_made_small_move_as_slowly(folder, tmp_path):
    codec = small_codec()
    with torch.no_grad():
        codec.decoder.shape.weight *= 0.015 / float(codec.decoder.shape.weight.pow(2).mean().sqrt())
    save(tmp_path / "start.pt", codec, step=5)
    trainer = Trainer(SMOKE, Run(folder, tmp_path / "run", minutes=5, steps=1, resume=tmp_path / "start.pt"))
    shares = {id(p): g["share"] for g in trainer.step.optimiser.param_groups for p in g["params"]}
    assert shares[id(trainer.codec.decoder.shape.weight)] == pytest.approx(0.1, rel=0.01)
    assert shares[id(trainer.codec.decoder.up.weight)] == 1.0
    assert len(shares) == len(trainer.step.parameters)
    trainer.loop()
    assert trainer.step.optimiser.param_groups[0]["lr"] > 5 * min(g["lr"] for g in trainer.step.optimiser.param_groups)


def test_a_gain_out_of_range_has_a_gradient_that_leads_back():
    codec = small_codec()
    with torch.no_grad():
        codec.decoder.gain.bias[3] = GAIN_RANGE[0] - 5
    y, _ = codec.decoder(torch.randn(1, 4, SMOKE.network.latent))
    (-y.pow(2).sum()).backward()
    assert float(codec.decoder.gain.bias.grad[3]) < 0
    # Nothing pushes a gain further away, on either side; inside, all passes.
    low, high = GAIN_RANGE
    for slope, wanted in ((1.0, [0, 1, 1, 1]), (-1.0, [-1, -1, -1, 0])):
        x = torch.tensor([low - 3, low + 1, high - 1, high + 3], requires_grad=True)
        y = Limit.apply(x)
        assert y.tolist() == [low, low + 1, high - 1, high]
        (y * slope).sum().backward()
        assert x.grad.tolist() == wanted


def test_a_silent_gain_is_found_and_revived_and_the_rest_sounds_as_before(folder):
    codec = small_codec()
    skip = codec.decoder.gain_skip.bias
    with torch.no_grad():
        skip[config.BANDS + 4] = -30.0  # of the second block only
    batches = lambda: Batches(folder, SMOKE.data, 8, 0.64, 3)
    seen = observe(codec, batches(), 6)
    assert dead_gains(seen) == [(4, 1)]
    with torch.no_grad():
        z, noise = torch.randn(1, 8, SMOKE.network.latent), torch.full((1, 16, SMOKE.network.block_noise), 0.5)
        h, *_ = codec.decoder.hidden(z, noise, None, {})
        before = [v.clone() for v in codec.decoder.heads(h, z)]
        assert balance(codec, seen) == ["band 4 block 1"]
        after = codec.decoder.heads(h, z)
    made = observe(codec, batches(), 6)
    assert dead_gains(made) == []
    level = (made.shape[:, 1, 16:20].pow(2).mean(1).sqrt().log() + made.gain[:, 1, 4]).mean()
    assert abs(float(level - made.true_gain[:, 1, 4].mean())) < 2.5
    bins = torch.ones(config.SHAPED, dtype=torch.bool)
    bins[16:20] = False
    heard = [(s * torch.exp(g @ codec.decoder.bands.T[:, : config.SHAPED]))[..., bins] for s, g in (before, after)]
    torch.testing.assert_close(heard[0], heard[1], rtol=1e-3, atol=1e-6)


def test_finetune_reports_before_and_after_on_recordings_kept_apart(tmp_path):
    recordings = tmp_path / "mine"
    recordings.mkdir()
    for i in range(3):
        sf.write(recordings / f"take{i}.wav", voice(3, i), 24_000)
    model = tmp_path / "model"
    export(small_codec(), model, "smoke")
    done = finetune(SMOKE, model, recordings, tmp_path / "out", 0.05, "cpu", [4])
    assert load(done)[1]["step"] > 0
    assert [p.name for p in sorted((tmp_path / "out" / "held").iterdir())] == ["00002.wav"]
    with pytest.raises(ValueError, match="at least 2"):
        finetune(SMOKE, model, tmp_path / "out" / "held", tmp_path / "again", 0.05, "cpu", [4])


def test_verify_notices_a_changed_file_and_a_collapsed_stage(folder, tmp_path, capsys):
    codec = small_codec()
    export(codec, tmp_path / "good", "smoke")
    verify(tmp_path / "good", SMOKE, folder)
    assert "parity" in capsys.readouterr().out
    codec.quantiser.stages[2].codebook[:] = codec.quantiser.stages[2].codebook[0]
    export(codec, tmp_path / "bad", "smoke")
    with pytest.raises(VerifyError, match="stage 3 has collapsed"):
        verify(tmp_path / "bad", SMOKE, folder)
    with open(tmp_path / "good" / "decoder.onnx", "r+b") as f:
        f.seek(5000)
        f.write(b"\x01\x02")
    with pytest.raises(VerifyError, match=r"decoder\.onnx"):
        verify(tmp_path / "good", SMOKE, folder)


def test_the_digests_of_a_folder_name_every_other_file_and_notice_a_change(tmp_path):
    export(small_codec(), tmp_path, "smoke")
    before = sha256(tmp_path / "manifest.toml")
    (tmp_path / "tokens.safetensors").write_bytes(b"codes")
    assert {"gradient.onnx", "tokens.safetensors"} <= set(digests.write(tmp_path))
    assert digests.wrong(tmp_path) == [] and sha256(tmp_path / "manifest.toml") == before
    (tmp_path / "tokens.safetensors").write_bytes(b"coded")
    (tmp_path / "draft.safetensors").write_bytes(b"new")
    (tmp_path / "gradient.onnx").unlink()
    faults = " ".join(digests.wrong(tmp_path))
    assert "tokens.safetensors: its hash" in faults
    assert "draft.safetensors is not in" in faults and "gradient.onnx is missing" in faults
    with pytest.raises(VerifyError, match=r"tokens\.safetensors"):
        verify(tmp_path, SMOKE, None)


def test_the_adversarial_phase_runs(folder, tmp_path):
    cfg = replace(SMOKE, training=replace(SMOKE.training, adversarial_after_step=5))
    trainer = Trainer(cfg, Run(folder, tmp_path / "run", minutes=5, steps=7))
    trainer.loop()
    assert {"critic", "hinge", "matching"} <= trainer.step.meter.values.keys()


@pytest.mark.parametrize("pieces", [[1] * 10, [3, 7], [9, 1]])
def test_pieces_give_what_the_whole_gives(pieces):
    codec = small_codec()
    pcm = torch.from_numpy(voice(0.2))[None]
    noise = torch.from_numpy(decoder_noise(0, 20, SMOKE.network.noise_dim // 2))[None]
    with torch.no_grad():
        z, _ = codec.encoder(pcm)
        y, _ = codec.decoder(z, noise)
        at, es, ds, zs, ys = 0, None, None, [], []
        for n in pieces:
            part, es = codec.encoder(pcm[:, at * FRAME : (at + n) * FRAME], es)
            out, ds = codec.decoder(part, noise[:, 2 * at : 2 * (at + n)], ds)
            zs.append(part)
            ys.append(out)
            at += n
    torch.testing.assert_close(torch.cat(zs, 1), z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat(ys, 1), y, atol=1e-5, rtol=1e-4)


def test_analysis_and_synthesis_reconstruct_with_the_declared_delay():
    codec = small_codec()
    pcm = torch.from_numpy(voice(0.4))[None]
    d = codec.decoder
    x, _ = mdct(pcm, None, d.dct, d.window)
    y = x @ d.dct
    late, early = y[..., :120], y[..., 120:]
    tail = torch.cat([-late.flip(-1), -late], -1) * d.window.flip(0)
    head = torch.cat([early, -early.flip(-1)], -1) * d.window
    out = (head + torch.cat([torch.zeros(1, 1, 240), tail[:, :-1]], 1)).reshape(1, -1)
    late = codec.cfg.network.delay
    torch.testing.assert_close(out[:, late:], pcm[:, :-late], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Codec, Path]:
    codec, out = small_codec(), tmp_path_factory.mktemp("model")
    export(codec, out, "smoke")
    return codec, out


def sessions(out: Path) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return tuple(ort.InferenceSession(out / f"{p}.onnx", options) for p in ("encoder", "decoder"))


def zero_state(session: ort.InferenceSession, rows: int = 1) -> np.ndarray:
    return np.zeros((rows, session.get_inputs()[-1].shape[1]), np.float32)


def test_onnx_runtime_computes_what_torch_computes(exported):
    codec, out = exported
    enc, dec = sessions(out)
    g = load_file(out / "golden.safetensors")
    net = SMOKE.network
    z, _ = enc.run(None, {"pcm": g["pcm"].reshape(1, -1, FRAME), "state": zero_state(enc)})
    np.testing.assert_allclose(z[0], g["latent"], rtol=1e-3, atol=2e-4)
    q = codec.quantiser.decode(torch.from_numpy(g["codes"]).long()[None]).numpy()
    noise = decoder_noise(0, 50, net.noise_dim)[None]
    y, _ = dec.run(None, {"latent": q, "noise": noise, "state": zero_state(dec)})
    np.testing.assert_allclose(y.reshape(-1), g["decoded"], rtol=1e-3, atol=2e-4)


def test_a_stream_of_single_frames_and_a_row_of_a_batch_give_the_same(exported):
    enc, _ = sessions(exported[1])
    pcm = np.stack([voice(0.4, s).reshape(-1, FRAME) for s in (1, 2, 3)])
    whole, _ = enc.run(None, {"pcm": pcm, "state": zero_state(enc, 3)})
    state, parts = zero_state(enc), []
    for t in range(pcm.shape[1]):
        z, state = enc.run(None, {"pcm": pcm[1:2, t : t + 1], "state": state})
        parts.append(z)
    np.testing.assert_allclose(np.concatenate(parts, 1)[0], whole[1], rtol=1e-4, atol=1e-5)


def test_an_exported_model_can_be_trained_on(exported):
    codec, out = exported
    back = load_exported(out, SMOKE).eval()
    pcm = torch.from_numpy(voice(0.4))[None]
    torch.testing.assert_close(back.round_trip(pcm, 4), codec.round_trip(pcm, 4), atol=1e-5, rtol=1e-3)


def test_the_manifest_names_what_is_there(exported):
    import tomllib

    out = exported[1]
    m = tomllib.loads((out / "manifest.toml").read_text())
    for part in ("encoder", "decoder", "codebooks", "golden"):
        assert m[part]["sha256"] == sha256(out / m[part]["path"])
    assert m["delay_samples"] == 720 and m["stages"] == SMOKE.network.stages


def test_compute_is_counted_from_the_graph_and_under_the_limit():
    cfg = config.load(HERE / "configs" / "v1.toml")
    codec, expected = Codec(cfg), macs_per_frame(cfg.network)
    counted = [count_macs(f(m, cfg.network)) for f, m in ((encoder_graph, codec.encoder), (decoder_graph, codec.decoder))]
    # The formula leaves out the mean power of the bands.
    assert abs(sum(counted) - sum(expected.values())) < 0.01 * sum(counted)
    assert sum(counted) * 50 <= 200e6


def test_frames_are_searched_for_their_own_depth():
    codec = small_codec()
    with torch.no_grad():
        z, _ = codec.encoder(torch.from_numpy(voice(0.4))[None])
    depths = torch.arange(20)[None] % 4 + 1
    got = codec.quantiser.encode(z, 4, 3, depths)
    for d in range(1, 5):
        at = (depths[0] == d).nonzero()[:, 0]
        assert torch.equal(got[0, at, :d], codec.quantiser.encode(z, d, 3)[0, at])
        assert bool((got[0, at, d:] == -1).all())


def test_loud_frames_are_given_more_stages_and_the_mean_is_kept():
    codec = small_codec()
    codec.quantiser.cfg = replace(SMOKE.quantiser, graded_share=1.0)
    pcm = torch.randn(2, 40, FRAME) * torch.logspace(-2, -0.5, 40)[None, :, None]
    depth = codec.quantiser.grade(torch.tensor([2, 3]), pcm, torch.Generator().manual_seed(1))
    assert depth.min() >= 1 and depth.max() <= 4
    assert (depth[:, -10:].float().mean(1) > depth[:, :10].float().mean(1)).all()
    assert (depth.float().mean(1) - torch.tensor([2.0, 3.0])).abs().max() < 0.3
    codec.quantiser.cfg = replace(SMOKE.quantiser, graded_share=0.0)
    assert torch.equal(codec.quantiser.grade(torch.tensor([2]), pcm[:1], torch.Generator()), torch.full((1, 40), 2))


def test_dead_entries_are_revived_by_different_vectors():
    stage = Stage(64, 8)
    stage.start(torch.randn(200, 8))
    stage.count.fill_(0.0)  # all dead
    x = torch.randn(12, 8)
    before = stage.codebook.clone()
    stage.learn(x, nearest(x, stage.codebook), torch.ones(len(x), dtype=torch.bool), SMOKE.quantiser)
    fresh = [row for row in stage.codebook if any(torch.equal(row, v) for v in x)]
    assert len(fresh) == 3 and len({tuple(row.tolist()) for row in fresh}) == 3
    assert len(before) == len(stage.codebook)


def test_refitting_late_stages_brings_collapsed_ones_back():
    codec = small_codec()
    x = torch.randn(600, SMOKE.network.latent) * 5
    codec.quantiser.start(x)
    first = codec.quantiser.stages[0].codebook.clone()
    codec.quantiser.stages[3].codebook[:] = codec.quantiser.stages[3].codebook[0]
    left = codec.quantiser.start(x, first=2)
    assert torch.equal(codec.quantiser.stages[0].codebook, first)
    assert left == sorted(left, reverse=True) and left[3] < 0.9 * left[2]


def test_noise_is_splitmix64():
    n = decoder_noise(0, 2, 4)
    assert (float(n[0, 0]) + 1) * 2**23 == 0xE220A8397B1DCDAF >> 40
    assert (float(n[0, 1]) + 1) * 2**23 == 0x6E789E6AA1B965F4 >> 40
    np.testing.assert_array_equal(decoder_noise(1, 1, 4)[0], n[1])


def test_a_beam_is_no_worse_than_greedy():
    codec = small_codec()
    with torch.no_grad():
        z, _ = codec.encoder(torch.from_numpy(voice(2.4, 9))[None])
    error = {b: (z - codec.quantiser.decode(codec.quantiser.encode(z, 4, b))).pow(2).mean() for b in (1, 8)}
    assert error[8] < error[1]


def test_clipping_by_value_and_by_norm():
    def gradient(norm: float, value: float) -> tuple[float, torch.Tensor]:
        p = torch.nn.Parameter(torch.zeros(2))
        p.grad = torch.tensor([3.0, 4.0])
        return clip_gradients([p], norm, value), p.grad

    for (norm, value), wanted in {(0, 0): [3, 4], (1, 0): [0.6, 0.8], (0, 3.5): [3, 3.5], (0, 1): [1, 1]}.items():
        before, after = gradient(norm, value)
        assert before == pytest.approx(5)
        torch.testing.assert_close(after, torch.tensor(wanted, dtype=torch.float32), atol=1e-4, rtol=1e-4)
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([float("nan"), 4.0])
    clip_gradients([p], 1.0, 0.0)
    assert p.grad.tolist() == [0.0, 0.0], "a step that went wrong moves nothing"


def test_losses_are_zero_for_the_same_and_grow_with_noise():
    x = torch.from_numpy(voice(0.64))[None]
    noise = torch.randn_like(x) * 0.01
    for loss in (lambda y: sum(SpectralLoss()(y, x)), lambda y: LoudnessLoss()(y, x)):
        values = [float(loss(x + k * noise)) for k in (0, 1, 4)]
        assert values[0] < 0.1 and values[0] < values[1] < values[2]
    silent = torch.zeros(1, 15_360, requires_grad=True)
    (LoudnessLoss()(silent, torch.zeros(1, 15_360)) + sum(SpectralLoss()(silent, torch.zeros(1, 15_360)))).backward()
    assert torch.isfinite(silent.grad).all()


def test_discriminators_learn_from_both_sides():
    critic = Discriminators()
    y = torch.from_numpy(voice(0.3))[None].requires_grad_()
    real, fake = critic(torch.from_numpy(voice(0.3, 5))[None]), critic(y)
    hinge, matching = generator_loss(real, fake)
    (hinge + matching).backward()
    assert torch.isfinite(y.grad).all() and float(y.grad.abs().sum()) > 0
    assert torch.isfinite(critic_loss(real, fake))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[network]\nstagez = 3", "network.stagez"),
        ("[training]\nbatch = -1", "training.batch = -1"),
        ("[data]\nmusic_share = 1.5", "music_share = 1.5: allowed 0 to 1"),
    ],
)
def test_bad_configurations_are_named(tmp_path, text, wanted):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=wanted):
        config.load(path)
