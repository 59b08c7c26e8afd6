import json

import pytest

from engine.api import options
from engine.api.options import Options
from engine.errors import Unsupported


@pytest.fixture
def configured(tmp_path):
    """Options of a file with this content; of none without it."""

    def configured(content=None):
        file = tmp_path / "config.json"
        if content is not None:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
        return Options(file)

    return configured


def test_options_are_read_from_the_file_and_changes_written_to_it(configured):
    assert configured().values == options.DEFAULTS
    known = {"sd_model_checkpoint": "a", "CLIP_stop_at_last_layers": 2}
    found = configured(known | {"jpeg_quality": 80})
    assert found.values == options.DEFAULTS | known
    found.change({"CLIP_stop_at_last_layers": 3})
    assert configured().values["CLIP_stop_at_last_layers"] == 3
    assert json.loads(found.file.read_text())["jpeg_quality"] == 80


@pytest.mark.parametrize(
    ("content", "error"),
    [("{", ValueError), ([], TypeError), ({"CLIP_stop_at_last_layers": "2"}, TypeError)],
)
def test_invalid_file_is_an_error(configured, content, error):
    with pytest.raises(error):
        configured(content)


def test_unsupported_values_are_refused_by_name():
    options.check(
        {
            "sd_vae": "x",
            "token_merging_ratio": 0.1,
            "samples_format": "png",
            "sd_model_checkpoint": "any",
        }
    )
    options.check({"live_previews_enable": True, "sd_noise_schedule": "Zero Terminal SNR"})
    with pytest.raises(Unsupported, match="sd_noise_schedule"):
        options.check({"sd_noise_schedule": "Cosine"})
    for change in ({"emphasis": "x"}, {"samples_format": "jpg"}):
        with pytest.raises(Unsupported, match=next(iter(change))):
            options.check(change)
