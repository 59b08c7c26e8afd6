"""Prompts as A1111 v1.9.3 reads them: comments are removed, then tags `<kind:...>` are taken out.

This is the only reader of tags. What is sent, what the answer must prove, and what the caller is
warned about all come from it. A1111's rules (modules/processing_scripts/comments.py,
modules/extra_networks.py, extensions-builtin/Lora/extra_networks_lora.py):

- `#` begins a comment, up to the end of the line. Styles are added before comments are removed.
- A tag is `<`, a word, `:`, and everything up to the next `>`; it may contain a line break or `<`.
  Its place in the prompt does not matter, not even inside `[...]`. In a negative prompt it is text.
- `lora` and `lyco` mean a LoRA, `hypernet` a hypernetwork, in lower case only. A tag with another
  word is removed and has no effect.
- Arguments are separated by `:`. One with exactly one `=` is named, all others count by position.
- If one weight is not a number, every LoRA of the request is ignored, without a message.
- A repeated LoRA is added as often as it is written, each time with the last weight.

We accept a little more than A1111, and write it as A1111 reads it (`rewritten`): the kind in any
case, and spaces around the name.

Every pattern here takes time proportional to the text's length: see `tests/job/test_patterns.py`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from worker.errors import InvalidInput
from worker.shown import shown

_COMMENT_LINE = re.compile(r"(?:\A|\n)#[^\n]*(?:\n|\Z)")
_COMMENT = re.compile(r"#[^\n]*(?:\n|\Z)")
# Without a `>` this matches up to the end of the text, so that nothing is searched twice.
_TAG = re.compile(r"<(\w+):([^>]+)(>|\Z)")
# What may become a tag together with text behind it.
_TAG_START = re.compile(r"<(?=\w+:)")
_KINDS = {"lora": "lora", "lyco": "lora", "hypernet": "hypernet"}
_NAMED = ("te", "unet", "dyn")  # also the order by position, after the name
_SHOWN = 80  # characters of a tag in a message


@dataclass(frozen=True)
class Tag:
    """A tag as it is written: its word, its arguments, and its place in the text."""

    word: str
    inside: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"<{self.word}:{self.inside}>"

    @property
    def shown(self) -> str:
        """The tag in quotes for a message: on one line, and not too long."""
        return shown(str(self), _SHOWN)

    @property
    def kind(self) -> str | None:
        """`lora`, `hypernet`, or None for a word that A1111 does not know."""
        return _KINDS.get(self.word)

    def as_a1111_reads_it(self) -> Tag:
        """The same tag with its kind in lower case and without spaces around the name."""
        word = unicodedata.normalize("NFKC", self.word).lower()
        if word not in _KINDS:
            return self
        items = self.inside.split(":")
        place = _place_of_name(items)
        if place is not None:
            # Without any name it stays a tag, to be refused: `<lora:>` is none, but words.
            items[place] = items[place].strip() or items[place]
        return Tag(word, ":".join(items), self.start, self.end)


@dataclass(frozen=True)
class LoraTag:
    """One LoRA: its name and its weights in the text encoder and in the UNet."""

    name: str
    te: float = 1.0
    unet: float | None = None

    def __str__(self) -> str:
        unet = "" if self.unet in {None, self.te} else f":{self.unet:g}"
        return f"<lora:{self.name}:{self.te:g}{unet}>"


def without_comments(prompt: str) -> str:
    """The prompt without `#` and what follows it on its line."""
    return _COMMENT.sub("\n", _COMMENT_LINE.sub("\n", prompt))


def tags_in(text: str) -> list[Tag]:
    """The tags of a text without comments, as they are written."""
    found = _TAG.finditer(text)
    return [Tag(one[1], one[2], one.start(), one.end()) for one in found if one[3]]


def without_tags(text: str) -> str:
    """The words that the text encoder gets from a text without comments."""
    return "".join(piece for piece in _pieces(text) if isinstance(piece, str))


def rewritten(prompt: str, names: Mapping[str, str] | None = None) -> str:
    """The prompt as it is sent: without comments, its tags in the spelling that A1111 reads.

    Args:
        prompt: as the caller wrote it.
        names: name of a LoRA in the prompt -> its name on the engine.
    """
    pieces = []
    for piece in _pieces(without_comments(prompt)):
        if isinstance(piece, str):
            pieces.append(piece)
            continue
        tag = piece.as_a1111_reads_it()
        pieces.append(_renamed(tag, names or {}) if tag.kind == "lora" else str(tag))
    return "".join(pieces)


def lora_tags(prompt: str) -> list[LoraTag]:
    """The LoRAs that the prompt applies once it is rewritten, in order, with repeated ones.

    Raises:
        InvalidInput: a weight is not a number, or A1111 would ignore an argument.
    """
    return applied_loras(rewritten(prompt))


def applied_loras(text: str) -> list[LoraTag]:
    """The LoRAs that A1111 applies for exactly this text, which has no comments.

    Raises:
        InvalidInput: see `lora_tags`.
    """
    return [_lora(tag) for tag in tags_in(text) if tag.kind == "lora"]


def hypernetworks(prompt: str) -> list[str]:
    """The names in `<hypernet:name:1>` tags; raises InvalidInput for a wrong weight."""
    tags = tags_in(rewritten(prompt))
    return [_hypernetwork(tag) for tag in tags if tag.kind == "hypernet"]


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
    LoRA, with another name and weight: tags are left out, and so is the beginning of one.
    """
    plain = (_TAG_START.sub("", without_tags(word)).replace("#", "") for word in words)
    for part in (part.strip() for word in plain for part in word.split(",")):
        if part and not _contains(without_comments(prompt).casefold(), part.casefold()):
            gap = "\n" if "#" in prompt.rpartition("\n")[2] else ", "
            prompt = f"{prompt}{gap}{part}" if prompt else part
    return prompt


def _contains(text: str, words: str) -> bool:
    """Whether the words stand in the text, not as a part of longer words."""
    start = text.find(words)
    while start >= 0:
        around = text[max(start - 1, 0) : start] + text[start + len(words) :][:1]
        if not any(_is_word_character(one) for one in around):
            return True
        start = text.find(words, start + 1)
    return False


def _is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_"


def _pieces(text: str) -> Iterator[str | Tag]:
    """The text's words and tags in order."""
    end = 0
    for tag in tags_in(text):
        yield text[end : tag.start]
        yield tag
        end = tag.end
    yield text[end:]


def _is_named(item: str) -> bool:
    return item.count("=") == 1


def _place_of_name(items: list[str]) -> int | None:
    """The number of the first argument without a name; it is the name of the LoRA."""
    return next((n for n, item in enumerate(items) if not _is_named(item)), None)


def _renamed(tag: Tag, names: Mapping[str, str]) -> str:
    items = tag.inside.split(":")
    place = _place_of_name(items)
    if place is not None:
        items[place] = names.get(items[place], items[place])
    return f"<lora:{':'.join(items)}>"


def _lora(tag: Tag) -> LoraTag:
    """`name`, `name:te`, `name:te:unet:dyn`; each weight also as `te=0.5`, `unet=1`, `dyn=4`."""
    items = tag.inside.split(":")
    named = dict(item.split("=") for item in items if _is_named(item))
    _check_names(tag, items, named)
    name, *weights = (item for item in items if not _is_named(item))
    if len(weights) > len(_NAMED):
        raise InvalidInput(
            f"the LoRA tag {tag.shown} has {len(weights)} weights; A1111 reads at most three.",
            hint="Write <lora:name:te:unet>.",
            field="prompt",
        )
    try:
        # A1111 reads the weights by position also where a named one replaces them.
        weight = _numbers(dict(zip(_NAMED, weights, strict=False))) | _numbers(named)
    except ValueError as error:
        raise InvalidInput(
            f"the LoRA tag {tag.shown} has a weight that is not a number.",
            hint="Write <lora:name:0.8>. With a wrong weight A1111 would ignore every LoRA.",
            field="prompt",
        ) from error
    if weight.get("dyn", 1) < 1:
        raise InvalidInput(
            f"the LoRA tag {tag.shown} has dyn = {weight['dyn']:g}: with this rank A1111 applies"
            " another LoRA, or nothing.",
            hint="Leave out dyn, or give a rank of at least 1.",
            field="prompt",
        )
    te = weight.get("te", 1.0)
    return LoraTag(name, te, weight.get("unet", te))


def _numbers(weights: Mapping[str, str]) -> dict[str, float]:
    """The weights as A1111 reads them: `dyn` is a whole number; ValueError for other texts."""
    return {name: int(text) if name == "dyn" else _finite(text) for name, text in weights.items()}


def _check_names(tag: Tag, items: list[str], named: Mapping[str, str]) -> None:
    """Refuse arguments that A1111 would ignore, and a tag without a name."""
    unknown = sorted(named.keys() - set(_NAMED))
    if _is_named(items[0]) and items[0].partition("=")[0] in unknown:
        raise InvalidInput(
            f"the LoRA tag {tag.shown} has no name: A1111 reads {shown(items[0])} as an"
            " argument, because it contains `=`.",
            hint="Name this LoRA in `loras`: the worker gives it a name without `=`.",
            field="prompt",
        )
    if unknown:
        raise InvalidInput(
            f"the LoRA tag {tag.shown} has the argument {shown(unknown[0])}, which A1111"
            " v1.9.3 would ignore.",
            hint="It reads te, unet and dyn. Block weights and steps need extensions.",
            field="prompt",
        )
    place = _place_of_name(items)
    if place is None or not items[place].strip():
        raise InvalidInput(f"the LoRA tag {tag.shown} has no name.", field="prompt")


def _hypernetwork(tag: Tag) -> str:
    name, *weights = tag.inside.split(":")
    try:
        numbers = [_finite(weight) for weight in weights]
    except ValueError:
        numbers = []
    if not name or len(numbers) != len(weights) or len(weights) > 1:
        raise InvalidInput(
            f"the hypernetwork tag {tag.shown} is not <hypernet:name:weight>.", field="prompt"
        )
    return name


def _finite(text: str) -> float:
    weight = float(text)
    if not math.isfinite(weight):
        raise ValueError(text)
    return weight
