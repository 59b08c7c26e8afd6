"""What RunPod hands out, as it comes over the wire."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from worker.errors import InvalidInput
from worker.job.request import parse
from worker.runpod.poller import JobPoller, TakeFailed


def taken(answer, count=1):
    """The jobs in an answer of RunPod's."""

    async def give(_request):
        return web.Response(body=answer if isinstance(answer, bytes) else answer.encode())

    async def story():
        app = web.Application()
        app.router.add_get("/{path:.*}", give)
        async with TestServer(app) as plane:
            url = str(plane.make_url("/job-take/worker?gpu=none"))
            async with JobPoller(url, {}) as line:
                ending = asyncio.get_running_loop().create_future()
                return await line.take(count, busy=False, ending=ending)

    return asyncio.run(story())


@pytest.mark.parametrize("answer", ["", "null", "[]"])
def test_no_job(answer):
    assert taken(answer) == []


@pytest.mark.parametrize("answer", ["no JSON", '{"id": ', '{"seed": 9'])
def test_what_is_no_answer_is_asked_for_again(answer):
    with pytest.raises(TakeFailed, match="no JSON"):
        taken(answer)


def test_a_job_that_is_nested_too_deeply_is_known_by_its_id():
    """A few KB: they must neither end the worker nor get lost."""
    said = r'"id": "not this", "prompt": "{\"id\": \"nor this\""'
    job_input = f'{{{said}, "loras": {"[" * 100_000}{"]" * 100_000}}}'
    answer = f'{{"delayTime": 3, "input": {job_input}, "id": "job-7"}}'

    assert [job["id"] for job in taken(answer)] == ["job-7"]
    batch = taken(f'[{answer}, {{"id": "job-8", "input": {{"prompt": "fox"}}}}]', count=2)
    assert [job["id"] for job in batch] == ["job-7", "job-8"]
    with pytest.raises(InvalidInput, match="nested too deeply"):
        parse(batch[0]["input"])


def test_a_number_that_python_does_not_read_is_the_jobs_fault():
    answer = f'{{"id": "job-7", "input": {{"prompt": "fox", "seed": {"9" * 5000}}}}}'
    (job,) = taken(answer)

    assert job["id"] == "job-7"
    with pytest.raises(InvalidInput, match="seed"):
        parse(job["input"])


def test_half_a_character_is_the_jobs_fault_at_most():
    (job,) = taken(b'{"id": "job-7", "input": {"prompt": "fox \xff"}}')

    assert job == {"id": "job-7", "input": {"prompt": "fox \N{REPLACEMENT CHARACTER}"}}


def test_a_job_as_always():
    job = {"id": "job-7", "input": {"prompt": "fox", "seed": 2**32 - 1}, "delayTime": 3}
    assert taken(json.dumps(job)) == [job]
