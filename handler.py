"""The handler: the life of a job, from RunPod's input to RunPod's output.

    input     {"prompt": "a fox", "steps": 25, "sampler_name": "DPM++ 2M Karras",
               "checkpoint": "deliberate.safetensors", "loras": [{"name": "detail", "scale": 0.8}]}
    output    {"images": [<base64 PNG>], "parameters": {...}, "info": "<JSON>", "cache_info": {...},
               "models": [...], "timings": {...}, "warnings": [...]}
    or        {"error": "<CODE>: what happened. What to do.", "message": ..., "code": ...}

Run it through start.sh, which starts the engine first. Its arguments are the RunPod SDK's own:
`--test_input '{"input": {...}}'` and `--rp_serve_api`; without RunPod and without arguments the
SDK runs test_input.json once.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from model_manager import ModelManager
from worker import delivery, log, payload, request, result
from worker.engine import Engine
from worker.errors import ConfigError, FetchStopped, InternalError, JobTimeout, WorkerError
from worker.fitness import Fitness
from worker.job_models import Models
from worker.readiness import Readiness
from worker.request import Txt2ImgRequest
from worker.settings import EXIT_BAD_CONFIGURATION, Settings, secret_values
from worker.stopwatch import Stopwatch
from worker.supervisor import Supervisor
from worker.templates import Templates
from worker.webui import Txt2ImgAnswer, WebUI

EXIT_ENGINE_NOT_READY = 69  # EX_UNAVAILABLE of sysexits.h, as in start.sh

logger = logging.getLogger("worker.handler")

PROGRESS_PAUSE = 1.5  # seconds between a progress report and the result

_BY_DEFAULT = (
    "The job names neither a template nor a checkpoint, so it got the default template {!r};"
    " DEFAULT_TEMPLATE=none switches that off."
)

Progress = Callable[[Mapping[str, Any], str], None]


class Handler:
    """One engine, one model store, one job at a time.

    Attributes:
        progress: gets a job and how far its downloads are; the SDK's, once that runs.
    """

    def __init__(
        self, settings: Settings, engine: Engine, models: ModelManager, templates: Templates
    ) -> None:
        self.progress: Progress | None = None
        self._settings = settings
        self._engine = engine
        self._models = models
        self._templates = templates
        self._one_at_a_time = asyncio.Lock()
        self._told = 0.0

    async def __call__(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What RunPod calls: answers with a result or an error, raises only when cancelled."""
        log.job_id.set(str(job.get("id", "-")))
        watch = Stopwatch(self._settings.job_timeout)
        try:
            answer = await self._run(job, watch)
        except WorkerError as error:
            logger.warning("failed %s: %s", watch.timings(), error)
            await self._quiet()
            return result.failure(error, retire=self._engine.retiring)
        except Exception:  # the job boundary: the caller gets an id, the log gets the rest
            incident = uuid.uuid4().hex[:12]
            logger.exception("internal error %s", incident)
            return result.failure(InternalError(f"the worker failed, id {incident}.", id=incident))
        logger.info("done %s", answer["timings"])
        await self._quiet()
        return answer

    async def _run(self, job: Mapping[str, Any], watch: Stopwatch) -> dict[str, Any]:
        """Check, prepare, generate, prove, answer: the life of a job."""
        if request.task_of(job.get("input")) == "templates":
            return await self._list_templates(watch)
        with watch.phase("validate"):
            wanted = request.parse(self._templates.fill_in(job.get("input")))
            watch.limit(wanted.timeout or self._settings.job_timeout)
            names = payload.engine_names(wanted, self._engine.catalog)
        async with self._one_at_a_time:
            with watch.phase("prepare"):
                models = await self._prepare(job, wanted, watch)
            composed = payload.build(wanted, names, models)
            with watch.phase("generate"):
                picture = await self._engine.generate(composed, watch)
        with watch.phase("deliver"):
            used = await asyncio.to_thread(result.models_used, picture.facts, models)
            used[0]["sha256"] = used[0]["sha256"] or await self._engine.checkpoint_sha256(
                used[0]["name"]
            )
            cache = await asyncio.to_thread(self._models.get_cache_stats)
        answer = result.success(picture, composed, used, cache, watch.timings())
        if wanted.template:
            answer["template"] = wanted.template
        self._save(picture, answer, str(job.get("id", "job")))
        return answer

    async def _list_templates(self, watch: Stopwatch) -> dict[str, Any]:
        """The answer of the task `templates`; the engine has no part in it."""
        states = {
            name: await asyncio.to_thread(self._models.template_state, one.request())
            for name, one in self._templates.get_templates().items()
        }
        listed = [one | states.get(one["template"], {}) for one in self._templates.list_templates()]
        default = self._templates.get_default_template()
        return result.templates(listed, default, watch.timings())

    async def _prepare(
        self, job: Mapping[str, Any], wanted: Txt2ImgRequest, watch: Stopwatch
    ) -> Models:
        """Find or fetch the models; when nobody waits any more, the downloads stop."""
        stop = threading.Event()
        self._models.tell = functools.partial(self._tell, job)
        preparing = asyncio.ensure_future(
            asyncio.to_thread(self._models.prepare_models_for_request, wanted, stop)
        )
        try:
            await asyncio.wait({preparing}, timeout=watch.left())
        finally:
            stop.set()
            await asyncio.wait({preparing})
        try:
            models, new = preparing.result()
        except FetchStopped as error:
            raise JobTimeout(
                f"the models were not there within {watch.timeout:g} s.",
                hint="What has arrived is kept: send the job again, or raise `timeout`.",
                timings=watch.timings(),
            ) from error
        except WorkerError as error:
            if wanted.template and "template" not in job["input"]:
                error.hint = f"{error.hint} {_BY_DEFAULT.format(wanted.template)}".lstrip()
            raise
        if new:
            self._engine.models_changed()
        return models

    def _tell(self, job: Mapping[str, Any], text: str) -> None:
        if self.progress:
            self._told = time.monotonic()
            self.progress(job, text)

    async def _quiet(self) -> None:
        """Let a progress report arrive: behind the result it would leave the job in progress."""
        await asyncio.sleep(self._told + PROGRESS_PAUSE - time.monotonic())

    def _save(self, picture: Txt2ImgAnswer, answer: dict[str, Any], job_id: str) -> None:
        """Also write the pictures to OUTPUT_DIR; the caller gets them even if that fails."""
        if self._settings.output_dir is None:
            return
        try:
            files = delivery.save(picture.images, self._settings.output_dir, job_id)
        except OSError as error:
            answer["warnings"].append(f"not saved to OUTPUT_DIR: {error.strerror}")
        else:
            logger.info("saved\n%s", delivery.summary(picture, answer, files))


def build(settings: Settings) -> tuple[Handler, Engine]:
    """Put the worker together; nothing is started yet.

    Raises:
        ConfigError: templates.json cannot be used.
    """
    webui = WebUI(settings.webui_url)
    supervisor = Supervisor(settings.run_dir, settings.supervisor_pid)
    engine = Engine(webui, supervisor, Readiness(webui, supervisor, settings.engine_address))
    templates = Templates(settings.templates_path, settings.default_template)
    return Handler(settings, engine, ModelManager(settings), templates), engine


def main() -> int:
    """Wait for the engine, then give the process to the RunPod SDK; returns the exit status."""
    try:
        settings = Settings.from_environ(os.environ)
        handler, engine = build(settings)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_CONFIGURATION
    log.configure(settings.log_level, settings.log_format, secret_values(os.environ))
    try:
        engine.boot(settings.ready_timeout)
    except WorkerError as error:
        logger.error("%s", error)  # noqa: TRY400 - the sentence says it; a traceback would bury it
        return EXIT_ENGINE_NOT_READY
    threading.Thread(target=engine.watch, name="engine-watch", daemon=True).start()
    # At its default level the SDK logs each job's whole input and result.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "WARN")
    import runpod  # noqa: PLC0415 - takes 1.4 s, which the engine's boot hides

    import runpod_sdk  # noqa: PLC0415 - and its HTTP client 0.1 s

    if os.environ.get("RUNPOD_WEBHOOK_POST_OUTPUT"):  # else there is nobody to report to
        handler.progress = runpod.serverless.progress_update
    has_gpu = os.environ.get("RUNPOD_GPU_COUNT", "") not in {"", "0"}
    checks = Fitness(settings, WebUI(settings.webui_url), has_gpu=has_gpu).checks()
    runpod_sdk.start(handler, checks=checks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
