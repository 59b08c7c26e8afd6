import asyncio
import json

import pytest
from fakes.a1111.process import write_safetensors
from fakes.stub_engine import StubEngine, handler_with

from worker.errors import OutOfMemory
from worker.tasks.batch import BatchResult


class RecordingEngine(StubEngine):
    """Notes which checkpoint each picture needs, and fails for the prompt `too large`."""

    default_checkpoint, checkpoint = "a", "b"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.drawn = []

    async def generate(self, payload, *arguments, **named):
        self.drawn.append(payload.expected.checkpoint)
        if payload.body["prompt"] == "too large":
            raise OutOfMemory("no memory.")
        return await super().generate(payload, *arguments, **named)


@pytest.fixture
def engine(catalog, tmp_path):
    for name in "abc":
        write_safetensors(tmp_path / f"models/Stable-diffusion/{name}.safetensors", note=name)
    return RecordingEngine(catalog, tmp_path)


@pytest.fixture
def run(engine, tmp_path):
    """Run a batch; its answer."""

    def run(*inputs, job=None, **variables):
        async def story():
            built = handler_with(engine, tmp_path, **variables)
            batch = {"task": "batch", "inputs": list(inputs)} | (job or {})
            return await built({"id": "job", "input": batch})

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


def test_a_cancelled_batch_ends_all_of_its_inputs(engine, tmp_path, monkeypatch):
    async def story():
        begun, ended = asyncio.Event(), []

        async def draw(*_arguments, **_named):
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("drawing")

        monkeypatch.setattr(engine, "generate", draw)
        built = handler_with(engine, tmp_path)
        batch = {"task": "batch", "inputs": [picture("a"), picture("b")]}
        job = asyncio.create_task(built({"id": "job", "input": batch}))
        await begun.wait()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.sleep(0)
        return ended, [one for one in others if not one.done()], built.worker.models._in_use

    assert asyncio.run(story()) == (["drawing"], [], [])


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
