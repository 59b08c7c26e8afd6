r"""A1111's prompt syntax: LoRA tags and emphasis.

    (x)  (x:1.3)  [x]    emphasis: x1.1, x1.3, /1.1; brackets nest and multiply; \( is a bracket
    BREAK                starts a new chunk of 75 tokens
    <lora:name:te:unet>  a LoRA tag, removed from the text (see `extract_loras`)

Text that changes between steps ([a:b:0.5], [a|b]) is read by `engine.prompt.schedule`. AND is
refused; otherwise it would be encoded as a word.
"""

import re
from dataclasses import dataclass

from engine.errors import Refused, Unsupported

EMPHASIS = 1.1

_TAG = re.compile(r"<(\w+):([^>]+)>")
_LORA = {"lora", "lyco"}  # A1111 accepts both names
_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<close>[)\]])"
    r"|\s*\b(?P<chunk_break>BREAK)\b\s*"
    r"|(?P<lone>\\)"
    r"|(?P<text>.)",
    re.DOTALL,
)
_AND = re.compile(r"\bAND\b")


@dataclass(frozen=True)
class LoraTag:
    """A LoRA tag in the prompt, with its weights in the text encoder and in the UNet."""

    name: str
    te: float
    unet: float


@dataclass
class Span:
    """A piece of text and its emphasis; None is a chunk break."""

    text: str
    weight: float | None


def extract_loras(prompt: str) -> tuple[str, list[LoraTag]]:
    """The prompt without its <kind:...> tags, and the LoRA tags in order.

    Tags of other kinds are removed, as A1111 does with tags of unknown networks. Raises Refused for
    a weight that is not a number: A1111 would silently ignore every LoRA of the request.
    """
    tags = [_read_tag(arguments) for kind, arguments in _TAG.findall(prompt) if kind in _LORA]
    return _TAG.sub("", prompt), tags


def _read_tag(arguments: str) -> LoraTag:
    name, *rest = arguments.split(":")
    named = dict(item.split("=", 1) for item in rest if "=" in item)
    places = [item for item in rest if "=" not in item]
    if named.keys() - {"te", "unet"} or len(places) > 2:  # noqa: PLR2004 - te and unet
        raise Unsupported(f"arguments other than te and unet in <lora:{arguments}>")
    try:
        te = float(named.get("te", places[0] if places else 1))
        unet = float(named.get("unet", places[1] if places[1:] else te))
    except ValueError as error:
        raise Refused(f"invalid weight in <lora:{arguments}>: {error}") from error
    return LoraTag(name, te, unet)


def refuse_unsupported(text: str) -> None:
    """Raise Unsupported for the part of A1111's syntax that the engine does not have."""
    if _AND.search(text):
        raise Unsupported("composable prompts (AND)")


class _Parser:
    """Collects spans; a stack holds the first span of each open bracket."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.stack: list[tuple[str, int]] = []
        self.is_open = False  # whether the next character belongs to the last span

    def add(self, text: str) -> None:
        if not self.is_open:
            self.spans.append(Span("", 1.0))
            self.is_open = True
        self.spans[-1].text += text

    def chunk_break(self) -> None:
        self.spans.append(Span("BREAK", None))
        self.is_open = False

    def open(self, bracket: str) -> None:
        self.stack.append((bracket, len(self.spans)))
        self.is_open = False

    def is_inside(self, bracket: str) -> bool:
        return any(kind == bracket for kind, _ in self.stack)

    def close(self, bracket: str, factor: float) -> None:
        """Multiply the weights of all spans since the innermost open `bracket`."""
        place = max(i for i, (kind, _) in enumerate(self.stack) if kind == bracket)
        self.multiply(self.stack.pop(place)[1], factor)
        self.is_open = False

    def multiply(self, start: int, factor: float) -> None:
        for span in self.spans[start:]:
            if span.weight is not None:
                span.weight *= factor

    def read(self, match: re.Match[str]) -> None:
        """Read one token; a closing bracket without an opening one is text."""
        kind, text = match.lastgroup, match[match.lastgroup or 0]
        if kind == "open":
            self.open(text)
        elif kind == "chunk_break":
            self.chunk_break()
        elif kind == "weight" and self.is_inside("("):
            self.close("(", float(text))
        elif kind == "close" and text == ")" and self.is_inside("("):
            self.close("(", EMPHASIS)
        elif kind == "close" and text == "]" and self.is_inside("["):
            self.close("[", 1 / EMPHASIS)
        elif kind == "weight":
            self.add(match[0])
        elif kind != "lone":
            self.add(text)


def parse(text: str) -> list[Span]:
    """Spans of equal emphasis. An unclosed bracket ends with the text; a lone backslash is dropped.

    >>> [(s.text, s.weight) for s in parse("a (red:1.5) cat")]
    [('a ', 1.0), ('red', 1.5), (' cat', 1.0)]
    """
    parser = _Parser()
    for match in _TOKEN.finditer(text):
        parser.read(match)
    for bracket, start in parser.stack:
        parser.multiply(start, EMPHASIS if bracket == "(" else 1 / EMPHASIS)
    merged: list[Span] = []
    for span in parser.spans or [Span("", 1.0)]:
        if merged and span.weight is not None and merged[-1].weight == span.weight:
            merged[-1].text += span.text
        else:
            merged.append(span)
    return merged
