"""The commands in the documents that can run anywhere (```sh) do what the documents promise.

Only the ports differ: tests run side by side. `make run` and `make serve` each start a worker with
the embedded engine, so each runs once: of the other `make run` lines, the job is sent to the API.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from http import HTTPStatus

import pytest
import requests
from fakes.a1111.process import free_port, wait_until
from fakes.hosts.bucket import s3_server

import client
from tests.project.test_docs import answer_keys
from worker.config.settings import PROJECT
from worker.translation.other_workers import understood

SERVE = "make serve"
DRAWN = 'make run PROMPT="a green star on a yellow background"'
TIMEOUT = 180.0

if not (PROJECT / ".venv" / ".ready").exists() or not shutil.which("curl"):
    pytest.skip("needs the environment that `make` sets up, and curl", allow_module_level=True)


# The lines of the ```sh blocks. The Turkish README has the same ones (test_docs.py).
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
README, *OF_DOCS = (
    "".join(re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    .replace("\\\n", " ")
    .splitlines()
    for page in PAGES
)
COMMANDS = list(dict.fromkeys(itertools.chain(README, *OF_DOCS)))
JOBS = dict.fromkeys(
    block
    for page in PAGES
    for block in re.findall(r"^```json\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    if "input" in json.loads(block)
)
# what a job contains -> why it cannot run in a test
NOT_RUN = {
    "https://civitai.com/": "it downloads a checkpoint and LoRAs from CivitAI, some GB",
    '"alwayson_scripts"': "it needs A1111's image with its extensions, and a ControlNet of 0.7 GB",
    '"interrogate"': "the embedded engine has no model that describes pictures",
    '"jib_mix_realistic"': "its template names a checkpoint and a LoRA on CivitAI, 7 GB",
}
RUNS = [line for line in COMMANDS if line.startswith("make run")]
CALLS = [line for line in COMMANDS if line.startswith("curl")]
CLIENTS = [line for line in COMMANDS if line.startswith("python3 client.py")]
OTHERS = [line for line in COMMANDS if line not in {*RUNS, *CALLS, *CLIENTS, SERVE}]


def environment(folder):
    return {
        "HOME": str(folder),
        "OUTPUT_DIR": str(folder / "outputs"),
        "MODELS_DIR": str(folder / "models"),
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ["PATH"],
        "RUN_DIR": str(folder / "run"),
        "WEBUI_DIR": str(folder / "webui"),
        "WEBUI_URL": f"http://127.0.0.1:{free_port()}",
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`make serve`: its environment, with the port that it serves as PORT."""
    environ = environment(tmp_path_factory.mktemp("served")) | {"PORT": str(free_port())}
    with (
        s3_server() as bucket,
        subprocess.Popen(
            SERVE.split(),
            cwd=PROJECT,
            env=environ | bucket.environ(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):

        def answers():
            assert process.poll() is None
            with contextlib.suppress(requests.ConnectionError):
                url = f"http://localhost:{environ['PORT']}/ping"
                return requests.get(url, timeout=5).status_code == HTTPStatus.OK

        try:
            wait_until(answers, "the engine", TIMEOUT)
            yield environ
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def run(line, environ, **more):
    command = ["bash", "-euo", "pipefail", "-c", line]
    options = {"cwd": PROJECT, "capture_output": True, "text": True, "timeout": TIMEOUT}
    done = subprocess.run(command, env=environ, check=False, **(options | more))
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done


def job_of(line, environ):
    """The job of a `make run` line, as the recipe would send it."""
    line = line.replace("make", "make -s -f - RUN_FLAGS=--dry-run", 1)
    makefile = "include Makefile\n.venv/.ready: ;\n"
    return json.loads(run(line, environ, input=makefile).stdout)


def test_make_run_draws_what_the_prompt_says(tmp_path):
    from PIL import Image

    from training.adherence import Seen, look

    done = run(DRAWN, environment(tmp_path))
    output = done.stdout + done.stderr
    picture = re.search(r"^ *file +(\S+\.png)$", output, re.MULTILINE)[1]
    assert look(Image.open(PROJECT / picture)) == Seen("yellow", "green", "star")
    assert "prompt   a green star on a yellow background" in output
    assert "256x256, 20 steps of Euler a, seed 42" in output
    assert max(map(len, output.splitlines())) < 300, "the terminal is full of base64"
    assert not list((tmp_path / "models").rglob("*.safetensors")), "a model was copied"


def test_make_run_passes_its_variables_on_unchanged(tmp_path):
    given = {"prompt": 'a "green" $5 star\'s $$ $(HOME) #1', "checkpoint": "mine"}
    variables = {name.upper(): value for name, value in given.items()}
    job = job_of("make run", environment(tmp_path) | variables)
    example = json.loads((PROJECT / "test_input.json").read_text())["input"]
    assert job == {"input": example | given}


@pytest.mark.parametrize("line", CALLS)
def test_calls_of_make_serve_are_answered_as_documented(served, line):
    engine = served["WEBUI_URL"].rpartition(":")[2]
    line = line.replace(":8000", f":{served['PORT']}").replace(":3000", f":{engine}")
    answer = json.loads(run(line, served).stdout)
    assert "error" not in answer
    if "@test_input.json" in line:  # the first picture: only its answer has `startup`
        assert set(answer["output"]) == answer_keys()


def test_the_commands_of_the_client_run_one_after_the_other(served, tmp_path_factory):
    """In one folder, because a later command reads the picture of an earlier one."""
    folder = tmp_path_factory.mktemp("client")
    environ = served | {"RUNPOD_URL": f"http://localhost:{served['PORT']}"}
    assert CLIENTS
    for line in CLIENTS:
        before = {*folder.rglob("*.*")}
        done = run(line.replace("client.py", f"{PROJECT}/client.py"), environ, cwd=folder)
        written = {str(file.relative_to(folder)) for file in {*folder.rglob("*.*")} - before}
        assert bool(written) == ("--list" not in line and "--dry-run" not in line)
        assert all(name in done.stdout for name in written)


def blocks(page, language):
    text = (PROJECT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# Whole programs, in the languages of the pages that have them: each saves a picture.
PROGRAM_PAGES = (
    *("docs/quickstart.md", "docs/openai.md", "docs/streaming.md"),
    *("docs/clients/python.md", "docs/clients/javascript.md"),
)
LANGUAGES = {"bash": ("sh", "bash"), "python": ("py", sys.executable), "js": ("mjs", "node")}
PROGRAMS = [
    pytest.param(language, program, id=f"{page.rpartition('/')[2]}-{language}-{number}")
    for page in PROGRAM_PAGES
    for language in LANGUAGES
    for number, program in enumerate(blocks(page, language))
]
NODE_MODULES = PROJECT / "tests" / "clients" / "node" / "node_modules"


@pytest.mark.parametrize(("language", "program"), PROGRAMS)
def test_the_programs_in_the_documents_save_a_picture(served, language, program, tmp_path):
    suffix, interpreter = LANGUAGES[language]
    if language == "js":
        packages = re.findall(r"^import .* from \"([\w-]+)\"", program, re.MULTILINE)
        missing = [name for name in packages if not (NODE_MODULES / name).exists()]
        if missing or not shutil.which("node"):
            pytest.skip(f"needs node and {missing}: npm ci in tests/clients/node")
        (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    file = tmp_path / f"program.{suffix}"
    file.write_text(re.sub(r"\b(8000|7860)\b", served["PORT"], program))
    here = f"http://localhost:{served['PORT']}"
    account = {"RUNPOD_API_KEY": "any", "RUNPOD_ENDPOINT_ID": "any", "URL": here}
    base = {"RUNPOD_ENDPOINT_BASE_URL": f"{here}/v2", "RUNPOD_BASE_URL": f"{here}/v2"}
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | account | base
    done = subprocess.run(
        [interpreter, file],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pictures = [*tmp_path.glob("heart*.png")]
    assert {picture.read_bytes()[:4] for picture in pictures} == {b"\x89PNG"}


def reasons(job):
    return [reason for part, reason in NOT_RUN.items() if part in job]


@pytest.mark.parametrize("job", [job for job in JOBS if not reasons(job)])
def test_the_jobs_in_the_documents_run_on_make_serve_as_printed(served, job):
    url = f"http://localhost:{served['PORT']}/runsync?wait=300000"
    body = json.loads(job)
    answer = requests.post(url, json=body, timeout=TIMEOUT).json()
    assert answer["status"] == "COMPLETED", answer
    assert answer["output"].get("warnings", []) == [*understood(body["input"]).notes]


def test_each_reason_for_a_job_that_is_not_run_is_needed():
    needed = {reason for job in JOBS if len(found := reasons(job)) == 1 for reason in found}
    assert needed == {*NOT_RUN.values()}


@pytest.mark.parametrize("line", [line for line in RUNS if line != DRAWN] + [None])
def test_other_make_run_lines_are_jobs_that_complete_and_a_wrong_job_fails(served, line):
    body = job_of(line, served) if line else {"input": {"prompt": 5}}
    url = f"http://localhost:{served['PORT']}/runsync?wait=300000"
    answer = requests.post(url, json=body, timeout=TIMEOUT).json()
    assert answer["status"] == ("COMPLETED" if line else "FAILED"), answer
    assert line or answer["error"].startswith("INVALID_INPUT: prompt = 5")


@pytest.mark.parametrize("line", OTHERS)
def test_other_commands_run_as_printed(line, tmp_path):
    run(line, environment(tmp_path))


def test_make_serve_and_the_client_start_the_same_worker():
    makefile = (PROJECT / "Makefile").read_text()
    exported = dict(re.findall(r"^serve: export (\w+) \?= (.+)$", makefile, re.MULTILINE))
    assert {name: exported[name] for name in exported if name != "OUTPUT_DIR"} == client.START


def test_the_readme_has_the_commands_that_people_need():
    assert DRAWN in README
    assert SERVE in README
    assert all(any(word in line for line in CALLS) for word in ("runsync", "sdapi/v1"))
