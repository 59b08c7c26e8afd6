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

ROOT = Path(__file__).parents[3]


@pytest.fixture
def start(tmp_path):
    """An engine in a folder whose config.json names this checkpoint."""

    def start(configured=None):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"sd_model_checkpoint": configured}))
        return Engine(tmp_path, Options(file), threads=1)

    return start


def default_of(engine):
    return engine.get_options()["sd_model_checkpoint"]


def test_without_a_checkpoint_jobs_fail_until_one_is_found(start, tmp_path):
    engine = start()
    with pytest.raises(FileNotFoundError, match="No checkpoints found"):
        engine.txt2img(Txt2Img())
    assert default_of(engine) is None
    tiny_models.write({}, tmp_path / "models/Stable-diffusion/new.safetensors")
    assert default_of(engine) is None
    engine.refresh_checkpoints()
    assert default_of(engine) == "new.safetensors"


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (None, "A.safetensors"),  # the first, ignoring case
        ("b.safetensors", "b.safetensors"),
        ("b", "b.safetensors"),
        ("b.safetensors [0123456789]", "b.safetensors"),  # the hash is not computed yet
        ("nope", "A.safetensors"),
    ],
)
def test_default_checkpoint(start, tmp_path, configured, expected):
    for name in ("b", "A", "c"):
        tiny_models.write({}, tmp_path / f"models/Stable-diffusion/{name}.safetensors")
    assert default_of(start(configured)) == expected


def test_folders_are_created_and_vaes_listed(start, tmp_path):
    engine = start()
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_dir()}
    assert made >= {"models/Stable-diffusion", "models/Lora", "models/VAE", "embeddings"}
    (tmp_path / "models/VAE/x.safetensors").touch()
    (tmp_path / "models/VAE/readme.txt").touch()
    assert [vae["model_name"] for vae in engine.list_vaes()] == ["x.safetensors"]


def test_waiting_jobs_fail_after_close(start):
    engine = start()
    engine.close()
    with pytest.raises(RuntimeError, match="shutting down"):
        engine.txt2img(Txt2Img())


@pytest.mark.parametrize(
    ("given", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_wait_policy_is_passive_unless_set_and_set_before_torch_is_loaded(given, policy):
    code = "import engine, sys, os; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    environ = {"PATH": os.environ["PATH"]} | given
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=ROOT, env=environ).split() == [
        b"False",
        policy.encode(),
    ]
