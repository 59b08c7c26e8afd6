"""The calls in the documents that make endpoints: as RunPod documents them, and with our settings.

Bash and the real curl run each call as a reader would, against a server that takes RunPod's place;
a recorder takes the place of runpodctl, which needs an account.
"""

import json
import os
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain

import pytest
from jsonschema import Draft202012Validator

from docs import deployments
from docs.deployments import BY_NAME, DEPLOYMENTS
from tests.project.runpod_documents import BODIES, COMMANDS, OTHER_CALLS, REQUIRED
from worker.config import gpus
from worker.config.credentials import CREDENTIALS
from worker.config.settings import PROJECT, Settings

KEY = "rpa_key"
VARIABLES = {"IMAGE": "you/worker:1", "ENDPOINT": "ENDPOINT", "VOLUME": "VOLUME", "TEMPLATE": "TPL"}
PAGES = [page.read_text() for page in sorted((PROJECT / "docs").rglob("*.md"))]
SECRET = re.compile(r"\{\{ RUNPOD_SECRET_\w+ \}\}")
BLOCK = re.compile(r"^```\n(.*?)^```", re.DOTALL | re.MULTILINE)
RUNPODCTL = r"""#!/bin/sh
printf '%s\0' "$@" >>"$RECORD"
printf '\n\0' >>"$RECORD"
echo '{"id": "new"}'
"""


def blocks():
    found = map(BLOCK.findall, PAGES)
    called = re.compile(r"api\.runpod\.io/v2|runpodctl [\w-]+ create")
    return [block for block in chain(*found) if called.search(block)]


class RunPod(BaseHTTPRequestHandler):
    calls: list  # of method, path, key, body

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        key = self.headers["authorization"]
        self.calls.append((self.command, self.path, key, json.loads(body) if body else None))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"id": "new", "rollout": {"percentOnLatest": 100}}')

    do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs all blocks: the calls of API v2, and the commands of runpodctl as lists of words."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "runpodctl").write_text(RUNPODCTL)
    (folder / "runpodctl").chmod(0o755)
    record = folder / "record"
    RunPod.calls = []
    path = f"{folder}:{os.environ['PATH']}"
    environ = VARIABLES | {"RUNPOD_API_KEY": KEY, "PATH": path, "RECORD": str(record)}
    with HTTPServer(("127.0.0.1", 0), RunPod) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        for block in blocks():
            script = block.replace("https://api.runpod.io", here)
            command = ["bash", "-euo", "pipefail", "-c", script]
            done = subprocess.run(
                command, env=environ, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
        server.shutdown()
    commands = record.read_text().split("\0\n\0")
    return RunPod.calls, [words.split("\0") for words in commands if words]


def errors(schema, body):
    return [one.message for one in Draft202012Validator(schema).iter_errors(body)]


def test_each_call_of_the_api_has_a_body_as_documented(run):
    calls, _ = run
    for method, path, key, body in calls:
        assert key == f"Bearer {KEY}"
        if (method, path) not in OTHER_CALLS:
            assert errors(BODIES[method, path], body) == [], path
    assert {call[:2] for call in calls} == {*BODIES, *OTHER_CALLS}


def read(words):
    """A command of runpodctl as its own parser reads it: its name, flags and arguments."""
    name, rest = " ".join(words[:2]), list(words[2:])
    flags, arguments = {}, []
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            arguments.append(word)
            continue
        flag, equals, value = word[2:].partition("=")
        kind = COMMANDS[name][flag]
        if kind is bool:
            flags[flag] = {"": True, "true": True, "false": False}[value]
        else:
            text = value if equals else rest.pop(0)
            flags[flag] = json.loads(text) if kind is dict else kind(text)
    return name, flags, arguments


def test_each_command_of_runpodctl_has_flags_as_documented(run):
    _, commands = run
    for name, flags, arguments in map(read, commands):
        assert REQUIRED[name] <= flags.keys()
        assert arguments == []
        assert flags.get("size", 10) in range(10, 4001)
        assert flags.get("idle-timeout", 1) in range(1, 3601)
        assert flags.get("scale-by", "delay") in {"delay", "requests"}
        assert "," not in flags.get("gpu-id", "")  # "only one gpu id is supported"
        model = flags.get("model-reference", "https://huggingface.co/org/name:main")
        assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+:[\w.-]+", model)
    assert [read(words)[0] for words in commands].count("serverless create") == 3


def test_commands_within_the_text_are_known():
    text = "\n".join(PAGES)
    assert {*re.findall(r"`runpodctl ([a-z-]+ [a-z]+)", text)} <= {*COMMANDS}


def test_both_ways_make_the_same_endpoint(run):
    calls, commands = run
    bodies = {call[3]["name"]: call[3] for call in calls if call[:2] == ("POST", "/v2/serverless")}
    made = [read(words) for words in commands]
    templates = {flags["name"]: flags for name, flags, _ in made if name == "template create"}
    for name, flags, _ in made:
        if name == "serverless create" and (body := bodies.get(flags["name"])):
            template = templates[flags["name"]]
            assert template["image"] == body["image"] == VARIABLES["IMAGE"]
            assert template["env"] == body["env"]
            assert template["container-disk-in-gb"] == body["disk"]
            assert flags["gpu-id"] == body["gpu"]["pools"][0]
            assert flags["min-cuda-version"] == body["gpu"]["minCudaVersion"]
            assert flags["execution-timeout"] * 1000 == body["timeout"]
            assert flags["idle-timeout"] == body["workers"]["idleTimeout"]
            assert flags["workers-max"] == body["workers"]["max"]
            # the volume that the call before has made
            assert [flags[f] for f in flags if "volume" in f] == body.get("networkVolumes", [])


every_deployment = pytest.mark.parametrize("one", DEPLOYMENTS, ids=lambda one: one.name)


@every_deployment
def test_its_variables_are_settings_and_its_template_exists(one):
    for key, value in one.env.items():
        if key.lower() in CREDENTIALS:
            assert SECRET.fullmatch(value), f"{key} is not a reference to a secret"
    plain = {key: value for key, value in one.env.items() if not SECRET.search(value)}
    assert all(key.lower() in Settings.model_fields for key in one.env)
    settings = Settings.from_environ(plain)
    templates = json.loads((PROJECT / "templates.json").read_text())["templates"]
    assert settings.default_template in {*templates, "none"}
    if settings.default_template != "none":
        url = templates[settings.default_template]["checkpoint"]["url"]
        assert ("civitai.com" in url) == ("CIVITAI_API_KEY" in one.env)
        assert one.model is None or url.startswith(f"https://huggingface.co/{one.model}/")
    assert one.volume_gb is None or settings.models_budget_gb < one.volume_gb


@every_deployment
def test_its_gpus_its_cuda_and_its_times_fit(one):
    assert {*one.pools} <= {*gpus.POOLS}
    cards = [cards for pool in one.pools for cards in gpus.POOLS[pool]]
    assert all(gpus.has_code(card.capability) for card in cards)
    newest = max(gpus.oldest_driver(gpus.CUDA, card.capability) for card in cards)
    if one.minimum_cuda == gpus.CUDA_OF_HOSTS[0]:
        # A mixed endpoint: its Blackwell cards, if any, are only in machines with a newer driver.
        oldest = min(gpus.oldest_driver(gpus.CUDA, card.capability) for card in cards)
        assert oldest == gpus.OLDEST_DRIVER["12"]
    else:
        assert (one.minimum_cuda, newest) == ("12.8", gpus.OLDEST_DRIVER_OF_BLACKWELL)
    assert one.disk_gb > one.models_gb + 2  # what the store keeps free
    if one.type == "QUEUE":
        assert one.timeout > Settings.from_environ({}).job_timeout
    else:
        assert one.ports == (int(one.env["PORT"]),) == (int(one.env["PORT_HEALTH"]),)


def test_the_page_has_the_three_setups_and_a_row_for_each_word():
    page = (PROJECT / "docs/deploy.md").read_text()
    assert all(f"`{name}`" in page for name in (*deployments.SETUPS, "load-balancing"))
    for field in deployments.endpoint_body(BY_NAME["sdxl"]):
        assert field in {"name", "type", "image", "gpu"} or f"`{field}`" in page
