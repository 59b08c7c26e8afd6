"""The problems of a machine that start.sh logs before it starts anything."""

import errno
import os
import socket
import subprocess
import sys
from contextlib import closing

import pytest
from fakes.a1111.process import free_port
from fakes.gpu import CUDA_121, RTX_4090, write_nvidia_smi, write_program, write_webui_python

from worker.config import preflight
from worker.config.preflight import Gpu, MachineLimits, gpu_findings
from worker.config.settings import PROJECT, Settings

OLD_DRIVER = "Tesla T4, 7.5, 470.182.03, 15360, 15000"
RTX_5090 = "NVIDIA GeForce RTX 5090, 12.0, 580.95.05, 32607, 32000"
KEPLER = "Tesla K80, 3.7, 525.60.13, 11441, 11000"
TINY = "NVIDIA GeForce GTX 1050, 6.1, 550.54.15, 2048, 2000"
BUSY = "NVIDIA A100-SXM4-80GB, 8.0, 550.54.15, 81920, 900"
PTX = {"cuda": "12.1", "architectures": ["sm_80", "compute_90"]}


def about(*lines, torch=CUDA_121, flags=()):
    """(fatal, the sentence) for each finding about these GPUs."""
    found = gpu_findings([Gpu.read(line) for line in lines], torch, flags)
    return [(one.fatal, one.sentence) for one in found]


def assert_one(found, *parts, fatal=True):
    ((is_fatal, sentence),) = found
    assert is_fatal is fatal
    assert [part for part in parts if part not in sentence] == []


OLDER_THAN_PTX = about(OLD_DRIVER.replace("470", "570"), torch=PTX)
TOO_SMALL = "has 2048 MiB of memory, and A1111 needs 3500 MiB: use a larger GPU"


@pytest.mark.parametrize(
    ("found", "is_fatal", "part"),
    [
        (about(OLD_DRIVER), True, "470.182.03 is too old for CUDA 12.1: install 525.60.13 or"),
        (about(RTX_5090), True, "RTX 5090 (compute capability 12.0) is not among"),
        (about(RTX_5090), True, "`embedded` image"),
        (about(KEPLER), True, "Tesla K80 (compute capability 3.7) is not among"),
        (about(KEPLER, TINY), True, "Tesla K80"),  # none is good
        *((about(TINY), True, TOO_SMALL), (OLDER_THAN_PTX, True, "7.5")),
        (about(BUSY), False, "Only 900 of 81920 MiB of NVIDIA A100-SXM4-80GB are free"),
    ],
)
def test_a_gpu_that_cannot_work_is_fatal_and_a_busy_one_is_not(found, is_fatal, part):
    assert_one(found, part, fatal=is_fatal)


@pytest.mark.parametrize(
    "found",
    [
        about(RTX_4090),  # 8.9 runs what was built for 8.6
        about("NVIDIA H100 80GB HBM3, 9.0, 550.54.15, 81559, 81000"),
        about("Tesla T4, 7.5, 525.60.13, 15360, 15000"),  # the oldest driver
        about("NVIDIA L4, 8.9, 580.65.06, 23034, 22500"),  # CUDA 13's driver runs CUDA 12
        about("GRID A100X, 8.0, 550.54.15, [N/A], [Insufficient Permissions]"),
        *(
            about(f"Some GPU, {figures}, 24564, 24217")
            for figures in ("[N/A], 550.5", "8.9, [N/A]")
        ),
        about("NVIDIA A100, SXM4, 8.0, 550.54.15, 81920, 81000"),  # a comma in the name
        *(about(TINY, flags=[flag]) for flag in ("--lowvram", "--medvram")),
        about(KEPLER, RTX_4090),  # one good GPU is enough
        about(RTX_5090, torch=PTX),  # PTX runs on newer GPUs
    ],
)
def test_a_good_gpu_is_not_mentioned(found):
    assert found == []


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
    found = preflight.examine(settings, MachineLimits(**limits))
    return [(one.fatal, one.sentence) for one in found]


def test_without_the_driver_there_is_no_gpu_which_only_a1111_needs(machine, tmp_path, monkeypatch):
    assert findings(machine) == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert_one(findings(machine), "There is no NVIDIA GPU here", "--gpus all")
    assert findings(machine | {"ENGINE": "embedded"}) == []
    assert findings(machine | {"ENGINE": "external"}) == []


def test_a_driver_that_hangs_or_is_too_old_is_fatal_and_its_warnings_are_ignored(machine, tmp_path):
    write_program(tmp_path / "bin" / "nvidia-smi", "exec sleep 60")
    assert_one(findings(machine, answer=0.2), "timed out")
    message = 'Field "compute_cap" is not a valid field to query.'
    write_nvidia_smi(tmp_path / "bin", message, status=2)
    assert_one(findings(machine), message)
    for gpus in ([], [RTX_4090]):  # without a GPU nothing is certain
        write_nvidia_smi(tmp_path / "bin", "WARNING: infoROM is corrupted at gpu 0", *gpus)
        assert findings(machine) == []


def test_a_torch_for_the_cpu_is_fatal_and_without_the_images_file_torch_itself_is_asked(
    machine, tmp_path
):
    """A small module in the place of torch, whose import takes seconds."""
    write_webui_python(tmp_path / "a1111", {"cuda": None, "architectures": []})
    assert_one(findings(machine), "was built for the CPU")
    (tmp_path / "a1111" / "torch_build.json").unlink()
    (tmp_path / "torch.py").write_text(
        "class version: cuda = '12.1'\nclass _C: _cuda_getArchFlags = lambda: 'sm_80 sm_90'\n"
    )
    python = tmp_path / "a1111" / "bin" / "python"
    write_program(python, f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    assert preflight.torch_build(python) == {"cuda": "12.1", "architectures": ["sm_80", "sm_90"]}
    write_program(python, "exit 1")  # without a torch: A1111's own error is better
    assert findings(machine) == []


def test_a_used_port_is_fatal_also_for_ipv6(machine):
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as server:
        port = server.getsockname()[1]
        found = findings(machine | {"ENGINE": "embedded", "WEBUI_URL": f"http://[::1]:{port}"})
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
    assert_one(findings(machine | {"ENGINE": "embedded"}), message, fatal=not has_models)


# As start.sh runs it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "gpu", "status", "output", "error"),
    [
        ({"ENGINE": "comfy"}, RTX_4090, 78, "", "BAD_CONFIGURATION: ENGINE='comfy'"),
        ({"HF_TOKEN": "secret"}, RTX_5090, 71, "", "RTX 5090"),
        ({}, RTX_4090, 0, "ENGINE=a1111\n", ""),
    ],
)
def test_the_program(machine, tmp_path, environ, gpu, status, output, error):
    write_nvidia_smi(tmp_path / "bin", gpu)
    program = [sys.executable, "-m", "worker.config.preflight"]
    environ = {"PATH": os.environ["PATH"], **machine, **environ}
    done = subprocess.run(
        program, cwd=PROJECT, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, bool(done.stdout)) == (status, not status)
    assert output in done.stdout
    assert error in done.stderr
    assert len(done.stderr.splitlines()) == (status != 0)
