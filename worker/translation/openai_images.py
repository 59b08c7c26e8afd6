"""OpenAI's images API: its requests as inputs of our jobs, our answers and errors as its own. Pure.

    {"openai_route": "/v1/images/generations",
     "openai_input": {"model": "realistic", "prompt": "a red fox", "size": "1024x1024", "n": 2}}

is how RunPod hands `/v2/ENDPOINT/openai/v1/images/generations` to a worker. Fields that are not
OpenAI's are fields of our job; they are checked as those of any job.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from worker.clients.nothing_asked import is_blank
from worker.errors import InvalidInput, ModelNotFound
from worker.formats.names import without_suffix
from worker.job.reference import StoreName, parse_reference
from worker.shown import shown, shown_name
from worker.spelling import near_matches

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
MODELS = "/v1/models"
ROUTES = (GENERATIONS, EDITS, MODELS)
DEFAULT_MODEL = "default"
FORMATS = ("png", "jpeg", "webp")

# OpenAI bills tokens, and its clients expect numbers.
NO_USAGE: dict[str, Any] = {
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}

ErrorType = Literal["invalid_request_error", "server_error"]

_MOST_PICTURES = 10  # OpenAI's own limit
_MOST_PARTIAL = 3  # the same
_SIZE = re.compile(r"(?a)\s*(\d{1,6})\s*[xX]\s*(\d{1,6})\s*")
_WHOLE = re.compile(r"(?a)[+-]?\d{1,18}")
_INDEX = re.compile(r"\.\d.*", re.DOTALL)
_MOST_NAMED = 50  # models in one message

# Parameters that OpenAI's own models read. Here a template or our own fields decide.
_WITHOUT_EFFECT = (
    *("quality", "style", "moderation", "user", "safety_identifier", "complexity"),
    "input_fidelity",
)
_UNASKED = {"quality": ("auto",), "moderation": ("auto",)}  # values that say the same as nothing
_REFUSED = {
    "frame_count": "belongs to GIF files, which this worker does not make: leave it out",
    "frame_duration_ms": "belongs to GIF files, which this worker does not make: leave it out",
    "svg": "belongs to SVG files, which this worker does not make: leave it out",
    "markup": "is not supported: mark the part that is drawn anew with `mask`",
    "task": "cannot be chosen here: the route is the task",
}
# Our field -> OpenAI's parameter that it comes from.
_PARAMETERS = {
    "checkpoint": "model",
    "template": "model",
    "batch_size": "n",
    "width": "size",
    "height": "size",
    "output.format": "output_format",
    "output.quality": "output_compression",
    "output": "output_compression",
    "output.delivery": "response_format",
    "init_images": "image",
    "init_images.0": "image",
}


@dataclass
class ImagesRequest:
    """What a request asks for.

    Attributes:
        task: of our job.
        model: the name of the model; None: the default one.
        stream: whether the client reads events instead of one answer.
        partial_images: how many unfinished pictures it wants to see.
        job: the input of our job; `model` and the pictures of an edit are not in it yet.
        image: the picture of an edit; base64, a data URI or a URL.
        mask: the same; its transparent part is drawn anew.
        notes: sentences about parameters that have no effect.
    """

    task: str
    model: str | None = None
    stream: bool = False
    partial_images: int = 0
    job: dict[str, Any] = field(default_factory=dict)
    image: str | None = None
    mask: str | None = None
    notes: list[str] = field(default_factory=list)


def route_of(text: object) -> tuple[str, str | None]:
    """The route and, for `/v1/models/ID`, the id.

    Raises:
        InvalidInput: there is no such route; `status` in its details is 404.
    """
    route = text.strip()[:1024].rstrip("/") if isinstance(text, str) else ""
    if route in ROUTES:
        return route, None
    if route.startswith(f"{MODELS}/"):
        return MODELS, route.removeprefix(f"{MODELS}/")
    raise InvalidInput(
        f"openai_route = {shown(text)} is not served.",
        hint=f"This worker has {', '.join(ROUTES)} of OpenAI's API.",
        param=None,
        status=404,
    )


def read(route: str, body: object) -> ImagesRequest:
    """Read the body of `GENERATIONS` or `EDITS`; null is a parameter that is not given.

    Raises:
        InvalidInput: a parameter is missing or cannot be what it is; `param` in its details.
    """
    if not isinstance(body, Mapping):
        raise _wrong("openai_input", f"is {shown(body)}, not an object", None)
    given = {name: one for name, one in _merged(body).items() if one is not None}
    for name in sorted(_REFUSED.keys() & given.keys()):
        raise _wrong(shown_name(name), _REFUSED[name], name)
    request = ImagesRequest("img2img" if route == EDITS else "txt2img")
    if is_blank(given.get("prompt")):
        raise _wrong("prompt", "is missing: send a text that describes the picture", "prompt")
    request.model = _model(given.pop("model", None))
    request.stream = _switch(given, "stream")
    request.partial_images = _number(given, "partial_images", 0, _MOST_PARTIAL) or 0
    request.notes.extend(_without_effect(given))
    if route != EDITS and (edited := sorted({"image", "images", "mask"} & given.keys())):
        raise _wrong(edited[0], f"belongs to {EDITS}: send the request there", edited[0])
    if route == EDITS:
        request.image, request.mask = _picture(given), _text(given, "mask")
    output = _output(given, request.notes)
    request.job = {**_pictures(given), **given}
    if output:
        request.job["output"] = output
    return request


def for_queue(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a checked request for a queue job, which cannot stream.

    Where the client wants unfinished pictures, the job's progress reports have them.
    """
    job = _merged(body)
    stream = _switch(job, "stream") if job.get("stream") is not None else False
    if (_number(job, "partial_images", 0, _MOST_PARTIAL) or 0) and stream:
        job["output"] = {**(job.get("output") or {}), "preview": True}
    return job


def _merged(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with what is in `extra_body`, which OpenAI's Python client merges by itself."""
    extra = body.get("extra_body")
    if extra is None:
        return {name: one for name, one in body.items() if name != "extra_body"}
    if not isinstance(extra, Mapping):
        raise _wrong("extra_body", f"is {shown(extra)}, not an object", "extra_body")
    if twice := sorted(extra.keys() & body.keys(), key=str):
        where = shown_name(str(twice[0]))
        raise _wrong(where, "is in extra_body and beside it: send it once", str(twice[0])[:80])
    return {**{name: one for name, one in body.items() if name != "extra_body"}, **extra}


def _wrong(what: str, problem: str, param: str | None) -> InvalidInput:
    return InvalidInput(f"{what} {problem}.", param=param)


def _model(value: object) -> str | None:
    if is_blank(value):
        return None
    if not isinstance(value, str):
        raise _wrong("model", f"= {shown(value)}: must be the name of a model", "model")
    return value.strip()


def _number(given: dict[str, Any], name: str, least: int, most: int) -> int | None:
    """A whole number; a form has it as text."""
    value = given.pop(name, None)
    if value is None:
        return None
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        problem = f"= {shown(value)}: must be a whole number from {least} to {most}"
        raise _wrong(name, problem, name)
    return value


def _switch(given: dict[str, Any], name: str) -> bool:
    value = given.pop(name, False)
    if value in ("true", "false"):  # in a form
        value = value == "true"
    if not isinstance(value, bool):
        raise _wrong(name, f"= {shown(value)}: must be true or false", name)
    return value


def _text(given: dict[str, Any], name: str) -> str | None:
    """A picture; OpenAI's JSON form is `{"image_url": "data:..."}`."""
    value = given.pop(name, None)
    if isinstance(value, Mapping) and value.keys() == {"image_url"}:
        value = value["image_url"]
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    problem = f"= {shown(value)}: must be a picture as base64, data URI or https URL"
    raise _wrong(name, problem, name)


def _picture(given: dict[str, Any]) -> str:
    if "image" in given and "images" in given:
        raise _wrong("images", "says the same as image: send one of them", "image")
    several = given.pop("images", None) if "images" in given else given.pop("image", None)
    pictures = several if isinstance(several, list) else [several]
    if len(pictures) > 1:
        problem = f"has {len(pictures)} pictures: this worker begins with one, and combines none"
        raise _wrong("image", problem, "image")
    found = _text({"image": pictures[0]}, "image") if pictures else None
    if found is None:
        raise _wrong("image", "is missing: send the picture that is edited", "image")
    return found


def _without_effect(given: dict[str, Any]) -> Iterator[str]:
    for name in _WITHOUT_EFFECT:
        value = given.pop(name, None)
        if value is not None and value not in _UNASKED.get(name, ()):
            yield f"{name} has no effect: this worker's templates and own fields decide."
    background = given.pop("background", "auto")
    if background not in ("auto", "opaque"):
        problem = f"= {shown(background)}: this worker's pictures are opaque"
        raise _wrong("background", problem, "background")


def _pictures(given: dict[str, Any]) -> dict[str, Any]:
    """Number and size of the pictures, as our fields."""
    asked: dict[str, Any] = {}
    if (count := _number(given, "n", 1, _MOST_PICTURES)) is not None:
        asked["batch_size"] = count
        given.setdefault("n_iter", 1)  # a template may have more
    size = given.pop("size", "auto")
    if not isinstance(size, str) or size.strip() not in {"auto", ""}:
        found = _SIZE.fullmatch(size[:64]) if isinstance(size, str) else None
        if not found:
            problem = (
                f'= {shown(size)}: must be WIDTHxHEIGHT in pixels, such as "1024x1024", or "auto"'
            )
            raise _wrong("size", problem, "size")
        asked["width"], asked["height"] = int(found[1]), int(found[2])
    for name in asked.keys() & given.keys():
        if given[name] != asked[name]:
            raise _twice(_PARAMETERS[name], name, given[name])
    return asked


def _output(given: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The job's `output`: format and delivery of the pictures."""
    output = given.pop("output", {})
    if not isinstance(output, Mapping):
        raise _wrong("output", f"= {shown(output)}: must be an object", "output")
    asked: dict[str, Any] = {}
    if (format_ := given.pop("output_format", None)) is not None:
        if format_ not in FORMATS:
            problem = f"= {shown(format_)}: must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            raise _wrong("output_format", problem, "output_format")
        asked["format"] = format_
    asked |= _quality(given, asked.get("format", output.get("format", "png")), notes)
    asked |= _delivery(given, output)
    for name in asked.keys() & output.keys():
        if output[name] != asked[name]:
            raise _twice(_PARAMETERS[f"output.{name}"], f"output.{name}", output[name])
    return {**output, **asked}


def _delivery(given: dict[str, Any], output: Mapping[str, Any]) -> dict[str, str]:
    """How `response_format` wants the pictures; base64 is obeyed even if the job has a bucket."""
    response_format = given.pop("response_format", None)
    if response_format not in (None, "b64_json", "url"):
        problem = f"= {shown(response_format)}: must be b64_json or url"
        raise _wrong("response_format", problem, "response_format")
    if response_format == "url":
        return {"delivery": "s3"}
    return {"delivery": "base64"} if response_format and "delivery" not in output else {}


def _quality(given: dict[str, Any], format_: object, notes: list[str]) -> dict[str, Any]:
    """0 to 100 of OpenAI as 1 to 100; some clients send 100 with PNG, which has no quality."""
    most = 100
    quality = _number(given, "output_compression", 0, most)
    if quality is None:
        return {}
    if format_ == "png" and quality == most:
        notes.append("output_compression has no effect: PNG files have no quality.")
        return {}
    if format_ == "png":
        problem = f"= {quality}: PNG files have no quality, send output_format jpeg or webp"
        raise _wrong("output_compression", problem, "output_compression")
    return {"quality": max(quality, 1)}


def _twice(name: str, ours: str, value: object) -> InvalidInput:
    return _wrong(name, f"and {ours} = {shown(value)} say different things: send one of them", name)


# The model --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServedModels:
    """What `model` can name.

    Attributes:
        templates: their names in jobs -> their display names.
        checkpoints: file names in the model store.
    """

    templates: Mapping[str, str]
    checkpoints: Collection[str]

    def ids(self) -> list[str]:
        """Every id, the default one first."""
        return list(dict.fromkeys((DEFAULT_MODEL, *self.templates, *sorted(self.checkpoints))))

    def fields(self, model: str) -> dict[str, str]:
        """The field of our job that names this model.

        Args:
            model: a template, by its name or its display name; `DEFAULT_MODEL`; a checkpoint of
                the store, with or without suffix and title's hash; or a reference, such as a URL.

        Raises:
            ModelNotFound: it is none of them; the hint names the models.
        """
        if model in self.templates:
            return {"template": model}
        if model == DEFAULT_MODEL:
            return {}
        name = _without_hash(model)
        if name in self.checkpoints:
            return {"checkpoint": name}
        for key, title in self.templates.items():
            if model == title:
                return {"template": key}
        known = {form.casefold() for one in self.checkpoints for form in (one, without_suffix(one))}
        if name.casefold() in known:
            return {"checkpoint": name}  # the store decides between several of this name
        if _names_a_source(model):
            return {"checkpoint": model}
        raise self.unknown(model)

    def kind(self, model: str) -> str:
        """What an id of `ids` is: `default`, `template` or `checkpoint`."""
        if model == DEFAULT_MODEL:
            return DEFAULT_MODEL
        return "template" if model in self.templates else "checkpoint"

    def unknown(self, model: str) -> ModelNotFound:
        """The error for a model that is not served; its hint names those that are."""
        ids = self.ids()
        near = near_matches(model, ids)
        named = [*near, *(one for one in ids if one not in near)][:_MOST_NAMED]
        more = f" and {len(ids) - len(named)} more" if len(ids) > len(named) else ""
        return ModelNotFound(
            f"model {shown(model)} is not served here.",
            hint=f"The models are {', '.join(map(repr, named))}{more}. A template of this name in"
            " templates.json would serve it.",
            param="model",
        )


def _without_hash(title: str) -> str:
    """`name.safetensors [0123456789]`, A1111's title, as the file name."""
    name, bracket, digits = title.rpartition(" [")
    is_hash = digits.endswith("]") and digits[:-1].isalnum()
    return name.rstrip() if bracket and is_hash else title


def _names_a_source(text: str) -> bool:
    """Whether the text names a model at a host or by its hash, not by a name in the store."""
    try:
        return not isinstance(parse_reference(text), StoreName)
    except InvalidInput:
        return False


# Errors -----------------------------------------------------------------------------------------

_STATUS = {
    "INVALID_INPUT": 400,
    "MODEL_NOT_FOUND": 404,
    "TEMPLATE_NOT_FOUND": 404,
    "MODEL_FORBIDDEN": 403,
    "MODEL_EARLY_ACCESS": 403,
    "MODEL_RATE_LIMITED": 503,
    "MODEL_HOST_FAILED": 502,
    "IMAGE_HOST_FAILED": 502,
    "ENGINE_NOT_READY": 503,
    "ENGINE_CONNECTION_LOST": 503,
    "JOB_TIMEOUT": 504,
}
_SERVER_ERROR = 500


def status_of(code: str, *, is_of_job: bool) -> int:
    """The HTTP status for an error's code; `is_of_job`: the job is wrong and would fail again."""
    return _STATUS.get(code, 400 if is_of_job else _SERVER_ERROR)


def type_of(status: int) -> ErrorType:
    """OpenAI's word for the kind of an error."""
    return "server_error" if status >= _SERVER_ERROR else "invalid_request_error"


def parameter_of(problems: Iterable[str], sent: Collection[str]) -> str | None:
    """The parameter with which the first problem of a job begins.

    It is OpenAI's parameter if the request has `sent` it, and otherwise our own field.
    """
    first = next(iter(problems), "").split(" ", 1)[0].rstrip(":")
    place = first if first in _PARAMETERS else _INDEX.sub("", first)
    ours = _PARAMETERS.get(place)
    return ours if ours in sent else place or None
