"""Every error of the worker: its code, what happened, and a hint what to do.

    WorkerError
    ├── ConfigError             a wrong setting, found at the start
    ├── JobError                the job is wrong: never retried, never retires the worker
    │   ├── InvalidInput
    │   ├── TemplateNotFound
    │   ├── ModelNotFound
    │   ├── ModelFileInvalid
    │   ├── ModelNotSupported
    │   ├── ModelMismatch
    │   ├── ModelUnsafe
    │   ├── ModelUrlRefused
    │   ├── ImageUrlRefused
    │   ├── ModelForbidden
    │   ├── ModelEarlyAccess
    │   ├── ModelArchived
    │   ├── EngineRefused
    │   ├── EngineModelMissing
    │   ├── OutOfMemory
    │   └── ResultTooLarge
    ├── FetchError              a model or picture could not be fetched or stored
    │   ├── ModelLoginRequired
    │   ├── ModelRegionBlocked
    │   ├── ModelRateLimited
    │   ├── ModelHashMismatch
    │   ├── ModelHostFailed
    │   ├── ImageHostFailed
    │   ├── StoreFull
    │   ├── StoreNotWritable
    │   └── FetchStopped
    ├── EngineError             the engine failed: `worker.webui.recovery` decides how to recover
    │   ├── RouteMissing
    │   ├── ConnectionLost
    │   ├── EnginePoisoned
    │   ├── CacheDamaged
    │   ├── NoCheckpoint
    │   ├── ModelNotListed
    │   ├── EngineFault
    │   └── EngineNotReady
    │       └── GpuNotUsed
    ├── ProofError              the engine answered 200, but with another picture than requested
    │   ├── WrongCheckpoint
    │   ├── LoraNotApplied
    │   ├── UnitNotApplied
    │   ├── WrongVae
    │   ├── WrongDrawing
    │   └── IncompleteAnswer
    ├── DeliveryFailed
    ├── VolumeFailed
    ├── BatchFailed
    ├── JobTimeout
    ├── ResultRefused
    ├── WorkerEnding
    ├── MachineExhausted
    └── InternalError

The caller reads `<code>: <message> <hint>`. Codes never change; messages may. docs/errors.md is
generated: from each class's docstring (when) and default hint (what to do).
"""

from __future__ import annotations

import uuid
from typing import ClassVar


class WorkerError(Exception):
    """Base class: a stable code, a message with the value that caused it, and a hint.

    Attributes:
        code: stable word for programs.
        hint: what to do; the class's default, unless the code that raises the error passes another.
        details: further facts for programs as JSON values; keys of the job's answer.
    """

    code: ClassVar[str]
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None, **details: object) -> None:
        self.message = _without_surrogates(message)
        super().__init__(self.message)
        self.hint = self.default_hint if hint is None else _without_surrogates(hint)
        self.details = details

    def __str__(self) -> str:
        return f"{self.code}: {self.message} {self.hint}".rstrip()


def _without_surrogates(text: str) -> str:
    """The text as a file or a socket can hold it; a job's JSON can have half a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


class ConfigError(WorkerError):
    """A setting is wrong, so the worker did not start."""

    code = "BAD_CONFIGURATION"
    default_hint = "Correct the environment variable; docs/configuration.md lists all of them."


class JobError(WorkerError):
    """The job is wrong: it would fail again. Other jobs are not affected."""


class InvalidInput(JobError):
    """The job's input does not match the schema; nothing was sent to the engine."""

    code = "INVALID_INPUT"


class TemplateNotFound(JobError):
    """The job names a template that is not in templates.json."""

    code = "TEMPLATE_NOT_FOUND"


class ModelNotFound(JobError):
    """A model that the job names is neither in the model store nor at the model host."""

    code = "MODEL_NOT_FOUND"
    default_hint = "Put the file into the model store, or name a model that is in it."


class ModelFileInvalid(JobError):
    """A model file is damaged, or it is not a safetensors file; the engine did not load it."""

    code = "MODEL_FILE_INVALID"
    default_hint = "Replace the file: it may be truncated, or an HTML page instead of a model."


class ModelNotSupported(JobError):
    """The file is intact, but A1111 v1.9.3 cannot use it as this kind of model."""

    code = "MODEL_NOT_SUPPORTED"
    default_hint = "Use a model for Stable Diffusion 1, 2 or XL."


class ModelMismatch(JobError):
    """A LoRA or an embedding belongs to another model family than the checkpoint."""

    code = "MODEL_MISMATCH"
    default_hint = "Use files of the checkpoint's family: SD1, SD2 or SDXL."


class ModelUnsafe(JobError):
    """The host reports the file as dangerous, or it is a pickle: loading one can run any code."""

    code = "MODEL_UNSAFE"
    default_hint = "Use the model's .safetensors file."


class ModelUrlRefused(JobError):
    """The URL is not allowed: not https, not public, too many redirects, or too large."""

    code = "MODEL_URL_REFUSED"
    default_hint = "Use an https URL of a public host, or add the host to TRUSTED_HOSTS."


class ImageUrlRefused(JobError):
    """The URL of a picture is not allowed (not https, not public), or its host refuses it (4xx)."""

    code = "IMAGE_URL_REFUSED"
    default_hint = "Use an https URL that everybody can open, or send the picture as base64."


class ModelForbidden(JobError):
    """The host accepts the worker's API key, but the key has no access to this file."""

    code = "MODEL_FORBIDDEN"
    default_hint = "Ask the model's creator for access, or use another model."


class ModelEarlyAccess(JobError):
    """The model version is sold as early access, and the API key's account has not bought it."""

    code = "MODEL_EARLY_ACCESS"
    default_hint = "Buy access on CivitAI with the API key's account, or use an older version."


class ModelArchived(JobError):
    """The model's creator archived it, so its files can no longer be downloaded."""

    code = "MODEL_ARCHIVED"
    default_hint = "Use another version or another model."


class EngineRefused(JobError):
    """The engine refused the request (4xx with its own text)."""

    code = "REQUEST_REFUSED"
    default_hint = "Change the field that the engine's text names."


class EngineModelMissing(JobError):
    """The engine lacks a model of its own that the task needs, and could not download it."""

    code = "ENGINE_MODEL_MISSING"
    default_hint = "A1111 downloads it at first use: let the worker's machine reach its host."


class OutOfMemory(JobError):
    """The GPU has too little memory for this job."""

    code = "OUT_OF_MEMORY"


class ResultTooLarge(JobError):
    """The pictures were made, but the result is larger than RunPod accepts."""

    code = "RESULT_TOO_LARGE"


class FetchError(WorkerError):
    """A model or picture could not be fetched. The job may succeed later or on another worker."""


class ModelLoginRequired(FetchError):
    """The host requires an API key for this file; the worker has none, or an invalid one."""

    code = "MODEL_LOGIN_REQUIRED"
    default_hint = "Set CIVITAI_API_KEY or HF_TOKEN to a valid key on the endpoint."


class ModelRegionBlocked(FetchError):
    """The host does not serve the region where this worker runs (451)."""

    code = "MODEL_REGION_BLOCKED"
    default_hint = "Run the endpoint in another region, or put the file into the model store."


class ModelRateLimited(FetchError):
    """The host limits the requests of this API key or IP address (429)."""

    code = "MODEL_RATE_LIMITED"
    default_hint = "Wait some minutes. With a network volume, workers share their downloads."


class ModelHashMismatch(FetchError):
    """The downloaded file does not have the expected hash; it was deleted."""

    code = "MODEL_HASH_MISMATCH"
    default_hint = "Check the hash. `sha256` in the job replaces the one that the host reports."


class ModelHostFailed(FetchError):
    """The host failed or repeatedly broke off the download; the downloaded part is kept."""

    code = "MODEL_HOST_FAILED"
    default_hint = "Send the job again: the download continues where it stopped."


class ImageHostFailed(FetchError):
    """The host of a picture did not answer, is busy, or took too long to send the picture."""

    code = "IMAGE_HOST_FAILED"
    default_hint = "Send the job again, or send the picture as base64."


class StoreFull(FetchError):
    """The model does not fit into the store's budget or onto the disk, even after eviction."""

    code = "STORE_FULL"
    default_hint = "Raise MODELS_BUDGET_GB, or use a larger volume."


class StoreNotWritable(FetchError):
    """The model store cannot be written: it is read-only, or another user owns it."""

    code = "STORE_NOT_WRITABLE"
    default_hint = "Make MODELS_DIR writable for the worker's user."


class FetchStopped(FetchError):
    """A download was stopped, because its job was cancelled or reached its deadline."""

    code = "FETCH_STOPPED"
    default_hint = "The downloaded part is kept; the next job with this model continues from it."


class EngineError(WorkerError):
    """The engine failed; `worker.webui.recovery` decides how to recover before the job fails."""


class RouteMissing(EngineError):
    """The API route is missing (404): the engine is starting, or it is not an A1111 with --api."""

    code = "ENGINE_ROUTE_MISSING"
    default_hint = "Check that WEBUI_URL is the address of an A1111 that was started with --api."


class ConnectionLost(EngineError):
    """The engine closed or refused the connection."""

    code = "ENGINE_CONNECTION_LOST"
    default_hint = "Send the job again. If it fails again, look for the reason in the engine's log."


class EnginePoisoned(EngineError):
    """The engine answers, but its CUDA context or its model is unusable until a restart."""

    code = "ENGINE_POISONED"
    default_hint = "Send the job again. start.sh restarts the engine if it started it."


class CacheDamaged(EngineError):
    """The WebUI's cache database is damaged."""

    code = "ENGINE_CACHE_DAMAGED"
    default_hint = "Send the job again: the engine's cache folder was deleted and recreated."


class NoCheckpoint(EngineError):
    """The engine has no checkpoint."""

    code = "NO_CHECKPOINT"
    default_hint = "Put a checkpoint into the model store, or name one in the job."


class ModelNotListed(EngineError):
    """The engine does not list a model although its file is in the engine's folder."""

    code = "MODEL_NOT_LISTED"
    default_hint = "Check that the engine supports the file; its log may name the reason."


class EngineFault(EngineError):
    """The engine reported an internal error (500), or its answer cannot be used."""

    code = "ENGINE_ERROR"
    default_hint = "The engine's log may name the cause."


class EngineNotReady(EngineError):
    """The engine's process ended and is not restarted, or it made no first picture in time."""

    code = "ENGINE_NOT_READY"


class GpuNotUsed(EngineNotReady):
    """The machine promises a GPU, but the engine does not use it: only another machine helps."""


class ProofError(WorkerError):
    """The engine answered 200, but what it reports about the picture differs from the job."""


class WrongCheckpoint(ProofError):
    """The engine used another checkpoint than the job names."""

    code = "WRONG_CHECKPOINT"
    default_hint = "The picture was discarded. Check that A1111 can load this checkpoint."


class LoraNotApplied(ProofError):
    """The engine did not use a LoRA that the job names."""

    code = "LORA_NOT_APPLIED"
    default_hint = "The picture was discarded. Check that the file is a LoRA."


class UnitNotApplied(ProofError):
    """The engine did not apply a unit of ControlNet or ADetailer that the job names."""

    code = "UNIT_NOT_APPLIED"
    default_hint = "The picture was discarded. Check the unit's picture and its model."


class WrongVae(ProofError):
    """The engine used another VAE than the job names."""

    code = "WRONG_VAE"
    default_hint = "The picture was discarded. Check that the file is a VAE."


class WrongDrawing(ProofError):
    """The engine drew with another mask, strength or size than the job asks for."""

    code = "WRONG_DRAWING"
    default_hint = "The picture was discarded. Check the engine's log, and its extensions."


class IncompleteAnswer(ProofError):
    """The engine returned fewer pictures than the job asked for, or one of another size."""

    code = "INCOMPLETE_ANSWER"
    default_hint = "Send the job again: the engine was probably interrupted."


class DeliveryFailed(WorkerError):
    """The pictures were made, but uploading or converting them failed."""

    code = "DELIVERY_FAILED"
    default_hint = "Check the bucket's settings or create new signed URLs, then send the job again."


class VolumeFailed(WorkerError):
    """`push` could not send a model: the S3 API of the network volume refused, or failed."""

    code = "VOLUME_FAILED"
    default_hint = "Push again: it continues where it stopped."


class BatchFailed(WorkerError):
    """Every input of a batch failed; `results` has the error of each."""

    code = "BATCH_FAILED"
    default_hint = "The errors are in `results`, in the order of the inputs."


class JobTimeout(WorkerError):
    """The job reached its deadline; the engine was interrupted, the picture discarded."""

    code = "JOB_TIMEOUT"
    default_hint = "Reduce steps, size or number of images, or raise `timeout` up to JOB_TIMEOUT."


class ResultRefused(WorkerError):
    """RunPod refused the finished result; this error was posted instead."""

    code = "RESULT_REFUSED"
    default_hint = (
        "Ask for fewer or smaller pictures: RunPod accepts 10 MB for /run, 20 MB for /runsync."
    )


class WorkerEnding(WorkerError):
    """The worker that serves HTTP ends: it takes no job, and this one has not ended in time."""

    code = "WORKER_ENDING"
    default_hint = "Send the job again."


class MachineExhausted(WorkerError):
    """The worker's machine ran out of memory, threads or file descriptors; a new worker follows."""

    code = "MACHINE_EXHAUSTED"
    default_hint = "Send the job again. If it fails again, use a machine with more memory."


class InternalError(WorkerError):
    """The worker has a bug; its log has the traceback under this id."""

    code = "INTERNAL_ERROR"
    default_hint = "This is a bug in the worker: report it with the id and the log."

    @classmethod
    def with_id(cls) -> InternalError:
        """Make an error with a new id, which is also in `details`."""
        incident = uuid.uuid4().hex[:12]
        return cls(f"the worker failed, id {incident}.", id=incident)
