"""The guard: our transport replaces only the SDK's release for which it was written."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace

import pytest

import runpod_sdk
from runpod_sdk import SUPPORTED, differences
from worker.config.settings import PROJECT


def test_the_installed_and_pinned_sdk_is_the_supported_one():
    """If this fails: read what has changed in the SDK, then write down the new fingerprints."""
    found = {name: runpod_sdk.fingerprint(name) for name in SUPPORTED.sources}
    assert found == SUPPORTED.sources
    assert differences() == []
    assert f"\nrunpod=={SUPPORTED.version} " in (PROJECT / "requirements.txt").read_text()


OTHER = "0123456789abcdef"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"version": "1.12.1"}, "it is runpod 1.12.0 and not 1.12.1"),
        ({"sources": {"serverless/modules/rp_scale.py": OTHER}}, "rp_scale.py was changed"),
        ({"sources": {"serverless/gone.py": OTHER}}, "serverless/gone.py was changed"),
    ],
)
def test_every_difference_is_named(change, difference):
    (found,) = differences(replace(SUPPORTED, **change))
    assert found.endswith(difference)


@pytest.mark.parametrize("operator", ["false", None])
def test_the_sdks_own_checks_are_off_unless_the_operator_wants_them(monkeypatch, operator):
    import runpod

    started = []
    for name in runpod_sdk.OWN_CHECKS_ONLY:
        monkeypatch.setenv(name, operator or "")
        if operator is None:
            monkeypatch.delenv(name)
    monkeypatch.setattr(runpod.serverless, "start", started.append)
    runpod_sdk.start(len, release=replace(SUPPORTED, version="0"))  # the plain SDK

    assert {os.environ[name] for name in runpod_sdk.OWN_CHECKS_ONLY} == {operator or "true"}
    assert started[0]["handler"] is len
    assert started[0]["concurrency_modifier"](7) == 1


def test_outside_runpod_progress_is_not_sent():
    assert asyncio.run(runpod_sdk.post_progress({"id": "local"}, "half")) is False


def test_the_sdk_is_imported_without_what_a_worker_does_not_use():
    program = (
        "import sys, runpod_sdk; sdk = runpod_sdk.import_sdk();"
        "from runpod.serverless.utils import rp_debugger;"
        "left = [name for name in runpod_sdk.UNUSED if name in sys.modules];"
        "import paramiko; print(left, sdk.__name__, bool(paramiko.SSHClient))"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False)

    assert run.stdout.decode().split("\n")[0] == "[] runpod True", run.stderr.decode()
