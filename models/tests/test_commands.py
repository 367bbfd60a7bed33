"""Tests of the command line: every command is there, and a model folder says itself what it needs to be worked on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import HERE, SMOKE, small_codec
from safetensors import safe_open

from undertone_recipe import config
from undertone_recipe.__main__ import main
from undertone_recipe.codec import Codec, save
from undertone_recipe.commands import COMMANDS, module_of
from undertone_recipe.commands.options import DATA_SETTING
from undertone_recipe.config import ConfigError
from undertone_recipe.export import export, model_id
from undertone_recipe.tokens.model import Shape, TokenModel
from undertone_recipe.tokens.train import codebooks_of, write


@pytest.fixture
def model(tmp_path) -> Path:
    export(small_codec(), tmp_path / "model", "smoke")
    return tmp_path / "model"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_how_it_is_used(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"undertone_recipe {name}" in said and "options:" in said


def test_every_module_of_a_command_is_listed():
    folder = HERE / "undertone_recipe" / "commands"
    modules = {module_of(name).rpartition(".")[2] for name in COMMANDS}
    assert modules == {p.stem for p in folder.glob("*.py")} - {"__init__", "options"}


def test_an_unknown_command_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["compress"])
    assert "compress" in (said := capsys.readouterr().err) and "finetune" in said


def test_recordings_are_named_by_an_option_or_by_the_one_setting(model, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(DATA_SETTING, raising=False)
    with pytest.raises(SystemExit):
        main(["int8", str(model)])
    said = capsys.readouterr().err
    assert "--data" in said
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "train").symlink_to(folder)
    monkeypatch.setenv(DATA_SETTING, str(tmp_path / "recordings"))
    main(["int8", str(model)])
    assert (model / "decoder-int8.onnx").exists()


def test_a_model_folder_carries_the_configuration_it_was_made_with(model, folder, capsys):
    assert config.of_model(model) == SMOKE
    main(["verify", str(model), "--data", str(folder)])
    assert f"model id {model_id(model)}" in capsys.readouterr().out
    (model / config.MODEL_CONFIG).unlink()
    with pytest.raises(SystemExit, match="--config"):
        main(["verify", str(model)])
    main(["verify", str(model), "--config", str(HERE / "configs" / "smoke.toml")])
    (model / config.MODEL_CONFIG).write_text(json.dumps({"network": {"depth": 3}}))
    with pytest.raises(ConfigError, match=r"network\.depth: unknown key"):
        config.of_model(model)


def test_the_shipped_model_carries_its_configuration():
    shipped = HERE / "undertone-24k-v2"
    cfg = config.of_model(shipped)
    assert f"stages = {cfg.network.stages}\n" in (shipped / "manifest.toml").read_text()
    assert f"noise_dim = {cfg.network.noise_dim}\n" in (shipped / "manifest.toml").read_text()


def test_a_checkpoint_becomes_a_model_and_a_token_model_is_written_into_it(tmp_path, capsys):
    codec: Codec = small_codec()
    save(tmp_path / "latest.pt", codec)
    main(["export", str(tmp_path / "latest.pt"), str(tmp_path / "model")])
    assert f'name = "{SMOKE.name}"' in (tmp_path / "model" / "manifest.toml").read_text()
    sizes = {"stages": SMOKE.network.stages, "entries": SMOKE.network.entries, "latent": SMOKE.network.latent}
    small = Shape(width=32, layers=1, heads=2, hidden=48, window=6, depth_hidden=16, rank=16, late_hidden=12, late_rank=8, **sizes)
    write(tmp_path / "tokens.pt", TokenModel(small, codebooks_of(codec)))
    main(["export-tokens", str(tmp_path / "tokens.pt"), str(tmp_path / "model")])
    assert "token model id" in capsys.readouterr().out
    with safe_open(tmp_path / "model" / "tokens.safetensors", "np") as f:
        assert f.metadata()["codec"] == model_id(tmp_path / "model")
