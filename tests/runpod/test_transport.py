"""What is taken, run, stopped and waited for; RunPod and the handler are played by the test."""

import asyncio
from urllib.parse import unquote

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import RawTestServer, TestServer

from worker.runpod.poller import PollFailed
from worker.runpod.results import ResultPoster
from worker.runpod.timing import TransportTiming
from worker.runpod.transport import Routes, Transport

ROUTES = Routes("http://runpod/job-take/w?gpu=x", "http://runpod/job-done/w/$ID?gpu=x", {})
TIMING = TransportTiming(between_takes=100.0, longest_take_pause=400.0)


class Control(Transport):
    """A transport that notes its pauses instead of making them, and its results."""

    def __init__(self, handler, polls=(), *, concurrency=1, timing=TIMING):
        super().__init__(ROUTES, handler, set(), concurrency=concurrency, timing=timing)
        self.poster = self
        self.pauses, self.counts, self.busy, self.results = [], [], [], []
        self._polls = list(polls)

    async def _pause(self, seconds):
        self.pauses.append(seconds)

    async def take(self, count, *, busy, **_):
        """What the poller does: the next of the polls; after the last one the worker ends."""
        self.counts.append(count)
        self.busy.append(busy)
        await asyncio.sleep(0)
        poll = self._polls.pop(0) if self._polls else []
        if not self._polls:
            self._end("the last poll")
        if isinstance(poll, PollFailed):
            raise poll
        return poll

    async def post_result(self, job_id, body):
        self.results.append((job_id, body))

    def forget(self, job_id):
        pass

    async def serve(self):
        self._ending = asyncio.get_running_loop().create_future()
        await self._take_jobs(self)
        self._has_all_jobs.set()
        await self.finish()

    async def finish(self):
        while self._tasks:
            await asyncio.wait(self._tasks)


async def echo(job):
    return job["input"]


def jobs(*numbers):
    return [{"id": f"job-{number}", "input": number} for number in numbers]


def served(handler, polls, **how):
    control = Control(handler, polls, **how)
    asyncio.run(control.serve())
    return control


FAILED = PollFailed("HTTP 500", 0.0)


@pytest.mark.parametrize(
    ("polls", "longest"),
    [
        ([FAILED] * 4, [100, 200, 400, 400]),  # the plain SDK asks again at once, 1000 times a s
        ([FAILED, FAILED, jobs(1), FAILED], [100, 200, 100]),
        ([[], []], [100, 100]),  # an empty answer that came at once
        ([jobs(1), jobs(2), jobs(3)], []),  # the plain SDK looks for a free slot once a second
    ],
)
def test_pauses_between_polls(polls, longest):
    pauses = served(echo, polls).pauses
    assert len(pauses) == len(longest)
    assert all(0.74 * most <= pause <= most for pause, most in zip(pauses, longest, strict=True))


def test_runpod_may_ask_for_a_longer_pause():
    assert served(echo, [PollFailed("HTTP 503", 7.0)], timing=TransportTiming()).pauses == [7.0]


def test_jobs_run_side_by_side_up_to_the_concurrency():
    running, most, all_four = set(), [], asyncio.Event()

    async def handler(job):
        running.add(job["id"])
        most.append(len(running))
        if len(running) == 4:
            all_four.set()
        await asyncio.wait_for(all_four.wait(), 30)
        running.discard(job["id"])

    control = served(handler, [jobs(1, 2), jobs(3), jobs(4), jobs(5)], concurrency=4)
    assert (control.counts[:3], max(most)) == ([4, 2, 1], 4)


@pytest.mark.parametrize(("concurrency", "begun"), [(1, 2), (2, 4)])
def test_jobs_are_taken_while_results_are_posted_but_not_without_an_end(concurrency, begun):
    """A slow RunPod does not fill the memory with results."""
    started = []

    class SlowRunPod(Control):
        async def post_result(self, job_id, body):
            for _ in range(100):
                await asyncio.sleep(0)
            started_before_posted.append(len(started))
            await super().post_result(job_id, body)

    async def handler(job):
        started.append(job["id"])
        return job["input"]

    started_before_posted = []
    control = SlowRunPod(handler, [jobs(number) for number in range(8)], concurrency=concurrency)
    asyncio.run(control.serve())

    assert started_before_posted[0] == begun
    assert any(control.busy) == (concurrency > 1)  # while only a result is posted, it is not
    assert sorted(job for job, _ in control.results) == [f"job-{number}" for number in range(8)]


@pytest.mark.parametrize("says_so", [True, False])
def test_the_next_job_is_taken_when_the_handler_needs_the_engine_no_more(says_so):
    """The delivery of job 1 ends after job 2 has begun, or after the test's patience."""
    second_began, ends = asyncio.Event(), []

    async def handler(job):
        if job["id"] == "job-2":
            second_began.set()
        elif says_so:
            control.take_next("job-1")
            control.take_next("job-1")  # again: nothing more is taken
        for _ in range(100):
            await asyncio.sleep(0)
        ends.append((job["id"], second_began.is_set()))

    control = Control(handler, [jobs(1), jobs(2)])
    asyncio.run(control.serve())

    assert ends == [("job-1", says_so), ("job-2", True)]
    control.take_next("job-1")  # it has ended


def test_after_a_result_that_retires_the_worker_no_job_is_taken():
    async def handler(_job):
        return {"refresh_worker": True}

    control = served(handler, [jobs(1), jobs(2), jobs(3), jobs(4)])

    assert control.results == [("job-1", {"stopPod": True})]


@pytest.mark.parametrize("ends_last", ["job-1", "job-2", "job-3"])
def test_only_the_last_result_of_a_worker_that_retires_stops_it(ends_last):
    """Job 1 is being posted and job 3 still runs when job 2's result retires the worker."""
    ended = {f"job-{number}": asyncio.Event() for number in (1, 2, 3)}

    class SlowRunPod(Control):
        async def post_result(self, job_id, body):
            await ended[job_id].wait()
            await super().post_result(job_id, body)

    async def handler(job):
        if job["id"] == "job-3":
            await ended["job-3"].wait()
        return {"refresh_worker": True} if job["id"] == "job-2" else {}

    async def story():
        control = SlowRunPod(handler, [jobs(1, 2, 3)], concurrency=3)
        serving = asyncio.create_task(control.serve())
        for job_id in sorted(ended, key=lambda one: (one == ends_last, one)):
            for _ in range(20):
                await asyncio.sleep(0)
            ended[job_id].set()
        await serving
        return control

    control = asyncio.run(story())
    assert len(control.results) == 3
    assert [body for _, body in control.results] == [{}, {}, {"stopPod": True}]


def test_a_job_that_comes_while_the_worker_retires_is_posted_before_it_is_stopped():
    """It was on its way when the result of the job before was ready."""

    class SlowPoll(Control):
        async def take(self, count, *, ending, **how):
            if self.counts:
                control.take_next("job-1")
                await ending
            return await super().take(count, **how)

    async def handler(job):
        control.take_next(job["id"])
        for _ in range(20):
            await asyncio.sleep(0)
        return {"refresh_worker": True} if job["id"] == "job-1" else {}

    control = SlowPoll(handler, [jobs(1), jobs(2)])
    asyncio.run(control.serve())
    assert control.results == [("job-1", {}), ("job-2", {"stopPod": True})]


def test_a_job_that_is_sent_twice_runs_once(caplog):
    control = served(echo, [jobs(1, 1, 2)], concurrency=3)
    assert sorted(job for job, _ in control.results) == ["job-1", "job-2"]
    assert "RunPod sent job job-1 twice" in caplog.text


def played(play, handler=echo, **how):
    """The results of a transport to which the steps of `play` happen."""

    async def story():
        control = Control(handler, **how)
        for step in play:
            if step == "begin":
                control._begin(jobs(1)[0])
            elif step == "stop":
                control._stop("job-1")
            else:
                await (control.finish() if step == "finish" else asyncio.sleep(0))
        return control.results

    return asyncio.run(story())


@pytest.mark.parametrize(("early_stop", "is_stopped"), [(60.0, True), (-1.0, False)])
def test_a_stop_signal_waits_for_its_job(caplog, early_stop, is_stopped):
    """It can overtake the answer with the job: the plain SDK drops it and runs the job."""
    caplog.set_level("INFO")
    results = played(["stop", "begin", "finish"], timing=TransportTiming(early_stop=early_stop))
    assert results == ([] if is_stopped else [("job-1", {"output": 1})])
    assert ("job job-1 was stopped before it began" in caplog.text) == is_stopped


def test_a_stop_signal_for_a_finished_job_does_not_stop_its_repetition():
    """RunPod repeats a job under its old id."""
    assert len(played(["begin", "finish", "stop"] * 2)) == 2


@pytest.mark.parametrize(
    ("play", "results"),
    [
        (["begin", "moment", "stop", "begin", "finish"], [("job-1", {"output": 1})]),
        (["begin", "moment", "stop", "begin", "stop", "finish"], []),
    ],
)
def test_a_stopped_job_that_is_repeated_begins_when_the_stopped_one_has_ended(play, results):
    """A caller may repeat a job that has timed out, while the worker still cleans up."""
    running = []

    async def handler(job):
        running.append(job["id"])
        assert len(running) == 1
        try:
            for _ in range(20):
                await asyncio.sleep(0)
            return job["input"]
        finally:
            await asyncio.sleep(0.01)
            running.pop()

    assert played(play, handler) == results


def test_a_stopped_job_can_clean_up_and_posts_nothing():
    cleaned = []

    async def handler(job):
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(job["id"])

    results = played(["begin", "moment", "stop", "moment", "stop", "finish"], handler)
    assert (results, cleaned) == ([], ["job-1"])


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ("text", {"output": "text"}),
        ({"images": []}, {"output": {"images": []}}),
        ({"refresh_worker": True}, {"stopPod": True}),
        ({"error": 5, "code": "X"}, {"output": {"code": "X"}, "error": "5"}),
        (RuntimeError("broken"), {}),
        (asyncio.CancelledError(), {}),  # the handler's own
    ],
)
def test_an_answer_is_posted_by_the_sdks_rules_and_an_exception_as_an_error(answer, body, caplog):
    async def handler(_job):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    control = served(handler, [jobs(1)] * (2 if "stopPod" in body else 1))
    ((_, posted),) = control.results

    if body:
        assert posted == body
    else:
        assert posted["error"].startswith("INTERNAL_ERROR: ")
        assert "Traceback" not in posted["error"]
        assert f"internal error {posted['output']['id']}" in caplog.text


# Posting -----------------------------------------------------------------------------------------


DROPPED = 599  # the connection, without an answer


def post(statuses, output, *, progress=False, **timing):
    """Post to a RunPod that answers with these statuses; (accepted, the bodies it got)."""
    bodies, left = [], list(statuses)

    async def done(request):
        bodies.append(await request.json())
        status = left.pop(0) if left else 200
        if status == DROPPED:
            request.transport.abort()
        return web.Response(status=status)

    async def story():
        app = web.Application(client_max_size=10**7)
        app.router.add_post("/{path:.*}", done)
        timing_ = TransportTiming(first_post_pause=0.001, longest_post_pause=0.01, **timing)
        async with TestServer(app) as server, ClientSession() as session:
            poster = ResultPoster(session, f"{server.make_url('/done')}/$ID?x=y", timing_)
            send = poster.post_progress if progress else poster.post_result
            return await send("job-1", output)

    return asyncio.run(story()), bodies


@pytest.mark.parametrize(
    ("statuses", "timing", "accepted", "posts", "error"),
    [
        *(([], {}, True, 1, ""), ([408, 425, 429, 500, 503, DROPPED], {}, True, 7, "")),
        # then the short error
        ([503] * 2, {"result": 0.0}, True, 3, "RESULT_REFUSED: RunPod did not accept the result"),
        ([413, 503], {}, True, 3, "RESULT_REFUSED: RunPod refused the result (HTTP 413, 2.0 MB)."),
        ([400] * 4, {}, False, 4, "RESULT_REFUSED: RunPod refused"),
    ],
)
def test_a_result_is_posted_until_it_is_accepted(statuses, timing, accepted, posts, error):
    found, bodies = post(statuses, {"output": "x" * 2_000_000, "stopPod": True}, **timing)
    assert (found, len(bodies)) == (accepted, posts)
    assert bodies[-1]["stopPod"] is True
    assert bodies[-1].get("error", "")[: len(error) or None] == error


@pytest.mark.parametrize(
    ("statuses", "accepted"), [([], True), ([503], False), ([400], False), ([DROPPED], False)]
)
def test_a_progress_report_has_one_attempt(statuses, accepted):
    report = {"status": "IN_PROGRESS", "output": "half"}
    assert post(statuses, "half", progress=True) == (accepted, [report])


@pytest.mark.parametrize(
    ("statuses", "again", "accepted", "posts"),
    [
        ([429, 500, DROPPED], True, True, 4),
        ([400], True, False, 1),
        ([503], False, False, 1),  # a report: the next one is newer
    ],
)
def test_chunks_go_to_the_route_of_the_stream_and_the_result_says_that_the_job_streamed(
    statuses, again, accepted, posts
):
    seen, left = [], list(statuses)

    async def answer(request):
        seen.append((request.path, request.query["isStream"], await request.json()))
        return web.Response(status=left.pop(0) if left else 200)

    async def story():
        app = web.Application()
        app.router.add_post("/{path:.*}", answer)
        timing = TransportTiming(first_post_pause=0.001, longest_post_pause=0.01)
        async with TestServer(app) as server, ClientSession() as session:
            done, stream = (f"{server.make_url(path)}/$ID?x=y" for path in ("/done", "/stream"))
            poster = ResultPoster(session, done, timing, stream)
            assert await poster.post_chunk("a", {"number": 1}, again=again) is accepted
            for job in ("a", "b"):
                await poster.post_result(job, {"output": 1})
            poster.forget("a")  # it may come again
            await poster.post_result("a", {"output": 1})
            assert not await poster.post_chunk("a", {"number": float("nan")}, again=again)
            unknown = ResultPoster(session, done, timing)
            assert not unknown.can_stream
            assert not await unknown.post_chunk("a", {}, again=again)

    asyncio.run(story())
    chunk = ("/stream/a", "false", {"output": {"number": 1}})
    results = [(f"/done/{job}", is_stream, {"output": 1}) for job, is_stream in RESULTS]
    assert seen == [chunk] * posts + results


RESULTS = [("a", "true"), ("b", "false"), ("a", "false")]


def test_what_is_not_json_becomes_an_error_and_is_lost_as_progress():
    found, (body,) = post([], {"output": float("nan")})
    assert found
    assert "the result is not JSON" in body["error"]
    assert post([], float("nan"), progress=True) == (False, [])


@pytest.mark.parametrize(
    ("job_id", "path"),
    [
        *((usual, usual) for usual in ("sync-uuid-u1", "abc-e1", "a_b.c~d")),
        ("a\r\nX: y", "a%0D%0AX%3A%20y"),
        ("a/b?c#d%2e", "a%2Fb%3Fc%23d%252e"),
        ("\0\ud800ü", "%00%3F%C3%BC"),
    ],
)
def test_a_result_is_posted_whatever_the_id_of_its_job_is(job_id, path):
    seen = []

    async def answer(request):
        seen.append((request.raw_path.partition("?")[0], request.headers["X-Request-ID"]))
        return web.Response()

    async def story():
        # Without a router, because aiohttp's own finds no route for a line break.
        async with RawTestServer(answer) as server, ClientSession() as session:
            done, stream = (f"{server.make_url(route)}/$ID?x=y" for route in ("/done", "/stream"))
            poster = ResultPoster(session, done, TransportTiming(), stream)
            assert await poster.post_chunk(job_id, {"number": 1}, again=True)
            assert await poster.post_progress(job_id, "half")
            assert await poster.post_result(job_id, {"output": 1})

    asyncio.run(story())
    routes = ("/stream", "/done", "/done")
    assert [unquote(found) for found, _ in seen] == [unquote(f"{r}/{path}") for r in routes]
    assert {header for _, header in seen} == {path}
    assert all(found.count("/") == 2 for found, _ in seen)


def test_a_result_that_could_not_be_posted_has_a_line_in_the_log(caplog):
    class Broken(Control):
        async def post_result(self, job_id, body):
            raise ValueError(f"no post for {job_id}: {body}")

    control = Broken(echo, [jobs(1), jobs(2)])
    asyncio.run(control.serve())
    assert caplog.text.count("the result could not be posted") == 2
    assert "no post for job-1" in caplog.text
