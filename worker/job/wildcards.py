r"""Wildcards and dynamic prompts: `{red|blue}` and `__colors__` become plain words. Pure.

The syntax is that of the extension sd-dynamic-prompts and its library dynamicprompts:

    {red|blue}               one of the options; options may contain further groups and wildcards
    {3::red|blue}            with weights
    {2$$red|blue|green}      two of them, joined by a comma; also {1-3$$, {-3$$ and {2-$$
    {2$$ and $$red|blue}     joined by " and "
    __colors__, __a/b*__     a line of the file colors.txt, or of all files whose names match
    {2$$__colors__}          two different lines

Everything else of A1111's own syntax passes unchanged: `[a|b]` also as an option, `(a:1.2)`, and a
backslash with the character behind it. `\{` and `\__` are text: A1111 removes the backslash. In a
tag, `__name__` beside a letter or a digit is part of the model's name.

A choice depends only on the seed, the text and the files. The library itself is not used: it draws
an unknown wildcard as text, and takes seconds until a circle of files ends in a RecursionError.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

from worker.errors import InvalidInput
from worker.shown import shown

LONGEST = 32_768  # characters of a prompt, as `worker.job.request.Text`
MOST_LEVELS = 40  # groups and files inside one another
MOST_CHOSEN = 100  # options of one group
MOST_CHOICES = 5_000  # of one job: about half a second
MOST_READ = 2_000_000  # characters and lines for one job: about another half

_UNIT = 10**6  # the weight 1: weights are whole numbers, so that choices are exact everywhere
_SHOWN = 40

_NAME = r"[^\W_][\w./\\*?+&' -]{0,98}?|[*?./\\][\w./\\*?+&' -]{0,98}?"
_TOKEN = re.compile(
    rf"""(?P<escape>\\[^\#\n])
    |(?P<comment>\#[^\n]*)
    |(?P<unknown>[$%]\{{|\{{%)
    |(?P<open>\{{)|(?P<bar>\|)|(?P<close>\}})|(?P<dollars>\$\$)
    |(?P<wildcard>__(?P<sampler>[@!]|~?)(?P<name>{_NAME})(?P<values>\([^()\n]{{0,99}}\))?__)
    |(?P<tag><(?=\w{{1,40}}:))|(?P<tag_end>>)""",
    re.VERBOSE,
)
_BRACKET = re.compile(r"\\[^#\n]|#[^\n]*|[{}|[\]]")
_COUNT = re.compile(
    r"\s{0,9}(?:(?P<low>[0-9]{1,4})(?P<dash>\s?-\s?(?P<high>[0-9]{1,4})?)?"
    r"|-\s?(?P<up_to>[0-9]{1,4}))\s{0,9}\$\$(?:(?P<separator>[^{}$\\#]{0,99})\$\$)?"
)
_SAMPLER = re.compile(r"\s{0,9}([~@!])")
_WEIGHT = re.compile(r"\s{0,9}([0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})\s{0,9}::")
_NO_WEIGHT = re.compile(r"[^][(){}|:\\<>$#\n]{0,60}::")
_WORD = re.compile(r"[A-Za-z0-9]")
_UNKNOWN = {
    "${": ("a variable", "Write the words, or a choice such as {red|blue}, in each place."),
    "%{": ("a wrapper", "Write the words around it."),
    "{%": ("Jinja", "Write {red|blue} or __name__."),
}
_UNCLOSED = "As text, write \\{. A `#` begins a comment, up to the end of the line."
_SAMPLERS = {"@": "the cyclical sampler", "!": "the combinatorial sampler"}

Item = TypeVar("Item", bound="_Option | Line")


@dataclass(frozen=True)
class Line:
    """One line of a file: its text, its weight in millionths, and the name of the wildcard."""

    text: str
    weight: int
    file: str


ReadLines = Callable[[str], Sequence[Line]]


def lines_of(content: str, file: str) -> list[Line]:
    """The lines of a wildcard's file, without comments and empty ones.

    A line can begin with a weight, as an option does. A line that is repeated counts as one with
    the sum of the weights.
    """
    weights: dict[str, int] = {}
    for raw in re.split(r"[\r\n]", content):
        text = raw.partition("#")[0].strip()
        if text:
            weighted = _WEIGHT.match(text)
            text = text[weighted.end() :].strip() if weighted else text
            weights[text] = weights.get(text, 0) + (_weight(weighted[1]) if weighted else _UNIT)
    return [Line(text, weight, file) for text, weight in weights.items()]


def resolve(texts: Mapping[str, str], seed: int, lines: ReadLines) -> dict[str, str]:
    """Choose words for all groups and wildcards.

    Args:
        texts: name of the job's field -> its text; the same text gets the same words in each.
        seed: of the job.
        lines: the lines of the files that a name means; raises InvalidInput if there is none.

    Returns:
        The texts without groups and wildcards.

    Raises:
        InvalidInput: names the field or the file, and what stands there.
    """
    budget = _Budget()
    return {name: _resolved(name, text, seed, lines, budget) for name, text in texts.items()}


def _resolved(name: str, text: str, seed: int, lines: ReadLines, budget: _Budget) -> str:
    choices = _Choices(name, _Draws(seed, text), lines, budget)
    result = choices.words(_Parser(text, name, budget).parse())
    for part in _Parser(result, name, budget).parse():
        if not isinstance(part, str):
            what = f"__{part.name}__" if isinstance(part, _Wildcard) else "{...}"
            raise InvalidInput(
                f"{name}: the chosen words form {shown(what)}, which is not resolved again.",
                hint="Write the whole name of a wildcard in one place.",
                field=name,
            )
    return result


def _weight(number: str) -> int:
    whole, _, fraction = number.partition(".")
    return int((whole or "0") + fraction.ljust(6, "0"))


class _Draws:
    """Numbers that depend only on a seed and a text: each is SHA-256 of both and of a counter.

    They are the same in each version of Python, which `random` promises for few of its methods.
    """

    def __init__(self, seed: int, text: str) -> None:
        self._key = hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "surrogatepass")).digest()
        self._count = 0

    def below(self, limit: int) -> int:
        """From 0 to `limit` - 1. It is far below 2**256, so that all are equally likely."""
        self._count += 1
        digest = hashlib.sha256(self._key + self._count.to_bytes(8, "big")).digest()
        return int.from_bytes(digest, "big") % limit


@dataclass
class _Budget:
    """What one job has read and chosen."""

    read: int = 0
    choices: int = 0

    def spend(self, amount: int, *, choices: int = 0) -> None:
        self.read += amount
        self.choices += choices
        if self.read > MOST_READ or self.choices > MOST_CHOICES:
            raise InvalidInput(
                f"the job's wildcards need more than {MOST_CHOICES:,} choices, or more than"
                f" {MOST_READ:,} characters and lines.",
                hint="Use fewer wildcards, or smaller files.",
            )


# Reading ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wildcard:
    name: str
    in_tag: bool


@dataclass
class _Option:
    weight: int = _UNIT
    parts: list[str | _Wildcard | _Group] = field(default_factory=list)


@dataclass
class _Group:
    """`{...}`; `most` is None if all of the options may be chosen."""

    start: int
    fewest: int = 1
    most: int | None = 1
    separator: str | None = None
    options: list[_Option] = field(default_factory=lambda: [_Option()])

    def only_wildcard(self) -> _Wildcard | None:
        """The wildcard of `{2$$__colors__}`, whose lines are the options."""
        parts = self.options[0].parts
        only = [part for part in parts if not (isinstance(part, str) and not part.strip())]
        is_only = self.separator is not None and len(self.options) == 1 and len(only) == 1
        return only[0] if is_only and isinstance(only[0], _Wildcard) else None


class _Parser:
    """Reads the text of a job's field, or a line of a file that this field needs."""

    def __init__(
        self, text: str, name: str, budget: _Budget, *, file: str = "", in_tag: bool = False
    ) -> None:
        budget.spend(len(text))
        self._text = text
        self._field = name
        self._place = f"wildcard {file!r}" if file else name
        self._in_tag = in_tag
        self._open = [_Group(-1)]  # the whole text, then the groups that are open
        self._inside_brackets = _bars_inside_brackets(text)

    def parse(self) -> list[str | _Wildcard | _Group]:
        at = 0
        while token := _TOKEN.search(self._text, at):
            self._add(self._text[at : token.start()])
            at = self._read(token)
        self._add(self._text[at:])
        if len(self._open) > 1:
            raise self._refused("a { without }", self._open[-1].start, _UNCLOSED)
        return self._open[0].options[0].parts

    def _add(self, part: str | _Wildcard | _Group) -> None:
        if part != "":
            self._open[-1].options[-1].parts.append(part)

    def _read(self, token: re.Match[str]) -> int:
        """Read one token; returns where to continue."""
        kind, is_inside = token.lastgroup, len(self._open) > 1
        if kind == "unknown":
            what, hint = _UNKNOWN[token[0]]
            raise self._unsupported(what, token.start(), hint)
        if kind == "open":
            return self._begin(token.start())
        if kind == "close":
            self._end(token)
        elif kind == "bar" and is_inside and token.start() not in self._inside_brackets:
            self._open[-1].options.append(_Option())
            return self._begin_option(token.end())
        elif kind == "dollars" and is_inside:
            hint = "Write {2$$red|blue|green} or {1-2$$ and $$red|blue|green}."
            raise self._refused("$$ without a number before it", self._open[-1].start, hint)
        elif kind == "wildcard":
            self._add(self._wildcard(token))
        elif kind != "comment" or not is_inside:
            self._in_tag = kind == "tag" or (self._in_tag and kind != "tag_end")
            self._add(token[0])
        return token.end()

    def _begin(self, start: int) -> int:
        if len(self._open) > MOST_LEVELS:
            raise self._refused(f"more than {MOST_LEVELS} groups inside one another", start)
        group, at = _Group(start), start + 1
        if sampler := _SAMPLER.match(self._text, at):
            self._check_sampler(sampler[1], start)
            at = sampler.end()
        if count := _COUNT.match(self._text, at):
            at = count.end()
            _set_count(group, count)
            if _has_syntax(group.separator or ""):
                raise self._refused("a wildcard as the separator between two $$", start)
        self._open.append(group)
        return self._begin_option(at)

    def _begin_option(self, at: int) -> int:
        if weight := _WEIGHT.match(self._text, at):
            self._open[-1].options[-1].weight = _weight(weight[1])
            return weight.end()
        if _NO_WEIGHT.match(self._text, at):
            hint = "A weight is a number from 0 to 999999: {3::red|blue}. As text, write \\::."
            raise self._refused("a weight that is no number", at, hint)
        return at

    def _end(self, token: re.Match[str]) -> None:
        if len(self._open) == 1:
            raise self._refused("a } without {", token.start(), "As text, write \\}.")
        group = self._open.pop()
        inside = group.options[0].parts
        is_double = len(group.options) == len(inside) == 1 and isinstance(inside[0], _Group)
        if is_double and self._text[group.start + 1] + self._text[token.start() - 1] == "{}":
            hint = "Write {red|blue} for a choice and (red:1.1) for emphasis."
            raise self._unsupported("{{...}} of Jinja or NovelAI", group.start, hint)
        self._add(group)

    def _wildcard(self, token: re.Match[str]) -> str | _Wildcard:
        start, end = token.span()
        around = self._text[max(start - 1, 0) : start], self._text[end : end + 1]
        if self._in_tag and any(map(_WORD.match, around)):
            return token[0]
        self._check_sampler(token["sampler"], token.start())
        if token["values"]:
            hint = "Write __name__ without the values."
            raise self._unsupported("values for a wildcard", token.start(), hint)
        return _Wildcard(token["name"], self._in_tag)

    def _check_sampler(self, sign: str, at: int) -> None:
        if sign in _SAMPLERS:
            hint = f"Leave out the {sign}: the choice is random, and the same for the same seed."
            raise self._unsupported(_SAMPLERS[sign], at, hint)

    def _unsupported(self, what: str, at: int, hint: str) -> InvalidInput:
        return self._refused(f"{what}, which this worker does not support", at, hint)

    def _refused(self, what: str, at: int, hint: str = "") -> InvalidInput:
        here = shown(self._text[at : at + _SHOWN], _SHOWN)
        return InvalidInput(f"{self._place} has {what}: {here}.", hint=hint, field=self._field)


def _has_syntax(text: str) -> bool:
    plain = {"escape", "comment", "bar", "dollars", "tag", "tag_end"}
    return any(token.lastgroup not in plain for token in _TOKEN.finditer(text))


def _set_count(group: _Group, count: re.Match[str]) -> None:
    low = int(count["low"] or 1)
    high = count["up_to"] or (count["high"] if count["dash"] else low)
    bounds = sorted((low, low if high is None else int(high)))
    group.fewest, group.most = bounds[0], None if high is None else bounds[1]
    group.separator = ", " if count["separator"] is None else count["separator"]


def _bars_inside_brackets(text: str) -> set[int]:
    """The places of `|` in `[a|b]`, where A1111 alternates; a `[` without `]` does not count."""
    found: set[int] = set()
    open_ones: list[list[int] | None] = []  # the bars of each open `[`; None for a `{`
    for one in _BRACKET.finditer(text):
        bars = open_ones[-1] if open_ones else None
        if one[0] in "{[":
            open_ones.append(None if one[0] == "{" else [])
        elif one[0] == "|" and bars is not None:
            bars.append(one.start())
        elif one[0] == "]" and bars is not None:
            found.update(bars)
            open_ones.pop()
        elif one[0] == "}":
            while open_ones and open_ones.pop() is not None:
                pass
    return found


# Choosing ---------------------------------------------------------------------------------------


class _Choices:
    """Chooses the words of one text."""

    def __init__(self, name: str, draws: _Draws, lines: ReadLines, budget: _Budget) -> None:
        self._field = name
        self._draws = draws
        self._lines = lines
        self._budget = budget
        self._files: list[str] = []  # the files whose lines are being resolved
        self._levels = 0

    def words(self, parts: Sequence[str | _Wildcard | _Group]) -> str:
        pieces: list[str] = []
        length = 0
        for part in parts:
            pieces.append(part if isinstance(part, str) else self._chosen(part))
            length += len(pieces[-1])
            if length > LONGEST:
                raise self._refused(f"becomes longer than {LONGEST:,} characters")
        return "".join(pieces)

    def _chosen(self, part: _Wildcard | _Group) -> str:
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise self._refused(f"is nested more than {MOST_LEVELS} levels deep")
        group = part if isinstance(part, _Group) else _Group(0)  # of one line
        wildcard = part.only_wildcard() if isinstance(part, _Group) else part
        if wildcard:
            lines = self._pick_some(group, self._lines(wildcard.name))
            pieces = [self._line(line, wildcard) for line in lines]
        else:
            pieces = [self.words(one.parts) for one in self._pick_some(group, group.options)]
        self._levels -= 1
        if group.separator is None:
            return "".join(pieces)
        return group.separator.join(one.strip() for one in pieces if one.strip())

    def _line(self, line: Line, wildcard: _Wildcard) -> str:
        if line.file in self._files:
            circle = " -> ".join([*self._files[self._files.index(line.file) :], line.file])
            raise self._refused(f"names wildcards that form a circle: {circle}")
        self._files.append(line.file)
        parser = _Parser(
            line.text, self._field, self._budget, file=line.file, in_tag=wildcard.in_tag
        )
        text = self.words(parser.parse())
        self._files.pop()
        return text

    def _pick_some(self, group: _Group, items: Sequence[Item]) -> list[Item]:
        """As many different items as the group chooses; fewer if the others have the weight 0."""
        most = min(len(items) if group.most is None else group.most, len(items))
        if most > MOST_CHOSEN:
            raise self._refused(f"has a group with {most} options to choose, above {MOST_CHOSEN}")
        fewest = min(group.fewest, most)
        count = fewest + (self._draws.below(most - fewest + 1) if most > fewest else 0)
        left, picked = list(items), list[Item]()
        while left and len(picked) < count:
            self._budget.spend(len(left), choices=1)
            sums = list(accumulate(item.weight for item in left))
            if not sums[-1]:
                break
            picked.append(left.pop(bisect(sums, self._draws.below(sums[-1]))))
        if count and not picked:
            raise self._refused("has a choice whose options all have the weight 0")
        return picked

    def _refused(self, what: str) -> InvalidInput:
        return InvalidInput(f"{self._field} {what}.", field=self._field)
