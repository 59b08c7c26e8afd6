"""Reads the engine's answers: JSON of another shape than A1111's is the engine's fault. Pure.

Any program may listen at WEBUI_URL, and an extension can change any route. A value of another type
must become a clear error where it arrives, not a bug report of the worker later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from worker.errors import EngineFault, IncompleteAnswer
from worker.json_text import loads

Json = Any

# The fields of txt2img's `info` that the worker reads; each may be missing or null.
_FACTS: dict[str, type] = {
    "sd_model_name": str,
    "sd_model_hash": str,
    "sd_vae_name": str,
    "extra_generation_params": dict,
    "index_of_first_image": int,
    "infotexts": list,
}


@contextmanager
def reading(route: str) -> Iterator[None]:
    """Report what the body of the `with` cannot read as a fault of the engine.

    Raises:
        EngineFault: names the route and what is wrong with its answer.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise EngineFault(
            f"{route}: the engine answered 200, but not as A1111 does: {str(error)[:200]}.",
            hint="Check that WEBUI_URL is the address of an A1111 v1.9.3.",
        ) from error


def an_object(value: Json, what: str = "the answer") -> dict[str, Any]:
    """The value, which must be an object."""
    found: dict[str, Any] = _of(dict, value, what)
    return found


def objects(value: Json) -> list[dict[str, Any]]:
    """The value, which must be a list of objects."""
    return [an_object(item, "an item") for item in _of(list, value, "the answer")]


def text(entry: Mapping[str, Json], key: str) -> str:
    """The entry's text of this key."""
    return str(_of(str, entry[key], key))


def texts(value: Json, what: str) -> list[str]:
    """The value, which must be a list of texts; null means none."""
    return [_of(str, item, f"an item of {what}") for item in _of(list, value or [], what)]


def number(entry: Mapping[str, Json], key: str) -> float:
    """The entry's finite number of this key."""
    value = entry[key]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{key} is {_shown(value)}, not a number")
    return value


def facts(info: Json) -> dict[str, Any]:
    """The content of txt2img's `info`, which is JSON as a text.

    Raises:
        IncompleteAnswer: it is not an object, or one of the fields that prove a picture is odd.
    """
    try:
        found = an_object(loads(_of(str, info, "it")), "it")
        for name, kind in _FACTS.items():
            if found.get(name) is not None:
                _of(kind, found[name], name)
        texts(found.get("infotexts"), "infotexts")
        hashes = (found.get("extra_generation_params") or {}).get("Lora hashes")
        _of(str, hashes or "", "Lora hashes")
    except (TypeError, ValueError) as error:
        raise IncompleteAnswer(f"the engine's info cannot be read: {str(error)[:200]}.") from error
    return found


def _of(kind: Callable[..., Any], value: Json, what: str) -> Any:  # noqa: ANN401 - JSON
    if not isinstance(value, kind):  # type: ignore[arg-type]
        names = {dict: "an object", list: "a list", str: "text", int: "a whole number"}
        raise TypeError(f"{what} is {_shown(value)}, not {names[kind]}")  # type: ignore[index]
    return value


def _shown(value: Json) -> str:
    """A value as its beginning, or as its kind if it is large."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return repr(value)[:60] if not isinstance(value, str) else repr(value[:60])
