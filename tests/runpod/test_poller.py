"""Polls for jobs: the answers of RunPod, and a poll that is ended."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from worker.errors import InvalidInput
from worker.job.txt2img import parse
from worker.runpod.poller import JobPoller, PollFailed, _find_ids
from worker.runpod.timing import TransportTiming


def poller_for(port, timing):
    return JobPoller(f"http://127.0.0.1:{port}/job-take/worker?gpu=none", {}, timing)


def taken(answer, count=1, status=200, **timing):
    """The jobs in an answer of RunPod's, and the path that was asked for."""
    paths = []

    async def give(request):
        paths.append(request.path_qs)
        return web.Response(body=answer, status=status)

    async def story():
        app = web.Application()
        app.router.add_get("/{path:.*}", give)
        ending = asyncio.get_running_loop().create_future()
        limits = TransportTiming(**timing)
        async with TestServer(app) as plane, poller_for(plane.port, limits) as poller:
            return await poller.take(count, busy=False, ending=ending)

    found = asyncio.run(story())
    batch = f"-batch/worker?gpu=none&job_in_progress=0&batch_size={count}"
    assert paths == ["/job-take" + (batch if count > 1 else "/worker?gpu=none&job_in_progress=0")]
    return found


JOB = {"id": "job-7", "input": {"prompt": "fox", "seed": 2**32 - 1}, "delayTime": 3}


NOT_UTF8 = b'{"id": "job-7", "input": {"prompt": "fox \xff"}}'
REPAIRED = {"id": "job-7", "input": {"prompt": "fox \N{REPLACEMENT CHARACTER}"}}


@pytest.mark.parametrize(
    ("answer", "jobs"),
    [
        *(("", []), ("null", []), ("[]", []), (json.dumps(JOB), [JOB]), (NOT_UTF8, [REPAIRED])),
        (json.dumps([JOB, {"input": {}}, {"id": 7}, "no object"]), [JOB]),
    ],
)
def test_the_jobs_in_an_answer(answer, jobs):
    assert taken(answer) == jobs


@pytest.mark.parametrize(
    ("answer", "status", "message", "pause"),
    [
        *((text, 200, "not JSON", None) for text in ("not JSON", '{"id": ', '{"seed": 9')),
        *(("", 500, "HTTP 500", 0.0), ("", 429, "HTTP 429", 3.0)),
    ],
)
def test_other_answers_fail(answer, status, message, pause):
    with pytest.raises(PollFailed, match=message) as raised:
        taken(answer, status=status, too_many_requests=3.0)
    assert raised.value.retry_after == pause


def test_what_python_cannot_parse_is_an_error_of_its_job():
    """A few KB: they must neither end the worker nor get lost."""
    inner = r'"id": "not this", "prompt": "{\"id\": \"nor this\""'
    nested = f'{{{inner}, "loras": {"[" * 100_000}{"]" * 100_000}}}'
    for job_input, message in (
        (nested, "nested too deeply"),
        (f'{{"prompt": "fox", "seed": {"9" * 5000}}}', "seed"),
    ):
        answer = f'{{"delayTime": 3, "input": {job_input}, "id": "job-7"}}'
        batch = taken(f'[{answer}, {{"id": "job-8", "input": {{"prompt": "fox"}}}}]', count=2)
        assert [job["id"] for job in batch] == ["job-7", "job-8"]
        with pytest.raises(InvalidInput, match=message):
            parse(batch[0]["input"])


def test_a_text_that_has_no_end_is_read_once():
    """A text of only such quotes would be read again from each of them: minutes."""
    assert _find_ids('{"id": "a", "b": "' + '\\"' * 300_000 + "\\") == ["a"]


# The end of a poll -------------------------------------------------------------------------------

BODY = json.dumps(JOB).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
BEGINNING, REST = ANSWER[:-9], ANSWER[-9:]
SILENCE = b""
WORKER, HOLD = "the worker ends", "the poll is held for too long"


@pytest.mark.parametrize(
    ("why", "before", "after", "jobs", "timing"),
    [
        # The answer was on its way: it comes before the other half is closed.
        (WORKER, SILENCE, ANSWER, [JOB], {"ended_poll": 60.0}),
        (HOLD, SILENCE, ANSWER, [JOB], {"ended_poll": 60.0}),
        (WORKER, BEGINNING, REST, [JOB], {"ended_poll": 0.01, "begun_answer": 60.0}),
        # RunPod closes the other half.
        (WORKER, SILENCE, SILENCE, [], {"ended_poll": 60.0}),
        (HOLD, SILENCE, SILENCE, [], {"ended_poll": 60.0}),
        # RunPod does nothing.
        (WORKER, SILENCE, None, [], {"ended_poll": 0.01, "begun_answer": 60.0}),
        (WORKER, BEGINNING, None, [], {"ended_poll": 0.01, "begun_answer": 0.01}),
    ],
)
def test_a_poll_that_is_ended_loses_no_job_and_is_not_sent_again(why, before, after, jobs, timing):
    """What RunPod sends before and after it sees our half of the connection closed."""
    polls, closed = [], []

    async def story():
        ending = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            polls.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(before)
            while before and not poller._answer_has_begun:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if why == WORKER:
                ending.set_result(None)
            closed.append(await reader.read())
            try:
                await asyncio.sleep(0.05 if before else 0.0)  # longer than `ended_poll`
                writer.write(after) if after is not None else await asyncio.sleep(600)
            finally:
                writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            hold = TransportTiming(hold=60.0 if why == WORKER else 0.2, **timing)
            async with poller_for(server.sockets[0].getsockname()[1], hold) as poller:
                found = await poller.take(1, busy=True, ending=ending)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0)  # for the connections to close
            return found

    assert asyncio.run(story()) == jobs
    assert (len(polls), closed) == (1, [b""])
