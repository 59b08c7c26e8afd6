"""The handler: the life of a job, from RunPod's input to RunPod's output.

    input     {"prompt": "a fox", "steps": 25, "sampler_name": "DPM++ 2M Karras",
               "checkpoint": "deliberate.safetensors", "loras": [{"name": "detail", "scale": 0.8}]}
    output    {"images": [<base64 or URL>], "parameters": {...}, "info": "<JSON>",
               "delivery": {...}, "cache_info": {...}, "models": [...], "timings": {...},
               "warnings": [...]}
    or        {"error": "<CODE>: what happened. What to do.", "message": ..., "code": ...}

Run it through start.sh, which starts the engine first. `JOB.json` or `--test_input '{...}'` runs
one job, `--rp_serve_api` waits for jobs over HTTP, `--help` lists all arguments. Without RunPod and
without arguments the job is the one in test_input.json.
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
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import runpod_sdk
from model_manager import ModelManager
from worker import log
from worker.answer import failure, plain, to_json
from worker.config.credentials import secret_values
from worker.config.gpu import must_use_gpu
from worker.config.settings import EXIT_BAD_CONFIGURATION, Settings
from worker.delivery.bucket import Bucket
from worker.delivery.delivery import MB, Delivery
from worker.delivery.limits import UPLOAD_LIMITS, UploadLimits
from worker.errors import ConfigError, GpuNotUsed, InternalError, JobError, WorkerError
from worker.http.client import SafeHttpClient
from worker.job import request
from worker.job.models import Models
from worker.job.request import Txt2ImgRequest
from worker.job.template_file import Templates, hint_about_default
from worker.models.store.progress import listener
from worker.models.wildcard_files import WildcardFiles
from worker.runpod.fitness import Fitness
from worker.service import result, schema
from worker.service.arguments import read as read_arguments
from worker.service.counters import Counters
from worker.service.progress import JobProgress, ProgressReport
from worker.service.startup import advise, boot, read_ahead
from worker.service.tasks import Job, Task, Tasks
from worker.service.waiting import Turns, in_thread
from worker.stopwatch import Stopwatch
from worker.webui import payload
from worker.webui.client import Txt2ImgAnswer, WebUI
from worker.webui.engine import Engine
from worker.webui.payload import Payload
from worker.webui.readiness import Readiness
from worker.webui.recovery import MemoryGrowth
from worker.webui.supervisor import Supervisor
from worker.webui.timing import DEFAULT_TIMING, EngineTiming

EXIT_ENGINE_NOT_READY, EXIT_UNFIT_MACHINE = 69, 71  # of sysexits.h, as in start.sh

logger = logging.getLogger("worker.handler")

# Phase in `timings` -> `phase` of the progress report that is sent when it begins.
_REPORTED = {"prepare": "resolve", "generate": "load", "deliver": "upload"}

PostProgress = Callable[[dict[str, Any], ProgressReport], Awaitable[object]]


class Handler:
    """One engine and one model store. Jobs run side by side, but only one of them generates.

    Attributes:
        post_progress: sends a report of a job's progress to RunPod; None: nothing is sent.
        counters: jobs by how they ended.
        startup: seconds of each part of the start; the first result contains them.
    """

    def __init__(
        self, settings: Settings, engine: Engine, models: ModelManager, templates: Templates
    ) -> None:
        self.post_progress: PostProgress | None = None
        self.counters = Counters()
        self.startup: dict[str, float] = {}
        self._startup_is_reported = False
        self._settings = settings
        self._engine = engine
        self._models = models
        self._templates = templates
        self._delivery = build_delivery(settings)
        self._wildcards = WildcardFiles(settings.models_dir, settings.baked_models_dir)
        self._turns = Turns()

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """What RunPod calls: returns a result or an error, raises only when cancelled."""
        job_id = str(job.get("id", "-"))
        log.job_id.set(job_id)
        post = functools.partial(self.post_progress, job) if self.post_progress else None
        async with JobProgress(post) as progress:
            listener.set(progress.report)

            def entered(phase: str) -> None:
                log.phase.set(phase)
                progress.enter(_REPORTED.get(phase, phase))

            stopwatch = Stopwatch(self._settings.job_timeout, entered)
            with self.counters.running(job_id, progress):
                answer = await self._answer(Job(job_id, request.input_of(job), stopwatch, progress))
        self.counters.end(answer)
        return answer

    async def _answer(self, job: Job) -> dict[str, Any]:
        """Run the job's task; its answer or its error as JSON."""
        logger.info("started")
        try:
            answer = await TASKS.of(job.input)(self, job)
        except WorkerError as error:
            logger.warning("failed %s: %s", job.stopwatch.timings(), error)
            return failure(error, retire=bool(self._engine.retiring))
        except asyncio.CancelledError:
            logger.warning("cancelled %s", job.stopwatch.timings())
            raise
        except Exception:  # the job boundary: the caller gets an id, the log gets the rest
            problem = InternalError.with_id()
            logger.exception("internal error %s", problem.details["id"])
            return failure(problem)
        logger.info("done %s", job.stopwatch.timings())
        return to_json(answer, retire=bool(self._engine.retiring))

    # The task txt2img: check, prepare, generate and prove, deliver -------------------------------

    def check(self, job: Job) -> Txt2ImgRequest:
        """The job's input, completed from its template and checked, with resolved wildcards."""
        with job.stopwatch.phase("validate"):
            wanted = request.parse(self._templates.fill_in(job.input))
            job.stopwatch.limit(wanted.timeout or self._settings.job_timeout)
            self._delivery.check(wanted.output)
            return self._wildcards.resolve(wanted)

    async def make_pictures(self, job: Job, wanted: Txt2ImgRequest) -> result.Txt2ImgResult:
        """From the checked input to the delivered pictures."""
        names = payload.engine_names(wanted, self._engine.catalog)
        with job.stopwatch.phase("prepare"):
            models = await self._prepare(job, wanted)
        try:
            composed = payload.build(wanted, names, models, self._engine.catalog.styles)
            async with self._turns.next(job.stopwatch):
                with job.stopwatch.phase("generate"):
                    generated = await self._engine.generate(
                        composed,
                        job.stopwatch,
                        job.progress.report,
                        arrange=functools.partial(self._arrange, models),
                    )
            with job.stopwatch.phase("deliver"):
                described = await self._describe(job, wanted, composed, generated, models)
                delivered = await asyncio.to_thread(
                    self._delivery.deliver, generated, plain(described), wanted.output, job.id
                )
        finally:
            self._models.release(models)
        delivered["timings"] = job.stopwatch.timings()
        return result.Txt2ImgResult.model_construct(**delivered)

    async def _prepare(self, job: Job, wanted: Txt2ImgRequest) -> Models:
        prepare = functools.partial(self._find_or_fetch, wanted)
        try:
            models = await in_thread(prepare, job.stopwatch, undo=self._models.release)
        except WorkerError as error:
            error.hint = f"{error.hint}{hint_about_default(wanted, job.input, error)}".lstrip()
            raise
        if models is None:
            hint = "The downloaded part is kept: send the job again, or raise `timeout`."
            raise job.stopwatch.expired("the models were not ready", hint=hint)
        return models

    def _find_or_fetch(self, wanted: Txt2ImgRequest, stop: threading.Event) -> Models:
        models, new = self._models.prepare_models_for_request(wanted, stop)
        if new:
            self._engine.models_changed()  # it lists its folders again before the next picture
        if replaced := self._models.take_replaced():
            self._engine.files_replaced(replaced)
        return models

    def _arrange(self, models: Models) -> bool:
        """Let the engine see what the job names; returns whether its embeddings changed."""
        if self._models.arrange_vaes(models):
            self._engine.models_changed()
        return self._models.arrange_embeddings(models)

    async def _describe(
        self,
        job: Job,
        wanted: Txt2ImgRequest,
        composed: Payload,
        generated: Txt2ImgAnswer,
        models: Models,
    ) -> result.Undelivered:
        """The result before its delivery."""
        used = await asyncio.to_thread(result.models_used, generated.facts, models)
        if not used[0].sha256:  # not hashed here; the engine may have its hash
            sha256 = await self._engine.checkpoint_sha256(used[0].name or "")
            used[0] = used[0].model_copy(update={"sha256": sha256})
        return result.Undelivered.model_construct(
            images=generated.images,
            parameters=generated.parameters,
            info=generated.info,
            models=used,
            cache_info=result.cache_info(await asyncio.to_thread(self._models.get_cache_stats)),
            timings=job.stopwatch.timings(),
            warnings=list(composed.warnings),
            template=wanted.template,
            resolved=result.resolved_prompts(wanted),
            startup=self._startup_once(),
        )

    def _startup_once(self) -> dict[str, float] | None:
        """The seconds of the start, only for the first result: its caller waited for the start."""
        if self._startup_is_reported:
            return None
        self._startup_is_reported = True
        return self.startup

    # The other tasks: they do not wait for other jobs or for the engine -------------------------

    async def list_templates(self, job: Job, _checked: object) -> result.TemplateList:
        """The templates, and which of them are in the image."""
        states = {
            name: await asyncio.to_thread(self._models.template_state, one.request())
            for name, one in self._templates.get_templates().items()
        }
        return result.TemplateList.model_construct(
            templates=[
                result.ListedTemplate.model_construct(**(one | states[one["template"]]))
                for one in self._templates.list_templates()
                if one["template"] in states  # the file may have changed in between
            ],
            default_template=self._templates.get_default_template(),
            timings=job.stopwatch.timings(),
        )

    async def report_health(self, job: Job, _checked: object) -> result.Health:
        """What the worker, its engine and its model store are doing."""
        engine = await asyncio.to_thread(self._engine.health)
        names = ("device", "gpu", "attention")
        engine |= {name: getattr(self._settings, f"engine_{name}") for name in names}
        models = await asyncio.to_thread(self._models.health)
        return result.Health.model_construct(
            worker=self.counters.health(self.startup, asked_by=job.id),
            engine=result.EngineHealth.model_construct(**engine),
            models=result.ModelsHealth.model_construct(**models),
            timings=job.stopwatch.timings(),
        )

    # The start -----------------------------------------------------------------------------------

    def prepare_default_template(self, stop: threading.Event, booted: threading.Event) -> None:
        """Find or fetch the default template's models, if there is one, before its first job.

        Until the engine has booted, the checkpoint's file is read: the engine loads it next.
        """
        if self._templates.get_default_template() is None:
            return
        try:
            models = self._find_or_fetch(self._templates.get_template().request(), stop)
        except WorkerError as error:
            logger.warning("the default template's models are not available: %s", error)
            return
        self._models.release(models)
        if models.loaded:
            read_ahead(models.loaded.path, booted)


TASKS: Tasks[Handler] = Tasks(
    Task(
        name="txt2img",
        description="Makes pictures from a prompt; the task of a job that names none.",
        fields=Txt2ImgRequest,
        read=Handler.check,
        run=Handler.make_pictures,
        output=result.Txt2ImgResult,
    ),
    Task(
        name="templates",
        description="Lists the templates that jobs can name.",
        run=Handler.list_templates,
        output=result.TemplateList,
    ),
    Task(
        name="health",
        description="Reports what the worker, its engine and its model store are doing.",
        run=Handler.report_health,
        output=result.Health,
    ),
)


def build_delivery(settings: Settings, limits: UploadLimits = UPLOAD_LIMITS) -> Delivery:
    """Build the delivery from the settings: result, operator's folder, bucket, jobs' URLs."""
    address, key_id = settings.bucket, settings.bucket_access_key_id
    secret = settings.bucket_secret_access_key
    bucket = None
    if address and key_id and secret:
        bucket = Bucket(address, key_id, secret, settings.bucket_public_url, limits)
    limit = round(settings.result_limit_mb * MB) or None
    http = SafeHttpClient(settings.trusted_hosts)
    return Delivery(limit, settings.output_dir, bucket, http, limits)


def build(settings: Settings, timing: EngineTiming = DEFAULT_TIMING) -> tuple[Handler, Engine]:
    """Build the worker's parts from the settings; nothing is started yet.

    Raises:
        ConfigError: templates.json cannot be used.
    """
    webui = WebUI(settings.webui_url, timing=timing)
    supervisor = Supervisor(settings.run_dir, settings.supervisor_pid, timing=timing)
    address, needs_gpu = settings.engine_address, must_use_gpu(settings)
    readiness = Readiness(webui, supervisor, address, needs_gpu=needs_gpu, timing=timing)
    limit = settings.memory_growth_limit_gb
    growth = MemoryGrowth(round(limit * 1e9)) if limit else None
    engine = Engine(webui, supervisor, readiness, growth, timing=timing)
    templates = Templates(settings.templates_path, settings.default_template)
    return Handler(settings, engine, ModelManager(settings), templates), engine


def import_sdk(_stop: threading.Event, _booted: threading.Event) -> None:
    """Import the RunPod SDK, which takes 1.4 s."""
    importlib.import_module("runpod")


async def check_given(handler: Handler, settings: Settings, job: Mapping[str, Any]) -> None:
    """Raise what the check of the command line's job raises, before time is spent on the boot."""
    stopwatch = Stopwatch(settings.job_timeout)
    given = Job("-", request.input_of(job), stopwatch, JobProgress(None))
    TASKS.of(given.input).check(handler, given)


def main(*, timing: EngineTiming = DEFAULT_TIMING) -> int:
    """Boot the worker, then run the RunPod SDK until it ends; returns the exit status."""
    arguments = read_arguments(sys.argv[1:])
    if arguments.schema:
        return print_schema()
    sys.argv[1:] = arguments.for_sdk
    try:
        settings = Settings.from_environ(os.environ)
        handler, engine = build(settings, timing)
        if arguments.job:
            asyncio.run(check_given(handler, settings, arguments.job))
    except JobError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_CONFIGURATION
    log.configure(settings.log_level, settings.log_format, secret_values(os.environ))
    # At its default level the SDK logs each job's whole input and result.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "WARN")
    threading.Thread(target=engine.end_with_start_sh, name="parent", daemon=True).start()
    advise(settings)
    background = {"sdk": import_sdk, "models": handler.prepare_default_template}
    try:
        handler.startup = boot(engine.boot, settings.ready_timeout, background)
    except WorkerError as error:
        logger.error("%s", error)  # noqa: TRY400 - the message is enough; a traceback would hide it
        if not isinstance(error, GpuNotUsed):
            return EXIT_ENGINE_NOT_READY
        runpod_sdk.report_unhealthy(Fitness.engine_has_the_gpu.__name__, error.message)
        return EXIT_UNFIT_MACHINE
    logger.info("ready for jobs %s", handler.startup)
    threading.Thread(target=engine.keep_ready, name="keep-engine-ready", daemon=True).start()
    handler.post_progress = runpod_sdk.post_progress
    checks = Fitness(settings, WebUI(settings.webui_url)).checks()
    runpod_sdk.start(handler, concurrency=settings.job_concurrency, checks=checks)
    return 0


def print_schema() -> int:
    """Print the JSON Schema of every task; returns the exit status."""
    sys.stdout.write(json.dumps(schema.document(TASKS), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
