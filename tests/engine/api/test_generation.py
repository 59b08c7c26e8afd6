"""The engine's choice of a checkpoint, without loading one."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import tiny_models

from engine.api.generation import Engine
from engine.api.options import Options
from engine.api.request import Txt2Img

ROOT = Path(__file__).parents[3]


@pytest.fixture
def start(tmp_path):
    """An engine with these checkpoints, whose config.json names one."""

    def start(configured=None, checkpoints=""):
        for name in checkpoints:
            tiny_models.write({}, tmp_path / f"models/Stable-diffusion/{name}.safetensors")
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"sd_model_checkpoint": configured}))
        return Engine(tmp_path, Options(file), threads=1)

    return start


def default_of(engine):
    return engine.get_options()["sd_model_checkpoint"]


def test_without_a_checkpoint_jobs_fail_until_one_is_found_and_after_close(start, tmp_path):
    engine = start()
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_dir()}
    assert made >= {"models/Stable-diffusion", "models/Lora", "models/VAE", "embeddings"}
    with pytest.raises(FileNotFoundError, match="No checkpoints found"):
        engine.txt2img(Txt2Img())
    assert default_of(engine) is None
    tiny_models.write({}, tmp_path / "models/Stable-diffusion/new.safetensors")
    assert default_of(engine) is None
    engine.refresh_checkpoints()
    assert default_of(engine) == "new.safetensors"
    for name in ("x.safetensors", "readme.txt"):
        (tmp_path / "models/VAE" / name).touch()
    engine.library.vaes.refresh()
    assert [vae.name for vae in engine.library.vaes.all] == ["x.safetensors"]
    engine.close()
    with pytest.raises(RuntimeError, match="shutting down"):
        engine.txt2img(Txt2Img())


def test_the_next_job_is_computed_while_the_pictures_of_the_last_one_are_encoded(
    start, monkeypatch
):
    engine, computed = start(checkpoints="a"), {1: threading.Event(), 2: threading.Event()}

    class Drawn:
        pictures, facts = (), SimpleNamespace(info=lambda _count: {})

        def encoded(self):
            return [computed[2].wait(30)]

    def generate(_task, request, _pictures):
        computed[request.seed].set()
        return Drawn()

    monkeypatch.setattr(engine, "_generate", generate)
    with ThreadPoolExecutor() as callers:
        first = callers.submit(engine.txt2img, Txt2Img(seed=1))
        assert computed[1].wait(30)
        assert engine.txt2img(Txt2Img(seed=2))["images"] == first.result()["images"] == [True]


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
def test_default_checkpoint(start, configured, expected):
    assert default_of(start(configured, "bAc")) == expected


@pytest.mark.parametrize(
    ("given", "policy", "spins"),
    [
        ({}, "passive", "1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", "None"),
        ({"GOMP_SPINCOUNT": "5"}, "passive", "5"),
    ],
)
def test_threads_spin_shortly_unless_set_and_set_before_torch_is_loaded(given, policy, spins):
    code = (
        "import engine, sys, os; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'],"
        " os.environ.get('GOMP_SPINCOUNT'))"
    )
    environ = {"PATH": os.environ["PATH"]} | given
    done = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environ, text=True)
    assert done.split() == ["False", policy, spins]
