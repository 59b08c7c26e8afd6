"""LoRA tags in a prompt: `<lora:name:te:unet>`, as A1111 v1.9.3 reads them.

`<lyco:...>` means the same: prompts from before LyCORIS was built in have it.
A1111 cuts comments (`#` to the end of the line) before it reads tags, drops every LoRA of the
request in silence when one weight is not a number, and adds a tag that stands twice twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from worker.errors import InvalidInput

_TAG = re.compile(r"<(?:lora|lyco):([^>]+)>")
_HYPERNETWORK = re.compile(r"<hypernet:([^:>]+)")
_NO_WORDS = re.compile(r"<[^>]*>|#")
_COMMENT = re.compile(r"#[^\n]*")


@dataclass(frozen=True)
class LoraTag:
    """One tag: the LoRA's name and its weights in the text encoder and in the UNet."""

    name: str
    te: float = 1.0
    unet: float | None = None

    def __str__(self) -> str:
        unet = "" if self.unet in {None, self.te} else f":{self.unet:g}"
        return f"<lora:{self.name}:{self.te:g}{unet}>"


def lora_tags(prompt: str) -> list[LoraTag]:
    """The tags that A1111 would act on, in order.

    Raises:
        InvalidInput: a weight is not a number.
    """
    return [_parse(match[1]) for match in _TAG.finditer(_COMMENT.sub("", prompt))]


def hypernetworks(prompt: str) -> list[str]:
    """The names in `<hypernet:name:1>` tags."""
    return _HYPERNETWORK.findall(_COMMENT.sub("", prompt))


def add_lora_tags(prompt: str, tags: Iterable[LoraTag]) -> str:
    """Append the tags whose name the prompt does not use yet; A1111 takes them out again."""
    written = {tag.name for tag in lora_tags(prompt)}
    new = [str(tag) for tag in tags if tag.name not in written]
    if not new:
        return prompt
    # Behind a comment the tags would be part of it.
    gap = "\n" if "#" in prompt.rpartition("\n")[2] else " "
    return (prompt + gap + " ".join(new)) if prompt else " ".join(new)


def add_words(prompt: str, words: Iterable[str]) -> str:
    """Append the words that the prompt does not have yet, compared without regard to case.

    Each may be a list of its own (`cat, long hair`), as CivitAI's creators write them. Some write
    a LoRA's tag among them, with a name and a weight of their own: that is no word.
    """
    parts = [part.strip() for word in words for part in _NO_WORDS.sub("", word).split(",")]
    for part in parts:
        there = _COMMENT.sub("", prompt).casefold()
        if part and not re.search(rf"(?<!\w){re.escape(part.casefold())}(?!\w)", there):
            gap = "\n" if "#" in prompt.rpartition("\n")[2] else ", "
            prompt = f"{prompt}{gap}{part}" if prompt else part
    return prompt


def rename_lora_tags(prompt: str, names: Mapping[str, str]) -> str:
    """Replace names inside tags; what stands in comments stays, it has no effect."""

    def renamed(match: re.Match[str]) -> str:
        name, colon, rest = match[1].partition(":")
        return f"<lora:{names.get(name, name)}{colon}{rest}>"

    return _TAG.sub(renamed, prompt)


def _parse(inside: str) -> LoraTag:
    """`name`, `name:te`, `name:te:unet`; each weight also as `te=0.5`, `unet=1`."""
    parts = inside.split(":")
    positional = [part for part in parts if "=" not in part]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    if not positional:
        raise InvalidInput(f"the LoRA tag <lora:{inside}> has no name.", field="prompt")
    name, *weights = positional
    named |= dict(zip(("te", "unet", "dyn"), weights, strict=False)) | named
    try:
        te = _weight(named.get("te", "1"))
        unet = _weight(named.get("unet", named.get("te", "1")))
        int(named.get("dyn", "0"))  # DyLoRA's rank: nobody here uses it, but it can fail likewise
    except ValueError as error:
        raise InvalidInput(
            f"the LoRA tag <lora:{inside}> has a weight that is not a number.",
            hint="Write <lora:name:0.8>. With a bad weight A1111 would drop every LoRA.",
            field="prompt",
        ) from error
    return LoraTag(name, te, unet)


def _weight(text: str) -> float:
    weight = float(text)
    if not math.isfinite(weight):
        raise ValueError(text)
    return weight
