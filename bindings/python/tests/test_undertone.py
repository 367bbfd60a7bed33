"""The codec from Python, with the shipped model."""

from pathlib import Path

import numpy as np
import pytest
import undertone

MODEL = Path(__file__).parents[3] / "models" / "undertone-24k-v2"


@pytest.fixture(scope="module")
def model():
    return undertone.Model(MODEL)


@pytest.fixture(scope="module")
def pcm():
    t = np.arange(36_000) / 24_000
    return (0.3 * np.sin(2 * np.pi * (180 + 40 * t) * t)).astype(np.float32)


def test_what_a_model_is(model):
    assert (model.stages, model.entries, model.frame_samples) == (24, 1024, 480)
    assert model.name == "undertone-24k-v2"
    assert len(model.id) == 16


def test_a_file_has_its_rate_and_its_length(model, pcm, tmp_path):
    path = tmp_path / "tone.utn"
    undertone.write(path, pcm, model, kbps=3)
    # Of so short a file the header and the first frames count.
    assert path.stat().st_size * 8 / 1.5 < 3_400
    sound = undertone.read(path, model)
    assert sound.dtype == np.float32
    assert sound.shape == pcm.shape
    assert 0.15 < np.sqrt(np.mean(sound**2)) < 0.27


def test_pieces_give_what_the_whole_gives(model, pcm):
    whole = undertone.Encoder(model, kbps=6)
    codes = np.concatenate([whole.push(pcm), whole.finish()])
    assert codes.dtype == np.uint16
    assert codes.shape[1] == whole.stages == 12
    parts = undertone.Encoder(model, kbps=6)
    pieces = [parts.push(piece) for piece in np.array_split(pcm, 17)]
    assert np.array_equal(np.concatenate([*pieces, parts.finish()]), codes)
    one, many = undertone.Decoder(model), undertone.Decoder(model)
    sound = one.push(codes)
    assert len(sound) == len(codes) * model.frame_samples
    assert np.array_equal(np.concatenate([many.push(row[None]) for row in codes]), sound)


def test_a_stream_of_bytes_is_a_file(model, pcm):
    encoder, decoder = undertone.StreamEncoder(model, kbps=6), undertone.StreamDecoder(model)
    data = encoder.push(pcm) + encoder.finish()
    sound = [decoder.push(data[i : i + 100]) for i in range(0, len(data), 100)]
    sound = np.concatenate([*sound, decoder.finish()])
    assert np.array_equal(sound, model.decode(data))
    assert len(sound) == len(pcm)
    assert model.codes(data).shape == (76, 12)


def test_likelihoods_are_probabilities(model, pcm):
    encoder = undertone.Encoder(model, kbps=3)
    codes = encoder.push(pcm)
    likelihoods = model.log_likelihoods(codes)
    assert likelihoods.shape == codes.shape
    assert likelihoods.dtype == np.float64
    assert np.all(likelihoods < 0)
    first = [model.log_likelihoods(np.array([[code]], np.uint16))[0, 0] for code in range(1024)]
    assert abs(np.exp(first).sum() - 1) < 1e-9


def test_what_is_lost_is_made_up(model, pcm):
    encoder, decoder = undertone.Encoder(model, kbps=6), undertone.Decoder(model)
    codes = encoder.push(pcm)
    decoder.push(codes[:30])
    made_up = decoder.lose(3)
    assert len(made_up) == 3 * model.frame_samples
    assert np.sqrt(np.mean(made_up**2)) > 0.01
    assert len(decoder.push(codes[33:])) == (len(codes) - 33) * model.frame_samples


def test_errors_say_what_is_wrong(model, tmp_path):
    with pytest.raises(undertone.UndertoneError, match=r"manifest\.toml"):
        undertone.Model(tmp_path)
    with pytest.raises(undertone.UndertoneError, match=r"6\.2"):
        undertone.Encoder(model, kbps=6.2)
    with pytest.raises(undertone.UndertoneError):
        model.decode(b"no stream of codes")
    with pytest.raises(undertone.UndertoneError, match="cut"):
        model.decode(b"UTN")
    with pytest.raises(undertone.UndertoneError, match="code"):
        undertone.Decoder(model).push(np.full((1, 3), 2_000, np.uint16))
    with pytest.raises(TypeError):
        undertone.Encoder(model).push([0.0, 1.0])
