"""RunPod's volume is tried: where it cannot be written, models go to the container's disk."""

import errno
from pathlib import Path

import pytest
from fakes.hub_cache import read_only

from worker.config import preflight, store_settings
from worker.config.preflight import MachineLimits
from worker.config.settings import Settings


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Where the volume is mounted in this test; it is not there yet."""
    place = tmp_path / "volume"
    monkeypatch.setattr(store_settings, "VOLUME", place)
    monkeypatch.setattr(store_settings, "_on_container_disk", lambda: tmp_path / "disk")
    return place


def settings(**environ):
    return Settings.from_environ({"ENGINE": "external", **environ})


def findings(checked):
    found, _ = preflight.examine(checked, {}, MachineLimits(nearly_full=0))
    return [(one.fatal, one.sentence) for one in found]


def fail(number):
    def make(*_args, **_more):
        raise OSError(number, "as on a volume")

    return make


@pytest.mark.parametrize("has_folder", [False, True])
def test_a_volume_that_can_be_written_is_the_store_and_keeps_no_file_of_the_trial(
    mounted, has_folder
):
    (mounted / "models" if has_folder else mounted).mkdir(parents=True)
    checked = settings()
    assert (checked.models_dir, checked.read_only_models_dir) == (mounted / "models", None)
    assert [path.name for path in mounted.rglob("*")] == ["models"] * has_folder
    assert findings(checked) == []


@pytest.mark.parametrize("is_set", [False, True])
@pytest.mark.parametrize("models", ["", "models/annotators"])
def test_a_read_only_volume_is_searched_and_the_containers_disk_written(
    mounted, tmp_path, is_set, models
):
    (mounted / models).mkdir(parents=True)
    with read_only(mounted) as is_read_only:
        if not is_read_only:
            pytest.skip("root may not mount here")
        named = {"MODELS_DIR": str(mounted / "models")} if is_set else {}
        checked = settings(RUNPOD_VOLUME_ID="vol123", **named)
        ((is_fatal, sentence),) = findings(checked)
    assert checked.stores[:2] == [tmp_path / "disk", mounted / "models"]
    store = checked.stores[1] if models else checked.stores[0]
    assert checked.operators_folder("annotators") == store / "annotators"
    assert not is_fatal
    for part in ("cannot be written (", str(tmp_path / "disk"), "the network volume 'vol123'"):
        assert part in sentence


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda mounted, link: link.symlink_to(mounted), "as on a volume"),
        (lambda mounted, link: link.symlink_to(mounted / "models"), "as on a volume"),
        (lambda mounted, _: (mounted / "models").symlink_to("/nowhere/x"), "/nowhere does not"),
        (lambda mounted, _: (mounted / "models").symlink_to("models"), "it is no folder"),
        (lambda mounted, _: (mounted / "models").touch(), "it is no folder"),
    ],
)
def test_links_do_not_hide_that_the_volume_cannot_be_written(
    mounted, monkeypatch, tmp_path, make, reason
):
    mounted.mkdir()
    link = tmp_path / "workspace"
    make(mounted, link)
    folder = link if link.is_symlink() else mounted / "models"
    monkeypatch.setattr(store_settings.tempfile, "TemporaryFile", fail(errno.EROFS))
    checked = settings(MODELS_DIR=str(folder))
    assert checked.stores[:2] == [tmp_path / "disk", folder]
    assert reason in store_settings.why_not_writable(folder)


def test_a_volume_that_is_missing_is_a_warning(mounted, tmp_path):
    checked = settings(MODELS_DIR=str(mounted / "models"))
    assert checked.models_dir == tmp_path / "disk"
    ((is_fatal, sentence),) = findings(checked)
    assert not is_fatal
    assert f"{mounted} does not exist" in sentence
    assert "RUNPOD_VOLUME_ID is not set" in sentence


@pytest.mark.parametrize(
    ("number", "is_kept"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False), (errno.ESTALE, False)],
)
def test_a_full_volume_stays_the_store(mounted, monkeypatch, number, is_kept):
    mounted.mkdir()
    monkeypatch.setattr(store_settings.tempfile, "TemporaryFile", fail(number))
    assert (settings().models_dir == mounted / "models") is is_kept


def test_only_the_volume_is_tried_and_only_by_the_first_program(mounted, monkeypatch, tmp_path):
    mounted.mkdir()
    monkeypatch.setattr(store_settings.tempfile, "TemporaryFile", fail(errno.EROFS))
    other = str(tmp_path / "other")
    assert settings(MODELS_DIR=other).models_dir == Path(other)
    by_start_sh = settings(MODELS_DIR=str(mounted / "models"), SUPERVISOR_PID="1")
    assert by_start_sh.models_dir == mounted / "models"
