"""The ways in, on the embedded engine: a picture made for real, on any machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from fakes.a1111.process import free_port, wait_until
from fakes.hosts.model_hosts import ModelHosts
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import png_size, running_worker

ROOT = Path(__file__).parents[2]
EXAMPLE = json.loads((ROOT / "test_input.json").read_text())
BOOT = 60.0

tiny_models = pytest.importorskip(
    "fakes.tiny_models", reason="the engine's packages are not installed"
)


@pytest.fixture(scope="module")
def environ(tmp_path_factory):
    """What `make run` sets, with folders and a port of the test's own."""
    folder = tmp_path_factory.mktemp("embedded")
    tiny_models.write(
        tiny_models.make_checkpoint(), folder / "models/Stable-diffusion/tiny.safetensors"
    )
    return {
        "PATH": os.environ["PATH"],
        "PYTHON": sys.executable,
        "ENGINE": "embedded",
        "WEBUI_DIR": str(folder / "webui"),
        "MODELS_DIR": str(folder / "models"),
        "DEFAULT_TEMPLATE": "none",
        "OUTPUT_DIR": str(folder / "outputs"),
        "RUN_DIR": str(folder / "run"),
        "WEBUI_URL": f"http://127.0.0.1:{free_port()}",
        "RUNPOD_LOG_LEVEL": "WARN",
        "OMP_NUM_THREADS": "1",  # tests run side by side
    }


def run(environ, *arguments, program="./start.sh"):
    return subprocess.run(
        [program, *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=BOOT * 2,
        check=False,
    )


def test_the_example_job_becomes_a_picture_file_and_a_summary(environ):
    done = run(environ, "--test_input", json.dumps(EXAMPLE))

    assert done.returncode == 0, done.stderr
    (picture,) = Path(environ["OUTPUT_DIR"]).glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    summary = done.stderr
    assert f"prompt   {EXAMPLE['input']['prompt']}" in summary
    assert "256x256, 20 steps of Euler a, seed 42" in summary
    assert f"file     {picture}" in summary
    assert max(map(len, (done.stdout + done.stderr).splitlines())) < 300, "a screen of base64"


def test_make_run_asks_for_what_its_variables_say():
    """The recipe's own words, but for start.sh."""
    makefile = 'include Makefile\nrun: .venv/.ready\n\t@$(PYTHON) -c "$$JOB"\n.venv/.ready: ;\n'
    given = {"PROMPT": 'a "green" star\'s', "CHECKPOINT": "mine"}
    done = subprocess.run(
        ["make", "-s", "-f", "-", "run", f"PYTHON={sys.executable}"],
        input=makefile,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]} | given,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {key.lower(): value for key, value in given.items()}
    assert json.loads(done.stdout) == {"input": EXAMPLE["input"] | wanted}


def test_the_demo_model_draws_what_a_job_says(environ, tmp_path):
    """Front door to picture file: the model from the repository, its LoRA, no other model."""
    from PIL import Image

    from training.adherence import Seen, look

    here = {"MODELS_DIR": "models", "OUTPUT_DIR": "outputs", "WEBUI_DIR": "webui"}
    folders = {name: str(tmp_path / folder) for name, folder in here.items()}
    job = EXAMPLE["input"] | {"prompt": "a green star on a yellow background"}
    job |= {"checkpoint": "demo-shapes", "loras": [{"name": "striped", "scale": 0}]}
    demo = {"BAKED_MODELS_DIR": str(ROOT / "demo")}
    done = run(environ | demo | folders, "--test_input", json.dumps({"input": job}))

    assert done.returncode == 0, done.stderr
    (picture,) = (tmp_path / "outputs").glob("*.png")
    assert look(Image.open(picture)) == Seen("yellow", "green", "star")
    assert not list((tmp_path / "models").rglob("*.safetensors")), "nothing is copied"


def test_a_job_that_fails_is_told_and_the_status_is_1(environ):
    done = run(environ, "--test_input", '{"input": {"stepz": 1}}')

    assert done.returncode == 1
    assert "did you mean `steps`?" in done.stdout + done.stderr


def test_without_an_engine_the_handler_says_what_to_do(environ):
    alone = environ | {"READY_TIMEOUT": "1"}
    done = run(alone, "handler.py", program=sys.executable)

    assert done.returncode == 69
    assert "make serve" in done.stderr


def test_the_local_api_runs_jobs_for_curl(environ):
    port = free_port()
    command = ["./start.sh", "--rp_serve_api", "--rp_api_port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            answer = runsync(
                port, {"input": {"prompt": "a cat", "steps": 2, "width": 64, "height": 64}}
            )
            wrong = runsync(port, {"input": {"prompt": 5}})
        finally:
            process.terminate()
            process.wait(30)

    assert answer["status"] == "COMPLETED"
    assert png_size(answer["output"]["images"][0]) == (64, 64)
    assert wrong["status"] == "FAILED"
    assert wrong["error"].startswith("INVALID_INPUT: prompt = 5")


def runsync(port, body):
    """POST /runsync as soon as the API listens."""
    deadline = time.monotonic() + BOOT
    while True:
        try:
            answer = requests.post(f"http://localhost:{port}/runsync", json=body, timeout=BOOT)
        except requests.ConnectionError:
            assert time.monotonic() < deadline, "the local API did not start"
            time.sleep(0.2)
        else:
            return answer.json()


def test_a_real_engine_killed_in_the_middle_of_a_job_is_replaced(environ, tmp_path):
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(
            tmp_path,
            plane,
            wait=False,
            checkpoints=(),
            loras=(),
            ENGINE="embedded",
            OMP_NUM_THREADS="1",
            MODELS_DIR=environ["MODELS_DIR"],
            READY_TIMEOUT=str(BOOT),
        ) as worker,
    ):
        plane.wait_for("take", BOOT)
        job = plane.submit({"prompt": "a cat", "steps": 30, "width": 256, "height": 256})
        wait_until(lambda: not worker.engine_is_idle(), "the job in the engine")
        os.kill(worker.engine_pid(), signal.SIGKILL)

        ended = plane.wait(job, BOOT)
        assert ended["status"] == "COMPLETED", worker.log()
        assert png_size(ended["output"]["images"][0]) == (256, 256)


def test_models_named_by_civitai_url_are_fetched_used_and_proven(environ, tmp_path):
    """The whole product without a GPU: three files from a loopback CivitAI, one real picture."""
    files = {
        "base": tiny_models.make_checkpoint(5),
        "one": tiny_models.make_lora(1),
        "two": tiny_models.make_lora(2),
    }
    for name, state in files.items():
        tiny_models.write(state, tmp_path / f"{name}.safetensors")
    with (
        ModelHosts() as hosts,
        RunPodPlane(hold=1.0) as plane,
        running_worker(
            tmp_path,
            plane,
            wait=False,
            checkpoints=(),
            loras=(),
            ENGINE="embedded",
            OMP_NUM_THREADS="1",
            MODELS_DIR=environ["MODELS_DIR"],
            READY_TIMEOUT=str(BOOT),
            CIVITAI_URL=hosts.civitai,
            CIVITAI_API_KEY=hosts.civitai_key,
            TRUSTED_HOSTS=urlsplit(hosts.storage).netloc,
        ) as worker,
    ):
        kinds = {"base": "Checkpoint", "one": "LORA", "two": "LORA"}
        models = [
            hosts.add_model(
                version_id=number,
                model_id=number,
                data=tmp_path / f"{name}.safetensors",
                name=f"{name}.safetensors",
                kind=kind,
            )
            for number, (name, kind) in enumerate(kinds.items(), start=1)
        ]
        plane.wait_for("take", BOOT)
        page = "https://civitai.com/api/download/models"
        job = {"prompt": "a cat", "steps": 4, "width": 64, "height": 64, "seed": 1}
        job |= {"checkpoint": {"url": f"{page}/1"}}
        named = job | {"loras": [{"url": f"{page}/2", "scale": 0.8}, {"url": f"{page}/3"}]}
        first = plane.wait(plane.submit(named), BOOT)["output"]
        asked = len(hosts.requests)
        again = plane.wait(plane.submit(named), BOOT)["output"]
        plain = plane.wait(plane.submit(job), BOOT)["output"]

        assert len(hosts.requests) == asked
        secrets = [secret for secret in hosts.planted_secrets if secret in worker.log()]

    assert [(m["name"], m["sha256"]) for m in first["models"]] == [
        (name, model.sha256) for name, model in zip(kinds, models, strict=True)
    ]
    prompt = json.loads(first["info"])["prompt"]
    assert "<lora:one:0.8>" in prompt
    assert "<lora:two:1>" in prompt
    assert first["images"] == again["images"]
    assert first["images"] != plain["images"]
    assert again["timings"]["prepare"] <= 0.01, again["timings"]
    assert not secrets


def test_a_baked_template_is_merged_and_drawn_with(environ, tmp_path):
    """`bake --merge` and then a prompt alone: what `docker run` does with an image of one's own."""
    shutil.copytree(ROOT / "demo", tmp_path / "baked")
    folders = {name: str(tmp_path / name.lower()) for name in ("MODELS_DIR", "WEBUI_DIR")}
    folders |= {"BAKED_MODELS_DIR": str(tmp_path / "baked"), "OUTPUT_DIR": str(tmp_path / "out")}
    here = environ | folders | {"DEFAULT_TEMPLATE": "demo_striped", "PYTHONPATH": str(ROOT)}
    bake = ("model_manager.py", "bake", "--template", "demo_striped", "--merge")
    baking = run(here, *bake, program=sys.executable)
    assert baking.returncode == 0, baking.stderr
    assert "demo-shapes+striped-" in baking.stdout

    done = run(here, "--test_input", '{"input": {"prompt": "a red circle", "seed": 1}}')

    assert done.returncode == 0, done.stderr
    assert re.search(r"models +demo-shapes\+striped-\w{10}$", done.stderr, re.MULTILINE)
    assert "256x256, 20 steps of Euler a, seed 1" in done.stderr
    assert len(re.findall("loaded .*safetensors", done.stdout + done.stderr)) == 1, "at once"
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert not list((tmp_path / "models_dir").rglob("*.safetensors"))
