"""A1111's way of encoding prompts: chunks of 75 tokens with emphasis, for diffusers' pipelines."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import Unsupported
from engine.prompt.schedule import schedule
from engine.prompt.syntax import parse
from engine.prompt.tokenizer import clean

CHUNK = 75
COMMA_BACKTRACK = 20
# 19,200 tokens: more than twice as many as English words in the longest prompt (32,768 characters)
MOST_CHUNKS = 256
# below this, the mean of an encoding is rounding noise, and restoring it would divide by zero
SMALLEST_MEAN = 1e-5


@dataclass(frozen=True)
class Chunk:
    """75 token ids (padded with the end token) and the emphasis of each."""

    ids: list[int]
    weights: list[float]


class _Chunker:
    """Fills chunks; a chunk that overflows soon after a comma ends at the comma."""

    def __init__(self, comma: int, end: int) -> None:
        self.comma, self.end = comma, end
        self.chunks: list[Chunk] = []
        self.tokens: list[tuple[int, float]] = []

    def flush(self, keep: int = 0) -> None:
        """Finish the chunk; its last `keep` tokens are moved to the next one."""
        cut = len(self.tokens) - keep
        row, self.tokens = self.tokens[:cut], self.tokens[cut:]
        padding = CHUNK - len(row)
        ids = [token for token, _ in row] + [self.end] * padding
        self.chunks.append(Chunk(ids, [weight for _, weight in row] + [1.0] * padding))
        if len(self.chunks) > MOST_CHUNKS:
            raise Unsupported(f"a prompt of more than {MOST_CHUNKS} chunks of {CHUNK} tokens")

    def add(self, token: int, weight: float) -> None:
        if len(self.tokens) == CHUNK:
            self.flush(keep=0 if token == self.comma else self._after_comma())
        self.tokens.append((token, weight))

    def _after_comma(self) -> int:
        """The number of tokens after the last comma; 0 if it is more than 20 tokens back."""
        commas = [i for i, (token, _) in enumerate(self.tokens) if token == self.comma]
        if not commas or len(self.tokens) - commas[-1] > COMMA_BACKTRACK:
            return 0
        return len(self.tokens) - 1 - commas[-1]


def chunk(tokenizer: Any, text: str) -> list[Chunk]:  # noqa: ANN401 - transformers is untyped here
    """The prompt's tokens in at least one chunk, without the start and end tokens.

    Raises Unsupported for too many chunks, ValueError for a weight that is not a number.
    """
    spans = parse(text)
    parts = [",", *(clean(span.text) for span in spans)]
    ids: list[list[int]] = tokenizer(parts, add_special_tokens=False, verbose=False).input_ids
    chunker = _Chunker(ids[0][-1], tokenizer.eos_token_id)
    for span, tokens in zip(spans, ids[1:], strict=True):
        if span.is_break:
            chunker.flush()
            continue
        for token in tokens:
            chunker.add(token, span.weight)
    if chunker.tokens or not chunker.chunks:
        chunker.flush()
    return chunker.chunks


def _token_rows(tokenizer: Any, chunks: Sequence[Chunk]) -> torch.Tensor:  # noqa: ANN401
    """(chunks, 77) ids; after the first end token the tokenizer's pad id, as in training."""
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = []
    for part in chunks:
        row = [start, *part.ids, end]
        text = row.index(end) + 1
        rows.append(row[:text] + [pad] * (len(row) - text))
    return torch.tensor(rows)


def _hidden(encoder: Any, output: Any, clip_skip: int, is_xl: bool) -> torch.Tensor:  # noqa: ANN401
    """The layer `clip_skip` from the end; for SDXL always the second to last, not normalized."""
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
    """One chunk (77, width), each token times its weight, then scaled to the original mean."""
    if all(weight == 1 for weight in weights):
        return encoded
    factors = torch.tensor([1.0, *weights, 1.0], device=encoded.device, dtype=encoded.dtype)
    weighted = encoded * factors[:, None]
    mean, new_mean = encoded.mean(), weighted.mean()
    if min(mean.abs(), new_mean.abs()) < SMALLEST_MEAN:
        return weighted
    return weighted * (mean / new_mean)


def _encode(
    tokenizer: Any,  # noqa: ANN401 - diffusers' components are untyped
    encoder: Any,  # noqa: ANN401
    chunks: Sequence[Chunk],
    clip_skip: int,
    is_xl: bool,
) -> tuple[torch.Tensor, Any]:
    """Tensor (1, 77 x chunks, width), and the first chunk's pooled vector if there is one."""
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


Embeds = dict[str, torch.Tensor]


def _encode_texts(pipe: Any, texts: Iterable[str], clip_skip: int) -> dict[str, Embeds]:  # noqa: ANN401
    """The encoding of each text of one prompt's schedule.

    All have the same number of chunks, as in A1111: empty ones are added.
    """
    chunks = {text: chunk(pipe.tokenizer, text) for text in texts}
    length = max(map(len, chunks.values()))
    empty = chunk(pipe.tokenizer, "")
    return {
        text: _condition(pipe, own + empty * (length - len(own)), clip_skip)
        for text, own in chunks.items()
    }


def _zeros(encoded: dict[str, Embeds]) -> dict[str, Embeds]:
    """SDXL was trained with zeros in place of an encoded empty negative prompt."""
    return {
        text: {name: torch.zeros_like(value) for name, value in embeds.items()}
        for text, embeds in encoded.items()
    }


def _pair(positive: Embeds, negative: Embeds) -> Embeds:
    """The keyword arguments of a StableDiffusion(XL)Pipeline call for two encoded prompts.

    A1111 calls the model once for each prompt if they differ in length; diffusers makes one call
    for both. Repeating the chunks of a prompt does not change its attention, so both are repeated
    up to a common length. Raises Unsupported if that is too long.
    """
    lengths = [embeds["prompt_embeds"].shape[1] for embeds in (positive, negative)]
    common = math.lcm(*lengths)
    if common > MOST_CHUNKS * (CHUNK + 2):
        one, other = (length // (CHUNK + 2) for length in lengths)
        raise Unsupported(f"a prompt of {one} chunks with a negative prompt of {other}")
    both: Embeds = {}
    for prefix, embeds in (("", positive), ("negative_", negative)):
        times = common // embeds["prompt_embeds"].shape[1]
        both |= {f"{prefix}{name}": value for name, value in embeds.items()}
        both[f"{prefix}prompt_embeds"] = embeds["prompt_embeds"].repeat(1, times, 1)
    return both


@dataclass(frozen=True)
class Conditioning:
    """The text for the model as stretches of calls: (last call, keyword arguments)."""

    stretches: Sequence[tuple[int, dict[str, torch.Tensor]]]

    def at(self, call: int) -> dict[str, torch.Tensor]:
        """The keyword arguments for call number `call`, counted from 0.

        A1111 compares this number with the schedule, which counts from 1: a change happens one call
        later than written. The engine does the same, so that its pictures match A1111's.
        """
        return next(
            (given for last, given in self.stretches if call <= last), self.stretches[-1][1]
        )


@torch.no_grad()
def encode(pipe: Any, prompt: str, negative: str, clip_skip: int, calls: int) -> Conditioning:  # noqa: ANN401
    """Encode both prompts, without LoRA tags, for a picture that calls the model `calls` times.

    Raises IndexError if `clip_skip` is more than the text encoder's number of layers, the same as
    A1111.
    """
    schedules = [dict(schedule(text, calls)) for text in (prompt, negative)]
    encoded = [_encode_texts(pipe, set(texts.values()), clip_skip) for texts in schedules]
    if getattr(pipe, "text_encoder_2", None) is not None and encoded[1].keys() == {""}:
        encoded[1] = _zeros(encoded[1])
    stretches = []
    for last in sorted({end for texts in schedules for end in texts}):
        one, other = (next(t for end, t in texts.items() if last <= end) for texts in schedules)
        stretches.append((last, _pair(encoded[0][one], encoded[1][other])))
    return Conditioning(stretches)
