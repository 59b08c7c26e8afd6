import asyncio
import base64
import functools
import json
import re
import subprocess
import sys
import threading
from types import SimpleNamespace
from unittest.mock import AsyncMock, Mock

import pytest
from fakes.a1111.picture import png
from fakes.a1111.process import wait_until, write_safetensors
from fakes.hosts.put_host import put_host
from fakes.stub_engine import PICTURE, StubEngine, handler_with

import handler
from gateway import server
from worker.config.settings import PROJECT, Settings
from worker.errors import ModelNotFound
from worker.job.template_file import Templates
from worker.runpod import watchdog
from worker.service.stream import NO_STREAM
from worker.tasks import pictures, schema
from worker.tasks.lists import LISTS
from worker.tasks.table import TASKS
from worker.webui.engine import Engine

SECRET = "/volume/private/token-abcdef"
INFOTEXT = "a fox\nSteps: 2, Sampler: Euler, Seed: 1, Size: 24x16"
FOX = {"name": "Fox", "checkpoint": "base"}


@pytest.fixture
def templates_file(tmp_path):
    """A file whose default template is `fox`."""
    file = tmp_path / "templates.json"
    file.write_text(json.dumps({"templates": {"fox": FOX}, "default_template": "fox"}))
    return file


@pytest.fixture
def run():
    """Run one job in a handler whose model manager fails; it never reaches the engine."""

    def run(error=None, templates=None, **job):
        models = Mock(**{"prepare_models_for_request.side_effect": error})
        engine = Engine(None, None, None)
        built = handler.Handler(Settings.from_environ({}), engine, models, Templates(templates))
        return asyncio.run(built({"id": "job-1", "input": {}} | job))

    return run


@pytest.fixture
def worker(tmp_path, catalog, templates_file):
    """A handler with a model store of one checkpoint, for one event loop."""
    write_safetensors(tmp_path / "models/Stable-diffusion/base.safetensors")
    return handler_with(StubEngine(catalog, tmp_path), tmp_path, templates_file)


@pytest.mark.parametrize("retiring", ["", "out of memory"])
def test_each_answer_has_its_type_and_what_engine_store_and_templates_report(worker, retiring):
    worker.worker.engine.retiring = retiring
    worker.worker.startup.seconds = {"engine": 1.5, "total": 1.5}
    picture = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64}
    brings = {"image": base64.b64encode(png(24, 16, b"\1\2\3", INFOTEXT)).decode()}
    from_picture = {"task": "img2img", "init_images": [PICTURE], "steps": 2}
    jobs = [
        *(picture, picture, {"task": "health"}, {"task": "templates"}),
        {"task": "upscale", "upscaler_1": "Lanczos", **brings},
        *({"task": task, **brings} for task in ("png_info", "interrogate")),
        {"task": "prefetch", "checkpoint": "base"},
        from_picture,
        {"task": "batch", "inputs": [{"task": "schema"}]},
        *({"task": task.name} for task in (schema.TASK, *LISTS)),
    ]

    async def story():
        return [await worker({"id": "job-1", "input": job}) for job in jobs]

    answers = asyncio.run(story())

    tasks = [TASKS[job.get("task", "txt2img")] for job in jobs]
    for task, answer in zip(tasks, answers, strict=True):
        assert "error" not in answer, answer
        assert answer == json.loads(json.dumps(answer, allow_nan=False))
        task.output.model_validate(answer, strict=True, extra="forbid")
        assert ("refresh_worker" in answer) == bool(retiring)
    first, second, health, listed, upscaled, read, described, prefetched, drawn = answers[:9]
    assert (first["startup"], second.get("startup")) == (worker.worker.startup.seconds, None)
    assert (first["template"], first["info"][:17]) == ("fox", '{"sd_model_name":')
    base = {"kind": "checkpoint", "name": "base", "sha256": "a" * 64, "source": "job"}
    assert first["models"] == [base]
    assert first["cache_info"]["checkpoints_cached"] == 1
    assert " ".join(first["timings"]) == (
        "validate prepare queue generate deliver total gpu_seconds"
    )
    assert {"prepare", "images"} < drawn["timings"].keys()
    assert PICTURE not in json.dumps(drawn["parameters"])
    assert health["worker"]["jobs"]["completed"] == 2
    assert health["engine"]["memory"] == worker.worker.engine.memory()
    (fox,) = listed["templates"]
    assert (fox["template"], fox["baked"], fox["merged"]) == ("fox", False, False)
    assert listed["default_template"] == "fox"
    assert (upscaled["sizes"], described["caption"]) == ([{"width": 48, "height": 32}], "a fox")
    assert (read["info"], read["parameters"]["Seed"]) == (INFOTEXT, "1")
    (model,) = prefetched["models"]
    assert (model["name"], model["fetched"]) == ("base.safetensors", False)


@pytest.mark.parametrize(("retiring", "taken"), [("", 2), ("out of memory", 0)])
def test_a_worker_that_is_to_be_replaced_takes_no_further_job(worker, retiring, taken):
    """Neither when the last step has begun nor when the pictures are proven."""
    engine, jobs = worker.worker.engine, []
    generate = engine.generate

    async def passing_on(*parts, next_job, **named):
        engine.retiring = retiring
        next_job.may_come()
        return await generate(*parts, next_job=next_job, **named)

    async def run():
        engine.generate = passing_on
        return await worker({"id": "job-1", "input": {"prompt": "a fox"}})

    worker.take_next = lambda job: jobs.append(job["id"])
    assert "images" in asyncio.run(run())
    assert jobs == ["job-1"] * taken


def test_the_models_of_a_job_count_as_used_until_it_ends(worker, monkeypatch):
    """Else another worker of the volume could evict them while the job waits or draws."""
    engine, models, marks = worker.worker.engine, worker.worker.models, asyncio.Queue()
    generate = engine.generate

    async def generate_for_long(*arguments, **more):
        for _ in range(3):
            await marks.get()
        return await generate(*arguments, **more)

    async def story():
        loop = asyncio.get_running_loop()
        note = functools.partial(loop.call_soon_threadsafe, marks.put_nowait)
        monkeypatch.setattr(models, "mark_used", note)
        answer = await worker({"id": "job-1", "input": {"prompt": "a fox", "checkpoint": "base"}})
        await asyncio.sleep(0)  # the turn in which a cancelled task ends
        return answer, asyncio.all_tasks() - {asyncio.current_task()}

    monkeypatch.setattr(pictures, "MARK_EVERY", 0.0)
    monkeypatch.setattr(engine, "generate", generate_for_long)
    answer, left = asyncio.run(story())
    assert answer["images"]
    assert left == set()


def test_a_picture_that_is_drawn_at_the_last_moment_is_delivered(worker):
    engine = worker.worker.engine
    generate = engine.generate

    async def generate_at_the_last_moment(payload, stopwatch, *arguments, **more):
        answer = await generate(payload, stopwatch, *arguments, **more)
        stopwatch.limit(0.0)
        return answer

    engine.generate = generate_at_the_last_moment
    job = {"id": "job-1", "input": {"prompt": "a fox", "checkpoint": "base"}}
    assert asyncio.run(worker(job))["images"]


def test_where_nothing_can_be_streamed_the_job_is_one_request_and_its_answer_says_so(worker):
    engine, requests = worker.worker.engine, []
    generate = engine.generate

    async def noted(payload, *more, **named):
        requests.append(payload.body["n_iter"])
        return await generate(payload, *more, **named)

    async def both():
        engine.generate = noted
        job = {"prompt": "a fox", "n_iter": 2}
        plain = await worker({"id": "job-1", "input": job})
        return plain, await worker({"id": "job-2", "input": job | {"output": {"stream": True}}})

    plain, answer = asyncio.run(both())
    assert answer["warnings"] == [*plain["warnings"], NO_STREAM]
    assert requests == [2, 2]


def test_wildcards_are_resolved_before_the_job_is_checked_and_the_answer_has_the_prompts(
    worker, tmp_path
):
    (tmp_path / "models/wildcards").mkdir()
    (tmp_path / "models/wildcards/animal.txt").write_text("fox\nowl\n")
    job = {"prompt": "a {red|blue} __animal__", "negative_prompt": "{dark}", "wildcards": True}
    wrong = ("<lora:{x|x}:1>", "<lora:{x|x}:y>", "a {b", "__animals__")

    async def story():
        jobs = [job, *(job | {"prompt": prompt} for prompt in wrong), {"prompt": "{a|b}"}]
        batch = await worker({"id": "job-1", "input": {"task": "batch", "inputs": jobs}})
        seed = batch["results"][0]["parameters"]["seed"]
        return [*batch["results"], await worker({"id": "job-2", "input": job | {"seed": seed}})]

    first, no_lora, no_weight, unclosed, unknown, without, again = asyncio.run(story())
    sent = first["parameters"]
    assert sent["prompt"] in {
        f"a {color} {one}" for color in ("red", "blue") for one in ("fox", "owl")
    }
    assert first["resolved"] == {"prompt": sent["prompt"], "negative_prompt": "dark"}
    assert (again["resolved"], sent["seed"] >= 0) == (first["resolved"], True)
    assert "wildcards" not in sent
    assert "resolved" not in without
    assert "'{a|b}' is plain text without `wildcards: true`" in without["warnings"][0]
    assert "lora 'x'" in no_lora["error"]
    assert [no_lora["code"], no_weight["code"]] == ["MODEL_NOT_FOUND", "INVALID_INPUT"]
    assert "prompt has a { without }" in unclosed["error"]
    assert "Did you mean __animal__?" in unknown["error"]


def test_a_default_template_with_wildcards_gets_its_models_before_a_prompt_is_chosen(
    worker, templates_file, caplog
):
    defaults = {"wildcards": True, "prompt": "<lora:{a|b}:1>"}
    content = {"templates": {"fox": FOX | {"defaults": defaults}}, "default_template": "fox"}
    templates_file.write_text(json.dumps(content))
    ready = threading.Event()
    ready.set()
    worker.prepare_default_template(threading.Event(), ready)
    assert "not available" not in caplog.text
    answer = asyncio.run(worker({"id": "job-1", "input": {}}))
    assert re.search("lora '[ab]'", answer["error"])


def test_the_schema_is_printed_without_runpod_and_without_an_engine():
    code = (
        "import runpy, sys; sys.argv = ['handler.py', '--schema']\n"
        "try: runpy.run_path('handler.py', run_name='__main__')\n"
        "finally: assert 'runpod' not in sys.modules"
    )
    command, wrong = [sys.executable, "-c", code], {"ENGINE": "a wrong setting"}
    done = subprocess.run(command, cwd=PROJECT, env=wrong, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    printed = json.loads(done.stdout)
    assert printed == json.loads(json.dumps(schema.document(TASKS)))
    clip_skip = printed["$defs"]["Txt2ImgRequest"]["properties"]["clip_skip"]["anyOf"][0]
    assert clip_skip == {"type": "integer", "minimum": 1, "maximum": 12}
    assert not re.search(rb'"[gl]e":', done.stdout)  # all bounds have JSON Schema's names


def test_an_unexpected_exception_is_an_id_in_the_answer_and_a_traceback_in_the_log(run, caplog):
    answer = run(RuntimeError(SECRET))
    incident = re.search(r"id (\w{12})\.", answer["error"])[1]
    assert (answer["code"], answer["id"]) == ("INTERNAL_ERROR", incident)
    assert not re.search(f"{SECRET}|Traceback", json.dumps(answer))
    assert incident in caplog.text
    assert SECRET in caplog.text


def test_a_wrong_setting_ends_the_handler_with_its_own_status(monkeypatch, capsys):
    monkeypatch.setenv("ENGINE", "comfy")
    monkeypatch.setattr("sys.argv", ["handler.py"])
    assert handler.main() == 78
    assert "ENGINE='comfy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("job_input", "missing", "has_hint"),
    [
        ({}, None, True),
        ({"template": "fox"}, None, False),
        ({"checkpoint": "x"}, None, False),
        ({"loras": ["glow"]}, "base", True),
        ({"loras": ["glow"]}, "glow", False),
    ],
    ids=str,
)
def test_the_hint_about_the_default_template_is_for_models_that_the_job_does_not_name(
    run, templates_file, job_input, missing, has_hint
):
    facts = {"kind": "lora", "name": missing} if missing else {}
    answer = run(ModelNotFound("no.", **facts), templates_file, input=job_input)
    hint = "so the default template 'fox' was used; DEFAULT_TEMPLATE=none"
    assert (hint in answer["error"]) == has_hint
    assert answer["error"].startswith("MODEL_NOT_FOUND: no. Put the file")
    assert facts.items() <= answer.items()
    assert "refresh_worker" not in answer


@pytest.mark.timeout(60)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_uploads_of_a_cancelled_job_end(tmp_path, catalog, is_streamed):
    """Their threads are those of the other jobs, too."""
    write_safetensors(tmp_path / "models/Stable-diffusion/base.safetensors")
    with put_host() as host:
        host.fault("slow", seconds=600)
        worker = handler_with(StubEngine(catalog, tmp_path), tmp_path, TRUSTED_HOSTS=host.address)
        output = {"delivery": "put", "urls": [host.url("1.png")], "stream": is_streamed}
        worker.stream_of = lambda _job: AsyncMock(return_value=True)

        async def story():
            job = {"id": "job-1", "input": {"prompt": "a fox", "output": output}}
            running = asyncio.create_task(worker(job))
            await asyncio.to_thread(wait_until, lambda: host.received, "the upload")
            running.cancel()
            await asyncio.wait({running})

        asyncio.run(story())  # its end waits for the threads
        assert len(host.received) == 1


@pytest.mark.parametrize("asked", [{"prompt": "a fox"}, {"task": "prefetch", "checkpoint": "base"}])
@pytest.mark.parametrize("end", ["cancelled", "late"])
def test_models_that_are_ready_after_their_job_ended_are_released_and_listed(end, asked):
    begun, go_on, released, listed = (threading.Event() for _ in range(4))
    stops = []

    def prepare(_request, stop):
        begun.set()
        stops.append(stop.wait(30))
        go_on.wait(30)
        return "models", True

    def release(models, *, was_loaded):
        assert (models, was_loaded) == ("models", "prompt" in asked)
        released.set()

    async def story():
        engine = Engine(None, None, None)
        engine.models_changed = listed.set
        models = Mock(
            prepare_models_for_request=prepare,
            release=release,
            take_replaced=set,
            stored=lambda _: set(),
        )
        built = handler.Handler(Settings.from_environ({}), engine, models, Templates(None))
        limit = {"timeout": 1} if end == "late" else {}
        job = asyncio.create_task(built({"id": "job-1", "input": asked | limit}))
        await asyncio.to_thread(begun.wait, 30)
        if end == "cancelled":
            job.cancel()
        (answer,) = await asyncio.gather(job, return_exceptions=True)
        assert not released.is_set()
        go_on.set()
        assert await asyncio.to_thread(released.wait, 30)
        return answer

    answer = asyncio.run(story())
    assert (stops, listed.is_set()) == ([True], True)
    late = "JOB_TIMEOUT: the models were not ready within 1 s (vali"
    assert (
        answer["error"].startswith(late)
        if end == "late"
        else isinstance(answer, asyncio.CancelledError)
    )


# Who may use the HTTP server ----------------------------------------------------------------------

LOGIN = {"GATEWAY_LOGIN": "ann:fox:hole", "GATEWAY_TOKEN": "token-1", "GATEWAY_HOSTS": "my.example"}
OF_RUNPOD = {"RUNPOD_POD_ID": "pod", "RUNPOD_ENDPOINT_ID": "endpoint"}


@pytest.mark.parametrize(
    ("environ", "host", "warns"),
    [
        ({}, "localhost", False),
        ({}, "0.0.0.0", True),
        ({}, "::", True),
        (LOGIN, "0.0.0.0", False),
        (OF_RUNPOD, "0.0.0.0", False),
    ],
)
def test_an_open_server_without_a_login_is_warned_about(environ, host, warns, caplog):
    access = handler.access_of(Settings.from_environ(environ), host)
    assert ("publish its port on 127.0.0.1" in caplog.text) == warns
    assert (access.needs_login, access.any_host) == (environ is LOGIN, environ is OF_RUNPOD)


def test_the_settings_reach_the_server():
    access = handler.access_of(Settings.from_environ(LOGIN), "0.0.0.0")
    assert (access.login, access.token) == ("ann:fox:hole", "token-1")
    assert access.hosts == ("my.example",)


def test_a_server_that_has_ended_does_not_wait_for_ever_for_a_thread(monkeypatch, worker):
    """`docker run --restart on-failure` would never see its status."""
    ended = []
    monkeypatch.setattr(server, "serve", AsyncMock(return_value=75))
    monkeypatch.setattr(watchdog, "end_within", lambda: ended.append("a minute"))
    arguments = SimpleNamespace(host="127.0.0.1", port=8000)
    status = asyncio.run(handler.serve_http(worker, worker.worker.engine, arguments))
    assert (status, ended) == (75, ["a minute"])
