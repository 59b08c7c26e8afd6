"""A1111's prompt editing: text that changes while a picture is made.

    [from:to:when]  `from` until `when`, then `to`; [to:when] adds, [from::when] removes
    [a|b|c]         the options in turn, one for each call of the model

`when` is a number of calls of the model or, with a decimal point, a share of them. Syntax that is
not complete is plain text, the same as in A1111. Emphasis is read by `engine.prompt.syntax`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# A character with its backslash, or a run of characters without a meaning here.
_TOKEN = re.compile(r"[^\\\[\]():|]+|\\.|[\[\]():|]", re.DOTALL)
_NUMBER = re.compile(r"\A[+-]?(?:\d+\.?|\d*\.\d+)(?:[eE][+-]?\d+)?\Z")
_CLOSING = {")": "(", "]": "["}


@dataclass(frozen=True)
class _Pass:
    """The calls of the model: all `calls` of them, after the `before` of an earlier pass."""

    calls: int
    before: int | None

    def last_call(self, when: str) -> int:
        """The call of this pass that `when` means; below 1 if it was in the earlier pass."""
        moment = float(when)
        if "." in when:
            share = moment if self.before is None else moment - 1.0
            return min(self.calls, int(share * self.calls))
        return min(self.calls, int(moment - (self.before or 0)))


@dataclass(frozen=True)
class _Switch:
    before: "_Nodes"
    after: "_Nodes"
    when: str

    def chosen(self, call: int, one: _Pass) -> "_Nodes":
        """What stands here in this call."""
        return self.before if call <= one.last_call(self.when) else self.after

    @property
    def parts(self) -> Sequence["_Nodes"]:
        return self.before, self.after


@dataclass(frozen=True)
class _Alternate:
    options: Sequence["_Nodes"]

    def chosen(self, call: int, _: _Pass) -> "_Nodes":
        """What stands here in this call."""
        return self.options[(call - 1) % len(self.options)]

    @property
    def parts(self) -> Sequence["_Nodes"]:
        return self.options


_Node = str | _Switch | _Alternate
_Nodes = Sequence[_Node]


class _NotWellFormed(Exception):
    """The text does not match the grammar rule."""


@dataclass
class _Open:
    """An open bracket: the parts of its content so far, and what separates them."""

    bracket: str
    parts: list[list[_Node]] = field(default_factory=lambda: [[]])
    separator: str = ""

    def may_separate(self, mark: str) -> bool:
        """`(a:b)`, `[a:b:c]` with any number of colons until the end, `[a|b]`; never mixed."""
        if self.bracket == "(":
            return mark == ":" and not self.separator
        return self.separator in ("", mark)

    def closed(self) -> _Nodes:
        """The bracket with its content. Raises _NotWellFormed."""
        if self.bracket == "(":
            return ["(", *self.plain(), ")"]
        if self.separator == "|":
            return [_Alternate(self.parts)]
        return [_switch(self.parts)] if self.separator else ["[", *self.plain(), "]"]

    def plain(self) -> _Nodes:
        """The content as text."""
        first, *others = self.parts
        return [*first, *(node for part in others for node in (self.separator, *part))]


class _Reader:
    """Parses the text into nodes; a bracket without a complete construct is plain text.

    A bracket inside a construct cannot be plain text. So what ends one open bracket early ends all
    of them, and each is given up only once: the time is proportional to the text's length.
    """

    def __init__(self) -> None:
        self.nodes: list[_Node] = []  # outside of all brackets
        self.open: list[_Open] = []

    def read(self, text: str) -> _Nodes:
        """The whole text. Raises _NotWellFormed if A1111's parser would fail."""
        end = 0
        for token in _TOKEN.finditer(text):
            if token.start() != end:
                break
            end = token.end()
            self._token(token[0])
        if end != len(text):
            raise _NotWellFormed  # a backslash at the end
        self._give_up()
        return self.nodes

    def _token(self, part: str) -> None:
        if part in "([":
            self.open.append(_Open(part))
        elif part in ")]":
            self._close(part)
        elif part in ":|":
            self._separate(part)
        else:
            self._add(part)

    def _add(self, *nodes: _Node) -> None:
        (self.open[-1].parts[-1] if self.open else self.nodes).extend(nodes)

    def _close(self, token: str) -> None:
        if self.open and self.open[-1].bracket == _CLOSING[token]:
            try:
                nodes = self.open[-1].closed()
            except _NotWellFormed:
                self._give_up()
                self._add(token)
                return
            self.open.pop()
            self._add(*nodes)
        else:
            self._give_up()
            self._add(token)

    def _separate(self, mark: str) -> None:
        if self.open and self.open[-1].may_separate(mark):
            self.open[-1].parts.append([])
            self.open[-1].separator = mark
            return
        self._give_up()
        if mark == "|":
            raise _NotWellFormed
        self._add(mark)

    def _give_up(self) -> None:
        """Turn all open brackets into plain text; their content stands outside then."""
        for one in self.open:
            if one.separator == "|":
                raise _NotWellFormed
            self.nodes += [one.bracket, *one.plain()]
        self.open.clear()


def _switch(parts: Sequence[_Nodes]) -> _Switch:
    """[from:to:when] or [to:when]."""
    *texts, last = parts
    written = "".join(node for node in last if isinstance(node, str)).strip()
    is_text = all(isinstance(node, str) for node in last)
    if not is_text or not _NUMBER.match(written) or len(texts) > 2:  # noqa: PLR2004 - from, to
        raise _NotWellFormed
    return _Switch(texts[0] if len(texts) > 1 else (), texts[-1], written)


def schedule(text: str, calls: int, before: int | None = None) -> list[tuple[int, str]]:
    """The text of each stretch of the `calls` calls of the model: (last call, text).

    The second pass of highres fix counts on from the `before` calls of the first one: a `when` of
    1.5 is in its middle.

    >>> schedule("a [cat:dog:0.5]", 10)
    [(5, 'a cat'), (10, 'a dog')]
    """
    try:
        nodes = _Reader().read(text)
    except _NotWellFormed:
        return [(calls, text)]
    one = _Pass(calls, before)
    return [(end, _text_at(nodes, end, one)) for end in sorted({calls, *_ends(nodes, one)})]


def _ends(nodes: _Nodes, one: _Pass) -> Iterator[int]:
    """The calls after which the text changes."""
    waiting = [nodes]
    while waiting:
        for node in waiting.pop():
            if isinstance(node, str):
                continue
            waiting += node.parts
            if isinstance(node, _Alternate):
                yield from range(1, one.calls + 1)
            elif (last := one.last_call(node.when)) >= 1:
                yield last


def _text_at(nodes: _Nodes, call: int, one: _Pass) -> str:
    texts, readers = [], [iter(nodes)]
    while readers:
        node = next(readers[-1], None)
        if node is None:
            readers.pop()
        elif isinstance(node, str):
            texts.append(node)
        else:
            readers.append(iter(node.chosen(call, one)))
    return "".join(texts)
