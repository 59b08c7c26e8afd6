"""Reads A1111's infotext: prompt, negative prompt, and a line `Steps: 20, Sampler: Euler a`. Pure.

The names are those of A1111 v1.9.3's answer to POST /png-info. One pass over the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

_NEGATIVE = "Negative prompt:"
_FEWEST = 3  # values of a line of parameters; a line with fewer belongs to the prompt
_LONGEST_NAME = 64  # characters
_END_OF_NAME = re.compile(r"[\w /-]*\Z")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])+"(?=,|\Z)')
_BRACKET = re.compile(r"\\.|[(\[]")  # or an escaped character
_SIZE = re.compile(r"([0-9]+)x([0-9]+)")

# What A1111 reports for a value that is not in the infotext: pictures of that time had it.
DEFAULTS: Mapping[str, object] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": False,
}


def parameters_of(infotext: str) -> dict[str, object]:
    """The values of an infotext by A1111's names; empty for an empty text.

    `Size: 512x768` becomes "Size-1" and "Size-2". Values are texts, as A1111 returns them;
    those of `DEFAULTS` are added. What A1111 adds for pictures of versions before 1.8 (such as
    "Downcast alphas_cumprod") and the styles that it recognizes in a prompt are not added.
    """
    text = infotext.strip()
    if not text:
        return {}
    rest, _, line = text.rpartition("\n")
    fields = list(_fields(line))
    if len(fields) < _FEWEST:
        rest, fields = text, []
    prompt, negative = _prompts(rest)
    values: dict[str, object] = {}
    if any(found[0] in "([" for found in _BRACKET.finditer(f"{prompt}\n{negative}")):
        values["Emphasis"] = "Original"
    for name, value in fields:
        values |= _values(name, value)
    return {**DEFAULTS, **values, "Prompt": prompt, "Negative prompt": negative}


def _prompts(text: str) -> tuple[str, str]:
    lines = [line.strip() for line in text.split("\n")]
    start = next((n for n, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(line.removeprefix(_NEGATIVE).strip() for line in lines[start:])
    return "\n".join(lines[:start]).lstrip("\n"), negative.lstrip("\n")


def _fields(line: str) -> Iterator[tuple[str, str]]:
    """Name and value; a value is a JSON string in quotes, or ends at a comma."""
    at = 0
    while (colon := line.find(":", at)) >= 0:
        found = _END_OF_NAME.search(line[max(at, colon - _LONGEST_NAME) : colon])
        name = found[0].lstrip(" /-") if found else ""
        at = colon + 1
        if len(name) > 1:
            while line[at : at + 1].isspace():
                at += 1
            quoted = _QUOTED.match(line, at)
            end = quoted.end() if quoted else line.find(",", at)
            end = len(line) if end < 0 else end
            yield name, line[at:end]
            at = end + 1


def _values(name: str, value: str) -> dict[str, object]:
    if value[:1] == '"' == value[-1:]:
        with suppress(ValueError, RecursionError):
            value = str(json.loads(value))
    if size := _SIZE.fullmatch(value):
        return {f"{name}-1": size[1], f"{name}-2": size[2]}
    return {name: value} if value else {}
