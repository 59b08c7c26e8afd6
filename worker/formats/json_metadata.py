"""Whether A1111 can send a file's metadata as JSON. Pure.

`GET /sdapi/v1/loras` sends the metadata of every LoRA in the folder. A1111 decodes the values that
begin with `{`, with a reader that accepts NaN, and then encodes them strictly: one file with NaN,
Infinity or a lone surrogate makes the whole list an error 500. kohya's sd-scripts wrote NaN into
`ss_bucket_info` until April 2025.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

# FastAPI's encoder calls itself once a level, and Python ends at 1,000 calls, its own among them.
_DEPTH = 500
# A1111 uses these as texts, as names in its tables.
_TEXTS = ("ss_output_name", "sshs_model_hash")


def metadata_fault(metadata: Mapping[str, str]) -> str | None:
    """What A1111 cannot send, as the end of "it ..."; None if there is nothing."""
    for key, text in metadata.items():
        value = _decoded(text)
        if isinstance(value, dict) and key in _TEXTS:
            return f"has an object instead of a text in its metadata ({key!r})"
        if fault := _fault([key, value]):
            return f"has {fault} in its metadata ({key[:60]!r})"
    return None


def _decoded(text: str) -> Any:  # noqa: ANN401 - any JSON
    """The value as A1111 has it: an object if the text is one, otherwise the text."""
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _fault(value: Any) -> str | None:  # noqa: ANN401 - any JSON
    """The first part that strict JSON in UTF-8 cannot contain; without recursion."""
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if depth > _DEPTH:
            return f"more than {_DEPTH} levels"
        if isinstance(one, float) and not math.isfinite(one):
            return str(one)
        if isinstance(one, str) and not one.isascii() and _has_surrogate(one):
            return "a lone surrogate"
        inner = [*one, *one.values()] if isinstance(one, dict) else one
        waiting += [(part, depth + 1) for part in inner] if isinstance(inner, list) else []
    return None


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
