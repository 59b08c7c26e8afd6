"""OpenAI's own clients against the gateway, over both backs."""

import asyncio
import base64
import http.client
import io
import json
import tempfile
from urllib.parse import urlsplit

import openai
import pytest
import requests
from fakes.a1111.process import wait_until
from fakes.gateway_server import served_endpoint
from fakes.input_pictures import saved, scene
from fakes.node import run_script
from fakes.runpod_endpoint import ENDPOINT, RunPodEndpoint, completed, failed, progress, queued
from fakes.served import served_worker
from PIL import Image

from gateway.openai import events
from gateway.openai.bucket import with_base64
from worker.http.client import SafeHttpClient


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with served_worker(tmp_path_factory.mktemp("served"), TEMPLATES_FILE="") as served:
        yield served


@pytest.fixture(scope="module")
def over_the_bridge(served):
    with served_endpoint(f"{served.url}/v2/{ENDPOINT}") as bridge:
        yield bridge.url


def client_of(url):
    return openai.OpenAI(base_url=url, api_key="none")


@pytest.fixture(params=["/v1", f"/v2/{ENDPOINT}/openai/v1", "the bridge"])
def client(request, served, over_the_bridge):
    is_bridge = request.param == "the bridge"
    with client_of(f"{over_the_bridge}/v1" if is_bridge else served.url + request.param) as client:
        yield client


def picture_of(item):
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def test_openais_client_draws_edits_and_lists(served, client):
    drawn = client.images.generate(
        model="second",
        prompt="a fox <lora:detail:0.5>",
        n=2,
        size="256x128",
        output_format="webp",
        user="me",
        extra_body={"steps": 3, "loras": [{"name": "detail", "scale": 0.8}]},
    )
    assert [picture_of(one).format for one in drawn.data] == ["WEBP", "WEBP"]
    assert (drawn.size, drawn.output_format, drawn.usage.total_tokens) == ("256x128", "webp", 0)
    assert [one["name"] for one in drawn.models] == ["second", "detail"]
    assert "user has no effect" in drawn.warnings[0]
    asked = served.worker.requests()[-1]["body"]
    assert (asked["steps"], asked["batch_size"], asked["width"]) == (3, 2, 256)
    # Behind the bridge only now: a list does not start a worker.
    assert {"default", "first.safetensors"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("second.safetensors").owned_by == "checkpoint"
    hole = scene().convert("RGBA")
    hole.paste((0, 0, 0, 0), (0, 0, 64, 128))
    edited = client.images.edit(
        image=("a.png", saved(scene(), "PNG")),
        mask=("mask.png", saved(hole, "PNG")),
        prompt="[red|blue] fox",
        size="128x128",
        extra_body={"steps": 4, "denoising_strength": "0.5"},
    )
    assert edited.size == "128x128"
    asked = served.worker.requests("img2img")[-1]["body"]
    assert (asked["inpainting_mask_invert"], asked["denoising_strength"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("parameters", "error", "param"),
    [
        ({"model": "dall-e-3"}, openai.NotFoundError, "model"),
        ({"size": "big"}, openai.BadRequestError, "size"),
        ({"extra_body": {"steps": 999}}, openai.BadRequestError, "steps"),
        ({"response_format": "url"}, openai.BadRequestError, "response_format"),
        ({"prompt": "<lora:nope:1>"}, openai.NotFoundError, None),
        ({"model": "dall-e-3", "stream": True}, openai.NotFoundError, "model"),
    ],
    ids=str,
)
def test_what_the_worker_refuses_is_openais_error(client, parameters, error, param):
    with pytest.raises(error) as raised:
        client.images.generate(**{"prompt": "a fox"} | parameters)
    assert (raised.value.param, raised.value.type) == (param, "invalid_request_error")
    assert raised.value.code in {"model_not_found", "invalid_input"}


def test_a_model_that_is_not_there_and_other_routes_are_not_found(client):
    with pytest.raises(openai.NotFoundError, match="The models are 'default'"):
        client.models.retrieve("dall-e-3")
    with pytest.raises(openai.NotFoundError, match="this server has /v1/images/generations"):
        client.chat.completions.create(model="gpt", messages=[])
    with pytest.raises(openai.NotFoundError, match="/v1/files is not served"):
        client.files.list()


def test_openais_javascript_client_draws_streams_edits_and_reads_errors(served):
    seen = run_script("openai_images.mjs", f"{served.url}/v1")
    assert seen["models"][-1] == "second.safetensors"
    assert (seen["pictures"], seen["size"], seen["edited"]) == (2, "256x128", "256x128")
    assert seen["events"][-1] == ["image_generation.completed", "iVBORw0K"]
    errors = [(one["name"], one["status"], one["param"]) for one in seen["errors"]]
    bad = "BadRequestError"
    assert errors == [("NotFoundError", 404, "model"), (bad, 400, "size"), (bad, 400, "prompt")]


# A client that hangs up ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("over_bridge", [False, True])
def test_a_client_that_hangs_up_cancels_its_job(served, over_the_bridge, stream, over_bridge):
    url = urlsplit(over_the_bridge if over_bridge else served.url)
    served.worker.fault("slow_steps", seconds=0.5)
    body = json.dumps({"prompt": "a fox", "steps": 100, "stream": stream})
    connection = http.client.HTTPConnection(url.hostname, url.port)
    try:
        kind = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/images/generations", body, kind)
        served.worker.wait_until_generating()
        if stream:
            answer = connection.getresponse()
            assert answer.headers["content-type"].startswith("text/event-stream")
            answer.close()
        connection.close()
        wait_until(served.worker.engine_is_idle, "an idle engine")
    finally:
        served.worker.no_faults()
    counts = requests.get(f"{served.url}/health", timeout=5).json()["jobs"]
    assert counts["inProgress"] == counts["inQueue"] == 0


# States of a job ----------------------------------------------------------------------------------

DRAWN = completed(
    created=1, data=[{"b64_json": "aGk="}], size="64x64", output_format="png", warnings=["w"]
)
BAD = {"object": "error", "message": "no size", "type": "invalid_request_error", "param": "size"}


@pytest.fixture
def runpod():
    with RunPodEndpoint(lambda _input: [queued(), DRAWN]) as endpoint:
        yield endpoint


@pytest.fixture
def bridge(runpod):
    with served_endpoint(runpod) as served, client_of(f"{served.url}/v1") as client:
        yield client


def test_partial_images_come_from_the_jobs_previews_spread_over_its_progress(runpod, bridge):
    runpod.states = lambda _input: [
        queued(),
        progress(phase="load"),
        *(progress(phase="generate", percent=p, preview=f"p{p}") for p in (10, 35, 50, 70, 90)),
        DRAWN,
    ]
    parameters = {"prompt": "a fox", "stream": True, "size": "64x64"}
    stream = list(bridge.images.generate(**parameters, partial_images=2))
    partial, last = stream[:-1], stream[-1]
    assert [(one.b64_json, one.partial_image_index) for one in partial] == [("p35", 0), ("p70", 1)]
    assert {one.type for one in partial} == {"image_generation.partial_image"}
    assert (partial[0].output_format, partial[0].size) == ("jpeg", "64x64")
    assert (last.type, last.b64_json) == ("image_generation.completed", "aGk=")
    assert (last.usage.total_tokens, last.warnings) == (0, ["w"])
    edit = bridge.images.edit(image=("a.png", b"PNG"), prompt="a", stream=True, partial_images=0)
    assert [one.type for one in edit] == ["image_edit.completed"]
    sent = [json.loads(event["body"])["input"] for event in runpod.events("run")]
    first, second = (one["openai_input"] for one in sent)
    assert first == {"prompt": "a fox", "size": "64x64", "output": {"preview": True}}
    assert second == {"prompt": "a", "image": base64.b64encode(b"PNG").decode()}


ENDS = [
    (failed("X: bad", **BAD, status=400, code="invalid_input"), 400, "no size"),
    (failed("X: bad", **BAD, status="999"), 500, "no size"),
    (failed("ENGINE_ERROR: broken. Wait."), 500, "ENGINE_ERROR: broken"),
    ({"status": "TIMED_OUT"}, 504, "execution timeout"),
    ({"status": "CANCELLED"}, 500, "cancelled"),
    (completed(images=["aGk="]), 502, "older than this gateway"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("end", "status", "words"), ENDS, ids=lambda one: str(one)[:40])
def test_a_job_without_pictures_is_an_error_and_is_not_paid_twice(
    runpod, bridge, end, status, words, stream
):
    runpod.states = lambda _input: [queued(), end]
    retrying = bridge.with_options(max_retries=0 if status == 502 else 2)
    with pytest.raises(openai.APIStatusError, match=words) as raised:
        retrying.images.generate(prompt="a fox", stream=stream)
    assert raised.value.status_code == status
    assert len(runpod.events("run")) == 1


@pytest.mark.parametrize(("end", "_status", "words"), ENDS, ids=lambda one: str(one)[:40])
def test_an_error_after_the_first_event_is_an_event(runpod, bridge, end, _status, words):
    runpod.states = lambda _input: [progress(phase="generate", percent=1), end]
    with pytest.raises(openai.APIError, match=words):
        list(bridge.images.generate(prompt="a fox", stream=True))


def test_pictures_in_the_bucket_are_fetched_for_a_client_that_wants_base64(runpod):
    runpod.files["fox.png"] = b"PNG"
    url = f"{runpod.url}/bucket/fox.png"
    answer = {"data": [{"url": url, "revised_prompt": "a"}, {"b64_json": "aGk="}]}
    trusted = SafeHttpClient([urlsplit(runpod.url).netloc])
    found = asyncio.run(with_base64(trusted, answer))
    fetched = {"b64_json": base64.b64encode(b"PNG").decode(), "revised_prompt": "a"}
    assert found == {"data": [fetched, {"b64_json": "aGk="}]}
    left = asyncio.run(with_base64(SafeHttpClient(), answer))
    assert left["data"] == answer["data"]
    assert "cannot be fetched" in left["warnings"][0]
    on_volume = {"data": [{"url": "s3://volume/job/0.png"}]}
    (warning,) = asyncio.run(with_base64(trusted, on_volume))["warnings"]
    assert "only the keys of its bucket can read s3://volume/job/0.png" in warning


def test_a_silent_stream_is_kept_open_with_comments(runpod, bridge, monkeypatch):
    monkeypatch.setattr(events, "_SILENCE", 0.001)
    runpod.states = lambda _input: [progress(phase="generate"), *([progress()] * 3), DRAWN]
    body = {"prompt": "a fox", "stream": True}
    answer = requests.post(f"{bridge.base_url}images/generations", json=body, timeout=30)
    assert answer.text.startswith(": the job draws\n\n")
    assert answer.text.endswith("\n\n")


def test_large_files_of_a_form_need_no_disk(bridge, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    image = ("a.png", bytes(1_500_000))
    with pytest.raises(openai.BadRequestError, match="size = 'big'"):  # the form was read
        bridge.images.edit(image=image, mask=image, prompt="a fox", size="big")


def test_models_start_no_worker_that_sleeps(runpod, bridge):
    runpod.health["workers"] = {"idle": 0, "ready": 0, "running": 0}
    assert [one.id for one in bridge.models.list()] == ["default"]
    assert not runpod.events("run")


KEYS = json.dumps({"prompt": "a fox", **{f"key{n}": 0 for n in range(2000)}}).encode()
FIELD = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n%b\r\n'
MANY_FIELDS = FIELD % (b"[" + b"1," * 200_000) * 2 + b"--x--\r\n"


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"{}", "text/plain", 415, "Content-Type: application/json"),
        (b"{", "application/json", 400, "not JSON"),
        (b"[]", "application/json", 400, "not a JSON object"),
        (b"{}", "application/json", 400, "prompt is missing"),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=y", 400, "image is missing|form"),
        (b"?", "multipart/form-data", 400, "form cannot be read"),
        (b"x" * 31_000_000, "application/json", 413, "30 MB"),
        (b"[" * 400_001, "application/json", 413, "400,001 commas and opening brackets"),
        (KEYS, "application/json", 400, "more than 2,000 keys"),
        (MANY_FIELDS, "multipart/form-data; boundary=x", 413, "400,002 commas"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_a_body_that_cannot_be_read_is_refused_without_a_job(
    runpod, bridge, body, kind, status, words
):
    url = f"{bridge.base_url}images/edits"
    answer = requests.post(url, data=body, headers={"Content-Type": kind}, timeout=30)
    assert answer.status_code == status
    found = json.dumps(answer.json())
    assert any(word in found for word in words.split("|"))
    assert not runpod.events("run")
