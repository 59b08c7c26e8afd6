"""Requests to the HTTP server, answers of RunPod to the worker and to the bridge."""

import asyncio
import itertools
import json
from functools import cache
from types import SimpleNamespace
from unittest import mock

from gateway import app
from gateway.a1111.options import Remembered
from gateway.catalog import catalog
from gateway.catalog.kept_file import KeptFile
from gateway.endpoint.http import Address, HttpLimits
from gateway.endpoint.jobs import Endpoint, Polling
from gateway.http.guard import Access
from gateway.jobs import BadRequest
from gateway.local.job import Limits
from gateway.local.jobs import LocalJobs
from gateway.local.policy import read_policy
from tests.fuzz.draw import Draw
from tests.fuzz.hosts import headers
from tests.fuzz.jobs import BODIES, FIELDS, OPENAI, OWN, PICTURE, parsed
from tests.fuzz.model_files import volume
from tests.fuzz.target import target
from tests.fuzz.webui import DRAWN
from worker.errors import ModelUrlRefused
from worker.http.client import SafeHttpClient
from worker.images import decoder, reader
from worker.large_json import document_of
from worker.runpod import poller, results, transport

JOB = {"id": "a-1", "input": OWN[0], "webhook": "https://x.y", "s3Config": {}, "policy": {"ttl": 1}}
TEMPLATE = {"template": "fox", "name": "Foxes", "default": True}
ITEM = {"name": "x.safetensors", "title": "x [0123456789]", "sha256": "ab" * 32, "scale": 4.0}
ITEM |= {"aliases": ["y"], "fields": ["upscaler_1"], "tasks": ["txt2img"], "args": ["a"]}
LISTED = [{name: [ITEM if name != "templates" else TEMPLATE]} for name in catalog.TASKS]
SCHEMA = {"tasks": {"txt2img": {}, "img2img": {}}, "$defs": {}}
BATCH = {"results": [*LISTED, {"document": SCHEMA}]}
ANSWERS = [
    {**DRAWN, "models": [{"name": "x", "source": "civitai:1@2"}], "warnings": ["w"]},
    {"data": [{"b64_json": PICTURE}], "created": 1, "warnings": [], "size": "1x1", "usage": {}},
    {"object": "error", "message": "x", "status": 400, "param": None, "code": "invalid_input"},
    BATCH,
    {"caption": "a fox"},
    {"image": PICTURE, "images": [PICTURE], "html_info": "x"},
    {"engine": {"memory": {"ram": {"used": 1}}}},
    {"phase": "generate", "percent": 50.0, "preview": PICTURE, "step": 1, "steps": 2},
]
STATES = [
    *({"id": "a-1", "status": "COMPLETED", "output": one, "delayTime": 5} for one in ANSWERS),
    {"id": "a-1", "status": "FAILED", "error": "INVALID_INPUT: x", "workerId": "w"},
    {"id": "a-1", "status": "IN_PROGRESS", "output": ANSWERS[-1]},
    {"id": "a-1", "status": "TIMED_OUT", "executionTime": 1.5},
]
OF_PATH = {
    "/run": [{"id": "a-1", "status": "IN_QUEUE"}],
    "/health": [{"workers": {"running": 1, "idle": 0}, "jobs": {"inQueue": 0}}],
    "/purge-queue": [{"removed": 1, "status": "completed"}],
    "/stream": [{"status": "COMPLETED", "stream": [{"output": {"type": "picture", "data": "x"}}]}],
}
A1111 = "/sdapi/v1/"
GETS = ["/", "/health", "/config", "/v1/models", "/queue/status", "/page/data", f"{A1111}memory"]
GETS += [f"{A1111}{name}" for name in ("options", "progress", "sd-models", "loras", "samplers")]
GETS += [f"{A1111}{name}" for name in ("script-info", "upscalers", "embeddings", "nope", "txt2img")]
JOBS = ["/run", "/runsync", "/v2/x/run", "/v2/x/runsync"]
POSTS = [f"{A1111}{name}" for name in ("txt2img", "img2img", "options", "interrogate", "interrupt")]
POSTS += [f"{A1111}{name}" for name in ("extra-single-image", "extra-batch-images", "png-info")]
IMAGES = ["/v1/images/generations", "/v1/images/edits", "/v2/x/openai/v1/images/generations"]
OF_JOB = [f"/{name}/" for name in ("status", "status-sync", "stream", "cancel", "retry")]
HEAD = [
    *("application/json", "text/plain", "multipart/form-data; boundary=x", "localhost", "evil.com"),
    *("http://localhost", "null", "cross-site", "navigate", "Basic eDp5", "Bearer x"),
    "99999999999",
]
NAMES = ("content-type", "host", "origin", "sec-fetch-site", "authorization", "content-length", "x")
PART = b"--x\r\nContent-Disposition: form-data; name="
FORM = PART + b'"prompt"\r\n\r\na fox\r\n' + PART + b'"image"; filename="a.png"\r\n'
FORM += b"Content-Type: image/png\r\n\r\nabc\r\n--x--\r\n"


def request_of(draw):
    """Method, path, query, headers and body of a request."""
    head = {b"host": b"localhost", b"content-type": b"application/json"}
    kind = draw.randrange(6)
    body, method = b"", "POST"
    if kind == 0:
        path, method = draw.choice(GETS), "GET"
    elif kind == 1:
        path, body = draw.choice(JOBS), draw.json([JOB, {"input": OWN[1]}], FIELDS)
    elif kind == 2:
        path, body = draw.choice(POSTS), draw.json([*BODIES, {"sd_vae": "x"}, OWN[2]], FIELDS)
    elif kind == 3:
        path, body = draw.choice(IMAGES), draw.json(OPENAI, FIELDS)
        if draw.randrange(2):
            head[b"content-type"], body = b"multipart/form-data; boundary=x", draw.blob([FORM])
    elif kind == 4:
        path = draw.choice(OF_JOB) + draw.choice(("a-1", "..", draw.text()))
    else:
        path, method = f"/{draw.text()}", draw.choice(("GET", "POST", "PUT", "OPTIONS", "HEAD"))
    for _ in range(draw.randrange(3) if draw.randrange(3) == 0 else 0):
        value = draw.choice((*HEAD, draw.text()))[:200]
        head[draw.choice(NAMES).encode()] = value.encode("latin-1", "replace")
    query = draw.choice((b"", b"", b"wait=5", b"wait=" + b"9" * 30, b"skip_current_image=1"))
    return method, path, query, head, body


async def ask(application, method, path, query, head, body):
    """Send a request to the app, without a socket; the answer's status and body."""
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": query,
        "headers": [*head.items()],
        "client": ("127.0.0.1", 5),
        "server": ("localhost", 80),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }
    parts, answer = [{"type": "http.request", "body": body}], []

    async def receive():
        if parts:
            return parts.pop()
        return await asyncio.Future()

    async def send(message):
        answer.append(message)

    await application(scope, receive, send)
    found = b"".join(message.get("body", b"") for message in answer)
    return answer[0]["status"], found


def _refused(*_, **__):
    raise ModelUrlRefused("no network here.")


def _decoded(files, limits, _stop):
    """In this process: starting another one takes longer than all else."""
    return {field: decoder.decode(data, limits) for field, data in files.items()}


def served(draw, application, loop):
    """Send a drawn request; what it answers is no crash, and is JSON where it says so."""
    method, path, query, head, body = request_of(draw)
    with (
        mock.patch.object(SafeHttpClient, "open", _refused),
        mock.patch.object(SafeHttpClient, "check", _refused),
        mock.patch.object(reader, "decode_all", _decoded),
    ):
        asked = asyncio.wait_for(ask(application, method, path, query, head, body), 20)
        status, found = loop.run_until_complete(asked)
    assert 200 <= status < 600
    if found[:1] in {b"{", b"["}:
        json.loads(found)


@cache
def local():
    """The server of the worker itself, whose handler answers as it does."""
    loop = asyncio.new_event_loop()

    async def handler(job):
        task = job["input"].get("task") if isinstance(job["input"], dict) else None
        return BATCH if task == "batch" else {**ANSWERS[0], **ANSWERS[1], **ANSWERS[5]}

    async def make():
        jobs = LocalJobs(handler, limits=Limits(kept=3, kept_seconds=1))
        jobs.begin()
        return app.build(jobs, Access())

    return loop.run_until_complete(make()), loop


@target(seconds=2.0, share=1.5)
def gateway_request(draw):
    """Any request to the worker's own server."""
    served(draw, *local())


class Answering(Endpoint):
    """An endpoint whose every answer is drawn."""

    def __init__(self):
        ticks = itertools.count(step=10)
        polling = Polling(first=0, queued=0, running=0, outage=50, longest=300, rate=1e9)
        limits = HttpLimits(attempts=2, first_pause=0)
        super().__init__(
            Address("https://x", "k"), polling, limits, sleep=_at_once, clock=lambda: next(ticks)
        )
        self.draw = Draw()
        self._http._once = self._once

    async def _once(self, _method, path, _data):
        draw = self.draw
        seeds = next((one for start, one in OF_PATH.items() if path.startswith(start)), STATES)
        status = draw.choice((200, 200, 200, 200, 200, 200, 404, 429, 500, 302))
        answer = SimpleNamespace(status=status, headers=headers(draw) if status != 200 else {})
        return self._http._read(answer, draw.json(seeds, FIELDS))


async def _at_once(_seconds):
    await asyncio.sleep(0)


@cache
def bridge():
    """The bridge in front of an endpoint of RunPod."""
    loop = asyncio.new_event_loop()

    async def make():
        endpoint = Answering()
        lists = catalog.Catalog(
            endpoint, timing=catalog.CatalogTiming(fresh=0, patience=1, pause=0)
        )
        return app.build(endpoint, Access(), catalog=lists), endpoint

    return *loop.run_until_complete(make()), loop


@target(seconds=3.0, share=1.5)
def bridge_answers(draw):
    """RunPod's answers, as clients of the bridge see them."""
    application, endpoint, loop = bridge()
    endpoint.draw = draw
    served(draw, application, loop)


@target(poller.PollFailed)
def job_take(draw):
    """The answer with jobs: none of them may be lost, whatever stands in it."""
    document = draw.json([JOB, [JOB, {**JOB, "id": "b"}], [], None])
    text = document.decode(errors="replace")
    for job in poller._parse_jobs(text):
        assert isinstance(job["id"], str)
    poller._find_ids(text)


class Stops:
    """A session whose every answer is drawn."""

    def __init__(self, draw):
        self.status = draw.choice((200, 200, 204, 429, 500))
        self.headers, self._body = headers(draw), draw.json([{"jobsToStop": ["a", "b"]}])

    def get(self, _url):
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    async def json(self, **_):
        return json.loads(self._body)


@target(poller.PollFailed)
def job_stop(draw):
    """The answer with stop signals."""
    _, loop = local()
    found = loop.run_until_complete(transport._poll_stop_signals(Stops(draw), "u"))
    assert all(isinstance(one, str) for one in found)


@target(BadRequest)
def job_request(draw):
    """RunPod's fields beside a job's input, and a result that is posted."""
    value = parsed(draw.json([JOB, {"policy": {"executionTimeout": 9e3}}]))
    body = results.result_body(value)
    try:
        b"".join(document_of(body).parts(1000))
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        read_policy(value)


@target()
def kept_files(draw):
    """The files in which the bridge keeps lists and options for its next start."""
    place = volume() / "kept.json"
    rows = [["127.0.0.1", "curl", {"sd_model_checkpoint": "x", "CLIP_stop_at_last_layers": 2}]]
    kept = {"time": 1.5, "default_template": "fox", **{name: [ITEM] for name in catalog.TASKS}}
    place.write_bytes(draw.json([rows, kept]))
    KeptFile(place).read()
    remembered = Remembered(place)
    endpoint = bridge()[1]
    lists = catalog.Catalog(endpoint, place)._lists
    for client in [*remembered._of]:
        app_options(remembered.of(client), lists)


def app_options(changed, lists):
    """What clients see of both."""
    from gateway.a1111.lists import LISTS, page_config
    from gateway.a1111.options import as_a1111

    json.dumps([as_a1111(changed, lists), page_config(lists)])
    for shape in LISTS.values():
        json.dumps(shape(lists))
    lists.file_stems()
