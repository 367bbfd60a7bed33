"""Tests of the token model's recipe: the integer model is what was trained, and it is exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors import safe_open

from undertone_recipe.tokens.export import export
from undertone_recipe.tokens.integer import Reference, from_float
from undertone_recipe.tokens.model import Shape, TokenModel
from undertone_recipe.tokens.transfer import moved, start_from

SMALL = Shape(
    width=32, layers=2, heads=2, hidden=48, window=6, depth_hidden=16, rank=16, late=3, late_hidden=12, late_rank=8, stages=4, entries=64, latent=16
)


@pytest.fixture(scope="module")
def books() -> torch.Tensor:
    return torch.randn(4, 64, 16, generator=torch.Generator().manual_seed(1)) * 10


@pytest.fixture(scope="module")
def model(books) -> TokenModel:
    torch.manual_seed(3)
    made = TokenModel(SMALL, books)
    with torch.no_grad():
        made.start.normal_()
        made.count.normal_(std=0.3)
    return made.eval()


def codes(frames: int, stages: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 64, (frames, stages))


@torch.no_grad()
def test_frames_see_only_the_past_and_only_the_window(model):
    a = codes(16, 3)
    b = a.copy()
    b[10, 1] = (b[10, 1] + 1) % 64
    ya, yb = (model(torch.from_numpy(v)[None]) for v in (a, b))
    for k in range(3):
        assert torch.equal(ya[k][0, :10], yb[k][0, :10])
    # Within a frame a stage sees the stages before it.
    assert torch.equal(ya[1][0, 10], yb[1][0, 10]) and not torch.equal(ya[2][0, 10], yb[2][0, 10])
    assert not torch.equal(ya[0][0, 11], yb[0][0, 11])


@torch.no_grad()
def test_losses_of_graded_frames_are_those_of_the_codes_they_have(model):
    full = torch.from_numpy(codes(10, 4))[None]
    logits = model(full)
    for k, loss in enumerate(model.losses(full)):
        assert float(loss) == pytest.approx(float(torch.nn.functional.cross_entropy(logits[k][0], full[0, :, k], reduction="sum")), rel=1e-4)
    # A frame that lacks stages costs only what it has, and what comes after it depends on how many it had.
    graded = full.clone()
    graded[0, 9, 2:] = -1
    before, after = (torch.stack(model.losses(c)) for c in (full, graded))
    assert torch.equal(before[:2], after[:2]) and bool((after[2:] < before[2:]).all())
    graded[0, 4, 3] = -1
    assert not torch.equal(torch.stack(model.losses(graded))[0], after[0])


def test_the_integer_model_is_the_trained_one(model, books):
    reference = Reference(from_float({k: v.detach().numpy() for k, v in model.state_dict().items()}, SMALL), SMALL, books.numpy())
    c = codes(12, 4)
    ranges = reference.run(c)
    with torch.no_grad():
        logits = model(torch.from_numpy(c)[None])
    for t in range(12):
        for k in range(4):
            expected = torch.log_softmax(logits[k][0, t].float(), -1)[c[t, k]] / np.log(2)
            assert abs(np.log2(ranges[t, k, 1] / 2**20) - float(expected)) < 0.06


def test_frequencies_always_sum_to_the_total(model, books):
    reference = Reference(from_float({k: v.detach().numpy() for k, v in model.state_dict().items()}, SMALL), SMALL, books.numpy())
    rng = np.random.default_rng(2)
    for scale in (0, 10, 1000, 100_000):
        f = reference.frequencies(rng.integers(-scale, scale + 1, 64))
        assert f.sum() == 2**20 and f.min() >= 1


def test_a_model_starts_from_an_exported_one_also_of_moved_codebooks(model, books, tmp_path):
    class Codec:
        def __init__(self, books):
            self.quantiser = type("Q", (), {"stages": [type("S", (), {"codebook": b}) for b in books]})

    export(model, Codec(books), "0123456789abcdef", codes(12, 4), tmp_path / "tokens.safetensors")
    same = start_from(SMALL, Codec(books), tmp_path / "tokens.safetensors", books)
    c = torch.from_numpy(codes(10, 4))[None]
    for a, b in zip(same(c), model(c), strict=True):
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)
    # Entries in another order: after the move the same vectors get the same logits as far as these are linear in them.
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    table = books[0] @ torch.randn(16, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(moved(table, books[0], books[0][order]), table[order], atol=1e-2, rtol=1e-3)
    # A codec with a voice: the same stages around that of the pitch, in latents whose last dimensions are the pitch.
    wide = torch.nn.functional.pad(books, (0, 8))
    pitch = torch.zeros(64, 24)
    pitch[:, 16:] = torch.randn(64, 8) * 20
    voiced = Codec(torch.stack([wide[0], pitch, wide[1], wide[2]]))
    grown = start_from(dataclasses.replace(SMALL, latent=24), voiced, tmp_path / "tokens.safetensors", books)
    assert torch.equal(grown.depth[2].up.weight[:, :48], same.depth[1].up.weight) and (grown.depth[2].up.weight[:, 48:] == 0).all()
    assert torch.equal(grown.depth[2].table.weight, same.depth[1].table.weight)
    assert torch.equal(grown.inp.weight.reshape(32, 3, 24)[:, :, :16].reshape(32, -1), same.inp.weight)
    more = dataclasses.replace(SMALL, width=48)
    with pytest.raises(ValueError, match="wanted"):
        start_from(more, Codec(books), tmp_path / "tokens.safetensors", books)


def test_the_exported_file_names_its_codec_and_carries_a_golden_example(model, books, tmp_path):
    class Stage:
        def __init__(self, book):
            self.codebook = book

    class Fake:
        class quantiser:
            stages = tuple(Stage(b) for b in books)

    made = export(model, Fake, "0123456789abcdef", codes(12, 4), tmp_path / "tokens.safetensors")
    assert len(made) == 16
    with safe_open(tmp_path / "tokens.safetensors", "np") as f:
        assert f.metadata()["codec"] == "0123456789abcdef"
        assert f.get_tensor("golden.frequencies").shape == (12, 4, 2)
        assert f.get_tensor("layers.0.qkv.weight").dtype == np.int8
