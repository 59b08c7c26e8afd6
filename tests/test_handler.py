"""The handler's boundary: what it lets through to the caller, and what only the log gets."""

import asyncio
import json
import re
import threading

import pytest

import handler
from worker.config.settings import Settings
from worker.errors import ModelNotFound
from worker.job.template_file import Templates
from worker.webui.engine import Engine

SECRET = "/volume/private/token-abcdef"


class Models:
    """A model manager in which something goes wrong."""

    def __init__(self, error):
        self.error = error

    def prepare_models_for_request(self, _request, _stop):
        raise self.error


@pytest.fixture
def run():
    """Run one job in a handler whose model manager fails; the engine is never reached."""

    def run(error, templates=None, **job):
        engine = Engine(None, None, None)
        models, templates = Models(error), Templates(templates)
        built = handler.Handler(Settings.from_environ({}), engine, models, templates)
        return asyncio.run(built({"id": "job-1", "input": {}} | job))

    return run


def test_an_unexpected_exception_is_an_id_for_the_caller_and_a_traceback_in_the_log(run, caplog):
    told = run(RuntimeError(SECRET))

    incident = re.search(r"id (\w{12})\.", told["error"])[1]
    assert told["code"] == "INTERNAL_ERROR"
    assert told["id"] == incident
    assert SECRET not in json.dumps(told)
    assert "Traceback" not in json.dumps(told)
    assert incident in caplog.text
    assert SECRET in caplog.text


def test_a_known_error_is_told_in_full(run):
    told = run(ModelNotFound("lora 'x' is not there.", hint="Name another.", kind="lora"))

    assert told["error"] == "MODEL_NOT_FOUND: lora 'x' is not there. Name another."
    assert told["kind"] == "lora"
    assert "refresh_worker" not in told


def test_cancellation_is_no_result(run):
    with pytest.raises(asyncio.CancelledError):
        run(asyncio.CancelledError())


@pytest.mark.parametrize("job_input", [None, [], "text", 5])
def test_an_input_that_is_no_object_is_refused(run, job_input):
    assert run(None, input=job_input)["code"] == "INVALID_INPUT"


def test_a_wrong_setting_ends_the_handler_with_its_own_status(monkeypatch, capsys):
    monkeypatch.setenv("ENGINE", "comfy")

    assert handler.main() == 78
    assert "ENGINE='comfy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("job_input", "is_told"),
    [({}, True), ({"template": "fox"}, False), ({"checkpoint": "x"}, False)],
    ids=str,
)
def test_a_job_that_got_the_default_template_is_told_so(run, tmp_path, job_input, is_told):
    """Else its caller wonders about a model that he never named."""
    fox = {"name": "Fox", "checkpoint": "base"}
    file = tmp_path / "templates.json"
    file.write_text(json.dumps({"templates": {"fox": fox}, "default_template": "fox"}))

    told = run(ModelNotFound("no."), file, input=job_input)

    assert ("default template 'fox'; DEFAULT_TEMPLATE=none" in told["error"]) == is_told
    assert told["error"].startswith("MODEL_NOT_FOUND: no. Put the file")


@pytest.mark.parametrize(("missing", "is_told"), [("base", True), ("glow", False)])
def test_of_a_model_that_he_named_himself_he_is_not(run, tmp_path, missing, is_told):
    fox = {"name": "Fox", "checkpoint": "base"}
    file = tmp_path / "templates.json"
    file.write_text(json.dumps({"templates": {"fox": fox}, "default_template": "fox"}))

    told = run(ModelNotFound("no.", name=missing), file, input={"loras": ["glow"]})

    assert ("default template 'fox'" in told["error"]) == is_told


class SlowModels(Models):
    """Its models come although nobody waits for them any more."""

    def __init__(self):
        self.begun, self.go_on, self.released = (threading.Event() for _ in range(3))

    def prepare_models_for_request(self, _request, stop):
        self.begun.set()
        stop.wait(30)
        self.go_on.wait(30)
        return "models", True

    def release(self, models):
        assert models == "models"
        self.released.set()


@pytest.mark.parametrize("end", ["cancelled", "late"])
def test_models_that_come_when_nobody_waits_are_released_and_shown_to_the_engine(end):
    async def story():
        engine, models = Engine(None, None, None), SlowModels()
        shown = asyncio.Event()
        engine.models_changed = shown.set
        built = handler.Handler(Settings.from_environ({}), engine, models, Templates(None))
        limit = {"timeout": 1} if end == "late" else {}
        job = asyncio.create_task(built({"id": "job-1", "input": {"prompt": "a fox"} | limit}))
        await asyncio.to_thread(models.begun.wait, 30)
        if end == "cancelled":
            job.cancel()
        (told,) = await asyncio.gather(job, return_exceptions=True)
        assert not models.released.is_set()
        models.go_on.set()
        await asyncio.wait_for(shown.wait(), 30)
        return told, models.released.is_set()

    told, released = asyncio.run(story())
    assert released
    if end == "late":
        assert told["error"].startswith("JOB_TIMEOUT: the models were not there within 1 s (vali")
    else:
        assert isinstance(told, asyncio.CancelledError)
