"""JSON that is no ordinary text or number, in requests and in answers of an endpoint."""

import json

import pytest
import requests
from fakes.gateway_server import served_endpoint
from fakes.runpod_endpoint import RunPodEndpoint, completed, queued

from gateway.http.body import parse
from worker.job.problems import MAX_VALUES, check_size

RUNSYNC, TXT2IMG, OPENAI = "/runsync", "/sdapi/v1/txt2img", "/v1/images/generations"
HALF = "\ud800"  # the first half of an emoji that a program has cut


@pytest.fixture
def runpod():
    with RunPodEndpoint(lambda _input: [queued(), completed(images=["aGk="])]) as endpoint:
        yield endpoint


@pytest.fixture
def gateway(runpod):
    with served_endpoint(runpod) as served:
        yield served


def post(gateway, route, body):
    kind = {"Content-Type": "application/json"}
    return requests.post(gateway.url + route, data=body, headers=kind, timeout=30)


@pytest.mark.parametrize(
    ("route", "body", "status", "reached"),
    [
        (RUNSYNC, json.dumps({"input": {"prompt": f"a fox {HALF}"}}), 200, f"a fox {HALF}"),
        (TXT2IMG, json.dumps({"prompt": f"a fox {HALF}"}), 200, f"a fox {HALF}"),
        (OPENAI, json.dumps({"prompt": f"a fox {HALF}", "n": HALF}), 400, None),
        (RUNSYNC, '{"input": {"prompt": "a fox", "cfg_scale": NaN}}', 400, None),
        (RUNSYNC, '{"input": {"prompt": "a fox", "cfg_scale": 1e999}}', 400, None),
    ],
)
def test_what_is_json_reaches_the_worker_and_what_is_none_is_refused(
    runpod, gateway, route, body, status, reached
):
    answer = post(gateway, route, body)
    assert answer.status_code == status, answer.text
    assert answer.json()
    prompts = [one["prompt"] for one in runpod.inputs() if one.get("task") != "batch"]  # the lists
    assert prompts == ([reached] if reached else [])


MARKS = [
    *("[" * 400_001, '{"a": [' + "[]," * 200_000 + "0]}", "[" + "1," * 400_000 + "0]"),
    *('{"input": {"a": "' + "," * 400_000 + '"}}', json.dumps(dict.fromkeys(range(400_001)))),
]


@pytest.mark.parametrize("route", [RUNSYNC, TXT2IMG, OPENAI, "/sdapi/v1/options"])
@pytest.mark.parametrize("body", MARKS, ids=lambda body: body[:12])
def test_json_of_very_many_values_is_refused_before_it_is_parsed(runpod, gateway, route, body):
    answer = post(gateway, route, body)
    assert answer.status_code == 413, answer.text
    assert "at most 400,000 are allowed" in answer.text
    assert not runpod.inputs()


def test_the_most_values_that_a_job_may_have_are_parsed():
    job = {"input": {"list": [[]] * (MAX_VALUES - 1)}}
    check_size(job["input"])
    assert parse(json.dumps(job).encode()) == job


@pytest.mark.parametrize(
    ("route", "answer", "status", "text"),
    [
        (RUNSYNC, '{"status": "COMPLETED", "output": {"a": "\\ud800"}}', 200, "?"),
        (RUNSYNC, '{"status": "COMPLETED", "output": {"a": [NaN, -Infinity]}}', 200, "null,null"),
        (RUNSYNC, '{"status": "FAILED", "error": "\\ud800"}', 200, "?"),
        (TXT2IMG, '{"status": "FAILED", "error": "\\ud800"}', 500, "?"),
        (OPENAI, '{"status": "FAILED", "error": "\\ud800"}', 500, "?"),
        (TXT2IMG, '{"status": "COMPLETED", "output": {"images": 5}}', 502, "another worker"),
        (TXT2IMG, '{"status": "COMPLETED", "output": {"images": "aGk="}}', 502, "another worker"),
        (TXT2IMG, '{"status": "COMPLETED", "output": {"images": [{"data": 1}]}}', 502, "another"),
        (OPENAI, '{"status": "COMPLETED", "output": {"data": [5]}}', 502, "no pictures"),
        (OPENAI, '{"status": "COMPLETED", "output": {"data": [{"url": 5}]}}', 502, "no pictures"),
    ],
)
def test_an_answer_of_another_form_is_passed_on_or_an_error_with_a_sentence(
    runpod, gateway, route, answer, status, text
):
    runpod.fault("status", times=1, status=200, body=answer)
    body = {"prompt": "a fox"}
    found = post(gateway, route, json.dumps({"input": body} if route == RUNSYNC else body))
    assert found.status_code == status, found.text
    assert text in found.text
    assert found.json()
