"""The tasks that list names: the values that fields of other jobs can have.

Models are those of the model store, which are the ones that a job can name; the rest are names of
the engine. A list does not wait for the picture that is being drawn. `LISTS` is the table.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, create_model

from worker.answer import ABOUT_NOTES, Absent, Answer, AnswerPart, left_out
from worker.errors import EngineError
from worker.formats.model_file import ModelFile
from worker.formats.names import Kind, without_suffix
from worker.generation.answers import an_object, objects, reading, text, texts
from worker.generation.catalog import WITHOUT_MODEL, Style
from worker.job.model_fields import ABOUT_TASK, Int, TaskInput
from worker.service.parts import Worker
from worker.service.task import Job, Task

_MOST = 5000  # items in one answer: about 2 MB
Json = Any


class ListRequest(TaskInput):
    """The fields that every list has."""

    search: str = Field(
        "", max_length=256, description="Only names that contain this text, in any case."
    )
    limit: Int = Field(1000, ge=1, le=_MOST, description="Items in the answer, at most.")


class Listed(AnswerPart):
    """An item of a list."""

    name: str = Field(description="The name that a job gives.")


class StoredFile(Listed):
    """A model file of the store."""

    sha256: str | None = Field(
        description="SHA-256 of a file that a worker fetched, or of a cached one if it is known;"
        " null for the operator's own."
    )
    size: int = Field(description="Bytes.")
    source: str | None = Field(
        description="Where it is from: `hf://repo@commit/path`, `civitai:...`, a URL; null for the"
        " operator's own."
    )
    in_engine: bool | None = Field(
        description="Whether the engine lists it now; jobs can name it in any case. Null: the"
        " engine does not answer."
    )


class ListedModel(StoredFile):
    """A checkpoint."""

    title: str = Field(description="Its title in A1111: the name, and the hash if it has one.")
    model_name: str = Field(description="Its name in A1111: the name without suffix, `_` for `/`.")
    hash: str | None = Field(description="The first 10 digits of its SHA-256, if that is known.")


class ListedLora(StoredFile):
    """A LoRA."""

    trained_words: list[str] = Field(description="Its trigger words, if they are known.")


class ListedEmbedding(StoredFile):
    """An embedding; A1111 can only use those that fit the loaded checkpoint."""


class ListedVae(StoredFile):
    """A VAE."""


class ListedSampler(Listed):
    """A sampler."""

    aliases: list[str] = Field(description="Other spellings.")
    scheduler: str | None = Field(description="The one that it uses by default.")


class ListedScheduler(Listed):
    """A scheduler."""

    aliases: list[str] = Field(description="Other spellings.")


class ListedUpscaler(Listed):
    """An upscaler."""

    fields: list[str] = Field(description="The fields that can name it.")
    scale: float | None = Field(description="By how much its model enlarges; null: it has none.")


class ListedScript(Listed):
    """A script of A1111."""

    tasks: list[str] = Field(description="The tasks that can run it.")
    always_on: bool | None = Field(
        description="Whether it is named in `alwayson_scripts`, not in `script_name`; null: the"
        " engine does not say."
    )
    args: list[str] = Field(description="The labels of its arguments, in their order.")


class ListedStyle(Listed):
    """A style."""

    prompt: str = Field(description="What it adds to the prompt.")
    negative_prompt: str = Field(description="What it adds to the negative prompt.")


# Models of the store ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """How the files of one kind are listed.

    Attributes:
        item: the type of an item.
        route: where the engine lists this kind.
        entries: of the engine's answer: name in the engine -> what it says about the file.
        more: the item's further fields, from its name, the file and what the engine says about it.
    """

    item: type[StoredFile]
    route: str
    entries: Callable[[Json], Mapping[str, Json]]
    more: Callable[[str, ModelFile, Json], dict[str, Any]] = lambda _name, _file, _entry: {}


async def _files(worker: Worker, job: Job, kind: Kind) -> list[StoredFile]:
    how, listed = _STORED[kind], None
    # The store is listed in any case; A1111 also answers 500 for odd metadata of one LoRA.
    with suppress(EngineError):
        answer = await worker.engine.listed(how.route)
        with reading(how.route):
            listed = how.entries(answer)
    files = await worker.threads.run(job.stopwatch, worker.models.list_files, kind)
    return [_file(how, name, file, listed) for name, file in files.items()]


def _file(
    how: _Stored, name: str, file: ModelFile, listed: Mapping[str, Json] | None
) -> StoredFile:
    known = listed or {}
    entry = known.get(file.stem) or known.get(file.filename) or {}
    is_listed = file.stem in known or file.filename in known
    fields = {
        "name": name,
        "sha256": file.verified_sha256,
        "size": file.size,
        "source": file.source,
        "in_engine": None if listed is None else is_listed,
    }
    return how.item.model_construct(**fields | how.more(name, file, entry))


def _by(key: str) -> Callable[[Json], dict[str, Json]]:
    return lambda answer: {text(one, key): one for one in objects(answer)}


def _loaded_and_skipped(answer: Json) -> dict[str, Json]:
    embeddings = an_object(answer)
    parts = (an_object(embeddings.get(part) or {}) for part in ("loaded", "skipped"))
    return {name: {} for part in parts for name in part}


def _of_checkpoint(name: str, file: ModelFile, entry: Mapping[str, Json]) -> dict[str, Any]:
    """The engine knows the hash of a file that it has loaded."""
    known = entry.get("sha256")
    sha256 = file.verified_sha256 or (known if isinstance(known, str) else None)
    digits = sha256[:10] if sha256 else None
    title = f"{name} [{digits}]" if digits else name
    # A1111 joins the folders of a name with underscores.
    model_name = without_suffix(name).replace("/", "_") if "/" in name else file.stem
    return {"sha256": sha256, "hash": digits, "title": title, "model_name": model_name}


_STORED: dict[Kind, _Stored] = {
    "checkpoint": _Stored(ListedModel, "sd-models", _by("model_name"), _of_checkpoint),
    "lora": _Stored(
        ListedLora,
        "loras",
        _by("name"),
        lambda _name, file, _entry: {"trained_words": [*file.trained_words]},
    ),
    "vae": _Stored(ListedVae, "sd-vae", _by("model_name")),
    "embedding": _Stored(ListedEmbedding, "embeddings", _loaded_and_skipped),
}


# Names of the engine ------------------------------------------------------------------------------


async def _names(
    worker: Worker,
    _job: Job,
    *,
    routes: Sequence[str],
    read: Callable[..., list[Listed]],
    optional: str = "",
) -> list[Listed]:
    """What `read` makes of the answers of these routes; null for an optional one that fails."""
    answers = [await worker.engine.listed(route) for route in routes]
    if optional:
        answers.append(None)
        with suppress(EngineError):
            answers[-1] = await worker.engine.listed(optional)
    with reading(", ".join(routes)):
        return read(*answers)


def _samplers(samplers: Json) -> list[Listed]:
    return [
        ListedSampler.model_construct(
            name=text(one, "name"),
            aliases=texts(one["aliases"], "aliases"),
            scheduler=an_object(one.get("options") or {}).get("scheduler"),
        )
        for one in objects(samplers)
    ]


def _schedulers(schedulers: Json) -> list[Listed]:
    return [
        ListedScheduler.model_construct(
            name=text(one, "label"),
            aliases=[text(one, "name"), *texts(one["aliases"], "aliases")],
        )
        for one in objects(schedulers)
    ]


def _upscalers(upscalers: Json, latent_modes: Json) -> list[Listed]:
    both, second_pass = ["upscaler_1", "upscaler_2", "hr_upscaler"], ["hr_upscaler"]
    return [
        ListedUpscaler.model_construct(
            name=text(one, "name"),
            fields=fields,
            scale=one.get("scale") if text(one, "name") not in WITHOUT_MODEL else None,
        )
        for listed, fields in ((upscalers, both), (latent_modes, second_pass))
        for one in objects(listed)
        if text(one, "name") != "None"
    ]


def _scripts(scripts: Json, info: Json) -> list[Listed]:
    by_task = {task: texts(names, task) for task, names in an_object(scripts).items()}
    details: dict[str, Mapping[str, Json]] = {}
    for one in objects(info or []):
        details.setdefault(text(one, "name").casefold(), one)
    return [
        ListedScript.model_construct(
            name=name,
            tasks=[task for task, known in by_task.items() if name in known],
            **_about_script(details.get(name.casefold())),
        )
        for name in dict.fromkeys(name for names in by_task.values() for name in names)
    ]


def _about_script(one: Mapping[str, Json] | None) -> dict[str, Any]:
    labels = [str(arg.get("label") or "") for arg in objects((one or {}).get("args") or [])]
    return {"always_on": bool(one["is_alwayson"]) if one else None, "args": labels}


def _styles(styles: Json) -> list[Listed]:
    return [
        ListedStyle.model_construct(name=text(one, "name"), **vars(Style.from_answer(one)))
        for one in objects(styles)
    ]


# The table ----------------------------------------------------------------------------------------


def _task(
    name: str,
    description: str,
    item: type[Listed],
    read: Callable[[Worker, Job], Awaitable[Sequence[Listed]]],
) -> Task[Worker]:
    """A task that lists items; each answer has them under the task's own name."""
    asked: dict[str, Any] = {
        "task": (Literal[name], Field(description=ABOUT_TASK)),
    }
    answered: dict[str, Any] = {
        name: (list[item], Field(description="The list.")),  # type: ignore[valid-type]
        "total": (int, Field(description="Number of items that match `search`.")),
        "timings": (dict[str, float], Field(description="Seconds: `total`.")),
        "warnings": (list[str] | Absent, left_out(ABOUT_NOTES)),
    }
    title, about = name.title(), f"The answer of the task `{name}`."
    fields = create_model(f"{title}Request", __base__=ListRequest, **asked)
    output = create_model(f"{title}List", __base__=Answer, __doc__=about, **answered)

    async def run(worker: Worker, job: Job, wanted: ListRequest) -> Answer:
        text = wanted.search.strip().casefold()
        found = [one for one in await read(worker, job) if text in one.name.casefold()]
        answer: dict[str, Any] = {
            name: found[: wanted.limit],
            "total": len(found),
            "timings": job.stopwatch.timings(),
        }
        return output.model_construct(**answer)

    return Task(name, description, run, output, fields, is_quick=True)


def _of_store(name: str, what: str, kind: Kind) -> Task[Worker]:
    about = f"Lists the {what} that jobs can name."
    return _task(name, about, _STORED[kind].item, functools.partial(_files, kind=kind))


def _of_engine(
    name: str,
    what: str,
    item: type[Listed],
    read: Callable[..., list[Listed]],
    *routes: str,
    optional: str = "",
) -> Task[Worker]:
    names = functools.partial(_names, routes=routes, read=read, optional=optional)
    return _task(name, f"Lists the {what} of the engine.", item, names)


LISTS = (
    _of_store("models", "checkpoints", "checkpoint"),
    _of_store("loras", "LoRAs", "lora"),
    _of_store("vaes", "VAEs", "vae"),
    _of_store("embeddings", "embeddings", "embedding"),
    _of_engine("samplers", "samplers", ListedSampler, _samplers, "samplers"),
    _of_engine("schedulers", "schedulers", ListedScheduler, _schedulers, "schedulers"),
    _of_engine(
        "upscalers",
        "upscalers, and the latent ones for the second pass,",
        ListedUpscaler,
        _upscalers,
        *("upscalers", "latent-upscale-modes"),
    ),
    _of_engine("scripts", "scripts", ListedScript, _scripts, "scripts", optional="script-info"),
    _of_engine("styles", "styles", ListedStyle, _styles, "prompt-styles"),
)
