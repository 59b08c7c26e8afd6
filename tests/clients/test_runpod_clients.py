"""RunPod's own clients, unchanged: on the gateway, and on the control plane with a real worker."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.gateway_server import served_endpoint
from fakes.gateway_worker import running_gateway_worker
from fakes.node import run_script
from fakes.runpod_plane import RunPodPlane
from fakes.sdk_worker import running_sdk_worker

HERE = Path(__file__).parent
SENTENCE = "INVALID_INPUT: steps = 0. Send 1 to 150."


@pytest.fixture(scope="module", params=["gateway", "control plane", "bridge"])
def base_url(request, tmp_path_factory):
    """RunPod's base URL of a server with a worker."""
    folder = tmp_path_factory.mktemp("server")
    if request.param == "gateway":
        with running_gateway_worker(folder) as worker:
            yield f"{worker.url}/v2"
    elif request.param == "bridge":
        with (
            RunPodPlane() as plane,
            running_sdk_worker(folder, plane),
            served_endpoint(plane.url) as bridge,
        ):
            yield f"{bridge.url}/v2"
    else:
        with RunPodPlane() as plane, running_sdk_worker(folder, plane):
            yield plane.client_url


def seen_by(*command, **environ):
    """What a client prints as JSON on its last line."""
    own = {"PATH": os.environ["PATH"], "RUNPOD_API_KEY": "a-key", "RUNPOD_LOG_LEVEL": "WARN"}
    done = subprocess.run(
        command, env=own | environ, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_runpod_python_runs_reads_streams_cancels_and_shows_why_a_job_failed(base_url):
    program = str(HERE / "runpod_python.py")
    seen = seen_by(sys.executable, program, RUNPOD_ENDPOINT_BASE_URL=base_url)
    jobs = seen.pop("health")
    assert (jobs["inProgress"], jobs["inQueue"]) == (1, 1)
    assert seen == {
        "run": ["run", "COMPLETED"],
        "run_sync": "sync",
        "failed": [SENTENCE, "FAILED"],
        "failed sync": SENTENCE,
        "stream": ["s"],
        "chunks": list(range(40)),
        "purge": {"removed": 1, "status": "completed"},
        "waiting": "CANCELLED",
        "cancel": ["CANCELLED", "CANCELLED"],
        "asyncio": ["asyncio", "COMPLETED"],
        "asyncio cancel": ["CANCELLED", "CANCELLED"],
        "asyncio health": ["jobs", "workers"],
    }


def test_npms_runpod_sdk_runs_reads_streams_and_cancels(base_url):
    assert run_script("runpod.mjs", base_url) == {
        "sync": ["sync", "COMPLETED", True],
        "run": ["IN_QUEUE", "run", True],
        "failed": ["FAILED", SENTENCE, SENTENCE],
        "chunks": ["stream"],
        "streamed": list(range(40)),
        "jobs": [1, 1],
        "purged": {"removed": 1, "status": "completed"},
        "cancelled": ["CANCELLED", "CANCELLED"],
    }
