"""The lists of a back: its models, LoRAs, samplers, templates. Kept, so that most cost no job.

A client of A1111 asks for ten lists when it connects. On an endpoint that scales to zero each would
start a paid worker. So all of them come with one job (the task `batch`), and are kept in memory,
and for an endpoint in a file. They are read again when a client asks for it, when a job has brought
a new model, and when they are old and a worker runs in any case.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from gateway.catalog.builtin_lists import SAMPLERS, SCHEDULERS, UPSCALERS
from gateway.catalog.kept_file import KeptFile
from gateway.jobs import GatewayError, Jobs, JobState, last_state

logger = logging.getLogger(__name__)

Item = Mapping[str, Any]

# Of these tasks, each answer has its list under the task's own name.
TASKS = (
    *("models", "loras", "vaes", "embeddings", "samplers", "schedulers", "upscalers", "scripts"),
    *("styles", "templates"),
)
_MOST_ITEMS = 5000  # of a list in an answer
# Sources of a model that a job did not bring.
_NOT_NEW = {"job", "default", "merged"}


@dataclass(frozen=True)
class Lists:
    """What a back has; the items are those of the tasks of the same names, see docs/lists.md.

    Attributes:
        default_template: name of the template of jobs that name neither one nor a checkpoint.
        schema: the JSON Schema of all tasks; empty if it is not known.
        time: when they were read, in seconds since 1970; None: these are A1111's own, because the
            back has not answered yet.
    """

    models: Sequence[Item] = ()
    loras: Sequence[Item] = ()
    vaes: Sequence[Item] = ()
    embeddings: Sequence[Item] = ()
    samplers: Sequence[Item] = SAMPLERS
    schedulers: Sequence[Item] = SCHEDULERS
    upscalers: Sequence[Item] = UPSCALERS
    scripts: Sequence[Item] = ()
    styles: Sequence[Item] = ()
    templates: Sequence[Item] = ()
    default_template: str | None = None
    schema: Mapping[str, Any] = field(default_factory=dict)
    time: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether they are the back's."""
        return self.time is not None

    def file_stems(self) -> set[str]:
        """The names of all model files, without suffix, as answers of jobs name models."""
        listed = (*self.models, *self.loras, *self.vaes, *self.embeddings)
        return {PurePosixPath(one["name"]).stem for one in listed}


@dataclass(frozen=True)
class CatalogTiming:
    """Waits, in seconds.

    Attributes:
        fresh: how long lists count as new.
        patience: how long a request waits for lists.
        pause: between two attempts, and between two looks whether a worker runs.
        longest: after which the job for the lists is cancelled.
    """

    fresh: float = 600
    patience: float = 30
    pause: float = 60
    longest: float = 900


LOCAL_TIMING = CatalogTiming(fresh=5, pause=1)  # a list is read in milliseconds


class Catalog:
    """Keeps the lists of a back. For one event loop.

    Args:
        jobs: the back.
        file: where the lists are kept for the next start; None: only in memory.
        now: the time in seconds since 1970.
    """

    def __init__(
        self,
        jobs: Jobs,
        file: Path | None = None,
        timing: CatalogTiming = LOCAL_TIMING,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._jobs = jobs
        self._timing = timing
        self._now = now
        self._file = KeptFile(file) if file else None
        self._lists = self._kept()
        self._reading: asyncio.Task[None] | None = None
        self._began = float("-inf")  # when the newest attempt began, by `now`
        self._looked = float("-inf")  # when it was last asked whether a worker runs
        self._looking: asyncio.Task[None] | None = None

    async def lists(self, *, may_start: bool = True) -> Lists:
        """The lists, at once if there are any.

        Args:
            may_start: whether the very first lists may start a worker. Later ones never do.
        """
        if not self._lists.is_known:
            await self._first(may_start=may_start)
        elif self._now() - (self._lists.time or 0) >= self._timing.fresh:
            self._look()
        return self._lists

    async def _first(self, *, may_start: bool) -> None:
        """Wait for the first lists, but not longer than `patience` from the begin of the job."""
        if not self._is_reading:
            if self._now() - self._began < self._timing.pause:
                return  # the last attempt has failed
            if not may_start and not await self._is_awake():
                return
        reading = self._read()
        await _wait(reading, max(self._timing.patience - (self._now() - self._began), 0))

    async def refresh(self) -> Lists:
        """Read the lists again; waits for them for `patience`. It may start a worker."""
        if self._reading and self._is_reading:  # it may have begun before a file was added
            await _wait(self._reading, self._timing.patience)
        await _wait(self._read(), self._timing.patience)
        return self._lists

    def learn(self, answer: Mapping[str, Any]) -> None:
        """Take the answer of a job; one that has brought a new model has the lists read again."""
        if not self._lists.is_known:
            self._read()  # a worker runs now
            return
        models = answer.get("models")
        if not isinstance(models, list):
            return
        new = {
            one["name"]
            for one in models
            if _is_item(one) and str(one.get("source")) not in _NOT_NEW
        }
        if new - self._lists.file_stems():
            self._read()

    async def close(self) -> None:
        """End the job for the lists, if one runs."""
        for task in (self._looking, self._reading):
            if task and not task.done():
                task.cancel()
                await asyncio.wait({task})

    # Reading -------------------------------------------------------------------------------------

    @property
    def _is_reading(self) -> bool:
        return self._reading is not None and not self._reading.done()

    def _read(self) -> asyncio.Task[None]:
        """The attempt that runs, or a new one."""
        if self._reading is None or self._reading.done():
            self._began = self._now()
            self._reading = asyncio.create_task(self._attempt())
        return self._reading

    def _look(self) -> None:
        """Have the lists read again, if a worker runs."""
        is_early = self._now() - self._began < self._timing.pause
        if not (is_early or self._is_reading or (self._looking and not self._looking.done())):
            self._looking = asyncio.create_task(self._read_if_awake())

    async def _read_if_awake(self) -> None:
        if await self._is_awake():
            self._read()

    async def _is_awake(self) -> bool:
        """Whether a worker runs; at most one look in `pause` seconds."""
        now = self._now()
        if now - self._looked < self._timing.pause:
            return False
        self._looked = now
        try:
            return await self._jobs.is_awake()
        except GatewayError as error:
            logger.info("whether a worker runs is not known: %s", error)
            return False

    async def _attempt(self) -> None:
        try:
            state = await self._run({"task": "batch", "inputs": _inputs()})
        except GatewayError as error:
            logger.warning("the lists of models and samplers were not read: %s", error)
            return
        except asyncio.TimeoutError:
            logger.warning("the lists of models and samplers did not come; the job is cancelled")
            return
        results = state.output.get("results") if isinstance(state.output, Mapping) else None
        if state.status != "COMPLETED" or not isinstance(results, list):
            logger.warning("the lists were not read: %s", state.error or state.status)
            return
        self._lists = replace(_read_results(results, self._lists), time=self._now())
        if self._file:
            self._file.write(vars(self._lists))

    async def _run(self, job_input: Item) -> JobState:
        """The ended job; it is cancelled when it takes too long, and when the server ends."""
        job = await self._jobs.submit({"input": job_input})
        try:
            return await asyncio.wait_for(last_state(self._jobs, job.id), self._timing.longest)
        except (asyncio.CancelledError, asyncio.TimeoutError):
            await self._jobs.cancel(job.id)
            raise

    def _kept(self) -> Lists:
        content = self._file.read() if self._file else None
        time = content.get("time") if isinstance(content, Mapping) else None
        if not isinstance(time, float) or not isinstance(content, Mapping):
            return Lists()
        return replace(_checked(content, Lists()), time=time)


def _inputs() -> list[dict[str, Any]]:
    lists = [{"task": name, "limit": _MOST_ITEMS} for name in TASKS if name != "templates"]
    return [*lists, {"task": "templates"}, {"task": "schema"}]


def _read_results(results: Sequence[Any], old: Lists) -> Lists:
    """The lists of a batch's results; an old one stays where its task has failed."""
    found: dict[str, Any] = {}
    for name, result in zip((*TASKS, "schema"), results, strict=False):
        if not isinstance(result, Mapping) or "error" in result:
            reason = str(result.get("error"))[:300] if isinstance(result, Mapping) else "no answer"
            logger.warning("the list %r was not read: %s", name, reason)
            continue
        found[name] = result.get("document" if name == "schema" else name)
        if name == "templates":
            found["default_template"] = result.get("default_template")
    return _checked(found, old)


def _checked(found: Mapping[str, Any], old: Lists) -> Lists:
    """The lists whose form is right, instead of the old ones."""
    changes: dict[str, Any] = {}
    for name in TASKS:
        items = found.get(name)
        if isinstance(items, list | tuple) and all(_is_item(one) for one in items):
            changes[name] = tuple(items)
    if _is_schema(found.get("schema")):
        changes["schema"] = found["schema"]
    if "default_template" in found:
        template = found["default_template"]
        changes["default_template"] = template if isinstance(template, str) else None
    return replace(old, **changes)


def _is_item(one: object) -> bool:
    return isinstance(one, Mapping) and isinstance(one.get("name"), str)


def _is_schema(one: object) -> bool:
    """Whether it has what the page's form reads; a worker of another version may have less."""
    if not isinstance(one, Mapping) or not isinstance(one.get("$defs"), Mapping):
        return False
    tasks = one.get("tasks")
    return isinstance(tasks, Mapping) and {"txt2img", "img2img"} <= tasks.keys()


async def _wait(task: asyncio.Task[None], seconds: float) -> None:
    """Wait for the task, which goes on if it takes longer, and if this request ends before."""
    await asyncio.wait({task}, timeout=seconds)
