"""The problems of a machine that start.sh logs before it starts anything; GPUs: test_gpu.py."""

import errno
import os
import re
import socket
import subprocess
import sys
from contextlib import closing

import pytest
from fakes.a1111.process import free_port
from fakes.gpu import RTX_4090, write_nvidia_smi, write_webui_python

from worker.config import preflight
from worker.config.preflight import MachineLimits
from worker.config.settings import PROJECT, Settings

RTX_5090 = "NVIDIA GeForce RTX 5090, 12.0, 550.54.15, 32607, 32000"  # its driver is too old


def assert_one(found, *parts, fatal=True):
    ((is_fatal, sentence),) = found
    assert is_fatal is fatal
    assert [part for part in parts if part not in sentence] == []


# The machine --------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine that is fit for A1111: its environment."""
    write_nvidia_smi(tmp_path / "bin", RTX_4090)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return {
        "ENGINE": "a1111",
        "WEBUI_URL": f"http://127.0.0.1:{free_port()}",
        "WEBUI_DIR": str(tmp_path / "webui"),
        "WEBUI_PYTHON": str(write_webui_python(tmp_path / "a1111")),
        "MODELS_DIR": str(tmp_path / "models"),
        "BAKED_MODELS_DIR": str(tmp_path / "baked"),
    }


def findings(environ, **limits):
    settings = Settings.from_environ(environ)
    limits = {"nearly_full": 0} | limits  # this machine's disk may be
    found, _ = preflight.examine(settings, {}, MachineLimits(**limits))
    return [(one.fatal, one.sentence) for one in found]


def test_an_external_engine_needs_neither_a_gpu_nor_a_port(machine, tmp_path):
    """tests/config/test_gpu.py has what the other engines need."""
    write_nvidia_smi(tmp_path / "bin", "No devices were found", status=6)
    assert len(findings(machine)) == 1
    assert findings(machine | {"ENGINE": "external"}) == []


def test_a_used_port_is_fatal_also_for_ipv6(machine):
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as server:
        port = server.getsockname()[1]
        found = findings(machine | {"WEBUI_URL": f"http://[::1]:{port}"})
    assert_one(found, f"port {port} of ::1")


def test_a_volume_that_is_gone_is_fatal_and_a_full_one_a_warning(machine, monkeypatch):
    def fail(_path):
        raise OSError(errno.ESTALE, "Stale file handle")

    assert_one(findings(machine, nearly_full=1 << 60), "GB of disk left", fatal=False)
    monkeypatch.setattr(preflight.shutil, "disk_usage", fail)
    assert_one(findings(machine), "cannot be read (Stale file handle): mount its volume again")


@pytest.mark.parametrize("has_models", [True, False])
def test_a_read_only_store_is_fatal_without_models(machine, tmp_path, monkeypatch, has_models):
    monkeypatch.setattr(preflight.os, "access", lambda *_: False)  # root may write everywhere
    if has_models:
        (tmp_path / "baked" / "Stable-diffusion").mkdir(parents=True)
        (tmp_path / "baked" / "Stable-diffusion" / "fox.safetensors").touch()
    message = f"MODELS_DIR={tmp_path / 'models'} cannot be written by user"
    assert_one(findings(machine | {"DEVICE": "cpu"}), message, fatal=not has_models)


# As start.sh runs it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "gpu", "status", "output", "error"),
    [
        ({"ENGINE": "comfy"}, RTX_4090, 78, "", "BAD_CONFIGURATION: ENGINE='comfy'"),
        ({"HF_TOKEN": "secret"}, RTX_5090, 71, "", "RTX 5090"),
        ({}, RTX_4090, 0, "ENGINE=a1111\n", ""),
        ({"DEVICE": "CPU"}, RTX_5090, 0, "ENGINE_DEVICE=cpu\n", ""),
    ],
)
def test_the_program(machine, tmp_path, environ, gpu, status, output, error):
    write_nvidia_smi(tmp_path / "bin", gpu)
    (tmp_path / "webui").mkdir()
    (tmp_path / "webui/webui.py").touch()
    program = [sys.executable, "-m", "worker.config.preflight"]
    environ = {"PATH": os.environ["PATH"], **machine, **environ}
    done = subprocess.run(
        program, cwd=PROJECT, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, bool(done.stdout)) == (status, not status)
    assert output in done.stdout
    assert error in done.stderr
    lines = done.stderr.splitlines()
    assert ("worker 0.1.0; engine a1111" in lines[0]) == (status != 78)
    # This machine's own disk may be nearly full.
    problems = [line for line in lines if not re.search("INFO|GB of disk left", line)]
    assert len(problems) == (status != 0)
