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
from typing import TYPE_CHECKING, Any, cast

import runpod_sdk
from model_manager import ModelManager
from worker import kept_log, log, memory, standard_streams
from worker.config import webui_config
from worker.config.bucket_address import BucketAccess
from worker.config.credentials import secret_values
from worker.config.gpu import must_use_gpu
from worker.config.prices import usd_per_second
from worker.config.settings import EXIT_BAD_CONFIGURATION, Settings
from worker.delivery import s3_config
from worker.delivery.bucket import Bucket
from worker.delivery.delivery import Delivery
from worker.delivery.limits import MB, UPLOAD_LIMITS, UploadLimits
from worker.errors import ConfigError, GpuNotUsed, JobError, WorkerError
from worker.http.client import SafeHttpClient
from worker.images.reader import ImageReader
from worker.job.template_file import Templates
from worker.models.store.progress import listener
from worker.models.wildcard_files import WildcardFiles
from worker.runpod.fitness import Fitness
from worker.service import boundary, threads
from worker.service.arguments import Arguments
from worker.service.arguments import read as read_arguments
from worker.service.boundary import answer_of
from worker.service.counters import UNKNOWN, Counters, Outcome
from worker.service.parts import Worker
from worker.service.progress import JobProgress, ProgressReport
from worker.service.report import Queue
from worker.service.startup import Background, Ending, advise, boot
from worker.service.stream import JobStream, PostChunk
from worker.service.task import Job
from worker.stopwatch import Stopwatch
from worker.tasks import health, schema
from worker.tasks.pictures import find_or_fetch
from worker.tasks.table import TASKS
from worker.webui.checkpoint_memory import CheckpointMemory, largest_checkpoint
from worker.webui.client import WebUI
from worker.webui.engine import Engine
from worker.webui.readiness import Readiness
from worker.webui.recovery import MemoryGrowth
from worker.webui.supervisor import Supervisor
from worker.webui.timing import DEFAULT_TIMING, EngineTiming

if TYPE_CHECKING:  # the HTTP server and its libraries, which RunPod's queue does not need
    from gateway.http.guard import Access

EXIT_ENGINE_NOT_READY, EXIT_UNFIT_MACHINE = 69, 71  # of sysexits.h, as in start.sh

logger = logging.getLogger("worker.handler")

PostProgress = Callable[[dict[str, Any], ProgressReport], Awaitable[object]]
StreamOf = Callable[[dict[str, Any]], "PostChunk | None"]


class Handler:
    """Runs jobs side by side; only one of them generates.

    Attributes:
        post_progress: sends a report of a job's progress to RunPod; None: nothing is sent.
        stream_of: returns what sends chunks to a job's `/stream`, or None where there is none.
        take_next: lets RunPod's next job be taken while this one's pictures are delivered.
        ending: set when the process ends, which a download of the start would delay.
        worker: the parts that the tasks use.
    """

    def __init__(
        self, settings: Settings, engine: Engine, models: ModelManager, templates: Templates
    ) -> None:
        self.post_progress: PostProgress | None = None
        self.stream_of: StreamOf = lambda _job: None
        self.take_next: Callable[[dict[str, Any]], None] = lambda _job: None
        self.ending = threading.Event()
        delivery = build_delivery(settings)
        images = ImageReader(SafeHttpClient(settings.trusted_hosts))
        wildcards = WildcardFiles(*settings.stores)
        parts = (settings, engine, models, templates, delivery, images)
        self.worker = Worker(*parts, TASKS, wildcards)

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """What RunPod calls: returns a result or an error, raises only when cancelled."""
        job_id = str(job.get("id", "-"))
        log.job_id.set(job_id)
        stream = JobStream(self.stream_of(job))
        post = functools.partial(self._post_report, job, stream) if self.post_progress else None
        async with stream, JobProgress(post) as progress:
            listener.set(progress.report)
            settings = self.worker.settings
            price = usd_per_second(settings)
            stopwatch = Stopwatch(settings.job_timeout, progress.entered, usd_per_second=price)
            beside = job.get("s3Config")
            given = Job(
                *(job_id, job.get("input"), stopwatch, progress),
                s3_config=beside,
                stream=stream,
                take_next=functools.partial(self.take_next, job),
            )
            running = self.worker.counters.running(job_id, progress, stopwatch)
            try:
                with log.hiding(s3_config.secrets_of(beside)), running as counted:
                    counted.answer = await answer_of(self.worker, given)
            finally:
                health.keep(self.worker)
        return dict(counted.answer)

    async def _post_report(
        self, job: dict[str, Any], stream: JobStream, report: ProgressReport
    ) -> None:
        stream.progress(report)
        if self.post_progress:
            await self.post_progress(job, report)

    # The start -----------------------------------------------------------------------------------

    def prepare_default_template(self, stop: threading.Event, booted: threading.Event) -> None:
        """Find or fetch the default template's models, if there is one, before its first job.

        Until the engine has booted, the checkpoint's file is read: the engine loads it next.
        """
        templates = self.worker.templates
        if templates.get_default_template() is None:
            return
        try:
            models = find_or_fetch(self.worker, templates.get_template().request(), stop)
        except WorkerError as error:
            logger.warning("the default template's models are not available: %s", error)
            return
        self.worker.models.release(models)
        if models.loaded:
            self.worker.read_ahead.read(models.loaded.path, booted)


def build_delivery(settings: Settings, limits: UploadLimits = UPLOAD_LIMITS) -> Delivery:
    """Build the delivery from the settings: result, operator's folder, bucket, jobs' URLs."""
    address, key_id = settings.bucket, settings.bucket_access_key_id
    secret = settings.bucket_secret_access_key
    bucket = None
    if address and key_id and secret:
        access = BucketAccess(address, key_id, secret)
        bucket = Bucket(access, settings.bucket_public_url, limits=limits)
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
    keeping = build_memory(settings, webui)
    engine = Engine(webui, supervisor, readiness, growth, keeping, timing=timing)
    templates = Templates(settings.templates_path, settings.default_template)
    return Handler(settings, engine, ModelManager(settings), templates), engine


def build_memory(settings: Settings, webui: WebUI) -> CheckpointMemory | None:
    """What decides how many checkpoints the engine keeps; None: that is left to the engine."""
    if settings.engine == "external" or settings.supervisor_pid is None:
        return None
    if (own := webui_config.own_checkpoints_limit(settings.webui_dir)) is not None:
        logger.info("config.json sets sd_checkpoints_limit to %d, which the worker keeps", own)
        return None
    saving = {"--lowvram", "--medvram", "--medvram-sdxl"} & {*settings.webui_args}
    why_one = f"{min(saving)} moves parts of one checkpoint" if saving else ""
    on_cpu = settings.engine_device == "cpu"
    largest = functools.partial(largest_checkpoint, webui)
    return CheckpointMemory(
        settings.checkpoints_in_memory, on_cpu, memory.available, largest, why_one
    )


def import_sdk(_stop: threading.Event, _booted: threading.Event) -> None:
    """Import the RunPod SDK and our transport for it, beside the engine's boot."""
    runpod_sdk.import_sdk()
    importlib.import_module("worker.runpod.transport")


async def check_given(handler: Handler, settings: Settings, job: Mapping[str, Any]) -> None:
    """Raise what the check of the command line's job raises, before time is spent on the boot."""
    stopwatch = Stopwatch(settings.job_timeout)
    beside = job.get("s3Config")
    given = Job("-", job.get("input"), stopwatch, JobProgress(None), s3_config=beside)
    given = boundary.read(handler.worker, given)
    worker = boundary.with_bucket_of(given, handler.worker)
    TASKS.of(given.input).check(worker, given)


def main(*, timing: EngineTiming = DEFAULT_TIMING) -> int:
    """Boot the worker, then run the RunPod SDK until it ends; returns the exit status."""
    standard_streams.open_closed()
    arguments = read_arguments(sys.argv[1:])
    if arguments.starts_nothing:
        return print_schema() if arguments.schema else diagnose(arguments)
    sys.argv[1:] = arguments.for_sdk
    try:
        settings = Settings.from_environ(os.environ)
        if arguments.serves_http:
            from gateway.local.place import for_http  # noqa: PLC0415 - as in serve_http

            settings = for_http(settings)
        handler, engine = build(settings, timing)
        if arguments.job:
            asyncio.run(check_given(handler, settings, arguments.job))
    except JobError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_CONFIGURATION
    keep_in = settings.run_dir / kept_log.HANDLER if settings.supervisor_pid else None
    secrets = secret_values(os.environ)
    log.configure(settings.log_level, settings.log_format, secrets, keep_in=keep_in)
    # At its default level the SDK logs each job's whole input and result.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "WARN")
    threading.Thread(target=engine.end_with_start_sh, name="parent", daemon=True).start()
    advise(settings)
    logger.info("waiting for the engine: it boots")
    try:
        return run(handler, engine, arguments)
    finally:
        handler.ending.set()


def run(handler: Handler, engine: Engine, arguments: Arguments) -> int:
    """Boot the engine and do jobs until the worker ends; returns the exit status."""
    if arguments.serves_http:
        return threads.run_loop(serve_http(handler, engine, arguments))
    settings = handler.worker.settings
    if ending := get_ready(handler, engine, {"sdk": import_sdk}):
        return ending.status
    handler.post_progress = runpod_sdk.post_progress
    handler.stream_of = runpod_sdk.stream_of
    handler.take_next = runpod_sdk.take_next
    checks = Fitness(settings, WebUI(settings.webui_url)).checks()
    runpod_sdk.start(handler, concurrency=settings.job_concurrency, checks=checks)
    return 0


def get_ready(
    handler: Handler, engine: Engine, background: Mapping[str, Background]
) -> Ending | None:
    """Wait for the engine, with the other work of the start beside it.

    Returns why the process must end; None: the engine is ready.
    """
    settings = handler.worker.settings
    work = {**background, "models": handler.prepare_default_template}
    try:
        seconds = boot(engine.boot, settings.ready_timeout, work, handler.ending)
    except WorkerError as error:
        logger.error("%s", error)  # noqa: TRY400 - the message is enough; a traceback would hide it
        if not isinstance(error, GpuNotUsed):
            return Ending(EXIT_ENGINE_NOT_READY, error)
        runpod_sdk.report_unhealthy(Fitness.engine_has_the_gpu.__name__, error.message)
        return Ending(EXIT_UNFIT_MACHINE, error)
    handler.worker.startup.seconds = seconds
    health.keep(handler.worker)
    logger.info("ready for jobs %s", seconds)
    threading.Thread(target=engine.keep_ready, name="keep-engine-ready", daemon=True).start()
    return None


async def serve_http(handler: Handler, engine: Engine, arguments: Arguments) -> int:
    """Serve jobs over HTTP instead of RunPod's queue; returns the exit status."""
    # A worker of RunPod's queue does without these: 0.2 s and 7 MB.
    from gateway.http.head import is_loopback  # noqa: PLC0415
    from gateway.local.jobs import LocalJobs  # noqa: PLC0415
    from gateway.local.metrics import Metrics  # noqa: PLC0415
    from gateway.local.place import place_of  # noqa: PLC0415
    from gateway.local.webhooks import Webhooks  # noqa: PLC0415
    from gateway.server import serve  # noqa: PLC0415
    from worker.runpod.watchdog import end_within  # noqa: PLC0415

    threads.use_more()
    settings = handler.worker.settings
    worker, counters = handler.worker, handler.worker.counters
    webhooks = Webhooks(
        settings.trusted_hosts,
        allow_loopback=is_loopback(arguments.host),
        own_ports={settings.engine_address[1], arguments.port},
    )
    concurrency = settings.job_concurrency
    jobs = LocalJobs(
        handler,
        concurrency=concurrency,
        is_quick=TASKS.is_quick,
        webhooks=webhooks,
        aborted=functools.partial(count_aborted, counters),
    )
    counters.queue = lambda: Queue.model_construct(None, **jobs.queue())
    metrics = Metrics(
        counters, functools.partial(health.of_worker, worker), lambda: health.measure(worker)
    )
    handler.post_progress = jobs.report
    handler.stream_of = jobs.stream_of
    place = place_of(settings, arguments.host, arguments.port)
    access = access_of(settings, arguments.host)
    ready = functools.partial(get_ready, handler, engine, {})
    status = await serve(jobs, ready, metrics=metrics, access=access, place=place)
    end_within()
    return status


def count_aborted(
    counters: Counters, job_id: str, job_input: object, status: str, code: str
) -> None:
    """Count a job that ended without the handler's answer; see `gateway.local.jobs.Aborted`."""
    outcome = cast("Outcome", status.lower())
    counters.abort(job_id, TASKS.name_of(job_input) or UNKNOWN, outcome, code)


def access_of(settings: Settings, host: str) -> Access:
    """Who may use the HTTP server that listens on this host; a warning if that is everybody."""
    from gateway.http.guard import Access  # noqa: PLC0415 - as in serve_http
    from gateway.http.head import is_loopback  # noqa: PLC0415

    login, token = settings.gateway_login, settings.gateway_token
    access = Access(
        hosts=settings.gateway_hosts,
        any_host=settings.is_load_balanced,
        origins=settings.gateway_origins,
        login=login.get_secret_value() if login else "",
        token=token.get_secret_value() if token else "",
    )
    if not (access.needs_login or access.any_host or is_loopback(host)):
        logger.warning(
            "every machine that reaches %s can use this worker: publish its port on 127.0.0.1"
            " only, or set GATEWAY_LOGIN or GATEWAY_TOKEN",
            host,
        )
    return access


def diagnose(arguments: Arguments) -> int:
    """Write what a bug report needs; returns the exit status."""
    from worker.diagnosis import report  # noqa: PLC0415 - no other run needs it

    return report.write(arguments.diagnose or "", os.environ)


def print_schema() -> int:
    """Print the JSON Schema of every task; returns the exit status."""
    sys.stdout.write(json.dumps(schema.document(TASKS), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
