import json

import pytest

from engine.api import options
from engine.api.options import Options
from engine.errors import Unsupported


def configured(folder, content):
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_defaults_without_a_file(tmp_path):
    assert Options(tmp_path / "config.json").values == options.DEFAULTS


def test_the_file_is_honoured(tmp_path):
    content = {"sd_model_checkpoint": "a", "CLIP_stop_at_last_layers": 2, "jpeg_quality": 80}
    values = Options(configured(tmp_path, content)).values
    assert values == options.DEFAULTS | {"sd_model_checkpoint": "a", "CLIP_stop_at_last_layers": 2}


def test_a_vae_in_the_file_is_not_pretended(tmp_path, caplog):
    assert Options(configured(tmp_path, {"sd_vae": "x.safetensors"})).values == options.DEFAULTS
    assert "sd_vae" in caplog.text


@pytest.mark.parametrize(
    ("content", "error"),
    [("{", ValueError), ([], TypeError), ({"CLIP_stop_at_last_layers": "2"}, TypeError)],
)
def test_a_senseless_file_is_an_error(tmp_path, content, error):
    with pytest.raises(error):
        Options(configured(tmp_path, content))


def test_a_change_is_written_and_keeps_the_rest(tmp_path):
    file = configured(tmp_path, {"jpeg_quality": 80})
    Options(file).change({"CLIP_stop_at_last_layers": 2})
    assert Options(file).values["CLIP_stop_at_last_layers"] == 2
    assert json.loads(file.read_text())["jpeg_quality"] == 80


@pytest.mark.parametrize(
    "change",
    [
        {"sd_vae": "None"},
        {"samples_format": "png"},
        {"sd_model_checkpoint": "any"},
        {"live_previews_enable": True},
    ],
)
def test_what_the_engine_does_is_accepted(change):
    options.check(change)


@pytest.mark.parametrize(
    "change", [{"sd_vae": "x"}, {"samples_format": "jpg"}, {"eta_noise_seed_delta": 1}]
)
def test_what_it_does_not_is_refused_by_name(change):
    with pytest.raises(Unsupported, match=next(iter(change))):
        options.check(change)
