"""The engine's HTTP API, `/sdapi/v1` of A1111 v1.9.3; each failure becomes one of our errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from urllib3.util import Retry

from worker import large_json
from worker.errors import (
    CacheDamaged,
    ConnectionLost,
    EngineFault,
    EnginePoisoned,
    EngineRefused,
    IncompleteAnswer,
    NoCheckpoint,
    OutOfMemory,
    RouteMissing,
    WorkerError,
)
from worker.generation import answers
from worker.generation.answers import reading
from worker.generation.catalog import Catalog
from worker.generation.picture_answer import PictureAnswer
from worker.webui.connection import LimitedAdapter
from worker.webui.timing import DEFAULT_TIMING, EngineTiming

_NOT_JSON = object()
_NO_ANSWER = (requests.RequestException, urllib3.exceptions.HTTPError)
_NO_LENGTH = (OverflowError, MemoryError)  # the answer's header claims one that no memory has
_READ_OF_ERRORS = 5000  # bytes
# Pictures that the job brought; with include_init_images A1111 would repeat them.
_BROUGHT = {"init_images", "mask", "latent_mask"}

# Texts in an answer with status 500 -> the fault; checked in this order (measured on v1.9.3).
_FAULTS: tuple[tuple[type[WorkerError], tuple[str, ...]], ...] = (
    (OutOfMemory, ("outofmemoryerror", "out of memory", "can't allocate memory")),
    (
        CacheDamaged,
        (
            "sqlite",
            "operationalerror",
            "databaseerror",
            "file is not a database",
            "unable to open database file",
            "database disk image is malformed",
        ),
    ),
    (
        EnginePoisoned,
        (
            "cuda error",
            "cublas",
            "cudnn",
            "device-side assert",
            "illegal memory access",
            "expected all tensors to be on the same device",
            "found no nvidia driver",
            "'nonetype' object has no attribute 'lowvram'",
        ),
    ),
    # The second text: no model could be loaded, so there is none to read embeddings for.
    (NoCheckpoint, ("no checkpoints found", "'nonetype' object has no attribute 'cond_stage_m")),
)


class WebUI:
    """A client of one engine. Thread-safe; a pooled connection is checked before each use."""

    def __init__(self, url: str, *, timing: EngineTiming = DEFAULT_TIMING) -> None:
        self._timing = timing
        self._address = urlsplit(url).netloc.rpartition("@")[2]  # without a password
        self._url = url
        self._session = requests.Session()
        # No proxy and no .netrc: the engine is on this machine, where compression only costs time.
        self._session.trust_env = False
        self._session.headers["Accept-Encoding"] = "identity"
        # Only GET may be repeated. A refused connection is reported at once: the engine is down.
        retry = Retry(
            total=2,
            connect=0,
            backoff_factor=0.1,
            status_forcelist={502, 503, 504},
            allowed_methods={"GET"},
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, LimitedAdapter(max_retries=retry))

    # Generation ------------------------------------------------------------------------------

    def draw(self, route: str, body: Mapping[str, Any], timeout: float) -> PictureAnswer:
        """Draw by POST to txt2img or img2img; blocks until the engine returns the pictures.

        Raises:
            ConnectionLost: there was no answer.
            IncompleteAnswer: the answer has no pictures or no info.
            WorkerError: see `error_from_answer`.
        """
        answer = self.post(route, body, timeout)
        try:
            images = answers.texts(answer["images"], "images")
            parameters, info = answers.an_object(answer["parameters"]), answers.text(answer, "info")
        except (LookupError, TypeError) as error:
            raise IncompleteAnswer(
                f"the engine's answer to {route} has no images or info."
            ) from error
        parameters = {name: v for name, v in parameters.items() if name not in _BROUGHT}
        drawn = PictureAnswer(images, parameters, info, answers.facts(info))
        if not 0 <= drawn.grids <= len(images):
            raise IncompleteAnswer(
                f"the engine's answer has {len(images)} pictures, not the grids that it reports."
            )
        return drawn

    def progress(self, *, preview: bool = False) -> dict[str, Any]:
        """Progress of the running job; `current_image` is its preview in base64, or None."""
        route = "progress"
        answer = self.get(f"{route}?skip_current_image={'false' if preview else 'true'}")
        with reading(route):
            answers.an_object(answers.an_object(answer)["state"], "state")
            answers.text({"current_image": answer.get("current_image") or ""}, "current_image")
        return dict(answer)

    def is_idle(self) -> bool:
        """Whether no job runs: then A1111 leaves the job's name empty."""
        return not self.progress()["state"].get("job")

    def interrupt(self) -> None:
        """Stop the running job at its next step; its POST answers 200 with a partial picture."""
        self.post("interrupt", None, self._timing.quick_timeout)

    # Models ----------------------------------------------------------------------------------

    def sd_models(self) -> list[dict[str, Any]]:
        """The checkpoints that the engine lists: title, model_name, hash, sha256, filename."""
        return self._objects("sd-models")

    def loras(self) -> list[dict[str, Any]]:
        """The LoRAs that the engine lists: name, alias, path, metadata."""
        return self._objects("loras")

    def embeddings(self) -> dict[str, Any]:
        """`{"loaded": {name: ...}, "skipped": {name: ...}}` for the loaded checkpoint."""
        listed = self._object("embeddings")
        with reading("embeddings"):
            kinds = ("loaded", "skipped")
            return {kind: answers.an_object(listed.get(kind) or {}, kind) for kind in kinds}

    def refresh(self) -> None:
        """Let the engine read its folders of checkpoints, VAEs, LoRAs and embeddings again."""
        for kind in ("checkpoints", "vae", "loras"):
            self.post(f"refresh-{kind}", None, self._timing.refresh_timeout)
        self.refresh_embeddings()
        self._of_extension("controlnet/model_list")  # reads the folder

    def refresh_embeddings(self) -> None:
        """Let the engine read its embeddings again.

        A1111 v1.9.3 answers 500 without a model; it reads them when it loads one.
        """
        with suppress(NoCheckpoint):
            self.post("refresh-embeddings", None, self._timing.refresh_timeout)

    # State -----------------------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        """The engine's settings and their values."""
        return self._object("options")

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Change settings permanently; returns after a newly set checkpoint is loaded."""
        self.post("options", options, self._timing.quick_timeout)

    def memory(self) -> dict[str, Any]:
        """RAM and CUDA memory in bytes, as the engine reports them."""
        return self._object("memory")

    def ram_used(self) -> float:
        """The bytes of memory that the engine's process uses."""
        memory = self.memory()
        with reading("memory"):
            return answers.number(answers.an_object(memory["ram"], "ram"), "used")

    def catalog(self) -> Catalog:
        """The names that a job may use on this engine."""
        fields = {
            "samplers": self.get("samplers"),
            "schedulers": self.get("schedulers"),
            "upscalers": self.get("upscalers"),
            "latent_modes": self.get("latent-upscale-modes"),
            "scripts": self.get("scripts"),
            "script_info": self._script_info(),
            "styles": self.get("prompt-styles"),
            "detectors": self._of_extension("adetailer/v1/ad_model"),
        }
        with reading("samplers, schedulers, upscalers, scripts, prompt-styles"):
            return Catalog.from_answers(**fields)

    def _script_info(self) -> Any:  # noqa: ANN401 - JSON
        """The scripts' arguments; none if the engine fails to describe those of an extension."""
        try:
            return self.get("script-info")
        except (EngineFault, RouteMissing):
            return ()

    # Wire ------------------------------------------------------------------------------------

    def _of_extension(self, route: str) -> Any:  # noqa: ANN401 - JSON
        """The answer of a route that an extension adds; None without the extension."""
        try:
            return self._call("GET", f"/{route}", None, self._timing.refresh_timeout)
        except RouteMissing:
            return None

    def _object(self, route: str) -> dict[str, Any]:
        answer = self.get(route)
        with reading(route):
            return answers.an_object(answer)

    def _objects(self, route: str) -> list[dict[str, Any]]:
        answer = self.get(route)
        with reading(route):
            return answers.objects(answer)

    def get(self, route: str) -> Any:  # noqa: ANN401 - JSON
        """The answer of a route that only reads; see `error_from_answer` for errors."""
        return self._call("GET", route, None, self._timing.quick_timeout)

    def post(self, route: str, body: Mapping[str, Any] | None, timeout: float) -> Any:  # noqa: ANN401
        """The answer of a route that computes or changes something; blocks until it is there."""
        return self._call("POST", route, body, timeout)

    def _lost(self, method: str, route: str, problem: str) -> ConnectionLost:
        return ConnectionLost(
            f"{method} {route}: no answer from the engine at {self._address} ({problem})."
        )

    def _call(self, method: str, route: str, body: Mapping[str, Any] | None, timeout: float) -> Any:  # noqa: ANN401
        path = route if route.startswith("/") else f"/sdapi/v1/{route}"
        try:
            with self._session.request(
                method,
                f"{self._url}{path}",
                json=body,
                timeout=(self._timing.connect_timeout, timeout),
                stream=True,
            ) as response:
                # In one piece: requests would copy it in pieces of 10 kB.
                content = response.raw.read(decode_content=True)
        except _NO_LENGTH as error:
            problem = type(error).__name__
            content = None
        except _NO_ANSWER as error:
            raise self._lost(method, route, type(error).__name__) from error
        if content is None:  # not in the `except`: it is no memory of this machine that lacks
            raise self._lost(method, route, problem)
        try:
            answer = large_json.parse(content)
        except ValueError:
            answer = _NOT_JSON
        if response.status_code == requests.codes.ok and answer is not _NOT_JSON:
            return answer
        start = content[:_READ_OF_ERRORS].decode(errors="replace")
        raise error_from_answer(route, response.status_code, answer, start)


def error_from_answer(route: str, status: int, answer: Any, text: str) -> WorkerError:  # noqa: ANN401
    """The error for an answer other than a 200 with JSON.

    A missing route answers exactly `{"detail": "Not Found"}`. A1111's own errors have the key
    `error`, and the text in `detail` or `errors`. A failed validation has only `detail`.
    """
    if answer == {"detail": "Not Found"}:
        return RouteMissing(f"{route}: the engine does not have this route.", route=route)
    fields = answer if isinstance(answer, dict) else {}
    name = str(fields.get("error") or "")[:100]
    text = _sentence(fields.get("errors") or fields.get("detail") or text)
    if 400 <= status < 500:  # noqa: PLR2004 - the class of HTTP codes
        return EngineRefused(f"the engine refused the request ({status}): {text}")
    searched = f"{name} {text}".lower()
    for kind, patterns in _FAULTS:
        if any(pattern in searched for pattern in patterns):
            return kind(f"the engine answered {status}: {name} {text}")
    return EngineFault(f"{route}: the engine answered {status}: {name or 'not JSON:'} {text}")


def _sentence(value: object, limit: int = 400) -> str:
    """The engine's text on one line, shortened, and without the folders of its machine."""
    text = " ".join((value if isinstance(value, str) else json.dumps(value)).split())
    text = _without_paths(text)
    if len(text) > limit:
        return f"{text[:limit]}..."
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _without_paths(text: str) -> str:
    """`/a/b/c.safetensors` becomes `c.safetensors`; URLs and fractions stay as they are."""
    return " ".join(
        word.rsplit("/", 1)[-1] if word.lstrip("'\"(").startswith("/") else word
        for word in text.split(" ")
    )


def of_generation(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A progress report from the engine's answer to GET /progress.

    Before the first step the engine loads a checkpoint or waits: its estimate is meaningless then.
    """
    with reading("progress"):
        state = answers.an_object(answer["state"], "state")
        step, steps, index, count = (
            answers.number(state, key)
            for key in ("sampling_step", "sampling_steps", "job_no", "job_count")
        )
        if not step and not index:
            return {"phase": "load"}
        of_many = f", batch {index + 1} of {count}" if count > 1 else ""
        return {
            "phase": "generate",
            "step": step,
            "steps": steps,
            "percent": round(100 * answers.number(answer, "progress"), 1),
            "eta_seconds": round(max(0.0, answers.number(answer, "eta_relative")), 1),
            "message": f"step {step} of {steps}{of_many}",
        }
