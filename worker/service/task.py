"""What a task is, and the table of tasks, which finds the task that a job names.

The table is in `worker.tasks.table`. It decides which task a job runs, which error an unknown task
gets, what `python handler.py --schema` prints, and what docs/api.md says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from pydantic import Field, create_model

from worker import log
from worker.answer import Answer
from worker.clients.foreign_fields import task_instead
from worker.clients.nothing_asked import is_blank
from worker.errors import InvalidInput, WorkerError
from worker.job.model_fields import ABOUT_TASK, Strict, TaskInput
from worker.job.request import check
from worker.service.progress import JobProgress
from worker.service.stream import JobStream
from worker.service.threads import Threads
from worker.shown import shown
from worker.spelling import near_matches
from worker.stopwatch import Stopwatch
from worker.translation.other_workers import understood


class HasThreads(Protocol):
    """What the table needs of a worker."""

    @property
    def threads(self) -> Threads:
        """Those in which a job's input is checked."""


Worker = TypeVar("Worker", bound=HasThreads)


# How similar a task must be to be suggested: a job for img2img must not be told to use txt2img.
_CLOSE = 0.8
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Job:
    """One job on its way through the worker.

    Attributes:
        input: what the caller sent, unchecked; in our own form once it is `understood`.
        notes: warnings about what was read as what, for the answer.
        s3_config: what the caller sent beside the input, unchecked; it has secrets.
        stream: what is sent to the job's `/stream` while it runs.
        take_next: called when the job needs the engine no more, so that the next one is taken.
    """

    id: str
    input: object
    stopwatch: Stopwatch
    progress: JobProgress
    notes: tuple[str, ...] = ()
    s3_config: object = field(default=None, repr=False)
    stream: JobStream = field(default_factory=JobStream)
    take_next: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Task(Generic[Worker]):
    """One entry of the table.

    Attributes:
        name: value of the job's field `task`.
        description: one sentence for the documents.
        run: gets the worker, the job and its checked input.
        output: type of the answer.
        fields: type of the input; None for a task without fields of its own.
        read: gets the worker and the job and checks its input, where `fields` alone does not.
        is_quick: whether it is answered beside a job that draws, such as a list.
        named_by: fields of the input that name the task, beside `task`.
        failure: the answer for an error of the job; None: as for every task.
    """

    name: str
    description: str
    run: Callable[[Worker, Job, Any], Awaitable[Answer]]
    output: type[Answer]
    fields: type[Strict] | None = None
    read: Callable[[Worker, Job], Strict] | None = None
    is_quick: bool = False
    named_by: frozenset[str] = frozenset()
    failure: Callable[[WorkerError, Job], Answer] | None = None

    @cached_property
    def input(self) -> type[Strict]:
        """Type of the job's input."""
        if self.fields:
            return self.fields
        name = cast("type[str]", Literal[self.name])
        task = (name, Field(description=ABOUT_TASK))
        return create_model(f"{self.name.title()}Request", __base__=TaskInput, task=task)

    def check(self, worker: Worker, job: Job) -> Strict:
        """The job's checked input.

        Raises:
            InvalidInput: the input is not what the task takes.
        """
        return self.read(worker, job) if self.read else check(job.input, self.input)

    async def __call__(self, worker: Worker, job: Job) -> Answer:
        """Check the job's input and run the task; raises what `check` raises.

        `read` runs in a thread: it reads files, and wildcards can take it seconds.
        """
        log.phase.set("validate")  # here, because what the thread sets ends with it
        if self.read:
            checked = await worker.threads.run(job.stopwatch, self.read, worker, job)
        else:
            checked = self.check(worker, job)
        return await self.run(worker, job, checked)


class Tasks(Generic[Worker]):
    """The table. A job that names no task gets the first one."""

    def __init__(self, *tasks: Task[Worker]) -> None:
        self._tasks = {task.name: task for task in tasks}

    def __iter__(self) -> Iterator[Task[Worker]]:
        return iter(self._tasks.values())

    def __getitem__(self, name: str) -> Task[Worker]:
        return self._tasks[name]

    def of(self, job_input: object) -> Task[Worker]:
        """The task that the job names; the rest of its input is not checked yet.

        Raises:
            InvalidInput: there is no such task.
        """
        default = next(iter(self))
        if not isinstance(job_input, Mapping):
            return default  # its check rejects this input
        name = job_input.get("task")
        if is_blank(name):
            self._refuse_route(job_input)
            return next((one for one in self if one.named_by & job_input.keys()), default)
        if isinstance(name, str) and name in self._tasks:
            return self._tasks[name]
        word = name[:_LONGEST_NAME] if isinstance(name, str) else ""
        raise InvalidInput(f"task = {shown(name)} is not known.", hint=self._hint(word))

    def name_of(self, job_input: object) -> str:
        """The task's name for an input in any form; empty if there is no such task."""
        try:
            return self.of(understood(job_input).input).name
        except InvalidInput:
            return ""

    def is_quick(self, job_input: object) -> bool:
        """Whether this input is answered beside a job that draws: a list, or a batch of lists."""
        if isinstance(job_input, Mapping) and job_input.get("task") == "batch":
            inputs = job_input.get("inputs")
            if isinstance(inputs, list) and inputs:
                return all(map(self._is_quick, inputs))
        return self._is_quick(job_input)

    def _is_quick(self, job_input: object) -> bool:
        try:
            return self.of(understood(job_input).input).is_quick
        except InvalidInput:
            return True  # it is refused at once

    def _refuse_route(self, job_input: Mapping[str, Any]) -> None:
        """Refuse another worker's form: `{"api": {"method", "endpoint"}, "payload": {...}}`."""
        api = job_input.get("api")
        endpoint = api.get("endpoint") if isinstance(api, Mapping) else None
        if isinstance(endpoint, str):
            word = endpoint[:_LONGEST_NAME]
            ours = self._ours(word)
            send = f'Send "task": "{ours}", and beside it the fields of `payload`.'
            raise InvalidInput(
                f"api.endpoint = {shown(endpoint)} is the form of another worker.",
                hint=send if ours else self._hint(word),
            )

    def _hint(self, word: str) -> str:
        """Which task does what another program calls `word`, or which tasks there are."""
        if ours := self._ours(word):
            return f"Did you mean {ours!r}?"
        sentence = task_instead(word)
        if " " in sentence:  # otherwise it is no word of the table, or a task that is not here
            return f"{sentence[:1].upper()}{sentence[1:]}."
        return f"This worker has the tasks {', '.join(map(repr, self._tasks))}."

    def _ours(self, word: str) -> str | None:
        """Our task for another program's word or route."""
        near = near_matches(word, self._tasks, count=1, cutoff=_CLOSE)
        name = near[0] if near else task_instead(word)
        return name if name in self._tasks else None
