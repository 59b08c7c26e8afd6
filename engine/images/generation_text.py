"""A1111's generation parameters, read back: the answer's `parameters` of POST /png-info.

    a prompt, of any number of lines
    Negative prompt: of any number of lines
    Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 1, Size: 512x512, Model: "a, b", ...

The text can come from anywhere, so each character is looked at a bounded number of times.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from engine.errors import Unsupported
from engine.prompt import syntax
from engine.prompt.styles import Styles

FEWEST_ENTRIES = 3  # of the last line; with fewer, it belongs to the prompt
NEGATIVE = "Negative prompt:"
_WORD = re.compile(r"\w")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])++"')
_SIZE = re.compile(r"(\d++)x(\d++)\Z")
_VERSION = re.compile(r"v?(\d{1,5})\.(\d{1,5})\.(\d{1,5})(?:-(\d{1,7}))?(?:-.*)?\Z", re.DOTALL)

# what A1111 shows for an entry that is not written
DEFAULTS: dict[str, Any] = {
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
}


def read(text: str, styles: Styles) -> dict[str, Any]:
    """The entries by name. A prompt that ends with a style's text has the style in an entry."""
    *lines, last = text.strip().split("\n")
    entries = dict(_entries(last))
    if sum(1 for _ in _entries(last)) < FEWEST_ENTRIES:
        lines, entries = [*lines, last], {}
    found: dict[str, Any] = {}
    for name, value in entries.items():
        if size := _SIZE.match(value):
            found |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            found[name] = value
    prompt, negative = _prompts(lines)
    prompt, negative = _without_styles(found, prompt, negative, styles)
    found |= {"Prompt": prompt, "Negative prompt": negative}
    if "Hypernet" in found:
        strength = found.get("Hypernet strength", "1.0")
        found["Prompt"] += f"<hypernet:{found['Hypernet']}:{strength}>"
    return _completed(found, prompt, negative)


def _entries(line: str) -> Iterator[tuple[str, str]]:
    """The pairs of "name: value, ..."; a value with a comma is a JSON string."""
    start = at = 0
    while (colon := line.find(":", at)) >= 0:
        name = _name_before(line, start, colon)
        if name is None:
            at = start = colon + 1
            continue
        value_at = colon + 1
        while value_at < len(line) and line[value_at].isspace():
            value_at += 1
        quoted = _QUOTED.match(line, value_at)
        if quoted and line[quoted.end() : quoted.end() + 1] in ("", ","):
            end = quoted.end()
        else:
            end = line.find(",", value_at)
            end = len(line) if end < 0 else end
        value = line[value_at:end]
        if value:
            yield name, _unquoted(value)
        at = start = end + 1


def _name_before(line: str, start: int, colon: int) -> str | None:
    """The word characters, spaces, `-` and `/` before the colon, from a word character on."""
    first = colon
    while first > start and (line[first - 1] in " -/" or _WORD.match(line[first - 1])):
        first -= 1
    while first < colon and not _WORD.match(line[first]):
        first += 1
    return line[first:colon] if colon - first > 1 else None


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        with suppress(ValueError):  # not JSON: it is shown as it is written
            return str(json.loads(value))
    return value


def _prompts(lines: list[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    current = prompt
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            current = negative
            current.append(line.removeprefix(NEGATIVE).strip())
        else:
            current.append(line)
    return "\n".join(prompt).lstrip("\n"), "\n".join(negative).lstrip("\n")


def _without_styles(
    found: dict[str, Any], prompt: str, negative: str, styles: Styles
) -> tuple[str, str]:
    """Both prompts without the styles that they end with; those of the second pass must agree."""
    names, *bare = styles.extract(prompt, negative)
    if "Hires prompt" in found or "Hires negative prompt" in found:
        later = (found.get("Hires prompt", prompt), found.get("Hires negative prompt", negative))
        later_names, *later_bare = styles.extract(*later)
        if later_names != names:
            return prompt, negative
        found["Hires prompt"] = "" if later_bare[0] == bare[0] else later_bare[0]
        found["Hires negative prompt"] = "" if later_bare[1] == bare[1] else later_bare[1]
    if names:
        found["Styles array"] = names
    return bare[0], bare[1]


def _completed(found: dict[str, Any], prompt: str, negative: str) -> dict[str, Any]:
    """With A1111's defaults, and what older versions meant by the same text."""
    for name, value in DEFAULTS.items():
        found.setdefault(name, value)
    if found["FP8 weight"] != "Disable":
        found.setdefault("Cache FP16 weight for LoRA", False)
    if "Emphasis" not in found and any(map(_has_emphasis, (prompt, negative))):
        found["Emphasis"] = "Original"
    found.setdefault("Refiner switch by sampling steps", False)
    return found | _of_old_version(found)


def _has_emphasis(text: str) -> bool:
    try:
        return any(span.weight != 1 and not span.is_break for span in syntax.parse(text))
    except (Unsupported, ValueError):
        return True


def _of_old_version(found: dict[str, Any]) -> dict[str, Any]:
    match = _VERSION.match(str(found.get("Version")))
    if match is None:
        return {}
    version = tuple(int(part or 0) for part in match.groups())
    old = {
        "Old prompt editing timelines": version < (1, 6, 0, 0) and "[" in found["Prompt"],
        "Pad conds v0": version < (1, 6, 0, 0) and found.get("Sampler") in ("DDIM", "PLMS"),
        "Downcast alphas_cumprod": version < (1, 7, 0, 225),
        "Refiner switch by sampling steps": version < (1, 8, 0, 0) and bool(found.get("Refiner")),
    }
    return {name: True for name, applies in old.items() if applies}
