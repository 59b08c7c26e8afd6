r"""A1111's prompt language -> CLIP conditioning for diffusers' pipelines.

    (x)  (x:1.3)  [x]    emphasis: x1.1, x1.3, /1.1; brackets nest and multiply; \( is a bracket
    BREAK                starts a new chunk of 75 tokens
    <lora:name:te:unet>  a LoRA tag, taken out of the text (see `extract_loras`)

Prompts of any length are encoded in chunks of 75 tokens, as A1111 does. What changes while a
picture is made ([a:b:0.5], [a|b]) is `engine.prompt.schedule`'s; AND is refused rather than read
as text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import Refused, Unsupported
from engine.prompt.schedule import schedule

CHUNK = 75
COMMA_BACKTRACK = 20
EMPHASIS = 1.1
# below this the mean of an encoding is rounding noise, and restoring it would divide by zero
SMALLEST_MEAN = 1e-5

_TAG = re.compile(r"<(\w+):([^>]+)>")
_LORA = {"lora", "lyco"}  # A1111 registers one under both names
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
    """A LoRA asked for in the prompt, with its weight in the text encoder and in the UNet."""

    name: str
    te: float
    unet: float


@dataclass
class Span:
    """A piece of text and its emphasis; None is a chunk break."""

    text: str
    weight: float | None


@dataclass(frozen=True)
class Chunk:
    """75 token ids (padded with the end token) and the emphasis of each."""

    ids: list[int]
    weights: list[float]


def extract_loras(prompt: str) -> tuple[str, list[LoraTag]]:
    """The prompt without its <kind:...> tags, and the LoRA tags in order.

    Tags of other kinds are dropped, as A1111 drops those it has no network for. Raises Refused
    for a weight that is no number: A1111 would silently ignore every LoRA of the request.
    """
    tags = [_read_tag(arguments) for kind, arguments in _TAG.findall(prompt) if kind in _LORA]
    return _TAG.sub("", prompt), tags


def _read_tag(arguments: str) -> LoraTag:
    name, *rest = arguments.split(":")
    named = dict(item.split("=", 1) for item in rest if "=" in item)
    places = [item for item in rest if "=" not in item]
    if named.keys() - {"te", "unet"} or len(places) > 2:  # noqa: PLR2004 - te and unet
        raise Unsupported(f"more than the weights te and unet in <lora:{arguments}>")
    try:
        te = float(named.get("te", places[0] if places else 1))
        unet = float(named.get("unet", places[1] if places[1:] else te))
    except ValueError as error:
        raise Refused(f"bad weight in <lora:{arguments}>: {error}") from error
    return LoraTag(name, te, unet)


def refuse_unsupported(text: str) -> None:
    """Raise Unsupported for the part of A1111's language that the engine has not."""
    if _AND.search(text):
        raise Unsupported("composable prompts (AND)")


class _Parser:
    """Collects spans; a stack remembers which span each open bracket began at."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.stack: list[tuple[str, int]] = []
        self.is_open = False  # the last span still takes characters

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
        """Weigh everything since the innermost open `bracket`."""
        place = max(i for i, (kind, _) in enumerate(self.stack) if kind == bracket)
        self.weigh(self.stack.pop(place)[1], factor)
        self.is_open = False

    def weigh(self, start: int, factor: float) -> None:
        for span in self.spans[start:]:
            if span.weight is not None:
                span.weight *= factor

    def read(self, match: re.Match[str]) -> None:
        """Take one token; a closing bracket without its opening one is text."""
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
    """Spans of equal emphasis. A bracket never closed counts to the end; a lone backslash vanishes.

    >>> [(s.text, s.weight) for s in parse("a (red:1.5) cat")]
    [('a ', 1.0), ('red', 1.5), (' cat', 1.0)]
    """
    parser = _Parser()
    for match in _TOKEN.finditer(text):
        parser.read(match)
    for bracket, start in parser.stack:
        parser.weigh(start, EMPHASIS if bracket == "(" else 1 / EMPHASIS)
    merged: list[Span] = []
    for span in parser.spans or [Span("", 1.0)]:
        if merged and span.weight is not None and merged[-1].weight == span.weight:
            merged[-1].text += span.text
        else:
            merged.append(span)
    return merged


class _Chunker:
    """Fills chunks; a chunk that overflows shortly after a comma is cut at the comma."""

    def __init__(self, comma: int, end: int) -> None:
        self.comma, self.end = comma, end
        self.chunks: list[Chunk] = []
        self.tokens: list[tuple[int, float]] = []

    def flush(self, keep: int = 0) -> None:
        """Finish the chunk; its last `keep` tokens begin the next one."""
        cut = len(self.tokens) - keep
        row, self.tokens = self.tokens[:cut], self.tokens[cut:]
        padding = CHUNK - len(row)
        ids = [token for token, _ in row] + [self.end] * padding
        self.chunks.append(Chunk(ids, [weight for _, weight in row] + [1.0] * padding))

    def add(self, token: int, weight: float) -> None:
        if len(self.tokens) == CHUNK:
            self.flush(keep=0 if token == self.comma else self._after_comma())
        self.tokens.append((token, weight))

    def _after_comma(self) -> int:
        """How many tokens follow the last comma; 0 where that is out of reach."""
        commas = [i for i, (token, _) in enumerate(self.tokens) if token == self.comma]
        if not commas or len(self.tokens) - commas[-1] > COMMA_BACKTRACK:
            return 0
        return len(self.tokens) - 1 - commas[-1]


def chunk(tokenizer: Any, text: str) -> list[Chunk]:  # noqa: ANN401 - transformers is untyped here
    """The prompt's tokens in at least one chunk, without the start and end tokens."""

    def tokenize(part: str) -> list[int]:
        ids: list[int] = tokenizer(part, add_special_tokens=False, verbose=False).input_ids
        return ids

    chunker = _Chunker(tokenize(",")[-1], tokenizer.eos_token_id)
    for span in parse(text):
        if span.weight is None:
            chunker.flush()
            continue
        for token in tokenize(span.text):
            chunker.add(token, span.weight)
    if chunker.tokens or not chunker.chunks:
        chunker.flush()
    return chunker.chunks


def _token_rows(tokenizer: Any, chunks: Sequence[Chunk]) -> torch.Tensor:  # noqa: ANN401
    """(chunks, 77) ids. OpenCLIP's tower was trained with its pad id after the first end token."""
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = []
    for part in chunks:
        row = [start, *part.ids, end]
        text = row.index(end) + 1
        rows.append(row[:text] + [pad] * (len(row) - text))
    return torch.tensor(rows)


def _hidden(encoder: Any, output: Any, clip_skip: int, is_xl: bool) -> torch.Tensor:  # noqa: ANN401
    """The layer `clip_skip` from the end; for SDXL always the last but one, without the norm."""
    if is_xl:
        layer: torch.Tensor = output.hidden_states[-2]
        return layer
    if clip_skip > 1:
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        normed: torch.Tensor = norm(output.hidden_states[-clip_skip])
        return normed
    last: torch.Tensor = output.last_hidden_state
    return last


def _emphasize(encoded: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """One chunk (77, width), weighed token by token, its mean restored."""
    if all(weight == 1 for weight in weights):
        return encoded
    factors = torch.tensor([1.0, *weights, 1.0], device=encoded.device, dtype=encoded.dtype)
    weighed = encoded * factors[:, None]
    mean, new_mean = encoded.mean(), weighed.mean()
    if min(mean.abs(), new_mean.abs()) < SMALLEST_MEAN:
        return weighed
    return weighed * (mean / new_mean)


def _encode(
    tokenizer: Any,  # noqa: ANN401 - diffusers' components are untyped
    encoder: Any,  # noqa: ANN401
    chunks: Sequence[Chunk],
    clip_skip: int,
    is_xl: bool,
) -> tuple[torch.Tensor, Any]:
    """Chunks -> (1, 77 x chunks, width), and the first chunk's pooled vector if there is one."""
    rows = _token_rows(tokenizer, chunks).to(encoder.device)
    output = encoder(rows, output_hidden_states=True)
    hidden = _hidden(encoder, output, clip_skip, is_xl)
    parts = [_emphasize(z, part.weights) for z, part in zip(hidden, chunks, strict=True)]
    pooled = getattr(output, "text_embeds", None)
    return torch.cat(parts)[None], None if pooled is None else pooled[:1]


def _condition(pipe: Any, chunks: Sequence[Chunk], clip_skip: int) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """`prompt_embeds`, and SDXL's `pooled_prompt_embeds`, of one prompt."""
    is_xl = getattr(pipe, "text_encoder_2", None) is not None
    embeds, _ = _encode(pipe.tokenizer, pipe.text_encoder, chunks, clip_skip, is_xl)
    if not is_xl:
        return {"prompt_embeds": embeds}
    second, pooled = _encode(pipe.tokenizer_2, pipe.text_encoder_2, chunks, 1, is_xl)
    return {"prompt_embeds": torch.cat([embeds, second], -1), "pooled_prompt_embeds": pooled}


def _encode_both(pipe: Any, prompt: str, negative: str, clip_skip: int) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """The keyword arguments of a StableDiffusion(XL)Pipeline call for two prompts.

    Both are padded with empty chunks to the same length.
    """
    both = [chunk(pipe.tokenizer, text) for text in (prompt, negative)]
    length = max(map(len, both))
    empty = chunk(pipe.tokenizer, "")
    padded = [chunks + empty * (length - len(chunks)) for chunks in both]
    positive, other = (_condition(pipe, chunks, clip_skip) for chunks in padded)
    if "pooled_prompt_embeds" in other and not negative:
        # SDXL was trained with zeros, not with an encoded empty text
        other = {name: torch.zeros_like(value) for name, value in other.items()}
    return positive | {f"negative_{name}": value for name, value in other.items()}


@dataclass(frozen=True)
class Conditioning:
    """What the model is told, stretch by stretch: (last call, keyword arguments)."""

    stretches: Sequence[tuple[int, dict[str, torch.Tensor]]]

    def at(self, call: int) -> dict[str, torch.Tensor]:
        """For the call of this number, from 0.

        A1111 compares this number with the schedule, which counts from 1: whatever changes does so
        one call later than written. Its pictures are what people know.
        """
        return next(
            (given for last, given in self.stretches if call <= last), self.stretches[-1][1]
        )


@torch.no_grad()
def encode(pipe: Any, prompt: str, negative: str, clip_skip: int, calls: int) -> Conditioning:  # noqa: ANN401
    """Both prompts, without LoRA tags, for a picture that takes `calls` calls of the model.

    Raises IndexError where `clip_skip` is more than the text encoder has layers (A1111's answer
    too).
    """
    schedules = [dict(schedule(text, calls)) for text in (prompt, negative)]
    ends = sorted({end for texts in schedules for end in texts})
    known: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    stretches = []
    for last in ends:
        one, other = (next(t for end, t in texts.items() if last <= end) for texts in schedules)
        if (one, other) not in known:
            known[one, other] = _encode_both(pipe, one, other, clip_skip)
        stretches.append((last, known[one, other]))
    return Conditioning(stretches)
