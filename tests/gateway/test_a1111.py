"""A1111's routes over a queue: answers, errors, and whatever a client may send."""

import base64
import json
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import requests
from fakes.gateway_server import served
from fakes.hosts.fixtures import client_for, hosts, running_hosts  # noqa: F401 - fixtures
from fakes.input_pictures import saved, scene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request

from gateway.a1111 import checkpoints
from gateway.a1111.api import A1111Api
from gateway.a1111.client import Client, client_of
from gateway.a1111.lists import LISTS, page_config
from gateway.a1111.options import Remembered
from gateway.a1111.running import Running
from gateway.catalog.catalog import TASKS, Catalog, Lists
from gateway.jobs import JobState
from gateway.local.jobs import LocalJobs

MODEL = {
    "name": "photo.safetensors",
    "title": "photo.safetensors [0123456789]",
    "model_name": "photo",
    "hash": "0123456789",
    "sha256": "01234567" * 8,
}
KNOWN = Lists(
    models=[
        *(MODEL, {"name": "plain.ckpt"}, {"name": "red foxes.safetensors"}),
        *({"name": f"{one}/two.ckpt", "model_name": f"{one}_two"} for one in "ab"),
    ],
    templates=[
        {"name": "Red foxes", "template": "foxes"},
        {"name": "photo", "template": "same name as a checkpoint"},
    ],
    default_template="foxes",
    time=1.0,
)

CHOICES = [
    ("Red foxes", "Red foxes"),
    *((form, MODEL["title"]) for form in ("photo", "photo.safetensors [ffffffffff]")),
    *((form, MODEL["title"]) for form in ("0123456789", MODEL["sha256"], "PHOTO")),
    ("XL/photo.safetensors", "XL/photo.safetensors"),  # the list has no folders
    ("red foxes", "red foxes.safetensors"),
    *((text, text) for text in ("two", "TWO")),  # the worker names both
    *((f"{one}/Two.ckpt", f"{one.lower()}/two.ckpt") for one in "aB"),
    ("a_two", "a/two.ckpt"),
    (" plain ", "plain.ckpt"),
    *((text, text) for text in ("civitai:4384@128713", "https://civitai.com/models/4384")),
    *((text, None) for text in ("nope", "foxes", "c/two.ckpt", "../photo", "", "\x00", "a" * 5000)),
]


@pytest.mark.parametrize(("text", "title"), CHOICES)
def test_a_checkpoint_is_chosen_by_each_of_its_names_a_template_and_a_reference(text, title):
    assert checkpoints.chosen(KNOWN, text) == title


def test_templates_are_listed_first_and_never_hide_a_checkpoint():
    titles = [one["title"] for one in checkpoints.as_a1111(KNOWN)]
    assert titles == ["Red foxes", MODEL["title"], *(one["name"] for one in KNOWN.models[1:])]
    assert checkpoints.titles(KNOWN) == {"Red foxes": "foxes"}
    assert checkpoints.current(KNOWN) == "Red foxes"
    # Otherwise a client that sends all options back would choose another one with them.
    unlisted = replace(KNOWN, default_template="same name as a checkpoint")
    without = replace(KNOWN, default_template=None)
    assert checkpoints.current(unlisted) == checkpoints.current(without) == ""
    assert checkpoints.current(replace(without, models=[MODEL])) == MODEL["title"]
    assert checkpoints.chosen(Lists(), "unknown yet") == "unknown yet"


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ITEM = st.dictionaries(st.sampled_from(["aliases", "scale", "fields", "tasks", "args"]), ANY)


@given(ITEM, st.text())
def test_an_item_of_another_version_of_the_worker_is_shown_or_left_out_but_harms_nothing(
    item, name
):
    lists = Lists(**{task: [{**item, "name": name}] for task in TASKS})
    for shape in (*LISTS.values(), page_config):
        json.dumps(shape(lists))


def test_options_are_kept_for_the_last_hundred_clients():
    remembered = Remembered()
    for number in range(150):
        client = Client(f"10.0.0.{number}", "a program")
        remembered.change(client, {"CLIP_stop_at_last_layers": 2}, KNOWN)
    kept = [bool(remembered.of(Client(f"10.0.0.{number}", "a program"))) for number in range(150)]
    assert kept == [False] * 50 + [True] * 100


def test_options_are_kept_for_the_next_start_without_tokens(tmp_path):
    file, client = tmp_path / "options.json", Client("a", "b")
    Remembered(file).change(client, {"sd_model_checkpoint": "photo", "sd_vae": "x"}, KNOWN)
    assert Remembered(file).of(client) == {"sd_model_checkpoint": MODEL["title"], "sd_vae": "x"}
    url = {"sd_model_checkpoint": "https://civitai.com/api/download/models/5?token=hunter2"}
    Remembered(file).change(client, url, KNOWN)
    assert "hunter2" not in file.read_text()
    assert Remembered(file).of(client) == {"sd_vae": "x"}
    for broken in ('[["a", "b", {"sd_vae": 5}], ["a"], 7]', "{}", "[", '[["a", "b", []]]'):
        file.write_text(broken)
        assert Remembered(file).of(client) == {}


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("", "10.0.0.9"),
        ("203.0.113.7:4100, 10.1.1.1", "10.0.0.9 203.0.113.7 10.1.1.1"),
        ("2001:db8::7", "10.0.0.9 2001:db8::7"),
        ("x" * 5000, f"10.0.0.9 {'x' * 200}"),
    ],
)
def test_clients_behind_one_proxy_are_several(forwarded, address):
    headers = [(b"x-forwarded-for", forwarded.encode()), (b"user-agent", b"me")]
    request = Request({"type": "http", "client": ("10.0.0.9", 5), "headers": headers})
    assert client_of(request) == Client(address, "me")


ME, NEAR, FAR = Client("a", "me"), Client("a", "other"), Client("b", "me")
REPORTS = [
    ({"phase": "download", "percent": 50}, (0.01, 0, 0)),
    ({"phase": "generate", "percent": 50, "step": 5, "steps": 10, "eta_seconds": 3}, (0.5, 5, 10)),
    ({"phase": "generate", "percent": "x", "step": None, "steps": [1]}, (0.01, 0, 0)),
    ({"phase": "generate", "percent": float("nan"), "step": 1e300}, (0.01, 0, 0)),
    ({"phase": "upload"}, (1.0, 0, 0)),
    (None, (0.01, 0, 0)),
    ("text", (0.01, 0, 0)),
]


@pytest.mark.parametrize(("report", "expected"), REPORTS)
def test_progress_is_read_from_any_report(report, expected):
    running = Running(lambda: 0.0)
    running.begin(ME, "txt2img").state = JobState("1", "IN_PROGRESS", report)
    shown = running.progress(ME)
    state = shown["state"]
    assert (shown["progress"], state["sampling_step"], state["sampling_steps"]) == expected
    json.dumps(shown, allow_nan=False)


def test_progress_is_that_of_the_client_and_interrupt_never_reaches_another_computer():
    running = Running(lambda: 0.0)
    assert running.progress(ME)["state"]["job"] == ""
    far = running.begin(FAR, "img2img")
    assert (running.interrupt(ME), running.progress(ME)["state"]["job"]) == (0, "scripts_img2img")
    near = running.begin(NEAR, "txt2img")
    assert running.interrupt(ME) == 1  # it has drawn nothing itself, such as curl
    assert (near.stopped.is_set(), far.stopped.is_set()) == (True, False)
    mine = running.begin(ME, "txt2img")
    assert (running.interrupt(ME), running.progress(ME)["textinfo"]) == (1, "waiting for a worker")
    running.end(mine)
    assert (running.interrupt(ME), running.progress(ME)["state"]["job_count"]) == (0, 1)


# Over HTTP ----------------------------------------------------------------------------------------


class Server:
    """The routes over a queue whose jobs end with `answer`."""

    def __init__(self, http):
        self.inputs, self.answer, self._http = [], {}, http

    async def _handler(self, job):
        self.inputs.append(job["input"])
        if job["input"].get("task") == "batch":
            return {"results": [*({one: []} for one in TASKS), {"document": {}}]}
        return self.answer

    @asynccontextmanager
    async def app(self):
        jobs = LocalJobs(self._handler)
        jobs.begin()
        yield Starlette(routes=A1111Api(jobs, Catalog(jobs), self._http).routes())

    def get(self, route):
        return requests.get(f"{self.url}{route}", timeout=60)

    def post(self, route, body):
        """The status and the body of the answer."""
        path = route if route[0] == "/" else f"/sdapi/v1/{route}"
        kind = {"Content-Type": "application/json"}
        answer = requests.post(f"{self.url}{path}", json.dumps(body), headers=kind, timeout=60)
        return answer.status_code, answer.json()

    def of_jobs(self):
        return [one for one in self.inputs if one.get("task") != "batch"]


@pytest.fixture(scope="module")
def server(running_hosts):  # noqa: F811
    server = Server(client_for(running_hosts))
    with served(server.app) as gateway:
        server.url = gateway.url
        yield server


@pytest.fixture(autouse=True)
def _forget(request):
    if "server" in request.fixturenames:
        found = request.getfixturevalue("server")
        found.inputs, found.answer = [], {}


def test_pictures_in_a_bucket_are_fetched_and_what_the_worker_says_is_in_info(server, hosts):  # noqa: F811
    url = hosts.add_web("/1.png", b"a picture")
    server.answer = {"images": [url, "cGxhaW4="], "info": '{"seed": 1}', "warnings": ["it is red."]}
    server.answer |= {"parameters": {"steps": 3}, "models": [{"name": "new", "source": "web"}]}
    status, found = server.post("txt2img", {"prompt": "a fox"})
    assert [base64.b64decode(one) for one in found["images"]] == [b"a picture", b"plain"]
    assert json.loads(found["info"]) == {"seed": 1, "worker_warnings": ["it is red."]}
    assert (status, found["parameters"]) == (200, {"steps": 3})
    assert [one["output"] for one in server.of_jobs()] == [{"preview": True}]


def test_a_picture_that_only_the_keys_of_its_bucket_can_read_is_an_error_that_names_it(server):
    server.answer = {"images": ["s3://volume/job/0.png"], "info": "{}", "parameters": {}}
    status, body = server.post("txt2img", {"prompt": "a fox"})
    assert (status, body["error"]) == (422, "IMAGE_URL_REFUSED")
    assert "s3://volume/job/0.png" in body["detail"]
    assert "BUCKET_PUBLIC_URL" in body["detail"]


FAILURES = [
    ({"error": "INVALID_INPUT: no."}, 422, "INVALID_INPUT"),
    ({"error": "MODEL_NOT_FOUND: no."}, 422, "MODEL_NOT_FOUND"),
    ({"error": "JOB_TIMEOUT: no."}, 504, "JOB_TIMEOUT"),
    ({"error": "ENGINE_ERROR: no."}, 500, "ENGINE_ERROR"),
    ({"error": "Traceback of another worker"}, 500, "JOB_FAILED"),
    (["no object"], 500, "NO_ANSWER"),
]


@pytest.mark.parametrize(("answer", "status", "kind"), FAILURES)
def test_a_failed_job_is_an_error_with_its_sentence(server, answer, status, kind):
    server.answer = answer
    found, body = server.post("txt2img", {"prompt": "a fox"})
    assert (found, body["error"], body["body"]) == (status, kind, "")
    assert body["detail"] == body["errors"]
    assert isinstance(answer, list) or body["detail"] == answer["error"]


def test_what_there_is_not_is_said(server):
    for route, words in {
        "unload-checkpoint": "load the checkpoint",
        "train/embedding": "train",
    }.items():
        status, body = server.post(route, {})
        assert (status, words in body["detail"]) == (501, True)
    assert server.post("/controlnet/detect", {})[0] == 501
    assert server.get("/sdapi/v1/txt2img").status_code == 405
    assert server.get("/sdapi/v1/no-such-list").status_code == 404
    assert server.get("/system_stats").status_code == 404
    assert server.of_jobs() == []


def test_a_picture_is_read_here_and_returned_where_nothing_is_to_be_done(server):
    for image in ("", None, "https://example.com/x.png", "file:///etc/passwd", "aGVsbG8=", 3):
        status, body = server.post("png-info", {"image": image})
        assert 400 <= status < 500
        assert body["errors"]
    image = base64.b64encode(saved(scene(16, 16), "PNG")).decode()
    for upscaler in ({}, {"upscaler_1": None}, {"upscaler_1": "None", "upscaling_resize": 2}):
        assert server.post("extra-single-image", {"image": image} | upscaler)[1]["image"] == image
    assert server.of_jobs() == []


NAMES = (
    *("prompt", "image", "imageList", "init_images", "override_settings", "sd_model_checkpoint"),
    *("CLIP_stop_at_last_layers", "upscaler_1", "gfpgan_visibility", "output", "tiling", "x"),
)
ROUTES = (
    *("txt2img", "img2img", "extra-single-image", "extra-batch-images", "interrogate", "png-info"),
    *("options", "interrupt", "refresh-loras"),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ROUTES), st.dictionaries(st.sampled_from(NAMES), ANY) | ANY)
def test_no_body_breaks_a_route(server, route, body):
    server.answer = {"images": ["aGk="], "caption": "a fox", "info": "{}"}
    status, found = server.post(route, body)
    if status != 200:
        assert {"detail", "errors", "error", "body"} <= found.keys()
        assert status < 500 or "not found" in found["errors"]
