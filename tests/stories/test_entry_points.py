"""The ways in, most of them with the embedded engine, which makes real pictures on any machine.

tests/project/test_docs_commands.py has `make run` and `make serve`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.a1111.process import free_port, running_a1111, write_safetensors
from fakes.hosts.model_hosts import ModelHosts
from fakes.hub_cache import add_cached, read_only
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import completed, png_size, running_worker

ROOT = Path(__file__).parents[2]
BOOT = 180.0

tiny_models = pytest.importorskip(
    "fakes.tiny_models", reason="the engine's packages are not installed"
)


@pytest.fixture
def environ(tmp_path):
    """What `make run` sets, with folders and a port of the test's own."""
    names = ("webui", "models", "baked_models", "output", "run")
    return {f"{name.upper()}_DIR": str(tmp_path / name) for name in names} | {
        "PATH": os.environ["PATH"],
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "ENGINE": "embedded",
        "DEVICE": "cpu",
        "DEFAULT_TEMPLATE": "none",
        "WEBUI_URL": f"http://127.0.0.1:{free_port()}",
        "RUNPOD_LOG_LEVEL": "WARN",
        "OMP_NUM_THREADS": "1",  # tests run side by side
    }


def run(environ, *command):
    how = {"capture_output": True, "text": True, "timeout": BOOT}
    return subprocess.run(command, cwd=ROOT, env=environ, check=False, **how)


def test_the_status_is_1_when_the_test_job_fails(environ, tmp_path):
    write_safetensors(tmp_path / "external/models/Stable-diffusion/first.safetensors")
    with running_a1111(tmp_path / "external") as engine:
        external = environ | {"ENGINE": "external", "WEBUI_URL": engine.url}
        done = run(external, "./start.sh", "--test_input", '{"input": {"stepz": 1}}')
    assert done.returncode == 1
    assert "did you mean `steps`?" in done.stdout + done.stderr


def test_without_an_engine_the_handler_says_at_once_what_to_do(environ):
    done = run(environ | {"READY_TIMEOUT": "1"}, sys.executable, "handler.py")
    assert done.returncode == 69
    introduction, advice = done.stderr.splitlines()[:2]
    assert "engine embedded; models in" in introduction
    assert "handler.py alone starts no engine: run ./start.sh or make serve" in advice


WRONG_JOB = '{"prompt": "a fox", "template": "nope"}'
ENDS_EARLY = [
    # arguments, exit status, the last line
    (["--prompt", "a fox"], 2, "unrecognized arguments: --prompt"),
    (["--test_input", "custom.json"], 2, "give its name alone: custom.json"),
    (["--test_input", WRONG_JOB], 1, "TEMPLATE_NOT_FOUND: "),
    (["custom.json"], 1, "INVALID_INPUT: stepz is not a known field (did you mean `steps`?)."),
]


@pytest.mark.parametrize(("arguments", "status", "message"), ENDS_EARLY)
@pytest.mark.parametrize("program", ["start.sh", "handler.py"])
def test_wrong_arguments_and_a_wrong_job_end_before_the_engine_can_be_ready(
    environ, tmp_path, program, arguments, status, message
):
    (tmp_path / "custom.json").write_text('{"stepz": 1}')
    how = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": BOOT}
    interpreter = [] if program == "start.sh" else [sys.executable]
    command = [*interpreter, str(ROOT / program), *arguments]
    done = subprocess.run(command, env=environ, check=False, **how)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_is_the_job_that_runs(environ, tmp_path):
    (tmp_path / "custom_input.json").write_text('{"task": "templates"}')
    with running_a1111(tmp_path / "external") as engine:
        write_safetensors(tmp_path / "external/models/Stable-diffusion/first.safetensors")
        external = environ | {"ENGINE": "external", "WEBUI_URL": engine.url}
        external["RUNPOD_LOG_LEVEL"] = "INFO"
        done = run(external, "./start.sh", str(tmp_path / "custom_input.json"))
    assert done.returncode == 0, done.stderr
    assert "'default_template'" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A worker with the embedded engine, three models on a loopback CivitAI, and cached ones."""
    folder = tmp_path_factory.mktemp("embedded")
    states = {
        "base": tiny_models.make_checkpoint(5),
        "one": tiny_models.make_lora(1),
        "two": tiny_models.make_lora(2),
    }
    first = folder / "models/Stable-diffusion/tiny.safetensors"
    tiny_models.write(tiny_models.make_checkpoint(), first)
    with ModelHosts() as hosts, RunPodPlane(hold=1.0) as plane:
        models = []
        for number, (name, state) in enumerate(states.items(), start=1):
            data = folder / f"{name}.safetensors"
            tiny_models.write(state, data)
            file = {"data": data, "name": data.name, "kind": "LORA" if number > 1 else "Checkpoint"}
            models.append(hosts.add_model(version_id=number, model_id=number, **file))
        more = {
            "ENGINE": "embedded",
            "DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            "READY_TIMEOUT": str(BOOT),
        }
        files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        add_cached(folder / "hub", "org/tiny", {f"cached/{name}": files[name] for name in files})
        more["HUB_CACHE_DIR"] = str(folder / "hub")
        own = {"checkpoints": (), "loras": (), "wait": False}
        with (
            read_only(folder / "hub"),
            running_worker(folder, plane, hosts=hosts, **own, **more) as worker,
        ):
            plane.wait_for("take", BOOT)
            yield SimpleNamespace(worker=worker, hosts=hosts, models=models)


def test_cached_models_are_drawn_with_and_proven_without_a_request_or_a_hash(real):
    real.hosts.forget_requests()
    where = "org/tiny/cached"
    job = {"prompt": "a cat", "steps": 4, "width": 64, "height": 64, "seed": 1}
    job |= {"checkpoint": {"name": f"{where}/base.safetensors"}}
    plain = completed(real.worker.run(job, BOOT))
    drawn = completed(real.worker.run(job | {"loras": [f"{where}/one.safetensors"]}, BOOT))
    assert [m["sha256"] for m in drawn["models"]] == [model.sha256 for model in real.models[:2]]
    assert all(m["source"].startswith("hf://org/tiny@") for m in drawn["models"])
    assert drawn["images"] != plain["images"]
    assert real.hosts.requests == []
    assert "hashing base" not in real.worker.log()


def test_models_named_by_civitai_url_are_fetched_used_and_proven(real):
    """The whole product without a GPU: three files from a loopback CivitAI, real pictures."""
    page = "https://civitai.com/api/download/models"
    job = {"prompt": "a cat", "steps": 4, "width": 64, "height": 64, "seed": 1}
    job |= {"checkpoint": {"url": f"{page}/1"}}
    named = job | {"loras": [{"url": f"{page}/2", "scale": 0.8}, {"url": f"{page}/3"}]}
    first = completed(real.worker.run(named, BOOT))
    requests = len(real.hosts.requests)
    again, plain = (completed(real.worker.run(one, BOOT)) for one in (named, job))
    assert len(real.hosts.requests) == requests
    assert [(m["name"], m["sha256"]) for m in first["models"]] == [
        (name, model.sha256)
        for name, model in zip(("base", "one", "two"), real.models, strict=True)
    ]
    prompt = json.loads(first["info"])["prompt"]
    assert "<lora:one:0.8>" in prompt
    assert "<lora:two:1>" in prompt
    assert first["images"] == again["images"] != plain["images"]
    log = real.worker.log()
    assert not [secret for secret in real.hosts.planted_secrets if secret in log]


def test_a_real_engine_killed_in_the_middle_of_a_job_is_replaced(real):
    job = real.worker.plane.submit({"prompt": "a cat", "steps": 20, "width": 256, "height": 256})
    real.worker.wait_until_generating()
    os.kill(real.worker.engine_pid(), signal.SIGKILL)
    output = completed(real.worker.plane.wait(job, BOOT))
    assert png_size(output["images"][0]) == (256, 256)


def test_a_baked_template_is_merged_and_drawn_with(environ, tmp_path):
    """`bake --merge` and then a prompt alone, as in `docker run` with an image of one's own."""
    shutil.copytree(ROOT / "demo", tmp_path / "baked_models")
    environ |= {"DEFAULT_TEMPLATE": "demo_striped"}
    bake = ("model_manager.py", "bake", "--template", "demo_striped", "--merge")
    baking = run(environ, sys.executable, *bake)
    assert baking.returncode == 0, baking.stderr
    assert "demo-shapes+striped-" in baking.stdout
    job = '{"input": {"prompt": "a red circle", "seed": 1}}'
    done = run(environ, "./start.sh", "--test_input", job)
    assert done.returncode == 0, done.stderr
    assert re.search(r"models +demo-shapes\+striped-\w{10}$", done.stderr, re.MULTILINE)
    assert "256x256, 20 steps of Euler a, seed 1" in done.stderr
    assert len(re.findall("loaded .*safetensors", done.stdout + done.stderr)) == 1
    (picture,) = (tmp_path / "output").glob("*.png")
    assert f"file     {picture}" in done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "models").rglob("*.safetensors")), "a model was copied"
