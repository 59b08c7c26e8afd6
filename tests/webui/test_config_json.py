import json

import pytest
from fakes.recorded import recorded

from worker.job.request import OverrideSettings
from worker.webui.config_json import OVERRIDABLE, RELIED_ON, write


def test_every_setting_that_a_job_can_override_has_a1111s_default():
    """Without the key A1111 v1.9.3 keeps one job's value for all later jobs."""
    assert set(OVERRIDABLE) == set(OverrideSettings.model_fields) - {"sd_model_checkpoint"}
    assert OVERRIDABLE.items() <= recorded("get_options").items()
    assert set(RELIED_ON) <= set(recorded("get_options"))


def test_an_empty_folder_gets_a_config(tmp_path):
    write(tmp_path / "webui", checkpoint="x")

    config = json.loads((tmp_path / "webui" / "config.json").read_text())
    assert config == OVERRIDABLE | RELIED_ON | {"sd_model_checkpoint": "x"}


def test_the_operators_own_values_are_kept_unless_the_worker_depends_on_them(tmp_path):
    own = {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "x", "samples_format": "jpg"}
    (tmp_path / "config.json").write_text(json.dumps(own))
    write(tmp_path, checkpoint="y")

    config = json.loads((tmp_path / "config.json").read_text())
    assert {key: config[key] for key in own} == own | {"samples_format": "png"}


@pytest.mark.parametrize("damaged", ['{"a": 1', "[]", ""])
def test_a_damaged_config_is_renamed_because_a1111_would_exit(tmp_path, damaged):
    (tmp_path / "config.json").write_text(damaged)
    write(tmp_path)

    assert "samples_format" in json.loads((tmp_path / "config.json").read_text())
    assert (tmp_path / "config.json.damaged").read_text() == damaged
