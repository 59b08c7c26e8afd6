"""Every failure that the worker can name, and what to do about it.

    WorkerError
    ├── ConfigError             the operator's fault, found at start-up
    ├── JobError                the caller's fault: never retried, never retires the worker
    │   ├── InvalidInput
    │   ├── TemplateNotFound
    │   ├── ModelNotFound
    │   ├── ModelFileInvalid
    │   ├── ModelNotSupported
    │   ├── ModelMismatch
    │   ├── ModelUnsafe
    │   ├── ModelUrlRefused
    │   ├── ModelForbidden
    │   ├── ModelEarlyAccess
    │   ├── ModelArchived
    │   ├── EngineRefused
    │   ├── OutOfMemory
    │   └── ResultTooLarge
    ├── FetchError              a model could not be brought; neither caller nor engine is at fault
    │   ├── ModelLoginRequired
    │   ├── ModelRegionBlocked
    │   ├── ModelRateLimited
    │   ├── ModelHashMismatch
    │   ├── ModelHostFailed
    │   ├── StoreFull
    │   ├── StoreNotWritable
    │   └── FetchStopped
    ├── EngineError             the engine's fault: `worker.webui.recovery` says what is tried
    │   ├── RouteMissing
    │   ├── ConnectionLost
    │   ├── EnginePoisoned
    │   ├── CacheDamaged
    │   ├── NoCheckpoint
    │   ├── ModelNotListed
    │   ├── EngineFault
    │   └── EngineNotReady
    ├── ProofError              the engine said 200, but not with what was asked for
    │   ├── WrongCheckpoint
    │   ├── LoraNotApplied
    │   ├── WrongVae
    │   └── IncompleteAnswer
    ├── DeliveryFailed
    ├── JobTimeout
    ├── ResultRefused
    └── InternalError

The text that a caller reads is `<code>: <message> <hint>`. Codes are stable; messages are not.
"""

from __future__ import annotations

import uuid
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


class TemplateNotFound(JobError):
    """The job names a template that templates.json does not have."""

    code = "TEMPLATE_NOT_FOUND"


class ModelNotFound(JobError):
    """A model that the job names is neither in the model store nor at the host it names."""

    code = "MODEL_NOT_FOUND"
    default_hint = "Put the file into the model store, or name one that is there."


class ModelFileInvalid(JobError):
    """A model file is damaged or not a safetensors file; the engine never saw it."""

    code = "MODEL_FILE_INVALID"
    default_hint = "Replace the file: it is cut off, is a web page, or is not safetensors at all."


class ModelNotSupported(JobError):
    """The file is whole, but it is nothing that A1111 v1.9.3 can use in this place."""

    code = "MODEL_NOT_SUPPORTED"
    default_hint = "Name a Stable Diffusion 1, 2 or XL model."


class ModelMismatch(JobError):
    """The LoRA was trained for another family of models than the checkpoint's."""

    code = "MODEL_MISMATCH"
    default_hint = "Use a LoRA and a checkpoint of one family: SD1, SD2 or SDXL."


class ModelUnsafe(JobError):
    """The host's scanners call the file dangerous, or it is a pickle, which can run any code."""

    code = "MODEL_UNSAFE"
    default_hint = "Use the model's .safetensors file."


class ModelUrlRefused(JobError):
    """A URL leads where the worker does not go: not https, not public, too far, too large."""

    code = "MODEL_URL_REFUSED"
    default_hint = "Give an https URL of a public host; TRUSTED_HOSTS exempts the operator's own."


class ModelForbidden(JobError):
    """The host knows the key, but does not give this file to it."""

    code = "MODEL_FORBIDDEN"
    default_hint = "Ask its creator for access, or use another model."


class ModelEarlyAccess(JobError):
    """The model version is sold as early access, and the key's owner has not bought it."""

    code = "MODEL_EARLY_ACCESS"
    default_hint = "Buy access on CivitAI with the key's account, or name an older version."


class ModelArchived(JobError):
    """The model was archived by its creator: its files cannot be downloaded any more."""

    code = "MODEL_ARCHIVED"
    default_hint = "Use another version or another model."


class EngineRefused(JobError):
    """The engine checked the request and said no (4xx with its own text)."""

    code = "REQUEST_REFUSED"
    default_hint = "Change the field that the engine names."


class OutOfMemory(JobError):
    """The picture does not fit into the GPU's memory."""

    code = "OUT_OF_MEMORY"


class ResultTooLarge(JobError):
    """The pictures are there, but the result is larger than the platform takes."""

    code = "RESULT_TOO_LARGE"


class FetchError(WorkerError):
    """A model could not be brought. The same job may succeed later or on another worker."""


class ModelLoginRequired(FetchError):
    """The host gives this file only to a known key; the worker has none, or it is not accepted."""

    code = "MODEL_LOGIN_REQUIRED"
    default_hint = "Set CIVITAI_API_KEY or HF_TOKEN on the endpoint to a valid key."


class ModelRegionBlocked(FetchError):
    """The host does not serve the region in which this worker runs (451)."""

    code = "MODEL_REGION_BLOCKED"
    default_hint = "Run the endpoint in another region, or put the file into the model store."


class ModelRateLimited(FetchError):
    """The host limits how much this key or address may ask for (429)."""

    code = "MODEL_RATE_LIMITED"
    default_hint = "Wait some minutes; a shared network volume makes workers download only once."


class ModelHashMismatch(FetchError):
    """The bytes that arrived are not those that the hash promises; they were thrown away."""

    code = "MODEL_HASH_MISMATCH"
    default_hint = "Check the hash; `sha256` in the job overrides the host's."


class ModelHostFailed(FetchError):
    """The host failed or broke off again and again; what has arrived is kept for the next try."""

    code = "MODEL_HOST_FAILED"
    default_hint = "Send the job again: the download goes on where it stopped."


class StoreFull(FetchError):
    """The model does not fit into the budget or onto the disk, whatever may be evicted."""

    code = "STORE_FULL"
    default_hint = "Raise MODELS_BUDGET_GB, or use a larger volume."


class StoreNotWritable(FetchError):
    """The model store cannot be written: read-only, or owned by another user."""

    code = "STORE_NOT_WRITABLE"
    default_hint = "Make MODELS_DIR writable for the worker's user."


class FetchStopped(FetchError):
    """A download was stopped, because its job was cancelled or its deadline has passed."""

    code = "FETCH_STOPPED"
    default_hint = "What has arrived is kept: the next job that names the model goes on there."


class EngineError(WorkerError):
    """The engine failed. `worker.webui.recovery` decides what is tried before the job fails."""


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
    default_hint = "Send the job again: start.sh restarts an engine that it has started."


class CacheDamaged(EngineError):
    """The WebUI's cache database is damaged."""

    code = "ENGINE_CACHE_DAMAGED"
    default_hint = "The engine's cache folder was removed and built anew; send the job again."


class NoCheckpoint(EngineError):
    """The engine has no checkpoint at all."""

    code = "NO_CHECKPOINT"
    default_hint = "Put a checkpoint into the model store, or name one in the job."


class ModelNotListed(EngineError):
    """The engine has read its folders again and still does not list a model that lies there."""

    code = "MODEL_NOT_LISTED"
    default_hint = "Check that this engine can use such a file; its log may say why it skipped it."


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


class DeliveryFailed(WorkerError):
    """The pictures are there, but neither the bucket nor the job's URLs took them."""

    code = "DELIVERY_FAILED"
    default_hint = "Check the bucket's settings, or sign the URLs anew; then send the job again."


class JobTimeout(WorkerError):
    """The job's own deadline passed; the engine was told to stop and the picture discarded."""

    code = "JOB_TIMEOUT"
    default_hint = "Ask for less (steps, size, images), or raise `timeout` up to JOB_TIMEOUT."


class ResultRefused(WorkerError):
    """RunPod did not take the finished result; this error was posted in its place."""

    code = "RESULT_REFUSED"
    default_hint = (
        "Ask for fewer or smaller pictures: RunPod takes 10 MB from /run, 20 MB from /runsync."
    )


class InternalError(WorkerError):
    """A fault of the worker itself; the id finds the traceback in its log."""

    code = "INTERNAL_ERROR"
    default_hint = "This is a fault of the worker: report it with the id."

    @classmethod
    def with_id(cls) -> InternalError:
        """A new one; its id is in `details`."""
        incident = uuid.uuid4().hex[:12]
        return cls(f"the worker failed, id {incident}.", id=incident)
