"""The engine as the handler uses it: a payload goes in, a proven picture comes out.

`worker.webui.recovery` decides what to do after a failure, and this module does it. Other modules:
`lifecycle` has the engine's process and the state of this client, `runner` makes one picture, and
`engine_state` has the states and the events that change them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from worker.errors import (
    CacheDamaged,
    EngineFault,
    EngineNotReady,
    OutOfMemory,
    RouteMissing,
    WorkerError,
)
from worker.formats.names import Kind
from worker.generation import proof
from worker.generation.catalog import Catalog
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
from worker.stopwatch import Stopwatch
from worker.webui import recovery
from worker.webui.client import Txt2ImgAnswer, WebUI
from worker.webui.engine_state import Conditioning, Embeddings, Event, Folders, Loaded, Options
from worker.webui.lifecycle import Lifecycle
from worker.webui.readiness import Readiness
from worker.webui.recovery import Action, Consequence, MemoryGrowth
from worker.webui.runner import ReportProgress, Txt2ImgRunner, finish
from worker.webui.supervisor import Reason, Supervisor
from worker.webui.timing import DEFAULT_TIMING, EngineTiming

Loading = tuple[str | None, str | None]  # names of checkpoint and VAE; None: the default ones

# Shows the engine the embeddings and the VAE of a job; returns whether its embeddings changed.
Arrange = Callable[[], bool]

log = logging.getLogger(__name__)


class Engine:
    """One engine. Not for concurrent use: the caller passes one job at a time.

    `models_changed`, `files_replaced`, `health` and `keep_ready` may run beside a job, in any
    thread.
    """

    def __init__(
        self,
        webui: WebUI,
        supervisor: Supervisor,
        readiness: Readiness,
        memory_growth: MemoryGrowth | None = None,
        *,
        timing: EngineTiming = DEFAULT_TIMING,
    ) -> None:
        self._webui = webui
        self._readiness = readiness
        self._memory_growth = memory_growth
        self._timing = timing
        self._lifecycle = Lifecycle(webui, supervisor, readiness, timing)
        self._runner = Txt2ImgRunner(webui, self._lifecycle, timing)
        self._checkpoint: str | None = None  # of the last picture
        self._padding: object = None  # the comma padding that the last picture asked for
        self._loaded: Loading | None = None  # None: unknown, a job ended while it switched
        self._switching = False  # the attempt that runs, or the last one
        self._first_pictures = 0  # of the engine, when `_loaded` was noted
        self._sha256: dict[str, str] = {}  # by the checkpoint's name

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

    @property
    def retiring(self) -> str:
        """Why only a new worker can help; empty while this one is good."""
        return self._lifecycle.retiring

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
        return {
            "state": self._lifecycle.process().state,
            "ready": self._lifecycle.is_proven() and bool(memory),
            "checkpoint": self._checkpoint,
            "restarts": self._lifecycle.restarts,
            "retiring": self.retiring or None,
            "memory": memory or None,
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
                a VAE a restart; each before the next job.
        """
        if kinds & {"checkpoint", "vae"}:
            self._lifecycle.report(Event.CHECKPOINT_REPLACED)
        if kinds & {"lora", "embedding"}:
            self._lifecycle.report(Event.LORA_REPLACED)

    async def checkpoint_sha256(self, name: str) -> str | None:
        """SHA-256 of a checkpoint that the engine has loaded; None if the engine has no hash."""
        if name not in self._sha256:
            # The picture exists already: a missing hash must not lose it.
            with suppress(WorkerError):
                listed = await asyncio.to_thread(self._webui.sd_models)
                hashes = ((m.get("model_name"), m.get("sha256")) for m in listed)
                self._sha256 |= {str(name): sha for name, sha in hashes if isinstance(sha, str)}
        return self._sha256.get(name)

    # Generation ------------------------------------------------------------------------------

    async def generate(
        self,
        payload: Payload,
        stopwatch: Stopwatch,
        report: ReportProgress,
        arrange: Arrange | None = None,
    ) -> Txt2ImgAnswer:
        """Generate and prove, with at most `recovery.MAX_ATTEMPTS` attempts.

        Args:
            payload: the job as the engine takes it.
            stopwatch: its deadline.
            report: is called with the progress, see `worker.service.progress`.
            arrange: is called in a thread before each attempt, when no other job generates. If it
                returns True, the engine reads its embeddings again.

        Raises:
            WorkerError: of the last attempt; `attempts` in its details counts them.
            asyncio.CancelledError: after the engine has stopped.
        """
        failures: list[WorkerError] = []
        while True:
            try:
                async with self._runner.followed(report, preview=has_previews(payload.body)):
                    answer = await self._attempt(payload, stopwatch, arrange)
            except WorkerError as error:
                error.details["attempts"] = len(failures) + 1
                await self._recover(error, failures, payload, stopwatch)
                failures.append(error)
            else:
                self._lifecycle.report(Event.PICTURE_MADE)
                await self._note_checkpoint(answer.facts.get("sd_model_name"))
                self._lifecycle.note_checkpoint(self._checkpoint)
                return answer

    async def _attempt(
        self, payload: Payload, stopwatch: Stopwatch, arrange: Arrange | None
    ) -> Txt2ImgAnswer:
        self._switching = False
        if self._lifecycle.state.loaded is Loaded.OUTDATED:
            await asyncio.to_thread(self._lifecycle.replace_outdated)
        if not self._lifecycle.is_proven():
            await asyncio.to_thread(self._lifecycle.wait_until_ready, stopwatch.left())
        if arrange:
            await finish(asyncio.to_thread(self._arrange, arrange))
        if self._lifecycle.state.folders is Folders.STALE:
            await self._refresh(payload.expected)
        if self._lifecycle.state.options is Options.CHANGED:
            await asyncio.to_thread(self._lifecycle.restore_options)
        answer = await self._draw(payload, stopwatch)
        proof.check(answer.facts, answer.images, payload.expected)
        if payload.expected.embeddings:
            listed = await asyncio.to_thread(self._webui.embeddings)
            proof.check_embeddings(listed, payload.expected)
        return answer.without_maps(payload.expected)

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

    async def _draw(self, payload: Payload, stopwatch: Stopwatch) -> Txt2ImgAnswer:
        """Make the picture; before it one with other prompts, if the old ones may not be reused."""
        self._note_switch(payload)
        self._note_padding(payload)
        conditioning, two = self._lifecycle.state.conditioning, has_second_pass(payload.body)
        if conditioning is Conditioning.STALE or (two and conditioning is Conditioning.HIRES_STALE):
            await self._runner.post(throwaway(payload.body), stopwatch)
            used = Event.OTHER_PROMPTS_USED if two else Event.OTHER_PROMPT_USED
            self._lifecycle.report(used)
        # After that: the other picture has unloaded the LoRAs, and the embeddings in their files.
        if self._lifecycle.state.embeddings is Embeddings.STALE:
            await asyncio.to_thread(self._webui.refresh_embeddings)
            self._lifecycle.report(Event.EMBEDDINGS_READ)
        is_script = payload.expected.images is None
        if payload.expected.has_bundle or is_script:  # its arguments may have tags
            self._lifecycle.report(Event.BUNDLE_USED)
        if has_script(payload.body):
            self._lifecycle.report(Event.SCRIPT_USED)
        answer = await self._runner.post(payload.body, stopwatch)
        checkpoint = answer.facts.get("sd_model_name")
        if checkpoint and not is_script:  # a script's facts are those of its first picture
            self._loaded = (checkpoint, payload.expected.vae)
        return answer

    def _note_switch(self, payload: Payload) -> None:
        """Note whether the engine must load another checkpoint or VAE for this job.

        A job that names none goes back to the default ones, as each first picture does.
        """
        default, expected = self._lifecycle.default_checkpoint, payload.expected
        if self._first_pictures != self._lifecycle.first_pictures:
            self._first_pictures = self._lifecycle.first_pictures
            self._loaded = (default, None)
        wanted = (expected.checkpoint or default, expected.vae)
        self._switching = self._loaded != wanted or switches_inside(payload.body)
        if self._switching:
            self._loaded = None  # until the picture is made

    def _note_padding(self, payload: Payload) -> None:
        """Note whether the prompts are cut into chunks otherwise than those of the last picture."""
        padding = payload.body["override_settings"].get("comma_padding_backtrack")
        if padding != self._padding:
            self._lifecycle.report(Event.PADDING_CHANGED)
        self._padding = padding

    async def _refresh(self, expected: Expected) -> None:
        """Let the engine read its model folders, and check that it lists the job's models."""
        self._lifecycle.report(Event.REFRESH_STARTED)
        outcome = Event.REFRESH_FAILED
        try:
            await asyncio.to_thread(self._webui.refresh)
            outcome = Event.REFRESH_DONE
        finally:  # a cancelled job reports a failure: its refresh may not even have begun
            self._lifecycle.report(outcome)
        checkpoints = await asyncio.to_thread(self._webui.sd_models)
        proof.check_listed(checkpoints, await asyncio.to_thread(self._listed_loras), expected)

    def _listed_loras(self) -> list[dict[str, Any]] | None:
        """What the engine lists; None if it cannot: odd metadata of one LoRA give a 500 in A1111.

        The job's own LoRAs are proven by the picture, too.
        """
        try:
            return self._webui.loras()
        except EngineFault as error:
            log.warning("the engine cannot list its LoRAs: %s", error)
            return None

    async def _note_checkpoint(self, checkpoint: str | None) -> None:
        """Remember the checkpoint; after a switch, check how much memory it has cost."""
        switched = self._checkpoint is not None and checkpoint != self._checkpoint
        self._checkpoint = checkpoint or self._checkpoint  # a script's facts name none
        if not switched or not self._memory_growth:
            return
        with suppress(WorkerError):  # the picture exists already: this check must not lose it
            used = await asyncio.to_thread(self._webui.ram_used)
            process = self._lifecycle.process().pid
            if grown := self._memory_growth.after_switch(process, round(used)):
                self._lifecycle.retire(grown)

    # Recovery --------------------------------------------------------------------------------

    async def _recover(
        self,
        error: WorkerError,
        earlier: list[WorkerError],
        payload: Payload,
        stopwatch: Stopwatch,
    ) -> None:
        """Do what must come before the next attempt, or raise the error."""
        timed_out = not stopwatch.left() and not self._lifecycle.process().is_gone
        if isinstance(error, EngineNotReady) and timed_out:
            # The engine may be ready a moment later: no reason to replace the worker.
            raise stopwatch.expired(f"{error.message.rstrip('.')}; no picture") from error
        decision = self._decide(error, earlier, payload)
        if decision.action is Action.FAIL or timed_out:
            await self._conclude(error, decision.consequence, payload)
            raise error
        log.warning("attempt %d: %s -> %s", len(earlier) + 1, error, decision.action.value)
        await self._act(decision.action, error)

    def _decide(
        self, error: WorkerError, earlier: list[WorkerError], payload: Payload
    ) -> recovery.Decision:
        if isinstance(error, OutOfMemory):
            self._lifecycle.report(Event.OUT_OF_MEMORY)
        return recovery.decide(
            error,
            earlier,
            switching=self._switching,
            loras=bool(payload.expected.loras),
            memory=self._lifecycle.state.memory,
        )

    async def _act(self, action: Action, error: WorkerError) -> None:
        """Do what the decision requires before the next attempt."""
        if action is Action.AWAIT_ROUTE:
            await asyncio.sleep(self._timing.route_wait)
            with suppress(EngineNotReady, CacheDamaged):
                await asyncio.to_thread(
                    self._lifecycle.wait_until_ready, self._timing.route_recheck, again=True
                )
        elif action is Action.AWAIT_ENGINE:
            await self._runner.settle()
        elif action is Action.REFRESH:
            self._lifecycle.report(Event.PROOF_FAILED)
        else:
            damaged = action is Action.RESTART_WITHOUT_CACHE
            reason: Reason = "damaged-cache" if damaged else "poisoned"
            await asyncio.to_thread(self._lifecycle.restart, reason, error)

    async def _conclude(
        self, error: WorkerError, consequence: Consequence, payload: Payload
    ) -> None:
        """Give the error of a failed job its hint, then restart the engine or retire the worker."""
        if isinstance(error, OutOfMemory):
            error.hint = smaller(payload.body)
        elif isinstance(error, RouteMissing):
            error.hint = await asyncio.to_thread(self._readiness.what_answers)
        if consequence is Consequence.RETIRE_WORKER:
            often = ", three or more in a row" * isinstance(error, OutOfMemory)
            self._lifecycle.retire(f"{error.code}{often}")
        elif consequence is Consequence.RESTART_ENGINE:
            out_of_memory = isinstance(error, OutOfMemory)
            self._lifecycle.request_restart("out-of-memory" if out_of_memory else "bad-model")
