"""The engine as the handler uses it: a payload goes in, a proven picture comes out.

Other modules: `attempts` recovers after a failure, `runner` posts a request and stops it,
`lifecycle` has the engine's process and the state of this client, and `engine_state` has the states
and the events that change them.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from worker.errors import EngineRefused, RouteMissing, WorkerError
from worker.formats.names import Kind
from worker.generation import proof
from worker.generation.answers import reading
from worker.generation.call import Call
from worker.generation.catalog import Catalog
from worker.generation.enlarged import probe
from worker.generation.payload import (
    Expected,
    Payload,
    has_previews,
    has_script,
    has_second_pass,
    smaller,
    switches_inside,
    throwaway,
)
from worker.generation.picture_answer import PictureAnswer
from worker.stopwatch import Stopwatch
from worker.webui.attempts import Attempts, Work
from worker.webui.checkpoint_memory import CheckpointMemory
from worker.webui.client import WebUI
from worker.webui.engine_state import Conditioning, Embeddings, Event, Folders, Loaded, Options
from worker.webui.lifecycle import Lifecycle
from worker.webui.pipeline import NextJob, Pipeline, Slot
from worker.webui.readiness import Readiness
from worker.webui.recovery import MemoryGrowth
from worker.webui.runner import ReportProgress, Runner, finish
from worker.webui.supervisor import Supervisor
from worker.webui.timing import DEFAULT_TIMING, EngineTiming

Loading = tuple[str | None, str | None]  # names of checkpoint and VAE; None: the default ones

# Shows the engine the embeddings and the VAE of a job; returns whether its embeddings changed.
Arrange = Callable[[], bool]

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class _Job:
    """A job at the engine.

    Attributes:
        is_switching: whether the last attempt needed another checkpoint or VAE.
    """

    payload: Payload
    stopwatch: Stopwatch
    slot: Slot
    arrange: Arrange | None
    next_job: NextJob | None
    is_switching: bool = False

    def next_of_simple(self) -> NextJob | None:
        """The next job, if it may start before this one has ended.

        It must not find options that this job's script has changed, nor a checkpoint that may not
        load, and it must not unlink embeddings that the engine has not listed as read yet.
        """
        payload = self.payload
        alone = self.is_switching or has_script(payload.body) or payload.expected.embeddings
        return None if alone else self.next_job


class Engine:
    """One engine. It takes one job after the other, however many ask.

    `models_changed`, `files_replaced`, `health` and `keep_ready` may run beside a job, in any
    thread.
    """

    def __init__(
        self,
        webui: WebUI,
        supervisor: Supervisor,
        readiness: Readiness,
        memory_growth: MemoryGrowth | None = None,
        memory: CheckpointMemory | None = None,
        *,
        timing: EngineTiming = DEFAULT_TIMING,
    ) -> None:
        self._webui = webui
        self._memory_growth = memory_growth
        self._lifecycle = Lifecycle(webui, supervisor, readiness, timing, memory)
        self._runner = Runner(webui, self._lifecycle, timing)
        self._attempts = Attempts(self._lifecycle, readiness, self._runner, timing)
        self._pipeline = Pipeline()
        self._checkpoint: str | None = None  # of the last picture
        self._padding: object = None  # the comma padding that the last picture asked for
        self._loaded: Loading | None = None  # None: unknown, a job ended while it switched
        self._first_pictures = 0  # of the engine, when `_loaded` was noted
        self._proven_upscalers: set[tuple[int, str | None]] = set()  # and by which process
        # By the checkpoint's name and the process: another process may have another file of it.
        self._sha256: dict[tuple[int, str], str] = {}

    @property
    def catalog(self) -> Catalog:
        """The names that a job may use; known after `boot`."""
        return self._lifecycle.catalog

    @property
    def default_checkpoint(self) -> str | None:
        """The checkpoint of a job that names none; known after `boot`."""
        return self._lifecycle.default_checkpoint

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint of the last picture."""
        return self._checkpoint

    def has_in_memory(self, checkpoint: str) -> bool:
        """Whether the engine can use this checkpoint without reading its file."""
        if self._lifecycle.memory:
            return checkpoint in self._lifecycle.memory.kept
        return checkpoint == (self._checkpoint or self.default_checkpoint)

    @property
    def retiring(self) -> str:
        """Why only a new worker can help; empty while this one is good."""
        return self._lifecycle.retiring

    def retire(self, reason: str) -> None:
        """Have this worker replaced after the job that runs."""
        self._lifecycle.retire(reason)

    @property
    def restarts(self) -> int:
        """How often it was restarted."""
        return self._lifecycle.restarts

    def boot(self, timeout: float) -> None:
        """Wait until the engine can generate, see `Lifecycle.boot`."""
        self._lifecycle.boot(timeout)

    def keep_ready(self) -> None:
        """Have a restarted engine make its first picture before the next job; runs in a thread."""
        self._lifecycle.keep_ready()

    def health(self) -> dict[str, Any]:
        """The engine's process, whether it can generate, its checkpoint and its memory."""
        memory: dict[str, Any] = {}
        with suppress(WorkerError):  # an engine that does not answer is reported as not ready
            memory = self._webui.memory()
        known = self.known()
        return known | {"ready": known["ready"] and bool(memory), "memory": memory or None}

    def known(self) -> dict[str, Any]:
        """The same without its memory, and without asking it."""
        return {
            "state": self._lifecycle.process().state,
            "ready": self._lifecycle.is_proven(),
            "checkpoint": self._checkpoint,
            "checkpoints_limit": self._lifecycle.memory and self._lifecycle.memory.limit,
            "restarts": self._lifecycle.restarts,
            "retiring": self.retiring or None,
        }

    def end_with_start_sh(self) -> None:
        """End this process when start.sh has been killed; runs in a thread, from the beginning."""
        self._lifecycle.end_with_start_sh()

    def models_changed(self) -> None:
        """Let the engine read its model folders before the next picture."""
        self._lifecycle.report(Event.MODELS_CHANGED)

    def files_replaced(self, kinds: set[Kind]) -> None:
        """Let the engine load files anew whose content was replaced under the same name.

        A1111 compares names: it would go on with the old content of a file that it has loaded.

        Args:
            kinds: what the files are. A LoRA or an embedding costs a small picture, a checkpoint or
                a VAE a restart; each before the next job. A LoRA costs a restart, too, if the
                engine may keep several checkpoints.
        """
        # Of a kept checkpoint, A1111 would go on with the weights that the old LoRA has changed.
        # It may keep more than `memory.kept` has: the checkpoints of a script, and of a job that
        # was cancelled; and the operator's config.json may let it keep several.
        is_kept = "lora" in kinds and self._lifecycle.may_keep_several
        if kinds & {"checkpoint", "vae"} or is_kept:
            self._lifecycle.report(Event.CHECKPOINT_REPLACED)
        if kinds & {"lora", "embedding"}:
            self._lifecycle.report(Event.LORA_REPLACED)

    async def checkpoint_sha256(self, name: str) -> str | None:
        """SHA-256 of a checkpoint that the engine has loaded; None if the engine has no hash."""
        process = self._lifecycle.first_pictures
        if (process, name) not in self._sha256:
            # The picture exists already: a missing hash must not lose it.
            with suppress(WorkerError):
                listed = await asyncio.to_thread(self._webui.sd_models)
                for one in listed:
                    if isinstance(sha256 := one.get("sha256"), str):
                        self._sha256[process, str(one.get("model_name"))] = sha256
        return self._sha256.get((process, name))

    # Generation ------------------------------------------------------------------------------

    async def generate(
        self,
        payload: Payload,
        stopwatch: Stopwatch,
        report: ReportProgress,
        arrange: Arrange | None = None,
        next_job: NextJob | None = None,
    ) -> PictureAnswer:
        """Generate and prove, with at most `recovery.MAX_ATTEMPTS` attempts.

        Args:
            payload: the job as the engine takes it.
            stopwatch: its deadline.
            report: is called with the progress, see `worker.service.progress`.
            arrange: is called in a thread before each attempt, when no other job generates. If it
                returns True, the engine reads its embeddings again.
            next_job: may call this method when this job's pictures are only encoded any more.

        Raises:
            WorkerError: of the last attempt; `attempts` in its details counts them.
            asyncio.CancelledError: after the engine has stopped.
        """
        async with self._pipeline.slot(stopwatch) as slot:
            job = _Job(payload, stopwatch, slot, arrange, next_job)
            work = Work(
                functools.partial(self._attempt, job),
                functools.partial(smaller, payload.body),
                is_switching=lambda: job.is_switching,
                loras=bool(payload.expected.loras),
                preview=has_previews(payload.body),
            )
            answer = await self._attempts.until_done(work, stopwatch, slot, report)
            await self._note_checkpoint(answer.facts.get("sd_model_name"))
            self._lifecycle.note_checkpoint(self._checkpoint)
            return answer

    async def call(self, call: Call[T], stopwatch: Stopwatch) -> T:
        """Compute something without a prompt, such as an enlarged picture; as `generate` does it.

        Raises:
            EngineRefused: the engine does not have this route.
            WorkerError, asyncio.CancelledError: as from `generate`.
        """
        async with self._pipeline.slot(stopwatch) as slot:
            attempt = functools.partial(self._attempt_call, call, stopwatch, slot)
            work = Work(attempt, lambda: call.smaller)
            return await self._attempts.until_done(work, stopwatch, slot)

    async def _attempt_call(self, call: Call[T], stopwatch: Stopwatch, slot: Slot) -> T:
        await self._await_ready(stopwatch, slot)
        return await self._run(call, stopwatch, slot)

    async def _run(self, call: Call[T], stopwatch: Stopwatch, slot: Slot) -> T:
        try:
            return await self._runner.run(functools.partial(self._ask, call), stopwatch, slot)
        except RouteMissing as error:  # the first picture has shown that all routes are there
            raise EngineRefused(
                error.message, hint="Use an A1111 v1.9.3: this engine cannot run the task."
            ) from error

    def _ask(self, call: Call[T], timeout: float) -> T:
        answer = self._webui.post(call.route, call.body, timeout)
        with reading(call.route):  # here, in the thread: the answer may be a large picture
            return call.read(answer)

    async def listed(self, route: str) -> Any:  # noqa: ANN401 - JSON
        """The engine's answer to a GET of this route; it does not wait for the job that runs.

        Raises:
            WorkerError: the engine does not answer, or does not have the route.
        """
        return await asyncio.to_thread(self._webui.get, route)

    async def _attempt(self, job: _Job) -> PictureAnswer:
        job.is_switching = False
        expected = job.payload.expected
        await self._await_ready(job.stopwatch, job.slot)
        if job.arrange:
            arrange = functools.partial(self._arrange, job.arrange)
            await finish(self._runner.arrange(arrange, job.stopwatch))
        if self._lifecycle.state.folders is Folders.STALE:
            await self._refresh(expected, job.stopwatch)
        await self._prove_upscaler(job)
        answer = await self._draw(job)
        proof.check(answer.facts, answer.images, expected)
        if expected.embeddings:
            listed = await asyncio.to_thread(self._webui.embeddings)  # the picture is made
            proof.check_embeddings(listed, expected)
        return answer.without_maps(expected)

    async def _await_ready(self, stopwatch: Stopwatch, slot: Slot) -> None:
        """Have a process that has made a picture, knows no replaced file, and has its options."""
        await self._runner.settled(stopwatch)
        if self._lifecycle.state.loaded is Loaded.OUTDATED:
            await slot.alone()
            await asyncio.to_thread(self._lifecycle.replace_outdated)
        if not self._lifecycle.is_proven():
            await slot.alone()
            await asyncio.to_thread(self._lifecycle.wait_until_ready, stopwatch.left())
        if self._lifecycle.state.options is Options.CHANGED:
            await self._runner.ask(self._lifecycle.restore_options, stopwatch)

    async def _prove_upscaler(self, job: _Job) -> None:
        """Prove once for each process that the engine has the model of the second pass's upscaler.

        Raises:
            EngineModelMissing: it would enlarge the picture with Lanczos.
        """
        body = job.payload.body
        name = body.get("hr_upscaler") if has_second_pass(body) else None
        known = (self._lifecycle.first_pictures, name)
        if not name or name not in self.catalog.with_models or known in self._proven_upscalers:
            return
        await self._run(probe(name), job.stopwatch, job.slot)
        self._proven_upscalers.add(known)

    def _arrange(self, arrange: Arrange) -> None:
        """Arrange the embeddings and report whether they changed; a failure may have changed some.

        In the thread, because a cancelled job must not lose the report.
        """
        changed = True
        try:
            changed = arrange()
        finally:
            if changed:
                self._lifecycle.report(Event.EMBEDDINGS_CHANGED)

    async def _draw(self, job: _Job) -> PictureAnswer:
        """Make the picture; before it one with other prompts, if the old ones may not be reused."""
        payload = job.payload
        job.is_switching = self._switches(payload)
        self._note_padding(payload)
        checkpoints = self._checkpoints_of(payload)
        if self._lifecycle.memory:
            await self._runner.ask(self._lifecycle.make_room, job.stopwatch, checkpoints)
        conditioning, two = self._lifecycle.state.conditioning, has_second_pass(payload.body)
        if conditioning is Conditioning.STALE or (two and conditioning is Conditioning.HIRES_STALE):
            await self._post(job, "txt2img", throwaway(payload.body))
            used = Event.OTHER_PROMPTS_USED if two else Event.OTHER_PROMPT_USED
            self._lifecycle.report(used)
        # After that: the other picture has unloaded the LoRAs, and the embeddings in their files.
        if self._lifecycle.state.embeddings is Embeddings.STALE:
            await self._runner.ask(self._lifecycle.read_embeddings, job.stopwatch)
        is_script = payload.expected.images is None
        if payload.expected.has_bundle or is_script:  # its arguments may have tags
            self._lifecycle.report(Event.BUNDLE_USED)
        if has_script(payload.body):
            self._lifecycle.report(Event.SCRIPT_USED)
        answer = await self._post(job, payload.route, payload.body, job.next_of_simple())
        if self._lifecycle.memory:
            self._lifecycle.memory.after(checkpoints)
        made = answer.facts.get("sd_model_name")
        # A script's facts are those of its first picture. A job that has passed the engine on did
        # not switch, and the next job may have noted a switch of its own.
        if made and not is_script and not (job.slot.passed_on and made == self._wanted(payload)[0]):
            self._loaded = (made, payload.expected.vae)
        return answer

    async def _post(
        self, job: _Job, route: str, body: Mapping[str, Any], next_job: NextJob | None = None
    ) -> PictureAnswer:
        draw = functools.partial(self._webui.draw, route, body)
        return await self._runner.run(draw, job.stopwatch, job.slot, next_job)

    def _switches(self, payload: Payload) -> bool:
        """Note and return whether the engine must load another checkpoint or VAE for this job."""
        if self._first_pictures != self._lifecycle.first_pictures:
            self._first_pictures = self._lifecycle.first_pictures
            self._loaded = (self._lifecycle.default_checkpoint, None)
        if self._loaded == self._wanted(payload) and not switches_inside(payload.body):
            return False
        self._loaded = None  # until the picture is made
        return True

    def _wanted(self, payload: Payload) -> Loading:
        """A job that names none goes back to the default ones, as each first picture does."""
        expected = payload.expected
        return expected.checkpoint or self._lifecycle.default_checkpoint, expected.vae

    def _checkpoints_of(self, payload: Payload) -> list[str]:
        """The names of the checkpoints that a job uses, in the order of their use."""
        first = payload.expected.checkpoint or self._lifecycle.default_checkpoint
        others = (payload.body.get(name) for name in ("hr_checkpoint_name", "refiner_checkpoint"))
        names = [first, *others]
        return list(dict.fromkeys(name for name in names if name and isinstance(name, str)))

    def _note_padding(self, payload: Payload) -> None:
        """Note whether the prompts are cut into chunks otherwise than those of the last picture."""
        padding = payload.body["override_settings"].get("comma_padding_backtrack")
        if padding != self._padding:
            self._lifecycle.report(Event.PADDING_CHANGED)
        self._padding = padding

    async def _refresh(self, expected: Expected, stopwatch: Stopwatch) -> None:
        """Let the engine read its model folders, and check that it lists the job's models."""
        await self._runner.ask(self._lifecycle.read_folders, stopwatch)
        checkpoints = await self._runner.ask(self._webui.sd_models, stopwatch)
        loras = await self._runner.ask(self._lifecycle.listed_loras, stopwatch)
        proof.check_listed(checkpoints, loras, expected)

    async def _note_checkpoint(self, checkpoint: str | None) -> None:
        """Remember the checkpoint; after a switch, check how much memory it has cost."""
        switched = self._checkpoint is not None and checkpoint != self._checkpoint
        self._checkpoint = checkpoint or self._checkpoint  # a script's facts name none
        if not switched or not self._memory_growth:
            return
        with suppress(WorkerError):  # the picture exists already: this check must not lose it
            used = await asyncio.to_thread(self._webui.ram_used)
            process = self._lifecycle.process().pid
            kept = len(self._lifecycle.memory.kept) if self._lifecycle.memory else 1
            if grown := self._memory_growth.after_switch(process, round(used), kept):
                self._lifecycle.retire(grown)
