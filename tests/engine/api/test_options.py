import json

import pytest

from engine.api import options
from engine.api.options import Options
from engine.errors import Unsupported


def configured(folder, content):
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_options_are_read_from_the_file(tmp_path):
    assert Options(tmp_path / "config.json").values == options.DEFAULTS
    content = {"sd_model_checkpoint": "a", "CLIP_stop_at_last_layers": 2, "jpeg_quality": 80}
    values = Options(configured(tmp_path, content)).values
    assert values == options.DEFAULTS | {"sd_model_checkpoint": "a", "CLIP_stop_at_last_layers": 2}


def test_vae_in_the_file_is_ignored_with_a_warning(tmp_path, caplog):
    assert Options(configured(tmp_path, {"sd_vae": "x.safetensors"})).values == options.DEFAULTS
    assert "sd_vae" in caplog.text


@pytest.mark.parametrize(
    ("content", "error"),
    [("{", ValueError), ([], TypeError), ({"CLIP_stop_at_last_layers": "2"}, TypeError)],
)
def test_invalid_file_is_an_error(tmp_path, content, error):
    with pytest.raises(error):
        Options(configured(tmp_path, content))


def test_changes_are_written_and_other_entries_kept(tmp_path):
    file = configured(tmp_path, {"jpeg_quality": 80})
    Options(file).change({"CLIP_stop_at_last_layers": 2})
    assert Options(file).values["CLIP_stop_at_last_layers"] == 2
    assert json.loads(file.read_text())["jpeg_quality"] == 80


def test_unsupported_values_are_refused_by_name():
    options.check({"sd_vae": "None", "samples_format": "png", "sd_model_checkpoint": "any"})
    options.check({"live_previews_enable": True})
    for change in ({"sd_vae": "x"}, {"samples_format": "jpg"}, {"eta_noise_seed_delta": 1}):
        with pytest.raises(Unsupported, match=next(iter(change))):
            options.check(change)
