"""A1111's prompt editing: text that changes while a picture is made.

    [from:to:when]  `from` until `when`, then `to`; [to:when] adds, [from::when] removes
    [a|b|c]         the options in turn, one for each call of the model

`when` is a number of calls of the model or, with a decimal point, a share of them. Syntax that is
not complete is plain text, the same as in A1111. Emphasis is read by `engine.prompt.syntax`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+", re.DOTALL)
DEEPEST = 50  # nested brackets; deeper ones are plain text
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\Z")


@dataclass(frozen=True)
class _Switch:
    before: "_Nodes"
    after: "_Nodes"
    when: str

    def last_call(self, calls: int) -> int:
        share = "." in self.when
        return min(calls, int(float(self.when) * calls) if share else int(float(self.when)))


@dataclass(frozen=True)
class _Alternate:
    options: tuple["_Nodes", ...]


_Nodes = Sequence["str | _Switch | _Alternate"]


class _NotWellFormed(Exception):
    """The text does not match the grammar rule."""


class _Reader:
    """Parses the text into nodes; a bracket without a complete construct is plain text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def all(self) -> _Nodes:
        """The whole text. Raises _NotWellFormed if A1111's parser would fail."""
        nodes: list[str | _Switch | _Alternate] = []
        while self.at < len(self.text):
            start, self.depth = self.at, 0
            try:
                nodes += self._construct()
            except _NotWellFormed:
                if self.text[start] not in "[]():":
                    raise
                nodes.append(self.text[start])
                self.at = start + 1
        return nodes

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self, character: str) -> None:
        if self._peek() != character:
            raise _NotWellFormed
        self.at += 1

    def _construct(self) -> _Nodes:
        """One piece of plain text, or one pair of brackets with its content."""
        if self._peek() == "(":
            return self._emphasized()
        if self._peek() == "[":
            return self._bracketed()
        plain = _PLAIN.match(self.text, self.at)
        if not plain:
            raise _NotWellFormed
        self.at = plain.end()
        return [plain[0]]

    def _sequence(self) -> _Nodes:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _NotWellFormed
        nodes: list[str | _Switch | _Alternate] = []
        while self._peek() and self._peek() not in "])|:":
            nodes += self._construct()
        self.depth -= 1
        return nodes

    def _emphasized(self) -> _Nodes:
        self._take("(")
        nodes = list(self._sequence())
        if self._peek() == ":":
            self._take(":")
            nodes += [":", *self._sequence()]
        self._take(")")
        return ["(", *nodes, ")"]

    def _bracketed(self) -> _Nodes:
        self._take("[")
        parts = [self._sequence()]
        separator = self._peek()
        while separator in (":", "|") and self._peek() == separator:
            self._take(separator)
            parts.append(self._sequence())
        self._take("]")
        if separator == "|":
            return [_Alternate(tuple(parts))]
        if separator == ":":
            return [_switch(parts)]
        return ["[", *parts[0], "]"]


def _switch(parts: Sequence[_Nodes]) -> _Switch:
    """[from:to:when] or [to:when]."""
    *texts, last = parts
    number = _NUMBER.match("".join(map(str, last)))
    if not number or len(texts) > 2:  # noqa: PLR2004 - from and to
        raise _NotWellFormed
    return _Switch(texts[0] if len(texts) > 1 else (), texts[-1], number[1])


def schedule(text: str, calls: int) -> list[tuple[int, str]]:
    """The text of each stretch of the `calls` calls of the model: (last call, text).

    >>> schedule("a [cat:dog:0.5]", 10)
    [(5, 'a cat'), (10, 'a dog')]
    """
    try:
        nodes = _Reader(text).all()
    except _NotWellFormed:
        return [(calls, text)]
    return [(end, _text_at(nodes, end, calls)) for end in sorted({calls, *_ends(nodes, calls)})]


def _ends(nodes: _Nodes, calls: int) -> set[int]:
    """The calls after which the text changes."""
    ends: set[int] = set()
    for node in nodes:
        if isinstance(node, _Alternate):
            ends.update(range(1, calls + 1))
        elif isinstance(node, _Switch):
            ends.update({last} if (last := node.last_call(calls)) >= 1 else ())
            ends |= _ends(node.before, calls) | _ends(node.after, calls)
    return ends


def _text_at(nodes: _Nodes, call: int, calls: int) -> str:
    return "".join(_node_at(node, call, calls) for node in nodes)


def _node_at(node: str | _Switch | _Alternate, call: int, calls: int) -> str:
    if isinstance(node, str):
        return node
    if isinstance(node, _Alternate):
        return _text_at(node.options[(call - 1) % len(node.options)], call, calls)
    return _text_at(node.before if call <= node.last_call(calls) else node.after, call, calls)
