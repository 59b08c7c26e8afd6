"""Says what is wrong with a job's input. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from worker.clients.foreign_fields import FOREIGN_NAMES, INSTEAD
from worker.errors import InvalidInput
from worker.shown import in_plain_words, shown, shown_name
from worker.spelling import near_matches

MAX_SHOWN = 12  # problems in one message
_CLOSE = 0.8  # how similar a known field must be to be suggested: a wrong one would mislead

# What a job may have: its schema needs about a hundred keys, and scripts have arguments.
MAX_KEYS, MAX_VALUES, MAX_DEPTH = 2_000, 100_000, 60

ShowLocation = Callable[[tuple[int | str, ...]], str]


def dotted(loc: tuple[int | str, ...]) -> str:
    """`("loras", 0, "scale")` as `loras.0.scale`."""
    return ".".join(map(str, loc))


def joined(problems: Sequence[str], total: int | None = None) -> str:
    """The problems as one message; of many only the first, and how many there are."""
    more = (len(problems) if total is None else total) - min(len(problems), MAX_SHOWN)
    text = "; ".join(problems[:MAX_SHOWN])
    return f"{text} (and {more} more)." if more else text.removesuffix(".") + "."


def check_size(job_input: Mapping[str, object], inputs: int = 1) -> None:
    """Refuse an input that would keep the worker busy by its size alone.

    Args:
        job_input: what is checked.
        inputs: how many inputs of jobs it may contain; each may have as many keys as one job.

    Raises:
        InvalidInput: it has too many keys or values, or is nested too deeply.
    """
    max_keys = inputs * MAX_KEYS
    keys = values = 0
    level: Iterable[object] = [job_input]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for one in level:
            if isinstance(one, Mapping):
                keys, values = keys + len(one), values + len(one)
                inside: Iterable[object] = one.values()
            else:
                values += len(one) if isinstance(one, list) else 0
                inside = one if isinstance(one, list) else ()
            if keys > max_keys or values > MAX_VALUES:
                what = f"{max_keys:,} keys" if keys > max_keys else f"{MAX_VALUES:,} values"
                raise InvalidInput(f"the job's input has more than {what}.", hint=_TOO_LARGE)
            inner.extend(part for part in inside if isinstance(part, Mapping | list))
        if not inner:
            return
        level = inner
    raise InvalidInput(
        f"the job's input is nested more than {MAX_DEPTH} levels deep.", hint=_TOO_LARGE
    )


_LONGEST_KEY = 80  # characters of a key that are compared with known names
_TOO_LARGE = "Send only the fields that docs/api.md lists."


# Pydantic's errors ------------------------------------------------------------------------------


def problems_of(
    error: ValidationError, model: type[BaseModel], place: ShowLocation = dotted
) -> list[str]:
    """The first dozen problems, each with its field, its value and the remedy.

    `model` is what was validated.
    """
    details = error.errors(include_url=False, include_context=False)[:MAX_SHOWN]
    return list(dict.fromkeys(_problem(detail, model, place) for detail in details))


def _problem(detail: ErrorDetails, model: type[BaseModel], place: ShowLocation) -> str:
    if detail["type"] == "extra_forbidden":
        return _unknown_key(detail["loc"], model, place)
    where = shown_name(place(detail["loc"]))
    message = in_plain_words(detail["msg"])
    if not where:
        return message
    if detail["type"] == "missing":
        return f"{where} is missing"
    message = message[0].lower() + message[1:]
    if isinstance(detail["input"], Mapping) and detail["type"] == "value_error":
        return f"{where}: {message}"  # the message names the wrong part
    return f"{where} = {shown(detail['input'])}: {message}"


def _unknown_key(loc: tuple[int | str, ...], model: type[BaseModel], place: ShowLocation) -> str:
    key, where = str(loc[-1])[:_LONGEST_KEY], shown_name(place(loc))
    fields = _fields_at(model, loc[:-1])
    if fields.keys() == {"task"}:
        return f"the task takes no further fields, but got {shown(place(loc))}"
    draws = loc[:-1] or "prompt" in fields  # other tasks have few fields, which are named below
    if draws and key in INSTEAD and loc[-2:-1] in {(), ("override_settings",), ("defaults",)}:
        return f"{where} {INSTEAD[key]}"
    near = FOREIGN_NAMES.get(key)
    known = [near] if near in fields else near_matches(key, fields, count=1, cutoff=_CLOSE)
    if not known and not draws:
        return f"{where} is not a field of this task, which has {', '.join(fields)}"
    did_you_mean = f" (did you mean `{known[0]}`?)" if known else ""
    return f"{where} is not a known field{did_you_mean}"


def _fields_at(model: type[BaseModel], loc: Iterable[int | str]) -> Mapping[str, FieldInfo]:
    """The fields of the object at that place."""
    for part in loc:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        model = next(_models_in(field.annotation), model) if field else model
    return model.model_fields


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
