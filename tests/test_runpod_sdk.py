"""The guard: our transport goes only into the SDK for which it was written."""

import asyncio
import os

import pytest

import runpod_sdk
from worker.config.settings import PROJECT


def test_the_installed_sdk_is_the_one_that_our_transport_was_written_for():
    """If this fails: read what has changed in the SDK, then write down the new fingerprints."""
    found = {name: runpod_sdk.fingerprint(name) for name in runpod_sdk.SOURCES}

    assert found == runpod_sdk.SOURCES
    assert runpod_sdk.differences() == []


def test_the_pinned_sdk_is_the_one_that_our_transport_was_written_for():
    requirements = (PROJECT / "requirements.txt").read_text()

    assert f"\nrunpod=={runpod_sdk.VERSION} " in requirements


def test_another_release_is_a_difference(monkeypatch):
    monkeypatch.setattr(runpod_sdk, "VERSION", "1.12.1")

    assert runpod_sdk.differences() == ["it is runpod 1.12.0 and not 1.12.1"]


@pytest.mark.parametrize("name", ["serverless/modules/rp_scale.py", "serverless/gone.py"])
def test_a_file_that_is_changed_or_gone_is_a_difference(monkeypatch, name):
    monkeypatch.setitem(runpod_sdk.SOURCES, name, "0123456789abcdef")

    assert runpod_sdk.differences() == [f"{name} was changed"]


@pytest.mark.parametrize("operator", ["false", None])
def test_the_sdks_own_checks_are_off_unless_the_operator_wants_them(monkeypatch, operator):
    import runpod

    started = []
    for name in runpod_sdk.OWN_CHECKS_ONLY:
        monkeypatch.setenv(name, operator or "")
        if operator is None:
            monkeypatch.delenv(name)
    monkeypatch.setattr(runpod_sdk, "VERSION", "0")  # nothing is put in
    monkeypatch.setattr(runpod.serverless, "start", started.append)
    runpod_sdk.start(len)

    assert {os.environ[name] for name in runpod_sdk.OWN_CHECKS_ONLY} == {operator or "true"}
    assert started[0]["handler"] is len
    assert started[0]["concurrency_modifier"](7) == 1


def test_away_from_runpod_progress_goes_nowhere():
    assert asyncio.run(runpod_sdk.post_progress({"id": "local"}, "half")) is False
