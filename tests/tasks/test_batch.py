import asyncio
import dataclasses
import gc
import json
import time

import pytest
from fakes.a1111.process import write_safetensors
from fakes.stub_engine import StubEngine, handler_with
from images.samples import file_of, text_of

from worker import log
from worker.errors import OutOfMemory
from worker.http.client import SafeHttpClient
from worker.images.limits import ImageLimits
from worker.images.reader import ImageReader
from worker.models.store.progress import listener
from worker.stopwatch import Stopwatch
from worker.tasks.batch import BatchResult


class RecordingEngine(StubEngine):
    """Notes which checkpoint each picture needs, and fails for the prompt `too large`."""

    default_checkpoint, checkpoint = "a", "b"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.drawn, self.jobs = [], []

    async def generate(self, payload, stopwatch, *arguments, **named):
        self.drawn.append(payload.expected.checkpoint)
        self.jobs.append((log.job_id.get(), stopwatch.timeout <= 50))
        if payload.body["prompt"] == "too large":
            raise OutOfMemory("no memory.")
        return await super().generate(payload, stopwatch, *arguments, **named)


@pytest.fixture
def engine(catalog, tmp_path):
    for name in "abc":
        write_safetensors(tmp_path / f"models/Stable-diffusion/{name}.safetensors", note=name)
    return RecordingEngine(catalog, tmp_path)


@pytest.fixture
def run(engine, tmp_path):
    """Run a batch; its answer."""

    def run(*inputs, job=None, job_id="job", **variables):
        async def story():
            built = handler_with(engine, tmp_path, **variables)
            batch = {"task": "batch", "inputs": list(inputs)} | (job or {})
            return await built({"id": job_id, "input": batch})

        return asyncio.run(story())

    return run


def picture(checkpoint=None, prompt="a fox", **fields):
    return {"prompt": prompt, "steps": 2, "checkpoint": checkpoint} | fields


def test_each_checkpoint_is_loaded_once_and_the_results_keep_their_order(run, engine):
    """The loaded checkpoint comes first; a job that names none uses the default one, `a`."""
    answer = run(*(picture(one, seed=n) for n, one in enumerate([*"cab", None, *"bca"])))
    assert engine.drawn == ["b", "b", "a", None, "a", "c", "c"]
    BatchResult.model_validate(answer, strict=True, extra="forbid")
    assert [one["parameters"]["seed"] for one in answer["results"]] == list(range(7))
    assert answer["failed"] == 0


def test_an_input_that_fails_leaves_the_others_alone(run):
    answer = run(
        picture("a"),
        picture("a", prompt="too large"),
        picture("z"),
        {"promt": "a fox"},
        {"task": "batch", "inputs": [{}]},
        {"task": "txt2imgs"},
        {"task": "templates"},
    )
    codes = [one.get("code") for one in answer["results"]]
    wrong = "INVALID_INPUT"
    assert codes == [None, "OUT_OF_MEMORY", "MODEL_NOT_FOUND", wrong, wrong, wrong, None]
    assert answer["failed"] == 5
    assert "did you mean `prompt`" in answer["results"][3]["error"]


def test_a_batch_fails_when_all_of_its_inputs_fail(run, engine):
    answer = run({"steps": 0}, picture("z"))
    assert answer["error"].startswith(
        "BATCH_FAILED: all 2 inputs failed (INVALID_INPUT, MODEL_NOT_FOUND). The first: INVALID"
    )
    assert [one["code"] for one in answer["results"]] == ["INVALID_INPUT", "MODEL_NOT_FOUND"]
    assert engine.drawn == []


def test_each_input_has_its_own_id_in_the_log_and_the_deadline_of_the_batch(run, engine):
    run(picture("a"), picture("b") | {"timeout": 600}, job={"timeout": 50})
    assert engine.jobs == [("job-2", True), ("job-1", True)]


def test_only_the_whole_answer_asks_for_another_worker(run, engine):
    engine.retiring = "it does not answer"
    answer = run(picture(), {"steps": 0})
    assert answer["refresh_worker"]
    assert not any("refresh_worker" in one for one in answer["results"])


def test_the_models_of_three_inputs_are_prepared_at_once(engine, tmp_path, monkeypatch):
    running, counts, places = [], [], set()

    async def story():
        built = handler_with(engine, tmp_path)
        prepare = built.worker.models.prepare_models_for_request

        def slow(*arguments):
            running.append(1)
            counts.append(len(running))
            report = listener.get()
            report({"phase": "download"})
            places.add(report.__self__.latest["input"])
            time.sleep(0.05)
            running.pop()
            return prepare(*arguments)

        monkeypatch.setattr(built.worker.models, "prepare_models_for_request", slow)
        return await built({"id": "job", "input": {"task": "batch", "inputs": [picture()] * 9}})

    assert asyncio.run(story())["failed"] == 0
    assert len(counts) == 9
    assert max(counts) <= 3
    assert places == set(range(1, 10))


@pytest.mark.parametrize("inputs", [[], "a fox", [1], [picture()] * 65, None])
def test_a_batch_of_another_form_is_refused(run, inputs, engine):
    assert run(job={"inputs": inputs})["code"] == "INVALID_INPUT"
    assert engine.drawn == []


def test_the_limit_of_a_result_holds_for_all_inputs_together(run):
    alone = len(json.dumps(run(picture("a"))["results"][0])) + 1200  # what the limit reserves
    answer = run(*[picture("a")] * 4, RESULT_LIMIT_MB=str(2.5 * alone / 1e6))
    sizes = [len(json.dumps(one)) for one in answer["results"] if "error" not in one]
    assert (len(sizes), answer["failed"]) == (2, 2)
    assert len(json.dumps(answer)) < 4 * alone
    (code,) = {one["code"] for one in answer["results"] if "error" in one}
    assert code == "RESULT_TOO_LARGE"


def test_errors_have_no_details_where_the_result_has_no_room_for_them(run):
    results = run(*[{"promt": 1, "y" * 70: 1}] * 64, RESULT_LIMIT_MB="0.02")["results"]
    whole = [one for one in results if "problems" in one]
    assert whole
    assert len(json.dumps(whole)) < 20_000
    assert {*results[-1]} == {"error", "detail", "message", "code"}


def test_each_input_may_have_as_many_keys_as_a_job(run):
    full = picture() | {"comments": {f"note {n}": n for n in range(200)}}
    assert run(*[full] * 64)["failed"] == 0


def test_the_pictures_of_two_inputs_have_two_places_however_long_the_id_is(run, tmp_path):
    run(picture("a"), picture("b"), job_id="x" * 200, OUTPUT_DIR=str(tmp_path / "out"))
    assert len([*(tmp_path / "out").iterdir()]) == 2


def test_the_engine_stays_the_cancelled_batchs_until_its_drawing_has_stopped(
    engine, tmp_path, monkeypatch
):
    async def story():
        begun, stopping, stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()
        draw, events = engine.generate, []

        async def slow(*_arguments, **_named):
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                stopping.set()
                await stopped.wait()
                events.append("the batch's drawing has stopped")

        async def next_one(*arguments, **named):
            events.append("the next job draws")
            return await draw(*arguments, **named)

        monkeypatch.setattr(engine, "generate", slow)
        built = handler_with(engine, tmp_path)
        batch = {"task": "batch", "inputs": [picture("a"), picture("b"), picture("c")]}
        job = asyncio.create_task(built({"id": "job", "input": batch}))
        await begun.wait()
        monkeypatch.setattr(engine, "generate", next_one)
        after = asyncio.create_task(built({"id": "next", "input": picture("b")}))
        job.cancel()
        await stopping.wait()
        job.cancel()  # again, while it ends
        await asyncio.wait({after}, timeout=0.2)
        stopped.set()
        with pytest.raises(asyncio.CancelledError):
            await job
        answer = await after
        others = asyncio.all_tasks() - {asyncio.current_task()}
        return events, answer, [one for one in others if not one.done()], built.worker

    events, answer, others, worker = asyncio.run(story())
    assert events == ["the batch's drawing has stopped", "the next job draws"]
    assert "images" in answer
    assert (others, worker.models._in_use) == ([], [])


@pytest.mark.parametrize("end", ["deadline", "cancelled"])
def test_a_batch_ends_while_another_job_has_the_engine(engine, tmp_path, caplog, end):
    async def story():
        built = handler_with(engine, tmp_path)
        timeout = 1 if end == "deadline" else 600
        batch = {"task": "batch", "inputs": [picture("a")], "timeout": timeout}
        async with built.worker.turns.next(Stopwatch(600)):
            job = asyncio.create_task(built({"id": "job", "input": batch}))
            await asyncio.wait({job}, timeout=0.5)
            if end == "cancelled":
                job.cancel()
            await asyncio.wait({job}, timeout=60)
        return "cancelled" if job.cancelled() else job.result()["results"][0]["code"]

    assert asyncio.run(story()) == ("cancelled" if end == "cancelled" else "JOB_TIMEOUT")
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_before_its_first_picture_the_engine_has_the_default_checkpoint(run, engine):
    engine.checkpoint, engine.default_checkpoint = None, "c"
    run(picture("a"), picture("b"), picture("c"))
    assert engine.drawn == ["c", "a", "b"]


def test_progress_names_the_input(engine, tmp_path):
    reports = []

    async def story():
        built = handler_with(engine, tmp_path)

        async def post(_job, report):
            reports.append(report)

        built.post_progress = post
        await built({"id": "job", "input": {"task": "batch", "inputs": [picture("a")]}})

    asyncio.run(story())
    assert reports
    assert {(one["input"], one["inputs"]) for one in reports} == {(1, 1)}


def test_the_pictures_that_all_inputs_bring_have_one_limit(engine, tmp_path):
    file = file_of()

    async def story():
        built = handler_with(engine, tmp_path)
        limits = ImageLimits(total_bytes=2 * len(file))
        images = ImageReader(SafeHttpClient(), limits)
        built.worker = dataclasses.replace(built.worker, images=images)
        one = {"task": "png_info", "image": text_of(file)}
        return await built({"id": "job", "input": {"task": "batch", "inputs": [one] * 3}})

    assert asyncio.run(story())["failed"] == 1
