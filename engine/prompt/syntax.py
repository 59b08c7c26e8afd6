r"""A1111's prompt syntax: comments, LoRA tags and emphasis.

    # ...                up to the end of the line: a comment, removed first
    <lora:name:te:unet:dyn>  a LoRA tag, removed from the text (see `extract_loras`)
    (x)  (x:1.3)  [x]    emphasis: x1.1, x1.3, /1.1; brackets nest and multiply; \( is a bracket
    BREAK                starts a new chunk of 75 tokens, unless a bracket gives it a weight

    a :1.2 AND b :0.8    several prompts at once, each with its weight (see `split_parts`)

Text that changes between steps ([a:b:0.5], [a|b]) is read by `engine.prompt.schedule`. The patterns
are linear in the text's length (tests/job/test_patterns.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import Refused, Unsupported, shown

EMPHASIS = 1.1
BREAK = "BREAK"
BREAK_WEIGHT = -1.0  # A1111's mark of a break; a bracket multiplies it, which makes it a word
MOST_PARTS = 100  # joined by AND
MOST_PLACES = 4  # in a tag: name, te, unet and dyn
DEEPEST = 100  # open brackets; each multiplies the weights of all text behind it

_COMMENT_LINE = re.compile(r"(?:\A|\n)#[^\n]*(?:\n|\Z)")
_COMMENT = re.compile(r"#[^\n]*(?:\n|\Z)")
# Without a `>` it matches up to the end of the text, so that nothing is searched twice.
_TAG = re.compile(r"<(\w+):([^>]+)(>|\Z)")
_LORA = {"lora", "lyco"}  # A1111 accepts both names, in lower case
HYPERNETWORK = "hypernet"
_TOKEN = re.compile(r"\\[()\[\]\\]?|[()\[\]:]|[^\\()\[\]:]+")
_WEIGHT = re.compile(r"\A\s*([+-]?[.\d]+)\s*\Z")
_BREAK = re.compile(r"\bBREAK\b")
_AND = re.compile(r"\bAND\b")
_NUMBER = re.compile(r"\A[-+]?(?:\d+\.?|\d*\.\d+)\Z")


@dataclass(frozen=True)
class LoraTag:
    """A LoRA tag in the prompt, with its weights in the text encoder and in the UNet.

    Of a LoRA with a higher rank, only `dyn` ranks are used; None: all of them.
    """

    name: str
    te: float
    unet: float
    dyn: int | None = None


@dataclass
class Span:
    """A piece of text and its emphasis."""

    text: str
    weight: float

    @property
    def is_break(self) -> bool:
        """Whether a new chunk starts here."""
        return (self.text, self.weight) == (BREAK, BREAK_WEIGHT)


def without_comments(text: str) -> str:
    """The text without `#` and what follows it on its line."""
    return _COMMENT.sub("\n", _COMMENT_LINE.sub("\n", text))


def extract_loras(prompt: str) -> tuple[str, list[LoraTag]]:
    """The prompt without its <kind:...> tags, and the LoRA tags in A1111's order.

    Tags of other kinds are removed, as A1111 does with tags of unknown networks. Raises Refused for
    a weight that is not a number: A1111 would silently ignore every LoRA of the request.
    """
    found = [(one[1], one[2]) for one in _TAG.finditer(prompt) if one[3] and one[1] in _LORA]
    # A1111 collects the tags by their kind before it applies them
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    found.sort(key=lambda one: kinds.index(one[0]))
    text = _TAG.sub(lambda one: "" if one[3] else one[0], prompt)
    return text, [_read_tag(arguments) for _, arguments in found]


def refuse_hypernetworks(prompt: str) -> None:
    """Raise Unsupported for a tag that A1111 reads and the engine does not."""
    for one in _TAG.finditer(prompt):
        if one[3] and one[1] == HYPERNETWORK:
            raise Unsupported(f"hypernetworks: {shown(one[0])}")


def _read_tag(arguments: str) -> LoraTag:
    """An argument with exactly one `=` is named, the others count by position."""
    items = arguments.split(":")
    named = dict(item.split("=") for item in items if item.count("=") == 1)
    places = [item for item in items if item.count("=") != 1]
    if named.keys() - {"te", "unet", "dyn"} or len(places) > MOST_PLACES:
        raise Unsupported(f"arguments other than te, unet and dyn in <lora:{arguments}>")
    if not places:
        raise Refused(f"no name in <lora:{arguments}>")
    try:
        numbers = [kind(one) for kind, one in zip((float, float, int), places[1:], strict=False)]
        given = dict(zip(("te", "unet", "dyn"), numbers, strict=False))
        given |= {name: (int if name == "dyn" else float)(text) for name, text in named.items()}
    except ValueError as error:
        raise Refused(f"invalid number in <lora:{arguments}>: {error}") from error
    te, dyn = given.get("te", 1.0), given.get("dyn")
    return LoraTag(places[0], te, given.get("unet", te), None if dyn is None else int(dyn))


def bare(name: str) -> str:
    """A name without the separators of the generation parameters."""
    return name.replace(",", "").replace(":", "")


def split_parts(text: str) -> list[tuple[str, float]]:
    """The parts of a prompt that are joined by AND, with the weight at the end of each.

    It is for a prompt without tags; A1111 reads both as plain text in a negative prompt. Raises
    Unsupported for too many parts: each is one more call of the model.

    >>> split_parts("a cat :1.2 AND a dog")
    [('a cat', 1.2), (' a dog', 1.0)]
    """
    parts = _AND.split(text)
    if len(parts) > MOST_PARTS:
        raise Unsupported(f"a prompt of {len(parts)} parts joined by AND ({MOST_PARTS} at most)")
    return [_split_weight(part) for part in parts]


def _split_weight(part: str) -> tuple[str, float]:
    before, colon, weight = part.rstrip().rpartition(":")
    if colon and _NUMBER.match(weight.lstrip()):
        return before.rstrip(), float(weight)
    return part.rstrip(), 1.0


class _Parser:
    """Collects spans; two stacks hold the first span of each open bracket."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.open: dict[str, list[int]] = {"(": [], "[": []}

    def add(self, text: str) -> None:
        """Add text, which is split at BREAK; spaces around a BREAK do not count."""
        first, *others = _BREAK.split(text)
        self.spans.append(Span(first if not others else first.rstrip(), 1.0))
        for number, part in enumerate(others, 1):
            self.spans.append(Span(BREAK, BREAK_WEIGHT))
            text = part.lstrip()
            self.spans.append(Span(text if number == len(others) else text.rstrip(), 1.0))

    def begin(self, bracket: str) -> None:
        if sum(map(len, self.open.values())) == DEEPEST:
            raise Unsupported(f"more than {DEEPEST} open brackets")
        self.open[bracket].append(len(self.spans))

    def close(self, bracket: str, factor: float) -> None:
        """Multiply the weights of all spans since the innermost open `bracket`."""
        self.multiply(self.open[bracket].pop(), factor)

    def multiply(self, start: int, factor: float) -> None:
        for span in self.spans[start:]:
            span.weight *= factor

    def read(self, part: str) -> None:
        """Read one token; a closing bracket without an opening one is text."""
        if part[0] == "\\":
            self.spans.append(Span(part[1:], 1.0))
        elif part in "([":
            self.begin(part)
        elif part == ")" and self.open["("]:
            self.close("(", EMPHASIS)
        elif part == "]" and self.open["["]:
            self.close("[", 1 / EMPHASIS)
        else:
            self.add(part)

    def read_weight(self, weight: str, written: str) -> None:
        """Read `:1.2)`, which is text if no bracket is open."""
        if self.open["("]:
            self.close("(", float(weight))
        else:
            self.add(written)


def parse(text: str) -> list[Span]:
    """Spans of equal emphasis. An unclosed bracket ends with the text; a lone backslash is dropped.

    Raises ValueError for a weight that is not a number, as A1111 does; Unsupported for too many
    open brackets.

    >>> [(s.text, s.weight) for s in parse("a (red:1.5) cat")]
    [('a ', 1.0), ('red', 1.5), (' cat', 1.0)]
    """
    parser, tokens, at = _Parser(), _TOKEN.findall(text), 0
    while at < len(tokens):
        weight = _WEIGHT.match(tokens[at + 1]) if tokens[at + 2 : at + 3] == [")"] else None
        if tokens[at] == ":" and weight:
            parser.read_weight(weight[1], "".join(tokens[at : at + 3]))
            at += 3
        else:
            parser.read(tokens[at])
            at += 1
    for bracket, factor in (("(", EMPHASIS), ("[", 1 / EMPHASIS)):
        for start in parser.open[bracket]:
            parser.multiply(start, factor)
    return _merged(parser.spans or [Span("", 1.0)])


def _merged(spans: Sequence[Span]) -> list[Span]:
    """The spans with neighbours of equal weight joined."""
    groups: list[tuple[list[str], float]] = []
    for span in spans:
        if groups and groups[-1][1] == span.weight:
            groups[-1][0].append(span.text)
        else:
            groups.append(([span.text], span.weight))
    return [Span("".join(texts), weight) for texts, weight in groups]
