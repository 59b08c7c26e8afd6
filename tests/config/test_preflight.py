"""What start.sh says of the machine before it starts anything."""

import errno
import json
import os
import socket
import subprocess
import sys
from contextlib import closing

import pytest
from fakes.a1111.process import free_port
from fakes.gpu import (
    CUDA_121,
    RTX_4090,
    write_nvidia_smi,
    write_program,
    write_webui_python,
)

from worker.config import preflight
from worker.config.preflight import Gpu, gpu_findings
from worker.config.settings import PROJECT, Settings

OLD_DRIVER = "Tesla T4, 7.5, 470.182.03, 15360, 15000"
RTX_5090 = "NVIDIA GeForce RTX 5090, 12.0, 580.95.05, 32607, 32000"
KEPLER = "Tesla K80, 3.7, 525.60.13, 11441, 11000"
TINY = "NVIDIA GeForce GTX 1050, 6.1, 550.54.15, 2048, 2000"
BUSY = "NVIDIA A100-SXM4-80GB, 8.0, 550.54.15, 81920, 900"
SECRETIVE = "GRID A100X, 8.0, 550.54.15, [N/A], [Insufficient Permissions]"
PTX = {"cuda": "12.1", "architectures": ["sm_80", "compute_90"]}


def sentences(*lines, torch=CUDA_121, flags=()):
    """(fatal, its sentence) for each finding."""
    found = gpu_findings([Gpu.read(line) for line in lines], torch, flags)
    return [(one.fatal, one.sentence) for one in found]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (OLD_DRIVER, "driver 470.182.03 is too old for CUDA 12.1: install 525.60.13 or newer"),
        (RTX_5090, "RTX 5090 (compute capability 12.0) is not among"),
        (RTX_5090, "`embedded` image"),
        (KEPLER, "Tesla K80 (compute capability 3.7) is not among"),
        (TINY, "has 2048 MiB of memory, and A1111 needs 3500: use a larger GPU, or set"),
    ],
)
def test_a_gpu_that_cannot_work_is_fatal(line, part):
    ((fatal, sentence),) = sentences(line)

    assert fatal
    assert part in sentence


@pytest.mark.parametrize(
    "line",
    [
        RTX_4090,  # 8.9 runs what was built for 8.6
        "NVIDIA H100 80GB HBM3, 9.0, 550.54.15, 81559, 81000",
        "Tesla T4, 7.5, 525.60.13, 15360, 15000",  # the oldest driver
        "NVIDIA L4, 8.9, 580.65.06, 23034, 22500",  # CUDA 13's driver runs CUDA 12
        SECRETIVE,
        "Some GPU, [N/A], 550.54.15, 24564, 24217",
        "Some GPU, 8.9, [N/A], 24564, 24217",
        "NVIDIA A100, SXM4, 8.0, 550.54.15, 81920, 81000",  # a comma in the name
    ],
)
def test_a_good_gpu_is_not_mentioned(line):
    assert sentences(line) == []


def test_a_gpu_that_is_used_by_others_is_a_warning():
    ((fatal, sentence),) = sentences(BUSY)

    assert not fatal
    assert sentence.startswith("Only 900 of 81920 MiB of NVIDIA A100-SXM4-80GB are free")


@pytest.mark.parametrize("flag", ["--lowvram", "--medvram"])
def test_with_flags_for_it_a_small_gpu_will_do(flag):
    assert sentences(TINY, flags=[flag]) == []


def test_one_good_gpu_is_enough():
    assert sentences(KEPLER, RTX_4090) == []
    assert "K80" in sentences(KEPLER, TINY)[0][1]


def test_ptx_runs_on_whatever_is_newer():
    assert sentences(RTX_5090, torch=PTX) == []
    assert sentences(OLD_DRIVER.replace("470", "570"), torch=PTX)[0][0]


# --- the machine


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


def findings(environ):
    return [(f.fatal, f.sentence) for f in preflight.examine(Settings.from_environ(environ))]


def test_a_fit_machine(machine):
    assert findings(machine) == []


def test_no_driver_means_no_gpu(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    ((fatal, sentence),) = findings(machine)

    assert fatal
    assert sentence.startswith("There is no NVIDIA GPU here")
    assert "--gpus all" in sentence


@pytest.mark.parametrize("engine", ["embedded", "external"])
def test_other_engines_need_no_gpu(machine, tmp_path, monkeypatch, engine):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    assert findings(machine | {"ENGINE": engine}) == []


def test_a_driver_that_hangs_does_not_hang_the_start(machine, tmp_path, monkeypatch):
    write_program(tmp_path / "bin" / "nvidia-smi", "exec sleep 60")
    monkeypatch.setattr(preflight, "NVIDIA_SMI_TIMEOUT", 0.2)

    ((fatal, sentence),) = findings(machine)

    assert fatal
    assert "timed out" in sentence


def test_a_driver_too_old_for_the_question_is_quoted(machine, tmp_path):
    said = 'Field "compute_cap" is not a valid field to query.'
    write_nvidia_smi(tmp_path / "bin", said, status=2)

    ((fatal, sentence),) = findings(machine)

    assert fatal
    assert said in sentence


def test_what_else_nvidia_smi_says_is_passed_over(machine, tmp_path):
    write_nvidia_smi(tmp_path / "bin", "WARNING: infoROM is corrupted at gpu 0", RTX_4090)
    assert findings(machine) == []

    write_nvidia_smi(tmp_path / "bin", "WARNING: infoROM is corrupted at gpu 0")
    assert findings(machine) == []  # nothing is sure


def test_a_volume_that_is_gone_is_fatal(machine, monkeypatch):
    def fail(_path):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(preflight.shutil, "disk_usage", fail)

    ((fatal, sentence),) = findings(machine)

    assert fatal
    assert "cannot be looked at (Stale file handle): mount its volume anew" in sentence


def test_a_torch_for_the_cpu_is_fatal(machine, tmp_path):
    write_webui_python(tmp_path / "a1111", {"cuda": None, "architectures": []})

    ((fatal, sentence),) = findings(machine)

    assert fatal
    assert "was built for the CPU" in sentence


def test_without_the_images_note_torch_itself_is_asked(tmp_path):
    pytest.importorskip("torch", reason="the engine's packages are not installed")
    python = write_webui_python(tmp_path / "a1111")
    (tmp_path / "a1111" / "torch_build.json").unlink()
    asked = preflight.torch_build(python)

    printed = subprocess.run(
        [sys.executable, PROJECT / "image" / "torch_build.py"], capture_output=True, check=True
    )
    assert asked == json.loads(printed.stdout)
    assert set(asked) == {"cuda", "architectures"}


def test_a_python_without_torch_is_left_to_a1111(machine, tmp_path):
    (tmp_path / "a1111" / "torch_build.json").unlink()
    write_program(tmp_path / "a1111" / "bin" / "python", "exit 1")

    assert findings(machine) == []


def test_a_taken_port_is_fatal_also_for_ipv6(machine):
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as server:
        port = server.getsockname()[1]
        found = findings(machine | {"ENGINE": "embedded", "WEBUI_URL": f"http://[::1]:{port}"})

    assert [fatal for fatal, _ in found] == [True]
    assert f"port {port} of ::1" in found[0][1]


@pytest.mark.parametrize("has_models", [True, False])
def test_a_store_that_cannot_be_written_is_fatal_without_models(
    machine, tmp_path, monkeypatch, has_models
):
    # root may write everywhere, so the question is answered for it
    monkeypatch.setattr(preflight.os, "access", lambda *_: False)
    if has_models:
        (tmp_path / "baked" / "Stable-diffusion").mkdir(parents=True)
        (tmp_path / "baked" / "Stable-diffusion" / "fox.safetensors").touch()

    ((fatal, sentence),) = findings(machine | {"ENGINE": "embedded"})

    assert fatal is not has_models
    assert f"MODELS_DIR={tmp_path / 'models'} cannot be written by user" in sentence


def test_a_full_disk_is_a_warning(machine, monkeypatch):
    monkeypatch.setattr(preflight, "NEARLY_FULL", 1 << 60)

    ((fatal, sentence),) = findings(machine)

    assert not fatal
    assert "GB of disk left" in sentence


# --- as start.sh runs it


def run(**environ):
    return subprocess.run(
        [sys.executable, "-m", "worker.config.preflight"],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wrong_setting_ends_it_with_78():
    done = run(ENGINE="comfy")

    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("BAD_CONFIGURATION: ENGINE='comfy'")


def test_a_machine_that_is_unfit_ends_it_with_71(machine, tmp_path):
    write_nvidia_smi(tmp_path / "bin", RTX_5090)
    done = run(**machine, CIVITAI_API_KEY="secret-key")

    assert (done.returncode, done.stdout) == (71, "")
    assert len(done.stderr.splitlines()) == 1
    assert "RTX 5090" in done.stderr


def test_a_fit_one_gets_the_settings(machine):
    done = run(**machine)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"MODELS_DIR={machine['MODELS_DIR']}" not in done.stdout
    assert "ENGINE=a1111\n" in done.stdout
