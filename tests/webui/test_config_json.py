import json

import pytest
from fakes.recorded import recorded

from worker.job.request import OverrideSettings
from worker.webui.config_json import OVERRIDABLE, RELIED_ON, write


def test_every_setting_that_a_job_can_override_has_its_default():
    """Without the key A1111 v1.9.3 keeps one job's value for all later jobs."""
    assert set(OVERRIDABLE) == set(OverrideSettings.model_fields) - {"sd_model_checkpoint"}


@pytest.mark.parametrize("key", OVERRIDABLE)
def test_the_defaults_are_a1111s_own(key):
    assert OVERRIDABLE[key] == recorded("get_options")[key]


def test_what_is_relied_on_are_options_of_a1111():
    assert set(RELIED_ON) <= set(recorded("get_options"))


def test_a_fresh_folder_gets_a_config(tmp_path):
    write(tmp_path / "webui")

    assert json.loads((tmp_path / "webui" / "config.json").read_text()) == OVERRIDABLE | RELIED_ON


def test_the_operators_own_values_are_kept(tmp_path):
    own = {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "x", "samples_format": "jpg"}
    (tmp_path / "config.json").write_text(json.dumps(own))
    write(tmp_path)

    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["CLIP_stop_at_last_layers"], config["sd_model_checkpoint"]) == (2, "x")
    assert config["samples_format"] == "png"


@pytest.mark.parametrize("damaged", ['{"a": 1', "[]", ""])
def test_a_damaged_config_would_end_a1111_and_is_put_aside(tmp_path, damaged):
    (tmp_path / "config.json").write_text(damaged)
    write(tmp_path)

    assert "samples_format" in json.loads((tmp_path / "config.json").read_text())
    assert (tmp_path / "config.json.damaged").read_text() == damaged
