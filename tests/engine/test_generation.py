"""The engine's choice of a checkpoint, without loading one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import tiny_models

from engine.api.generation import Engine
from engine.api.options import Options
from engine.api.request import Txt2Img

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path):
    """An engine on a folder whose config.json names this checkpoint."""

    def start(configured=None):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"sd_model_checkpoint": configured}))
        return Engine(tmp_path, Options(file), threads=1)

    return start


@pytest.fixture
def checkpoints(tmp_path):
    folder = tmp_path / "models/Stable-diffusion"
    for name in ("b", "A", "c"):
        tiny_models.write({}, folder / f"{name}.safetensors")
    return folder


def default_of(engine):
    return engine.get_options()["sd_model_checkpoint"]


def test_no_checkpoint_at_all_until_refreshed(start, tmp_path):
    engine = start()
    with pytest.raises(FileNotFoundError, match="No checkpoints found"):
        engine.txt2img(Txt2Img())
    assert default_of(engine) is None
    tiny_models.write({}, tmp_path / "models/Stable-diffusion/new.safetensors")
    assert default_of(engine) is None
    engine.refresh_checkpoints()
    assert default_of(engine) == "new.safetensors"


@pytest.mark.usefixtures("checkpoints")
@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (None, "A.safetensors"),  # the first, without regard to case
        ("b.safetensors", "b.safetensors"),
        ("b", "b.safetensors"),
        ("b.safetensors [0123456789]", "b.safetensors"),  # the hash is not known yet
        ("nope", "A.safetensors"),
    ],
)
def test_the_default_checkpoint(start, configured, expected):
    assert default_of(start(configured)) == expected


def test_folders_are_made(start, tmp_path):
    start()
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_dir()}
    assert made >= {"models/Stable-diffusion", "models/Lora", "models/VAE", "embeddings"}


def test_vaes_are_listed(start, tmp_path):
    engine = start()
    (tmp_path / "models/VAE/x.safetensors").touch()
    (tmp_path / "models/VAE/readme.txt").touch()
    assert [vae["model_name"] for vae in engine.list_vaes()] == ["x.safetensors"]


def test_after_close_waiting_jobs_fail(start):
    engine = start()
    engine.close()
    with pytest.raises(RuntimeError, match="shutting down"):
        engine.txt2img(Txt2Img())


@pytest.mark.parametrize(
    ("given", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_torchs_threads_sleep_while_they_wait_unless_told_otherwise(given, policy):
    """Read by torch's OpenMP from the environment when it is loaded, so it must be set before."""
    code = "import engine, sys, os; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    environ = {"PATH": os.environ["PATH"]} | given
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", policy]
