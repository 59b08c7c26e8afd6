"""The handler: the life of a job, from RunPod's input to RunPod's output.

    input     {"prompt": "a fox", "steps": 25, "sampler_name": "DPM++ 2M Karras",
               "checkpoint": "deliberate.safetensors", "loras": [{"name": "detail", "scale": 0.8}]}
    output    {"images": [<base64 or URL>], "parameters": {...}, "info": "<JSON>",
               "delivery": {...}, "cache_info": {...}, "models": [...], "timings": {...},
               "warnings": [...]}
    or        {"error": "<CODE>: what happened. What to do.", "message": ..., "code": ...}

Run it through start.sh, which starts the engine first. Its arguments are the RunPod SDK's own:
`--test_input '{"input": {...}}'` and `--rp_serve_api`; without RunPod and without arguments the
SDK runs test_input.json once.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import runpod_sdk
from model_manager import ModelManager
from worker import log
from worker.answer import failure
from worker.config.credentials import secret_values
from worker.config.settings import EXIT_BAD_CONFIGURATION, Settings
from worker.delivery.bucket import Bucket
from worker.delivery.delivery import MB, Delivery
from worker.errors import ConfigError, InternalError, WorkerError
from worker.http.client import SafeHttpClient
from worker.job import request
from worker.job.models import Models
from worker.job.request import Txt2ImgRequest
from worker.job.template_file import Templates
from worker.models.store.progress import listener
from worker.runpod.fitness import Fitness
from worker.service import result
from worker.service.counters import Counters
from worker.service.progress import JobProgress, ProgressReport
from worker.service.startup import read_ahead, run_in_background
from worker.stopwatch import Stopwatch
from worker.webui import payload
from worker.webui.client import Txt2ImgAnswer, WebUI
from worker.webui.engine import Engine
from worker.webui.readiness import Readiness
from worker.webui.recovery import MemoryGrowth
from worker.webui.supervisor import Supervisor

EXIT_ENGINE_NOT_READY = 69  # EX_UNAVAILABLE of sysexits.h, as in start.sh

logger = logging.getLogger("worker.handler")

# What a phase of `timings` begins with, for who follows the job.
_REPORTED = {"prepare": "resolve", "generate": "load", "deliver": "upload"}

_BY_DEFAULT = (
    "The job names neither a template nor a checkpoint, so it got the default template {!r};"
    " DEFAULT_TEMPLATE=none switches that off."
)


def _is_named(error: WorkerError, job: Mapping[str, Any]) -> bool:
    """Whether the model that was not found is one that the job itself names."""
    name = error.details.get("name")
    return bool(name) and str(name) in json.dumps(job["input"], ensure_ascii=False)


PostProgress = Callable[[dict[str, Any], ProgressReport], Awaitable[object]]


class Handler:
    """One engine and one model store. Jobs run side by side, but only one of them generates.

    Attributes:
        post_progress: sends a job and a report of its progress; None where nobody hears it.
        counters: what became of the jobs.
        startup: seconds of each part of the start; the first picture's answer has them.
    """

    def __init__(
        self, settings: Settings, engine: Engine, models: ModelManager, templates: Templates
    ) -> None:
        self.post_progress: PostProgress | None = None
        self.counters = Counters()
        self.startup: dict[str, float] = {}
        self._told_startup = False
        self._settings = settings
        self._engine = engine
        self._models = models
        self._templates = templates
        self._delivery = build_delivery(settings)
        self._generating = asyncio.Lock()
        self._tasks = {"templates": self._list_templates, "health": self._tell_health}

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """What RunPod calls: answers with a result or an error, raises only when cancelled."""
        job_id = str(job.get("id", "-"))
        log.job_id.set(job_id)
        post = functools.partial(self.post_progress, job) if self.post_progress else None
        async with JobProgress(post) as progress:
            listener.set(progress.tell)
            with self.counters.running(job_id, progress):
                answer = await self._answer(job, progress)
        self.counters.end(answer)
        return answer

    async def _answer(self, job: Mapping[str, Any], progress: JobProgress) -> dict[str, Any]:
        def entered(phase: str) -> None:
            log.phase.set(phase)
            progress.enter(_REPORTED.get(phase, phase))

        stopwatch = Stopwatch(self._settings.job_timeout, entered)
        logger.info("started")
        try:
            answer = await self._run(job, stopwatch, progress)
        except WorkerError as error:
            logger.warning("failed %s: %s", stopwatch.timings(), error)
            return failure(error, retire=bool(self._engine.retiring))
        except asyncio.CancelledError:
            logger.warning("cancelled %s", stopwatch.timings())
            raise
        except Exception:  # the job boundary: the caller gets an id, the log gets the rest
            problem = InternalError.with_id()
            logger.exception("internal error %s", problem.details["id"])
            return failure(problem)
        logger.info("done %s", answer["timings"])
        return answer | ({"refresh_worker": True} if self._engine.retiring else {})

    async def _run(
        self, job: Mapping[str, Any], stopwatch: Stopwatch, progress: JobProgress
    ) -> dict[str, Any]:
        """Check, prepare, generate, prove, answer: the life of a job."""
        if task := self._tasks.get(request.task_of(job.get("input"))):
            return await task(stopwatch)
        with stopwatch.phase("validate"):
            wanted = request.parse(self._templates.fill_in(job.get("input")))
            stopwatch.limit(wanted.timeout or self._settings.job_timeout)
            self._delivery.check(wanted.output)
            names = payload.engine_names(wanted, self._engine.catalog)
        with stopwatch.phase("prepare"):
            models = await self._prepare(job, wanted, stopwatch)
        try:
            composed = payload.build(wanted, names, models)
            async with self._turn(stopwatch):
                with stopwatch.phase("generate"):
                    picture = await self._engine.generate(composed, stopwatch, progress.tell)
            with stopwatch.phase("deliver"):
                used = await self._account(picture, models)
                cache = await asyncio.to_thread(self._models.get_cache_stats)
                answer = result.success(picture, composed, used, cache, stopwatch.timings())
                answer |= {"template": wanted.template} if wanted.template else {}
                answer |= self._startup_once()
                answer = await asyncio.to_thread(
                    self._delivery.deliver, picture, answer, wanted.output, log.job_id.get()
                )
        finally:
            self._models.release(models)
        return answer | {"timings": stopwatch.timings()}

    def _startup_once(self) -> dict[str, Any]:
        """For the first picture's answer: why the caller waited so long."""
        told, self._told_startup = self._told_startup, True
        return {} if told else {"startup": self.startup}

    def prepare_default_template(self, stop: threading.Event, booted: threading.Event) -> None:
        """Bring the default template's models, if there is one, before its first job comes.

        Until the engine has booted, the checkpoint is read ahead: that is what the engine loads.
        """
        if self._templates.get_default_template() is None:
            return
        wanted = self._templates.get_template().request()
        try:
            models, new = self._models.prepare_models_for_request(wanted, stop)
        except WorkerError as error:
            logger.warning("the default template's models are not there: %s", error)
            return
        self._models.release(models)
        if new:
            self._engine.models_changed()
        if models.loaded:
            read_ahead(models.loaded.path, booted)

    @asynccontextmanager
    async def _turn(self, stopwatch: Stopwatch) -> AsyncIterator[None]:
        """The engine for this job alone, as soon as the jobs before it have made their pictures."""
        with stopwatch.phase("queue"):
            turn = asyncio.ensure_future(self._generating.acquire())
            try:
                await asyncio.wait({turn}, timeout=stopwatch.left())
            except asyncio.CancelledError:
                self._give_up_turn(turn)
                raise
            if not turn.done():
                self._give_up_turn(turn)
                raise stopwatch.expired("the engine was busy with other jobs; no picture")
        try:
            yield
        finally:
            self._generating.release()

    def _give_up_turn(self, turn: asyncio.Future[Literal[True]]) -> None:
        if not turn.cancel():  # it has come meanwhile
            self._generating.release()

    async def _account(self, picture: Txt2ImgAnswer, models: Models) -> list[dict[str, Any]]:
        """What the engine really used."""
        used = await asyncio.to_thread(result.models_used, picture.facts, models)
        used[0]["sha256"] = used[0]["sha256"] or await self._engine.checkpoint_sha256(
            used[0]["name"]
        )
        return used

    async def _tell_health(self, stopwatch: Stopwatch) -> dict[str, Any]:
        """The answer of the task `health`; it waits for no other job."""
        engine = await asyncio.to_thread(self._engine.health)
        models = await asyncio.to_thread(self._models.health)
        worker = self.counters.shown(asked_by=log.job_id.get()) | {"startup": self.startup}
        return result.health(worker, engine, models, stopwatch.timings())

    async def _list_templates(self, stopwatch: Stopwatch) -> dict[str, Any]:
        """The answer of the task `templates`; the engine has no part in it."""
        states = {
            name: await asyncio.to_thread(self._models.template_state, one.request())
            for name, one in self._templates.get_templates().items()
        }
        listed = [one | states.get(one["template"], {}) for one in self._templates.list_templates()]
        default = self._templates.get_default_template()
        return result.templates(listed, default, stopwatch.timings())

    async def _prepare(
        self, job: Mapping[str, Any], wanted: Txt2ImgRequest, stopwatch: Stopwatch
    ) -> Models:
        """Find or fetch the models; when nobody waits any more, the downloads stop."""
        stop = threading.Event()
        preparing = asyncio.ensure_future(
            asyncio.to_thread(self._models.prepare_models_for_request, wanted, stop)
        )
        try:
            await asyncio.wait({preparing}, timeout=stopwatch.left())
        except asyncio.CancelledError:
            self._abandon(preparing, stop)
            raise
        if not preparing.done():
            self._abandon(preparing, stop)
            hint = "What has arrived is kept: send the job again, or raise `timeout`."
            raise stopwatch.expired("the models were not there", hint=hint)
        try:
            models, new = preparing.result()
        except WorkerError as error:
            if wanted.template and "template" not in job["input"] and not _is_named(error, job):
                error.hint = f"{error.hint} {_BY_DEFAULT.format(wanted.template)}".lstrip()
            raise
        if new:
            self._engine.models_changed()
        return models

    def _abandon(
        self, preparing: asyncio.Future[tuple[Models, bool]], stop: threading.Event
    ) -> None:
        """Nobody waits for these models any more; they may come all the same."""

        def came(done: asyncio.Future[tuple[Models, bool]]) -> None:
            if not done.cancelled() and done.exception() is None:
                models, new = done.result()
                self._models.release(models)
                if new:
                    self._engine.models_changed()

        stop.set()
        preparing.add_done_callback(came)


def build_delivery(settings: Settings) -> Delivery:
    """Put the delivery together: into the result, the operator's folder, or the bucket."""
    address, key_id = settings.bucket, settings.bucket_access_key_id
    secret = settings.bucket_secret_access_key
    bucket = None
    if address and key_id and secret:
        bucket = Bucket(address, key_id, secret, settings.bucket_public_url)
    limit = round(settings.result_limit_mb * MB) or None
    return Delivery(limit, settings.output_dir, bucket, SafeHttpClient(settings.trusted_hosts))


def build(settings: Settings) -> tuple[Handler, Engine]:
    """Put the worker together; nothing is started yet.

    Raises:
        ConfigError: templates.json cannot be used.
    """
    webui = WebUI(settings.webui_url)
    supervisor = Supervisor(settings.run_dir, settings.supervisor_pid)
    readiness = Readiness(webui, supervisor, settings.engine_address)
    limit = settings.memory_growth_limit_gb
    growth = MemoryGrowth(round(limit * 1e9)) if limit else None
    engine = Engine(webui, supervisor, readiness, growth)
    templates = Templates(settings.templates_path, settings.default_template)
    return Handler(settings, engine, ModelManager(settings), templates), engine


def boot(settings: Settings, handler: Handler, engine: Engine) -> None:
    """Wait until jobs can run; what need not wait for the engine happens beside its boot.

    Raises:
        WorkerError: there is no point in taking jobs.
    """
    stopwatch, stop, booted = (
        Stopwatch(settings.ready_timeout),
        threading.Event(),
        threading.Event(),
    )
    # The SDK's import takes 1.4 s.
    importing = run_in_background(
        stopwatch, "sdk", functools.partial(importlib.import_module, "runpod")
    )
    prepare = functools.partial(handler.prepare_default_template, stop, booted)
    models = run_in_background(stopwatch, "models", prepare)
    try:
        with stopwatch.phase("engine"):
            engine.boot(settings.ready_timeout)
    except WorkerError:
        stop.set()
        raise
    finally:
        booted.set()
    importing.join()
    models.join(stopwatch.left())
    handler.startup = stopwatch.timings()
    logger.info("ready for jobs %s", handler.startup)


def main() -> int:
    """Boot, then give the process to the RunPod SDK; returns the exit status."""
    try:
        settings = Settings.from_environ(os.environ)
        handler, engine = build(settings)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_CONFIGURATION
    log.configure(settings.log_level, settings.log_format, secret_values(os.environ))
    # At its default level the SDK logs each job's whole input and result.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "WARN")
    try:
        boot(settings, handler, engine)
    except WorkerError as error:
        logger.error("%s", error)  # noqa: TRY400 - the sentence says it; a traceback would bury it
        return EXIT_ENGINE_NOT_READY
    threading.Thread(target=engine.keep_ready, name="keep-engine-ready", daemon=True).start()
    handler.post_progress = runpod_sdk.post_progress
    has_gpu = settings.runpod_gpu_count not in {"", "0"}
    checks = Fitness(settings, WebUI(settings.webui_url), has_gpu=has_gpu).checks()
    runpod_sdk.start(handler, concurrency=settings.job_concurrency, checks=checks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
