"""Every failure that the worker can name, and what to do about it.

    WorkerError
    ├── ConfigError             the operator's fault, found at start-up
    ├── JobError                the caller's fault: never retried, never retires the worker
    │   ├── InvalidInput
    │   ├── ModelNotFound
    │   ├── ModelFileInvalid
    │   ├── EngineRefused
    │   └── OutOfMemory
    ├── EngineError             the engine's fault: `worker.recovery` says what is tried
    │   ├── RouteMissing
    │   ├── ConnectionLost
    │   ├── EnginePoisoned
    │   ├── CacheDamaged
    │   ├── NoCheckpoint
    │   ├── EngineFault
    │   └── EngineNotReady
    ├── ProofError              the engine said 200, but not with what was asked for
    │   ├── WrongCheckpoint
    │   ├── LoraNotApplied
    │   ├── WrongVae
    │   └── IncompleteAnswer
    ├── JobTimeout
    └── InternalError

The text that a caller reads is `<code>: <message> <hint>`. Codes are stable; messages are not.
"""

from __future__ import annotations

from typing import ClassVar


class WorkerError(Exception):
    """Base of all: a stable `code`, what happened with which value, and a hint what to do.

    Attributes:
        code: stable word for programs; the page docs/errors.md has one entry for each.
        hint: the cure, unless the place that raised it knew a better one.
        details: further facts for programs, JSON values; they go into the job's answer.
    """

    code: ClassVar[str]
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.code}: {self.message} {self.hint}".rstrip()


class ConfigError(WorkerError):
    """A setting is wrong; nothing was started."""

    code = "BAD_CONFIGURATION"
    default_hint = "Correct the environment variable; docs/configuration.md lists them all."


class JobError(WorkerError):
    """The caller's fault: the same job would fail again, the next job is not affected."""


class InvalidInput(JobError):
    """The job's input is not what the schema asks for; nothing was sent to the engine."""

    code = "INVALID_INPUT"


class ModelNotFound(JobError):
    """A checkpoint, LoRA or VAE that the job names is not in the model store."""

    code = "MODEL_NOT_FOUND"
    default_hint = "Put the file into the model store, or name one that is there."


class ModelFileInvalid(JobError):
    """A model file is damaged or not a safetensors file; the engine never saw it."""

    code = "MODEL_FILE_INVALID"
    default_hint = "Replace the file: it is cut off, is a web page, or is not safetensors at all."


class EngineRefused(JobError):
    """The engine checked the request and said no (4xx with its own text)."""

    code = "REQUEST_REFUSED"
    default_hint = "Change the field that the engine names."


class OutOfMemory(JobError):
    """The picture does not fit into the GPU's memory."""

    code = "OUT_OF_MEMORY"


class EngineError(WorkerError):
    """The engine's fault. `worker.recovery` decides what is tried before the caller hears it."""


class RouteMissing(EngineError):
    """404 `{"detail": "Not Found"}`: still mounting, restarted, or not an A1111 at all."""

    code = "ENGINE_ROUTE_MISSING"
    default_hint = (
        "Another program may be listening at WEBUI_URL, or the WebUI was started without --api."
    )


class ConnectionLost(EngineError):
    """The engine closed or refused the connection."""

    code = "ENGINE_CONNECTION_LOST"
    default_hint = "Send the job again; if it happens again, the engine's log says why it died."


class EnginePoisoned(EngineError):
    """The engine answers, but its CUDA context or its model is broken until it is restarted."""

    code = "ENGINE_POISONED"
    default_hint = "The engine was restarted; send the job again."


class CacheDamaged(EngineError):
    """The WebUI's cache database is damaged."""

    code = "ENGINE_CACHE_DAMAGED"
    default_hint = "The engine's cache folder was removed and built anew; send the job again."


class NoCheckpoint(EngineError):
    """The engine has no checkpoint at all."""

    code = "NO_CHECKPOINT"
    default_hint = "Put a checkpoint into the model store, or name one in the job."


class EngineFault(EngineError):
    """The engine failed with an error of its own (500), or answered something unusable."""

    code = "ENGINE_ERROR"
    default_hint = "The text is the engine's own."


class EngineNotReady(EngineError):
    """The engine's process ended for good, or made no first picture in time."""

    code = "ENGINE_NOT_READY"


class ProofError(WorkerError):
    """The engine answered 200, but its own account of the picture differs from the job."""


class WrongCheckpoint(ProofError):
    """The picture was made with another checkpoint than the job asked for."""

    code = "WRONG_CHECKPOINT"
    default_hint = "The picture was discarded. Check that the file is a checkpoint A1111 can load."


class LoraNotApplied(ProofError):
    """The picture was made without a LoRA that the job asked for."""

    code = "LORA_NOT_APPLIED"
    default_hint = "The picture was discarded. Check that the file is a LoRA."


class WrongVae(ProofError):
    """The picture was decoded with another VAE than the job asked for."""

    code = "WRONG_VAE"
    default_hint = "The picture was discarded. Check that the file is a VAE."


class IncompleteAnswer(ProofError):
    """The engine returned fewer pictures than were asked for, or none."""

    code = "INCOMPLETE_ANSWER"
    default_hint = "Something interrupted the engine; send the job again."


class JobTimeout(WorkerError):
    """The job's own deadline passed; the engine was told to stop and the picture discarded."""

    code = "JOB_TIMEOUT"
    default_hint = "Ask for less (steps, size, images), or raise `timeout` up to JOB_TIMEOUT."


class InternalError(WorkerError):
    """A fault of the worker itself; the id finds the traceback in its log."""

    code = "INTERNAL_ERROR"
    default_hint = "This is a fault of the worker: report it with the id."
