import json
import os
import time

import pytest
from fakes.model_files import write_as_before
from fakes.recorded import recorded

from worker.config import webui_config
from worker.config.webui_config import (
    OF_EXTENSIONS,
    OVERRIDABLE,
    RELIED_ON,
    own_checkpoints_limit,
    set_checkpoint,
    write,
)
from worker.job.img2img import Img2ImgOptions

EXTENSIONS = OF_EXTENSIONS | {"ad_extra_models_dir": "", "control_net_modules_path": ""}
DECIDED = {"sd_checkpoints_limit": 1, "checkpoints_limit_by_worker": True}


def written(folder, checkpoint=None, pickles=None):
    write(folder, checkpoint, pickles)
    return json.loads((folder / "config.json").read_text())


def raising(error):
    def read(*_):
        raise error

    return read


def test_every_setting_that_a_job_can_override_has_a1111s_default(tmp_path):
    """Without the key A1111 v1.9.3 keeps one job's value for all later jobs."""
    assert set(OVERRIDABLE) == set(Img2ImgOptions.model_fields) - {"sd_model_checkpoint"}
    assert OVERRIDABLE.items() <= recorded("get_options").items()
    assert set(RELIED_ON) <= set(recorded("get_options"))
    new = written(tmp_path / "webui", checkpoint="x")
    assert new == OVERRIDABLE | RELIED_ON | EXTENSIONS | DECIDED | {"sd_model_checkpoint": "x"}


@pytest.mark.parametrize(
    ("given", "own"),
    [
        (None, None),
        ("[]", None),
        ("{", None),
        ({"sd_checkpoints_limit": 3}, 3),
        (DECIDED | {"sd_checkpoints_limit": 4}, None),  # A1111 saved what the worker has set
    ],
)
def test_only_the_operators_own_limit_of_checkpoints_is_kept(tmp_path, given, own):
    if given is not None:
        text = given if isinstance(given, str) else json.dumps(given)
        (tmp_path / "config.json").write_text(text)
    assert own_checkpoints_limit(tmp_path) == own
    after = written(tmp_path)
    assert after["sd_checkpoints_limit"] == (own or 1)
    assert own_checkpoints_limit(tmp_path) == own


def test_the_operators_own_values_are_kept_unless_the_worker_depends_on_them(tmp_path):
    own = {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "x", "samples_format": "jpg"}
    (tmp_path / "config.json").write_text(json.dumps(own))
    expected = OVERRIDABLE | own | RELIED_ON | EXTENSIONS | DECIDED
    assert written(tmp_path, checkpoint="y") == expected
    assert expected["samples_format"] == "png"


def test_an_operators_folder_of_detectors_counts_only_if_the_worker_names_it(tmp_path):
    (tmp_path / "config.json").write_text('{"ad_extra_models_dir": "/pickles"}')
    assert EXTENSIONS.items() <= written(tmp_path).items()
    allowed = written(tmp_path, pickles=(tmp_path / "models").joinpath)
    assert allowed["ad_extra_models_dir"] == str(tmp_path / "models/adetailer")
    assert allowed["control_net_modules_path"] == str(tmp_path / "models/annotators")
    assert (tmp_path / "models/annotators").is_dir()  # without it ControlNet would not start
    (tmp_path / "file").touch()
    assert written(tmp_path, pickles=(tmp_path / "file").joinpath)["control_net_modules_path"] == ""


def test_only_the_default_checkpoint_is_replaced_before_a_later_start(tmp_path):
    before = written(tmp_path, checkpoint="aaa-odd")
    set_checkpoint(tmp_path, "good")
    after = json.loads((tmp_path / "config.json").read_text())
    assert after == before | {"sd_model_checkpoint": "good"}


def test_the_checkpoint_is_read_again_after_a_change_that_keeps_size_and_time(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(webui_config, "_SETTLED", -1)
    path = tmp_path / "config.json"
    write_as_before(path, json.dumps({"sd_model_checkpoint": "a"}))
    with monkeypatch.context() as patch:
        patch.setattr(webui_config, "read_small", raising(OSError("too many open files")))
        assert webui_config.checkpoint(tmp_path) is None
    for name in ("a", "b"):  # a failed read is not remembered, either
        write_as_before(path, json.dumps({"sd_model_checkpoint": name}))
        assert webui_config.checkpoint(tmp_path) == name


def test_the_checkpoint_is_read_again_when_the_config_has_changed(tmp_path):
    path, now = tmp_path / "config.json", int(time.time())
    # The last two could be written within one tick of the file system's clock.
    for name, at in [("a", now - 60), ("b", now - 30), ("c", now), ("d", now)]:
        path.write_text(json.dumps({"sd_model_checkpoint": name}))
        os.utime(path, (at, at))
        assert [webui_config.checkpoint(tmp_path) for _ in range(2)] == [name, name]


def test_what_a_killed_start_was_writing_is_removed(tmp_path):
    (tmp_path / ".config.json.0a1b.new").write_text('{"a":')
    written(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("damaged", ['{"a": 1', "[]", ""])
def test_a_damaged_config_is_renamed_because_a1111_would_exit(tmp_path, damaged):
    (tmp_path / "config.json").write_text(damaged)
    assert "samples_format" in written(tmp_path)
    assert (tmp_path / "config.json.damaged").read_text() == damaged


def test_a_pipe_in_the_place_of_the_config_blocks_no_start(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    set_checkpoint(tmp_path, "good")
    assert written(tmp_path)["sd_model_checkpoint"] == "good"
    assert (tmp_path / "config.json.damaged").is_fifo()
