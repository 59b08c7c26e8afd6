"""LoRA tags in a prompt: `<lora:name:te:unet>`, as A1111 v1.9.3 reads them.

`<lyco:...>` means the same; prompts written before LyCORIS was built in have it. A1111 removes
comments (`#` to the end of the line) before it reads tags. When one weight is not a number, it
ignores every LoRA of the request without a message. It applies a repeated tag twice.
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
    """The tags that A1111 applies, in order.

    Raises:
        InvalidInput: a weight is not a number.
    """
    return [_parse(match[1]) for match in _TAG.finditer(_COMMENT.sub("", prompt))]


def hypernetworks(prompt: str) -> list[str]:
    """The names in `<hypernet:name:1>` tags."""
    return _HYPERNETWORK.findall(_COMMENT.sub("", prompt))


def add_lora_tags(prompt: str, tags: Iterable[LoraTag]) -> str:
    """Append the tags of those LoRAs that have none in the prompt yet."""
    written = {tag.name for tag in lora_tags(prompt)}
    new = [str(tag) for tag in tags if tag.name not in written]
    if not new:
        return prompt
    # After a comment, on the same line, they would be part of the comment.
    gap = "\n" if "#" in prompt.rpartition("\n")[2] else " "
    return (prompt + gap + " ".join(new)) if prompt else " ".join(new)


def add_words(prompt: str, words: Iterable[str]) -> str:
    """Append the words that are not in the prompt yet, ignoring case.

    Each may be a list (`cat, long hair`), as CivitAI's creators write them. Some add the tag of a
    LoRA, with another name and weight: tags are left out.
    """
    parts = [part.strip() for word in words for part in _NO_WORDS.sub("", word).split(",")]
    for part in parts:
        effective = _COMMENT.sub("", prompt).casefold()
        if part and not re.search(rf"(?<!\w){re.escape(part.casefold())}(?!\w)", effective):
            gap = "\n" if "#" in prompt.rpartition("\n")[2] else ", "
            prompt = f"{prompt}{gap}{part}" if prompt else part
    return prompt


def rename_lora_tags(prompt: str, names: Mapping[str, str]) -> str:
    """Replace names in tags, also in comments, where they have no effect."""

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
        int(named.get("dyn", "0"))  # a DyLoRA's rank: A1111 fails if it is not a number
    except ValueError as error:
        raise InvalidInput(
            f"the LoRA tag <lora:{inside}> has a weight that is not a number.",
            hint="Write <lora:name:0.8>. With a wrong weight A1111 would ignore every LoRA.",
            field="prompt",
        ) from error
    return LoraTag(name, te, unet)


def _weight(text: str) -> float:
    weight = float(text)
    if not math.isfinite(weight):
        raise ValueError(text)
    return weight
