"""What in a prompt would not do what its caller expects, because of how A1111 v1.9.3 reads it.

`check` refuses what is surely a mistake: the picture would be made without a LoRA that the prompt
names, or A1111 would answer 500. `warnings` names what A1111 leaves out or reads as plain text.
Pure. Each function reads the text a fixed number of times, whatever is in it.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from worker.errors import InvalidInput
from worker.job.prompt import (
    Tag,
    applied_loras,
    hypernetworks,
    rewritten,
    tags_in,
    without_comments,
    without_tags,
)
from worker.shown import shown

_SHOWN = 60  # characters of a prompt in a message
_MOST = 12  # warnings for one prompt
MOST_PARTS = 400  # brackets and colons of a prompt: a minute of A1111's time
_MEANT_LORA = "lora|loras|lyco|lycoris|locon|loha|lokr|hypernet|hypernetwork"
# Angle quotation marks and brackets. NFKC replaces the full-width characters.
_LIKE_BRACKETS = str.maketrans(
    "\xab\u2039\u276e\u27e8\u3008\u300a\xbb\u203a\u276f\u27e9\u3009\u300b", "<<<<<<>>>>>>"
)
_INVISIBLE = dict.fromkeys([0xAD, *range(0x200B, 0x2010), *range(0x2060, 0x2065), 0xFEFF])
_NEAR_TAG = re.compile(rf"<\s*(?:{_MEANT_LORA})\s*:[^>\n]{{0,{_SHOWN}}}>?")
_BARE_TAG = re.compile(
    r"(?<!\w)(?:lora|lyco|hypernet)\s*:[^:<>\n]{1,100}:\s*[+-]?[.\d]+", re.IGNORECASE
)
_HASH_AND_WORD = re.compile(r"#\w")
_WILDCARD = re.compile(r"(?<![\w\\])__[^\W_][\w./*-]{0,98}?__(?!\w)")
_CHOICE = re.compile(r"(?<!\\)\{([^{}]*)\}")
_COMFYUI_EMBEDDING = re.compile(r"(?<!\w)embedding:\w[^\s,:()]{0,99}", re.IGNORECASE)
_AND = re.compile(r"\bAND\b")
_WHEN = re.compile(r":\s*([+-]?[.\d]+(?:[eE][+-]?\d+)?)\s*\]")  # when a schedule changes
_STRUCTURE = re.compile(r"\\.|(?P<part>[()\[\]:|])", re.DOTALL)
_NUMBER = re.compile(r"\A[-+]?(?:\d+\.?|\d*\.\d+)\Z")
# A1111's own tokens as far as they matter for brackets; a weight ends with its bracket.
_BRACKET = re.compile(
    r"\\[()\[\]\\]?|[()\[\]|]|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|:|\b(?P<chunk_break>BREAK)\b"
)


def check(prompt: str, name: str) -> None:
    """Refuse a positive prompt that A1111 would surely read otherwise than it is meant.

    Args:
        prompt: as the caller wrote it.
        name: its field in the job, for the message.

    Raises:
        InvalidInput: says what A1111 would do, and what to write.
    """
    _check_tags_behind_comments(prompt, name)
    _check_near_tags(without_comments(prompt), name)
    check_once(rewritten(prompt), name)


def check_weights(text: str, name: str) -> None:
    """Refuse `(fox:1.2.3)`: A1111 answers 500 to a weight that is not a number.

    Args:
        text: without comments and tags.
        name: the field in the job.

    Raises:
        InvalidInput: names the weight.
    """
    for weight in _read_brackets(text).weights:
        if not _is_finite(weight, if_no_number=False):
            raise InvalidInput(
                f"{name} has the weight {shown(weight)}, which is not a number: A1111 would"
                " answer 500.",
                hint="Write (words:1.2). A bracket that is meant as text is written \\( and \\).",
                field=name,
            )


def _is_finite(text: str, *, if_no_number: bool) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return if_no_number


def check_structure(text: str, name: str) -> None:
    """Refuse a text for whose brackets A1111 takes minutes, or that it cannot read.

    Its parser takes time in proportion to the cube of their number, and cannot be interrupted: 160
    times `(a), ` took half a minute (measured), and a longer text outlives every job.

    Args:
        text: without comments and tags.
        name: the field in the job.

    Raises:
        InvalidInput: says how many there are, or names the step.
    """
    parts = sum(1 for one in _STRUCTURE.finditer(text) if one["part"])
    if parts > MOST_PARTS:
        raise InvalidInput(
            f"{name} has {parts} of the characters ( ) [ ] : and |, more than {MOST_PARTS}: A1111"
            " would take minutes to read them.",
            hint="Use fewer brackets; those that are meant as text are written \\( and \\).",
            field=name,
        )
    for found in _WHEN.finditer(text):
        if not _is_finite(found[1], if_no_number=True):  # A1111 reads that as words
            raise InvalidInput(
                f"{name} has a schedule whose step {shown(found[1])} is too large: A1111 would"
                " answer 500.",
                hint="Write [before:after:10] with a step, or with a part such as 0.5.",
                field=name,
            )


def check_once(text: str, name: str) -> None:
    """Refuse a LoRA or hypernetwork that has two tags in the text, as it is sent.

    Raises:
        InvalidInput: names it.
    """
    loras = [tag.name for tag in applied_loras(text)]
    for word, names in (("LoRA", loras), ("hypernetwork", hypernetworks(text))):
        seen: set[str] = set()
        for one in names:
            if one in seen:
                raise InvalidInput(
                    f"{name} has the {word} {shown(one)} twice: A1111 would add it twice, each"
                    " time with the last weight.",
                    hint="Write it once, with the weight that you want.",
                    field=name,
                )
            seen.add(one)


def warnings(prompt: str, name: str) -> list[str]:
    """What A1111 leaves out of a positive prompt or reads as plain text there."""
    return _first_ones(_positive(prompt, name), name)


def negative_warnings(prompt: str, name: str) -> list[str]:
    """What A1111 leaves out of a negative prompt or reads as plain text there."""
    return _first_ones(_negative(prompt, name), name)


def _first_ones(found: Iterator[str], name: str) -> list[str]:
    first = list(islice(found, _MOST))
    more = sum(1 for _ in found)
    return [*first, f"{name}: {more} more warnings."] if more else first


def _positive(prompt: str, name: str) -> Iterator[str]:
    text = without_comments(prompt)
    tags = tags_in(text)
    for tag in tags:
        read = tag.as_a1111_reads_it()
        if read.kind is None:
            yield f"{name}: {tag.shown} is no tag that A1111 knows, so it is left out."
        elif read != tag:
            yield f"{name}: {tag.shown} is read as {read.shown}."
    for tag in _in_square_brackets(text, [t for t in tags if t.as_a1111_reads_it().kind]):
        yield f"{name}: {tag.shown} is applied in every step; the brackets around it do not matter."
    yield from _behind_comments(prompt, name)
    if bare := _BARE_TAG.search(without_tags(text)):
        yield f"{name}: {shown(bare[0])} is plain text. A LoRA is written <lora:name:0.8>."
    weight = without_tags(text).rpartition(":")[2].strip() if ":" in text else ""
    if _NUMBER.match(weight) and float(weight) != 1 and not _AND.search(text):
        end = f":{weight[:_SHOWN]}"
        yield f"{name} ends with {shown(end)}, which A1111 reads as the whole prompt's weight."
    yield from _text_warnings(without_tags(text), name)


def _negative(prompt: str, name: str) -> Iterator[str]:
    text = without_comments(prompt)
    for tag in tags_in(text):
        what = "LoRA" if tag.as_a1111_reads_it().kind == "lora" else shown(tag.word)
        yield f"{name} has a {what} tag, which A1111 reads as plain text there."
        break
    yield from _behind_comments(prompt, name)
    yield from _text_warnings(text, name)


def _text_warnings(text: str, name: str) -> Iterator[str]:
    """What other tools would replace, and A1111 reads as plain text."""
    if wildcard := _WILDCARD.search(text):
        yield f"{name}: {shown(wildcard[0])} is plain text without `wildcards: true`."
    if choice := next((one[0] for one in _CHOICE.finditer(text) if "|" in one[1]), None):
        yield f"{name}: {shown(choice)} is plain text without `wildcards: true`."
    if embedding := _COMFYUI_EMBEDDING.search(text):
        yield f"{name}: {shown(embedding[0])} is ComfyUI's form: for A1111 `embedding:` is a word."
    if _read_brackets(text).has_break:
        yield f"{name}: BREAK inside brackets: A1111 v1.9.3 reads it as a word, not as a break."


def _comments(prompt: str) -> Iterator[tuple[str, str]]:
    """What stands before and behind the first `#` of each line that has one."""
    for line in prompt.split("\n"):
        before, mark, behind = line.partition("#")
        if mark:
            yield before, behind


def _check_tags_behind_comments(prompt: str, name: str) -> None:
    """Refuse a tag behind `#`, unless the whole line is a comment and so meant as one."""
    for before, behind in _comments(prompt):
        tags = tags_in(behind)
        if tags and before.strip():
            raise InvalidInput(
                f"{name} has {tags[0].shown} behind `#`: A1111 leaves out everything from `#` to"
                " the end of the line.",
                hint="Remove `#`, or put the comment on a line of its own.",
                field=name,
            )


def _behind_comments(prompt: str, name: str) -> Iterator[str]:
    """Warn of tags in comments, and of a `#` that begins a word, such as a colour."""
    for _, behind in _comments(prompt):
        for tag in tags_in(behind):
            yield f"{name}: {tag.shown} is in a comment, so it has no effect."
        if _HASH_AND_WORD.match(f"#{behind}"):
            yield f"{name}: {shown(f'#{behind}')} is left out: `#` begins a comment."


def _check_near_tags(text: str, name: str) -> None:
    """Refuse what is meant as a LoRA's tag, but is none for A1111, such as `<lora :x:1>`."""
    rest = without_tags(text)
    plain = html.unescape(html.unescape(rest)).translate(_LIKE_BRACKETS).translate(_INVISIBLE)
    near = _NEAR_TAG.search(unicodedata.normalize("NFKC", plain).lower())
    found = near[0] if near else next((str(t) for t in tags_in(text) if _is_misspelt(t)), None)
    if found:
        # Full-width, invisible or escaped characters look right in the message.
        what = "" if found.lower() in text.lower() else "other characters that look like "
        raise InvalidInput(
            f"{name} has {what}{shown(found)}, which A1111 does not read as a LoRA's tag.",
            hint="Write <lora:name:0.8>, with plain ASCII characters and no space before `:`."
            " `#` begins a comment.",
            field=name,
        )


def _is_misspelt(tag: Tag) -> bool:
    """Another word for a LoRA, such as `<lycoris:x:1>`."""
    known = tag.as_a1111_reads_it().kind is not None
    return not known and re.fullmatch(_MEANT_LORA, tag.word.lower()) is not None


def _in_square_brackets(text: str, tags: list[Tag]) -> list[Tag]:
    """The tags inside `[...]`, as for `[<lora:x:1>:10]`."""
    depth, end, found = 0, 0, []
    last = text.rfind("]")
    for tag in tags:
        for bracket in re.findall(r"\\.|[\[\]]", text[end : tag.start], re.DOTALL):
            depth = max(0, depth + {"[": 1, "]": -1}.get(bracket, 0))
        if depth and tag.end <= last:
            found.append(tag)
        end = tag.end
    return found


@dataclass
class _Brackets:
    """The weights that A1111 turns into numbers, and whether a BREAK gets a weight."""

    weights: list[str] = field(default_factory=list)
    has_break: bool = False


@dataclass
class _Open:
    """An open bracket: whether a BREAK is inside, and whether it is a schedule."""

    has_break: bool = False
    is_schedule: bool = False

    @property
    def weighs_a_break(self) -> bool:
        return self.has_break and not self.is_schedule


def _read_brackets(text: str) -> _Brackets:
    found = _Brackets()
    round_ones: list[_Open] = []
    square_ones: list[_Open] = []
    for token in _BRACKET.finditer(text):
        written, weight = token[0], token["weight"]
        if written in "([":
            (round_ones if written == "(" else square_ones).append(_Open())
        elif token["chunk_break"]:
            for innermost in (*round_ones[-1:], *square_ones[-1:]):
                innermost.has_break = True
        elif round_ones and (weight is not None or written == ")"):
            found.weights += [] if weight is None else [weight]
            found.has_break |= round_ones.pop().weighs_a_break
        elif square_ones and written == "]":
            found.has_break |= square_ones.pop().weighs_a_break
        elif square_ones and written in ":|":
            square_ones[-1].is_schedule = True
    found.has_break |= any(one.weighs_a_break for one in (*round_ones, *square_ones))
    return found
