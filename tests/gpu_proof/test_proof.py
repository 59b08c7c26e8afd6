"""The whole proof as a dry run: real start.sh, handler and SDK, tiny models, on the CPU."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace

import pytest
from fakes.supervised import environment
from fakes.worker_process import FOREVER, TESTS, WEBUI_PY

from benchmarks.gpu import prove
from benchmarks.gpu_proof import proof
from worker.config.settings import PROJECT

pytest.importorskip("torch", reason="the engine's packages are not installed")
# No step may fail because the machine is slow.
pytestmark = pytest.mark.timeout(1900)

OPTIONS = Namespace(image="IMAGE", minutes=30.0, tiny=True, record=False)
CONFIG = '{"sd_checkpoints_limit": 2}'  # so that both numbers of kept checkpoints are measured
ON_THE_CPU = {"DEVICE": "cpu", "OMP_NUM_THREADS": "1"}


def values(report):
    """The values at the end of a report."""
    text = re.search(r"```json\n(.*)\n```", report.read_text(), re.DOTALL)[1]
    return json.loads(text)


def measured(rows):
    """Each step's figures: whether a rival was measured beside them, and how many goals."""
    found = {}
    for row in rows:
        figures = row["figures"]
        if figures:
            rivals = sum(len(figure["others"]) == len(figure["ours"]) for figure in figures)
            goals = sum(figure["goal"] is not None for figure in figures)
            found[row["step"]] = (len(figures), rivals, goals)
    return found


FIGURES = {  # step -> number of figures, of those with a rival, of those with a goal
    "speed of SD1, batch 1": (1, 1, 1),
    "speed of SD1, batch 4": (1, 1, 1),
    "speed of SDXL, batch 1": (1, 1, 1),
    "speed of SDXL, batch 4": (1, 1, 1),
    "jobs of one, two and four pictures": (3, 3, 3),
    "cancelled jobs": (1, 0, 1),
    "jobs in a backlog": (2, 1, 1),  # in the second boot, with JOB_CONCURRENCY=2
    "boot of the engine alone": (1, 1, 1),
}


def kept_checkpoints(rows):
    """As many as the engine kept while the switches were measured."""
    details = next(row["details"] for row in rows if row["step"] == "checkpoint switches")
    return details["checkpoints that the engine keeps loaded"]


def statuses(rows):
    return {row["step"]: row["status"] for row in rows}


def test_the_embedded_engine_passes_every_step_and_the_command_reports_it(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--engine", "embedded"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "out.md", "--work", tmp_path, "--minutes", "30"],
        cwd=PROJECT,
        env=os.environ | ON_THE_CPU,
        capture_output=True,
        text=True,
        check=False,
    )

    report = values(tmp_path / "out.md")
    without_gpu = {"out of memory, and recovery"}
    expected = {step.name: proof.PASSED for step in proof.STEPS + proof.SECOND_START}
    assert statuses(report["steps"]) == expected | dict.fromkeys(without_gpu, proof.SKIPPED)
    assert (done.returncode, report["passed"]) == (0, True), done.stderr
    several = kept_checkpoints(report["steps"]) > 1  # on a machine with little memory, only one
    expected = FIGURES | {"checkpoint switches": (1, several, several)}
    assert expected.items() <= measured(report["steps"]).items()
    assert all(row["memory"]["engine"] > 0 for row in report["steps"] if row["figures"][1:])
    assert (tmp_path / "out.md").read_text().startswith(done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["out.md"]  # no model is left behind


@pytest.fixture
def a1111(tmp_path):
    """The environment of the proof in front of the fake A1111, with a faked nvidia-smi."""
    fake = environment(tmp_path, port=0)
    (tmp_path / "webui").mkdir()
    (tmp_path / "webui/webui.py").write_text(WEBUI_PY)
    (tmp_path / "webui/config.json").write_text(CONFIG)
    slow = json.dumps([{"fault": "slow_steps", "seconds": 0.05, "times": FOREVER}])
    names = ("PATH", "WEBUI_DIR", "WEBUI_PYTHON", "ENGINE_VARIABLES")
    given = {name: fake[name] for name in names} | ON_THE_CPU
    return {
        **os.environ,
        **given,
        "PYTHONPATH": str(TESTS),
        "WEBUI_ARGS": "--use-cpu all",
        "FAKE_A1111_FAULTS": slow,
    }


def test_a_failed_step_of_a1111_is_a_row_and_the_others_run(a1111, tmp_path):
    """The fake's pictures are not those of a real engine, so comparing them must fail."""
    report = prove(Namespace(**vars(OPTIONS), engine=["a1111"]), tmp_path, a1111)
    report.write(tmp_path / "out.md")

    rows = values(tmp_path / "out.md")["steps"]
    wrong = {name: status for name, status in statuses(rows).items() if status != proof.PASSED}
    assert wrong == {
        "pictures against the CPU's": proof.FAILED,
        "out of memory, and recovery": proof.SKIPPED,
    }
    assert [row["step"] for row in rows] == [
        s.name for s in proof.STEPS + proof.SECOND_START_OF_A1111
    ]
    assert not report.passed
    expected = FIGURES | {"checkpoint switches": (1, 1, 1)}
    assert expected.items() <= measured(rows).items()
    assert [path for path in (tmp_path / "webui").rglob("*") if path.is_symlink()] == []
    assert (tmp_path / "webui/config.json").read_text() == CONFIG
    page = (tmp_path / "out.md").read_text()
    assert re.search(r"pictures against the CPU's \| failed \|.*mean difference of 255: \d", page)


def test_without_a_gpu_the_boot_fails_with_the_workers_reason_and_the_rest_is_skipped(
    a1111, tmp_path, monkeypatch
):
    monkeypatch.setattr(proof, "STEPS", proof.STEPS[:5])
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    environ = {**a1111, "WEBUI_ARGS": "", "DEVICE": ""}
    report = prove(Namespace(**vars(OPTIONS), engine=["a1111"]), tmp_path, environ)

    boot = report.rows[2]
    assert (boot.status, report.passed) == (proof.FAILED, False)
    assert "start.sh ended with status 71" in boot.reason
    assert "No devices were found" in boot.reason
    assert report.rows[4].reason == "the worker is not running"
