"""CLIP's tokenizer, built from OpenAI's vocabulary file in this package, without a download."""

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import ftfy
from transformers import CLIPTokenizer

VOCABULARY = Path(__file__).parent / "clip" / "bpe_simple_vocab_16e6.txt.gz"
SIZE = 49408
BYTES = 256
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_symbols() -> list[str]:
    """The printable character for each byte, in vocabulary order.

    Printable Latin-1 characters come first, as themselves; the 68 other bytes start at U+0100.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = BYTES - len(printable)
    return [*map(chr, printable), *(chr(BYTES + i) for i in range(others))]


@cache
def read_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The token ids and the merges, as published.

    The file's first line is a version. CLIP uses as many merges as are needed for a vocabulary of
    49,408 entries, which also has 2 x 256 bytes and two marks; the other merges are unused.
    """
    symbols = byte_symbols()
    count = SIZE - 2 * len(symbols) - 2
    with gzip.open(VOCABULARY, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()[1 : 1 + count]
    merges = [(left, right) for left, right in map(str.split, lines)]
    tokens = [*symbols, *(s + "</w>" for s in symbols), *map("".join, merges), START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def clean(text: str) -> str:
    """The text as CLIP was trained with it: typographic quotes, full-width letters, ligatures,
    HTML's `&amp;`, control characters and wrongly decoded text are replaced by what they mean.
    """
    return " ".join(ftfy.fix_text(text).lower().split())


def build(padding: str = END) -> Any:  # noqa: ANN401 - transformers' classes are untyped here
    """A CLIPTokenizer; OpenCLIP (SDXL's second encoder) was trained with `padding="!"`, id 0."""
    vocabulary, merges = read_vocabulary()
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]  # declared as text, taken as pairs
        pad_token=padding,
        model_max_length=77,
    )
