"""client.py draws: from the command line to the file, over a real connection."""

import json
import os
import pty
import shlex
import subprocess
from pathlib import Path

import pytest
from fakes.runpod_endpoint import KEY, completed, failed, progress, queued

import client as program
from worker.job.request import check
from worker.tasks.schema import document
from worker.tasks.table import TASKS

from .conftest import drawn, picture


def test_a_picture_is_saved_and_the_report_says_how_to_repeat_it(endpoint, client):
    warned = drawn(picture(), warnings=["a \x1b[31mwarning"])
    endpoint.states = lambda _: [queued(), progress(phase="load"), warned]
    status, out, err = client("a red fox", "--out", "new/fox.png", "--steps=20", quick=None)
    assert (status, out) == (0, "new/fox.png\n")
    assert (client.folder / out.strip()).read_bytes() == picture()
    shown = [
        "sending the job",
        "waiting for a worker: it starts, or draws another job",
        "load",
        "prompt   a red fox",
    ]
    shown += ["picture  256x256, 20 steps of Euler a, seed 42", "models   demo-shapes"]
    shown += ["seconds  generate 1.4, total 1.5", "warning  a \N{REPLACEMENT CHARACTER}[31mwarning"]
    assert err.splitlines()[:-1] == [*shown, "file     new/fox.png"]
    label, again = err.splitlines()[-1].split(maxsplit=1)
    words = ["a red fox", "--out", "new/fox.png", "--steps=20", "--seed", "42"]
    assert (label, shlex.split(again)[-6:]) == ("again", words)
    done = subprocess.run(shlex.split(again), cwd=client.folder, env=client.environ, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == "new/fox-2.png\n"
    first, second = endpoint.inputs()
    assert second == first | {"seed": 42}
    assert {event["headers"]["Authorization"] for event in endpoint.events()} == {f"Bearer {KEY}"}


# arguments -> the fields of the job beside its prompt
JOBS = {
    "--negative bad --size 512x768 --cfg 4.5 --sampler Euler --scheduler Karras --seed -1 -n 3": {
        "negative_prompt": "bad",
        "width": 512,
        "height": 768,
        "cfg_scale": 4.5,
        "seed": -1,
        "sampler_name": "Euler",
        "scheduler": "Karras",
        "n_iter": 3,
    },
    "--template realistic --checkpoint https://civitai.com/models/4384 --vae None": {
        "template": "realistic",
        "vae": "None",
        "checkpoint": "https://civitai.com/models/4384",
    },
    "--lora striped --lora https://civitai.com/api/download/models/62833:0.8 --embedding bad": {
        "loras": [
            "striped",
            {"name": "https://civitai.com/api/download/models/62833", "scale": 0.8},
        ],
        "embeddings": ["bad"],
    },
    "--hires": {"enable_hr": True, "hr_scale": 2.0, "denoising_strength": 0.5},
    "--hires 1.5 --denoising 0.3": {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.3},
    '--set eta=0.5 --set tiling=true --set hr_upscaler=Latent --set output={"format":"webp"}': {
        "eta": 0.5,
        "tiling": True,
        "hr_upscaler": "Latent",
        "output": {"format": "webp"},
    },
    "--out fox.JPG": {"output": {"format": "jpeg"}},
    "--out foxes/": {},
    "--init https://example.com/fox.png --mask data:image/png;base64,iVBORw0KGgo=": {
        "task": "img2img",
        "init_images": ["https://example.com/fox.png"],
        "mask": "data:image/png;base64,iVBORw0KGgo=",
    },
}


@pytest.mark.parametrize("arguments", JOBS)
def test_options_become_a_job_that_the_worker_accepts(client, arguments):
    client.environ["RUNPOD_URL"] = "https://api.runpod.ai"  # where a check is not free
    status, out, _ = client("a fox", *arguments.split(), "--dry-run", "--quiet")
    job = json.loads(out)["input"]
    assert (status, job) == (0, {"prompt": "a fox", **JOBS[arguments]})
    if job.get("vae") != "None":
        check(job, TASKS.of(job).input)


def test_pictures_and_jobs_are_read_from_files_and_options_win(client):
    client.environ["RUNPOD_URL"] = "https://api.runpod.ai"
    (client.folder / "fox.webp").write_bytes(picture("webp"))
    job = {"input": {"prompt": "a dog", "steps": 5, "seed": 1}, "policy": {"ttl": 60000}}
    arguments = ["--init", "fox.webp", "--job", "-", "--seed", 2, "--set", "steps=6", "--dry-run"]
    status, out, _ = client(*arguments, stdin=("\ufeff" + json.dumps(job)).encode())
    sent = json.loads(out)
    assert (status, sent["policy"]) == (0, {"ttl": 60000})
    image = sent["input"].pop("init_images")[0]
    assert sent["input"] == {"prompt": "a dog", "steps": 6, "seed": 2, "task": "img2img"}
    assert image.startswith("UklGR")


def test_the_progress_of_a_terminal_is_one_line_that_is_redrawn(client):
    ours, theirs = pty.openpty()
    status, _, _ = client("a fox", stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    assert status == 0
    line = "generate, 48 %, step 12 of 25, 8 s left  0 s"
    assert f"\r{line}" in shown
    before, report = shown.split("prompt   ")
    assert "\n" not in before
    assert report.count("\n") == 6


def test_scripts_get_json_or_only_the_files(endpoint, client):
    endpoint.states = lambda _: [drawn(picture(), picture("jpeg"), warnings=["note this"])]
    status, out, err = client("a fox", "--json", "--quiet")
    answer = json.loads(out)
    assert (status, err) == (0, "warning  note this\n")
    assert answer["files"] == ["a-red-fox-42.png", "a-red-fox-43.jpg"] == client.files()
    assert (answer["id"], answer["status"]) == (endpoint.job_ids[0], "COMPLETED")
    assert "images" not in answer["output"]
    assert client("a fox", "--quiet")[1].split() == ["a-red-fox-42-2.png", "a-red-fox-43-2.jpg"]


def test_a_reader_of_the_output_that_has_gone_is_no_failure(client):
    process = client.start("a fox")
    process.stdout.close()
    process.stdout = None
    assert client.end(process)[0] == 0
    assert client.files() == ["a-red-fox-42.png"]


def test_a_bug_is_a_sentence_that_names_the_job(endpoint, client):
    status, _, err = client("a fox", quick="client.save = None")
    assert (status, "This is a bug in client.py, line " in err) == (1, True)
    assert f"client.py --fetch {endpoint.job_ids[0]}" in err


def test_standard_error_that_cannot_be_written_changes_nothing(client):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        status, out, _ = client("a fox", stderr=full)
    assert (status, out) == (0, "a-red-fox-42.png\n")


def test_a_full_disk_under_the_output_is_a_sentence(client):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        status, _, err = client("a fox", stdout=full)
    assert (status, err.splitlines()[-1].split(": ")[1]) == (1, "Standard output cannot be written")


# states of a job -> exit status, what the user reads
ENDS = {
    "failed": (failed("INVALID_INPUT: steps = 900. Give 1 to 150."), 1, "INVALID_INPUT: steps ="),
    "detail only": (failed("", detail="NO_CHECKPOINT: none."), 1, "NO_CHECKPOINT: none."),
    "exception": (failed('{"error_type": "KeyError", "error_message": "x"}'), 1, "KeyError x"),
    "no reason": ({"status": "FAILED"}, 1, "gives no reason"),
    "completed with an error": (completed(error="OUT_OF_MEMORY: no."), 1, "OUT_OF_MEMORY: no."),
    "no output": ({"status": "COMPLETED"}, 1, "larger than 10 MB"),
    "timed out": ({"status": "TIMED_OUT"}, 1, "execution timeout"),
    "cancelled": ({"status": "CANCELLED"}, 130, "was cancelled"),
    "not a picture": (drawn(b"<html>login</html>"), 1, "no PNG, JPEG or WebP: '<html>login"),
    "not base64": (completed(images=["%%%"]), 1, "neither base64 nor a URL"),
    "only by its keys": (completed(images=["s3://v/a.png"]), 1, "aws s3 cp"),
    "not text": (completed(images=[5]), 1, "neither base64 nor a URL"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_job_without_pictures_ends_with_a_sentence_and_a_status(end, endpoint, client):
    state, expected, sentence = ENDS[end]
    endpoint.states = lambda _: [queued(), state]
    status, out, err = client("a fox")
    assert (status, out) == (expected, "")
    assert sentence in err.splitlines()[-1] + err
    assert client.files() == []


def test_names_health_and_answers_without_pictures_are_printed(endpoint, client):
    answers = {
        "loras": completed(loras=[{"name": "striped"}, {"name": "kohya"}], total=2),
        "templates": completed(templates=[{"template": "demo", "name": "Demo shapes"}]),
        "png_info": completed(info="Steps: 20", items={}),
    }
    endpoint.states = lambda job_input: [queued(), answers[job_input["task"]]]
    assert client("--list", "loras")[:2] == (0, "striped\nkohya\n")
    assert client("--list", "templates")[:2] == (0, "demo\n")
    status, out, _ = client("--health")
    assert (status, "workers  idle 1, initializing 0" in out) == (0, True)
    status, out, _ = client("--job", "-", stdin=b'{"task": "png_info"}')
    assert (status, json.loads(out)["output"]["info"]) == (0, "Steps: 20")


def test_dry_run_checks_the_job_by_the_schema_of_a_local_worker(endpoint, client):
    schema = document(TASKS)
    endpoint.states = lambda _: [completed(document=schema, timings={})]
    del client.environ["RUNPOD_ENDPOINT_ID"]  # so it is the local API
    lora = ["--lora", "striped:0.8", "--set", "override_settings=null"]
    status, _, err = client("a fox", "--dry-run", "--hires", *lora)
    assert (status, err.splitlines()[-1].split()[0]) == (0, "note"), err
    wrong = ["--steps", "900", "--set", "width=wide", "--set", 'loras=[{}, {"scale": 99}]']
    status, out, err = client("a fox", "--dry-run", *wrong, "--set", "colour=red")
    assert (status, json.loads(out)["input"]["steps"]) == (1, 900)
    assert [line.partition("says: ")[2] for line in err.splitlines() if "says: " in line] == [
        "steps = 900 is above 150",
        'width = "wide" is no integer',
        "loras[1].scale = 99 is above 10",
        "the job has no field 'colour'",
    ]
    assert endpoint.inputs() == [{"task": "schema"}] * 2


# arguments -> what the sentence has; nothing is sent
MISTAKES = {
    "": "what shall be drawn",
    "a red fox": "put the prompt in quotes: 'a red fox'",
    "fox --size big": "512x768",
    "fox --cfg nan": "invalid number value",
    "fox -n 0": "invalid count value",
    "fox --timeout 0": "invalid seconds value",
    "fox --steep 5": "unknown option: --steep",
    "fox --out fox.bmp": ".png, .jpg or .webp",
    "fox --out -": "--out is a file",
    f"fox --out {'x' * 300}.png": "a file name of more than 240 bytes",
    f"fox --out {'x' * 300}/fox.png": "cannot be written: File name too long",
    "fox --set steps": "NAME=VALUE",
    "fox --set x={": "not valid JSON",
    "fox --mask m.png": "--mask needs --init",
    "fox --init none.png": "none.png cannot be read: No such file or directory",
    "--job none.json": "none.json cannot be read",
    "--like none.png": "none.png cannot be read",
    "--fetch ../../x": "is no job's id",
    "--list all": "invalid choice",
    "fox --endpoint a/b": "The endpoint's id",
    "fox --out client.py/fox.png": "client.py cannot be written: Not a directory",
}


@pytest.mark.parametrize(
    "arguments",
    [
        ["a fox", "--seed", "7", "--hires"],
        ["--seed=-1", "--hires", "2", "a 'fox' $HOME"],
        ["--hires", "--", "--seed"],
        ["--like", "fox.png", "-n", "2", "--set", 'output={"format": "webp"}'],
    ],
)
def test_the_command_to_repeat_differs_only_in_the_seed(arguments):
    words = shlex.split(program.again(arguments, 42))[2:]
    first, second = (vars(program.read_arguments(given)) for given in (arguments, words))
    assert second == first | {"seed": 42, "given": words}


@pytest.fixture
def mistake(client, monkeypatch):
    """What the program would write before it ends with status 2, run in this process."""
    monkeypatch.chdir(client.folder)

    def run(*arguments):
        for name in ("RUNPOD_URL", "RUNPOD_ENDPOINT_ID", "RUNPOD_API_KEY"):
            monkeypatch.setenv(name, client.environ[name])
        with pytest.raises(program.Failed) as failed:
            program.run(program.read_arguments(arguments), program.Signals())
        assert failed.value.status == 2
        return str(failed.value)

    return run


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_in_the_command_is_one_sentence_and_status_2(arguments, endpoint, mistake):
    Path("client.py").touch()
    sentence = mistake(*arguments.split())
    assert MISTAKES[arguments] in sentence.replace("File exists", "Not a directory")
    assert endpoint.events() == []


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"RUNPOD_URL": "", "RUNPOD_API_KEY": ""}, "Set RUNPOD_API_KEY"),
        ({"RUNPOD_URL": "https://api.runpod.ai", "RUNPOD_ENDPOINT_ID": ""}, "RUNPOD_ENDPOINT_ID"),
        ({"RUNPOD_URL": "http://api.runpod.ai"}, "must begin with https"),
        ({"RUNPOD_URL": "ftp://example.com"}, "is no address"),
        ({"RUNPOD_URL": "http://[::1"}, "is no address"),
        ({"RUNPOD_URL": "http://x:99999"}, "is no address"),
        ({"RUNPOD_URL": f"https://u:{KEY}@example.com"}, "user name"),
        ({"RUNPOD_API_KEY": f"{KEY}\nx: y"}, "characters that no key has"),
    ],
)
def test_a_mistake_in_the_environment_is_one_sentence(environ, sentence, client, mistake):
    client.environ.update(environ)
    message = mistake("a fox")
    assert sentence in message
    assert KEY not in message
