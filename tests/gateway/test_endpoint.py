"""The back for a RunPod endpoint, against a server that answers as RunPod does, and badly."""

import asyncio
import json
from dataclasses import replace

import pytest
from fakes.runpod_endpoint import (
    ENDPOINT,
    GONE,
    KEY,
    RunPodEndpoint,
    completed,
    failed,
    progress,
    queued,
)

from gateway.endpoint.http import Address, HttpLimits, TooLarge, WrongEndpoint
from gateway.endpoint.jobs import Endpoint, Polling
from gateway.jobs import BadRequest, EndpointFailed, NoSuchJob, NotTaking, TooManyJobs

LIMITS = HttpLimits(request=1000, answer=100_000, silence=0.3)
FOREVER = -1
DONE = completed(images=["aGk="])


class Pauses(list):
    """Notes each pause instead of waiting."""

    async def __call__(self, seconds):
        self.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def runpod():
    with RunPodEndpoint(lambda _input: [queued(), progress(percent=50), DONE]) as endpoint:
        yield endpoint


def use(runpod, work, *, polling=None, url=None, clock=None, limits=LIMITS):
    """What `work(endpoint)` returns, and the pauses that it made."""
    pauses = Pauses()

    async def run():
        address = Address(url or f"{runpod.url}/v2/{ENDPOINT}", KEY)
        more = {"clock": clock} if clock else {}
        endpoint = Endpoint(address, polling or Polling(), limits, sleep=pauses, **more)
        try:
            return await work(endpoint)
        finally:
            await endpoint.close()

    return asyncio.run(run()), pauses


def submit(endpoint):
    return endpoint.submit({"input": {"prompt": "a fox"}})


async def followed(endpoint):
    state = await submit(endpoint)
    return [(state.status, state.output) async for state in endpoint.follow(state.id)]


def test_a_job_is_queued_followed_and_ended_and_each_change_is_seen_once(runpod):
    runpod.states = lambda _input: [
        *([queued()] * 3),
        progress(),
        *([progress(percent=5)] * 4),
        progress(percent=50),
        DONE,
    ]
    states, pauses = use(runpod, followed)
    expected = [("IN_QUEUE", None), ("IN_PROGRESS", None), ("IN_PROGRESS", {"percent": 5})]
    assert states == [*expected, ("IN_PROGRESS", {"percent": 50}), ("COMPLETED", DONE["output"])]
    assert len(pauses) == len(runpod.events("status")) - 1
    assert {event["headers"]["Authorization"] for event in runpod.events()} == {f"Bearer {KEY}"}


def test_what_stands_beside_the_input_reaches_the_endpoint(runpod):
    job = {"input": {"prompt": "a fox"}, "s3Config": {"accessId": "id-of-the-key"}}
    use(runpod, lambda endpoint: endpoint.submit(job))
    assert json.loads(runpod.events("run")[0]["body"]) == job


REFUSED = [
    ({"status": 401}, WrongEndpoint, "API key", 1),
    ({"status": 403}, WrongEndpoint, "API key", 1),
    ({"status": 404}, WrongEndpoint, "knows no endpoint", 1),
    (
        {"status": 302, "headers": {"Location": "http://127.0.0.1:9/"}},
        WrongEndpoint,
        "redirects",
        1,
    ),
    ({"status": 400, "body": f"bad {KEY} \x1b[2J input"}, BadRequest, "bad *** ", 1),
    ({"status": 413}, TooLarge, "by URL", 1),
    ({"status": 429, "headers": {"Retry-After": "3600"}}, TooManyJobs, "429", 1),
    ({"status": 429}, TooManyJobs, "429", LIMITS.attempts),
    ({"status": 500}, EndpointFailed, "not known whether", 1),
    ({"status": 502, "body": "<html>Bad gateway</html>"}, EndpointFailed, "not known whether", 1),
    ({"status": 200, "body": "<html>Welcome</html>"}, EndpointFailed, "not known whether", 1),
    ({"status": 200, "body": "[" * 50_000}, EndpointFailed, "not known whether", 1),
    ({"status": 200, "body": '{"id": "../../other"}'}, EndpointFailed, "no status", 1),
    ({"status": 200, "body": '{"id": "a/b", "status": "IN_QUEUE"}'}, EndpointFailed, "no id", 1),
    ({"drop": True}, EndpointFailed, "not known whether", 1),
    ({"cut": True}, EndpointFailed, "not known whether", 1),
    ({"endless": True}, EndpointFailed, "more than", 1),
    ({"hold": True}, EndpointFailed, "in time", 1),
]


@pytest.mark.parametrize(("fault", "error", "text", "requests"), REFUSED, ids=str)
def test_a_job_that_may_have_arrived_is_never_sent_again(
    runpod, caplog, fault, error, text, requests
):
    runpod.fault("run", times=FOREVER, **fault)
    with pytest.raises(error, match=text.replace("*", r"\*")) as raised:
        use(runpod, submit)
    assert len(runpod.events("run")) == requests
    assert KEY not in f"{raised.value!r} {raised.getrepr(chain=True)} {caplog.text}"
    assert "\x1b" not in str(raised.value)


def test_a_job_that_was_refused_for_its_rate_is_sent_again_when_runpod_says(runpod):
    runpod.fault("run", times=2, status=429, headers={"Retry-After": "7"})
    state, pauses = use(runpod, submit)
    assert state.status == "IN_QUEUE"
    assert len(runpod.events("run")) == 3
    assert pauses == [7, 7]


def test_a_server_that_does_not_exist_and_a_request_that_is_too_large_are_named(runpod):
    with pytest.raises(EndpointFailed, match=r"127.0.0.1:9/v2/x cannot be reached: .+\."):
        use(runpod, submit, url="http://127.0.0.1:9/v2/x")
    with pytest.raises(TooLarge, match="by URL"):
        use(runpod, lambda endpoint: endpoint.submit({"input": {"prompt": "x" * 1000}}))
    assert runpod.events() == []


@pytest.mark.parametrize(
    "fault",
    [
        *[{"status": status} for status in (404, 408, 429, 500, 502, 503, 520)],
        {"status": 200, "body": "<html>"},
        {"status": 200, "body": '{"status": "ODD"}'},
        *[{name: True} for name in ("drop", "cut", "endless", "hold")],
    ],
    ids=str,
)
def test_reads_of_the_status_survive_a_failure(runpod, fault):
    runpod.fault("status", times=1 if "hold" in fault else 2, **fault)
    assert use(runpod, followed)[0][-1][0] == "COMPLETED"


@pytest.mark.parametrize(("status", "error"), [(401, WrongEndpoint), (500, EndpointFailed)])
def test_a_job_whose_status_cannot_be_read_is_given_up_after_a_limit(runpod, status, error):
    runpod.fault("status", times=FOREVER, status=status)
    ticks = iter(range(1000))
    with pytest.raises(error):
        use(runpod, followed, polling=Polling(outage=3), clock=lambda: next(ticks))


def test_a_job_that_is_lost_and_one_that_never_ends_are_given_up_with_a_sentence(runpod):
    runpod.states = lambda _input: [queued(), GONE]
    with pytest.raises(NoSuchJob, match="no longer knows"):
        use(runpod, followed)
    runpod.states = lambda _input: [queued()]
    ticks = iter(range(0, 100_000, 60))
    with pytest.raises(EndpointFailed, match="within 60 minutes"):
        use(runpod, followed, clock=lambda: next(ticks))


def test_pauses_grow_up_to_a_limit_and_begin_again_after_a_change(runpod):
    runpod.states = lambda _input: [*([queued()] * 20), *([progress()] * 20), DONE]
    polling = Polling(first=0.5, growth=2, queued=4, running=2)
    _, pauses = use(runpod, followed, polling=polling)
    assert pauses[:5] == [0.5, 1, 2, 4, 4]
    assert pauses[19:24] == [4, 0.5, 1, 2, 2]


def test_many_jobs_together_stay_within_the_rate_of_reads(runpod):
    async def work(endpoint):
        await asyncio.gather(*[followed(endpoint) for _ in range(20)])

    _, pauses = use(runpod, work, polling=Polling(first=0.001, rate=10))
    assert max(pauses) == 2.0


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429}, {"drop": True}], ids=str)
def test_a_cancel_is_tried_until_it_arrives(runpod, fault):
    async def work(endpoint):
        return await endpoint.cancel((await submit(endpoint)).id)

    runpod.fault("cancel", times=3, **fault)
    assert use(runpod, work)[0].status == "CANCELLED"
    assert runpod.status(runpod.job_ids[0]) == "CANCELLED"


@pytest.mark.parametrize("job_id", ["../../other/run", "..", "", "a/b", "a%2fb", "a?b", "x" * 999])
def test_an_id_that_would_lead_to_another_address_is_not_sent(runpod, job_id):
    for work in (Endpoint.state, Endpoint.cancel):
        with pytest.raises(NoSuchJob, match="no id of a job"):
            use(runpod, lambda endpoint, work=work: work(endpoint, job_id))
    assert runpod.events() == []


STATES = [
    (failed("BAD: no.", detail="x"), "FAILED", "BAD: no."),
    ({"status": "FAILED", "error": {"a": 1}}, "FAILED", "{'a': 1}"),
    ({"status": "COMPLETED"}, "FAILED", "RunPod has no result"),
    ({"status": "TIMED_OUT"}, "TIMED_OUT", "execution timeout"),
    ({"status": "RUNNING", "executionTime": float("inf")}, "IN_PROGRESS", ""),
    ({"status": "CANCELLED", "delayTime": "12"}, "CANCELLED", ""),
]


@pytest.mark.parametrize(("answer", "status", "error"), STATES)
def test_each_state_of_runpod_has_its_own_and_a_failure_has_a_sentence(
    runpod, answer, status, error
):
    async def work(endpoint):
        return await endpoint.state((await submit(endpoint)).id)

    runpod.states = lambda _input: [answer]
    state, _ = use(runpod, work)
    assert (state.status, bool(state.error)) == (status, bool(error))
    assert error in (state.error or "")
    assert json.dumps(state.as_json())


def test_the_end_stops_all_that_follow_and_new_jobs(runpod):
    runpod.states = lambda _input: [queued()]

    async def work(endpoint):
        following = [asyncio.ensure_future(followed(endpoint)) for _ in range(3)]
        await asyncio.to_thread(runpod.wait_for, "status", 30, 3)
        assert endpoint.end() == 3
        errors = await asyncio.gather(*following, submit(endpoint), return_exceptions=True)
        return [type(error) for error in errors]

    assert use(runpod, work)[0] == [NotTaking] * 4


def test_health_tells_whether_a_worker_is_awake_and_purge_how_many_jobs_went(runpod):
    async def work(endpoint):
        await submit(endpoint)
        return await endpoint.is_awake(), await endpoint.purge(), await endpoint.health()

    runpod.health["workers"] = {"running": 1, "idle": 0}
    assert use(runpod, work)[0] == (True, 1, runpod.health)
    runpod.health["workers"] = {"running": 0, "idle": 3, "ready": 3}
    assert use(runpod, work)[0][0] is False
    runpod.health["workers"] = None
    assert use(runpod, work)[0][0] is False


def test_a_proxy_of_the_environment_does_not_get_the_key_of_a_request_without_tls(
    runpod, monkeypatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert use(runpod, submit)[0].status == "IN_QUEUE"


def test_the_address_does_not_show_the_key():
    assert KEY not in repr(replace(Address("https://x", KEY), url="https://y"))


@pytest.mark.parametrize(
    ("fault", "jobs"),
    [({"hold": True}, 1), ({"hold": True, "status": 429}, 0), ({"hold": True, "status": 200}, 0)],
)
def test_a_cancelled_submit_waits_for_the_id_of_its_job_and_sends_nothing_more(runpod, fault, jobs):
    async def work(endpoint):
        submitting = asyncio.ensure_future(submit(endpoint))
        await asyncio.to_thread(runpod.wait_for, "run")
        submitting.cancel()
        await asyncio.sleep(0)
        runpod.release()
        return await asyncio.gather(submitting, return_exceptions=True)

    runpod.fault("run", **fault)
    (end,), _ = use(runpod, work, limits=HttpLimits())
    assert len(runpod.events("run")) == 1
    assert [getattr(end, "id", None)] == (runpod.job_ids or [None])
    assert len(runpod.job_ids) == jobs
    expected = asyncio.CancelledError if fault.get("status") == 429 else EndpointFailed
    assert jobs or isinstance(end, expected)


def test_chunks_are_passed_on_once_and_the_call_waits_for_them(runpod):
    running = {"status": "IN_PROGRESS"}
    runpod.states = lambda _input: [running, running | {"stream": [1, 2]}, DONE | {"stream": [3]}]

    async def streamed(endpoint):
        job, seen = (await submit(endpoint)).id, []
        while not seen or seen[-1][1]:
            part = await endpoint.stream(job, 5.0)
            seen.append((part.state.status, [one["output"] for one in part.chunks]))
        return seen, part.state.output

    (seen, output), pauses = use(runpod, streamed)
    assert seen == [("IN_PROGRESS", [1, 2]), ("COMPLETED", [3]), ("COMPLETED", [])]
    assert output == DONE["output"]
    assert len(pauses) == 1


@pytest.mark.parametrize(
    "body", ['{"status": "COMPLETED"}', '{"status": "COMPLETED", "stream": 1}', '{"stream": []}']
)
def test_an_answer_without_chunks_or_status_is_an_error(runpod, body):
    runpod.fault("stream", status=200, body=body, times=FOREVER)

    async def streamed(endpoint):
        return await endpoint.stream((await submit(endpoint)).id, 5.0)

    with pytest.raises(EndpointFailed, match="RunPod's answer has no"):
        use(runpod, streamed)
