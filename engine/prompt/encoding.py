"""A1111's way of encoding prompts: chunks of 75 tokens with emphasis, for diffusers' networks."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.errors import Refused, Unsupported
from engine.prompt.schedule import schedule
from engine.prompt.syntax import Span, bare, parse, split_parts
from engine.prompt.tokenizer import clean
from engine.prompt.vectors import CHUNK, Fix, Vectors, Words, in_place
from engine.sampling.conditioning import Conditioning, Embeds, Schedule

# 19,200 tokens: more than twice as many as English words in the longest prompt (32,768 characters)
MOST_CHUNKS = 256
MOST_ROWS = 16  # chunks that are encoded at once
# below this, the mean of an encoding is rounding noise, and restoring it would divide by zero
SMALLEST_MEAN = 1e-5
PLACEHOLDER = 0  # the token in place of which a vector of an embedding stands
HASH_DIGITS = 12
TI_HASHES = "TI hashes"
OPENCLIP = "gelu"  # the activation of its layers; CLIP has another one
EMPHASES = ("None", "Ignore", "Original", "No norm")
# the sizes that SDXL's refiner takes in place of a target size, with and without the prompt
AESTHETIC_SCORES = (6.0, 2.5)


@dataclass(frozen=True)
class TextOptions:
    """A1111's options of the prompt, and SDXL's size conditioning as (width, height), (left, top).

    `emphasis` is one of EMPHASES.
    """

    clip_skip: int = 1
    emphasis: str = "Original"
    comma_padding_backtrack: int = 20
    pad_cond_uncond: bool = False
    size: tuple[int, int] = (512, 512)
    crop: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Chunk:
    """75 token ids (padded with the end token), the emphasis of each, and the embeddings."""

    ids: list[int]
    weights: list[float]
    fixes: list[Fix] = field(default_factory=list)


class _Chunker:
    """Fills chunks; a chunk that overflows soon after a comma ends at the comma."""

    def __init__(self, comma: int, end: int, backtrack: int) -> None:
        self.comma, self.end, self.backtrack = comma, end, backtrack
        self.chunks: list[Chunk] = []
        self.tokens: list[tuple[int, float]] = []
        self.fixes: list[Fix] = []

    def flush(self, keep: int = 0) -> None:
        """Finish the chunk; its last `keep` tokens are moved to the next one.

        As in A1111, the embeddings stay in this one, also those whose tokens are moved.
        """
        cut = len(self.tokens) - keep
        row, self.tokens = self.tokens[:cut], self.tokens[cut:]
        padding = CHUNK - len(row)
        ids = [token for token, _ in row] + [self.end] * padding
        weights = [weight for _, weight in row] + [1.0] * padding
        self.chunks.append(Chunk(ids, weights, self.fixes))
        self.fixes = []
        if len(self.chunks) > MOST_CHUNKS:
            raise Unsupported(f"a prompt of more than {MOST_CHUNKS} chunks of {CHUNK} tokens")

    def add(self, one: int | Vectors, weight: float) -> None:
        """Add a token, or an embedding, which is never divided."""
        if len(self.tokens) == CHUNK:
            self.flush(keep=0 if one == self.comma else self._after_comma())
        if isinstance(one, int):
            self.tokens.append((one, weight))
            return
        if len(self.tokens) + one.count > CHUNK:
            self.flush()
        self.fixes.append((len(self.tokens), one))
        self.tokens += [(PLACEHOLDER, weight)] * one.count

    def _after_comma(self) -> int:
        """The number of tokens after the last comma; 0 if it is too far back."""
        commas = [i for i, (token, _) in enumerate(self.tokens) if token == self.comma]
        if not commas or len(self.tokens) - commas[-1] > self.backtrack:
            return 0
        return len(self.tokens) - 1 - commas[-1]


def chunk(
    tokenizer: Any,  # noqa: ANN401 - transformers is untyped here
    text: str,
    options: TextOptions,
    words: Words | None = None,
) -> list[Chunk]:
    """The prompt's tokens in at least one chunk, without the start and end tokens.

    Raises Unsupported for too many chunks, ValueError for a weight that is not a number.
    """
    # A1111 does not read any brackets then, nor BREAK
    spans = [Span(text, 1.0)] if options.emphasis == "None" else parse(text)
    parts = [",", *(clean(span.text) for span in spans)]
    ids: list[list[int]] = tokenizer(parts, add_special_tokens=False, verbose=False).input_ids
    chunker = _Chunker(ids[0][-1], tokenizer.eos_token_id, options.comma_padding_backtrack)
    for span, tokens in zip(spans, ids[1:], strict=True):
        if span.is_break:
            chunker.flush()
            continue
        for one in words.split(tokens) if words else tokens:
            chunker.add(one, span.weight)
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
    # as in A1111: for OpenCLIP, which SD2 has, the option has no effect
    if clip_skip > 1 and encoder.config.hidden_act != OPENCLIP:
        if clip_skip > (most := len(output.hidden_states)):
            raise Refused(
                f"clip skip (CLIP_stop_at_last_layers) must be at most {most} for this checkpoint, "
                f"not {clip_skip}"
            )
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        normed: torch.Tensor = norm(output.hidden_states[-clip_skip])
        return normed
    last: torch.Tensor = output.last_hidden_state
    return last


def _emphasize(
    encoded: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor, emphasis: str
) -> torch.Tensor:
    """One chunk of several texts (texts, 77, width), each token times its weight.

    Then all are scaled to the mean that they had before. It is the mean over all entries of the
    prompt's schedule, in which text i stands `counts[i]` times, because A1111 encodes them at once.
    """
    if emphasis in ("None", "Ignore") or bool((weights == 1).all()):
        return encoded
    weighted = encoded * weights[..., None]
    if emphasis == "No norm":
        return weighted
    shares = counts / counts.sum()
    mean, new_mean = ((z.mean((1, 2)) * shares).sum() for z in (encoded, weighted))
    if min(mean.abs(), new_mean.abs()) < SMALLEST_MEAN:
        return weighted
    return weighted * (mean / new_mean)


@dataclass(frozen=True)
class _Encoder:
    """A text encoder with its tokenizer."""

    tokenizer: Any
    network: Any
    is_xl: bool
    part: str  # of an embedding: `l` for a checkpoint's first text encoder, `g` for the second

    def encode(
        self, texts: Sequence[Sequence[Chunk]], counts: torch.Tensor, options: TextOptions
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(texts, 77 x chunks, width), and the first chunks' pooled vectors if there are some.

        All texts have the same number of chunks.
        """
        rows = [one for chunks in texts for one in chunks]
        hidden, pooled = self._run(rows, options.clip_skip)
        hidden = hidden.float()  # half precision would round the weights
        weights = torch.tensor([[1.0, *one.weights, 1.0] for one in rows], device=hidden.device)
        hidden, weights = (one.reshape(len(texts), -1, *one.shape[1:]) for one in (hidden, weights))
        numbers = range(hidden.shape[1])
        counts = counts.to(hidden)
        emphasized = [
            _emphasize(hidden[:, i], weights[:, i], counts, options.emphasis) for i in numbers
        ]
        firsts = None if pooled is None else pooled[:: len(texts[0])]
        return torch.cat(emphasized, 1), firsts

    def _run(
        self, rows: Sequence[Chunk], clip_skip: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden, pooled = [], []
        for start in range(0, len(rows), MOST_ROWS):
            some = rows[start : start + MOST_ROWS]
            ids = _token_rows(self.tokenizer, some).to(self.network.device)
            with in_place(self.network, [one.fixes for one in some], self.part):
                output = self.network(ids, output_hidden_states=True)
            hidden.append(_hidden(self.network, output, clip_skip, self.is_xl))
            if (vectors := getattr(output, "text_embeds", None)) is not None:
                pooled.append(vectors)
        return torch.cat(hidden), torch.cat(pooled) if pooled else None


class TextEncoder:
    """Encodes prompts with a checkpoint's one or two text encoders."""

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401 - diffusers
        options: TextOptions,
        embeddings: Iterable[Vectors] = (),
    ) -> None:
        """`pipe` has diffusers' names: tokenizer, text_encoder, tokenizer_2, text_encoder_2.

        `embeddings` are those that prompts can name. `notes` has the entries of A1111's generation
        parameters that depend on the texts, in the order in which A1111 adds them.
        """
        found = [
            (getattr(pipe, "tokenizer" + end, None), getattr(pipe, "text_encoder" + end, None))
            for end in ("", "_2")
        ]
        self.is_xl = found[1][1] is not None
        present = [one for one in found if one[1] is not None]
        self._encoders = [
            _Encoder(*one, self.is_xl, part) for one, part in zip(present, "lg", strict=False)
        ]
        self._options = options
        self._words = Words(self._encoders[0].tokenizer, embeddings)
        self.notes: dict[str, str] = {}
        self._is_refiner = self.is_xl and len(self._encoders) == 1

    def schedule(
        self, text: str, calls: int, base_calls: int | None = None, *, is_negative: bool = False
    ) -> Schedule:
        """A prompt without tags for a picture that calls the model `calls` times."""
        stretches = schedule(text, calls, base_calls)
        counts = Counter(text for _, text in stretches)
        encoded = self._encode(counts, is_negative=is_negative)
        return Schedule([(last, encoded[text]) for last, text in stretches])

    def _encode(self, counts: Counter[str], *, is_negative: bool = False) -> dict[str, Embeds]:
        """The encoding of each text of one prompt's schedule.

        All have the same number of chunks, as in A1111: empty ones are added.
        """
        tokenizer = self._encoders[0].tokenizer
        chunks = [chunk(tokenizer, text, self._options, self._words) for text in counts]
        length = max(map(len, chunks))
        empty = chunk(tokenizer, "", self._options)
        chunks = [own + empty * (length - len(own)) for own in chunks]
        for _ in self._encoders:  # as in A1111: SDXL's two text encoders both write the hashes
            self._note(counts, chunks)
        times = torch.tensor([float(count) for count in counts.values()])
        results = [one.encode(chunks, times, self._options) for one in self._encoders]
        joined = torch.cat([hidden for hidden, _ in results], -1)
        if not self.is_xl:
            return {text: Embeds(joined[i : i + 1]) for i, text in enumerate(counts)}
        pooled = results[-1][1]
        if pooled is None:
            raise TypeError("the second text encoder gives no pooled vector")
        if is_negative and counts.keys() == {""}:
            # SDXL was trained with zeros in place of an encoded empty prompt
            joined, pooled = torch.zeros_like(joined), torch.zeros_like(pooled)
        sizes = self._sizes(is_negative=is_negative).to(joined.device)
        return {
            text: Embeds(joined[i : i + 1], pooled[i : i + 1], sizes)
            for i, text in enumerate(counts)
        }

    def _note(self, texts: Iterable[str], chunks: Sequence[Sequence[Chunk]]) -> None:
        """Add to `notes` what A1111 writes for one prompt."""
        used = {
            one.name: one.hash[:HASH_DIGITS]
            for column in zip(*chunks, strict=True)
            for own in column
            for _, one in own.fixes
        }
        hashes = [f"{bare(name)}: {digits}" for name, digits in used.items() if digits]
        if hashes:
            before = self.notes.get(TI_HASHES)
            self.notes[TI_HASHES] = ", ".join([*hashes, before] if before else hashes)
        emphasis = self._options.emphasis
        if emphasis != "Original" and any("(" in text or "[" in text for text in texts):
            self.notes["Emphasis"] = emphasis

    def _sizes(self, *, is_negative: bool) -> torch.Tensor:
        """The requested size, not the rounded one, as in A1111."""
        (width, height), (left, top) = self._options.size, self._options.crop
        last = [AESTHETIC_SCORES[is_negative]] if self._is_refiner else [height, width]
        return torch.tensor([[height, width, top, left, *last]], dtype=torch.float32)

    @torch.no_grad()
    def conditioning(
        self, prompt: str, negative: str, calls: int, base_calls: int | None = None
    ) -> Conditioning:
        """Both prompts, without tags, for a picture that calls the model `calls` times.

        The second pass of highres fix gives the calls of the first one as `base_calls`. Raises
        Refused if the text encoder has too few layers for `clip_skip`; A1111 raises IndexError.
        """
        without = self.schedule(negative, calls, base_calls, is_negative=True)
        parts = split_parts(prompt)
        known = {text: self.schedule(text, calls, base_calls) for text, _ in parts}
        empty = self._encode(Counter([""]))[""].text if self._options.pad_cond_uncond else None
        return Conditioning(
            [(known[text], weight) for text, weight in parts],
            without,
            empty,
        )
