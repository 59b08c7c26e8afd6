"""Embeddings in prompts: where their names are, and how their vectors replace tokens.

A1111 (v1.9.3, `textual_inversion.py` and `sd_hijack_clip.py`) looks at each token of a prompt for
the longest name that begins there; names are compared as tokens, so `cat` is not found in `cats`.
An embedding stands for as many tokens as it has vectors, each with the emphasis of its place. It is
never divided: if it does not fit into the rest of a chunk, it begins the next one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from engine.errors import Unsupported
from engine.prompt.tokenizer import clean

CHUNK = 75


class Vectors(Protocol):
    """An embedding, as this module needs it."""

    @property
    def name(self) -> str:
        """The word in a prompt."""
        ...

    @property
    def count(self) -> int:
        """The number of its vectors."""
        ...

    @property
    def hash(self) -> str:
        """The SHA-256 of its file; empty if it is part of another file."""
        ...

    @property
    def vectors(self) -> Mapping[str, torch.Tensor | None]:
        """(count, width) for each text encoder, `l` and `g`."""
        ...


# what stands in a chunk: (number of the first token that it replaces, embedding)
Fix = tuple[int, Vectors]


class Words:
    """The names of embeddings as tokens."""

    def __init__(self, tokenizer: Any, embeddings: Iterable[Vectors]) -> None:  # noqa: ANN401
        """`embeddings` are those that fit the checkpoint."""
        self._by_first: dict[int, list[tuple[list[int], Vectors]]] = {}
        named = [*embeddings]
        texts = [clean(one.name) for one in named]
        ids = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if named else []
        for one, own in zip(named, ids, strict=True):
            if own:
                self._by_first.setdefault(own[0], []).append((own, one))
        for found in self._by_first.values():
            found.sort(key=lambda entry: len(entry[0]), reverse=True)

    def split(self, tokens: Sequence[int]) -> Iterator[int | Vectors]:
        """The tokens of a text, with embeddings in place of their names.

        Raises Unsupported for an embedding that no chunk can hold; A1111 fails on it.
        """
        position = 0
        while position < len(tokens):
            name, one = self._at(tokens, position)
            if one is not None and one.count > CHUNK:
                raise Unsupported(f"embedding {one.name!r} with {one.count} vectors")
            yield tokens[position] if one is None else one
            position += len(name)

    def _at(self, tokens: Sequence[int], position: int) -> tuple[Sequence[int], Vectors | None]:
        for name, one in self._by_first.get(tokens[position], []):
            if [*tokens[position : position + len(name)]] == name:
                return name, one
        return tokens[position : position + 1], None


def insert(embedded: torch.Tensor, fixes: Iterable[Fix], part: str) -> torch.Tensor:
    """A chunk's token vectors (77, width), with those of the embeddings for the encoder `part`.

    The first row is the start token. Vectors that would go beyond the last row are cut off: A1111
    moves tokens behind a comma to the next chunk, but leaves the vectors where they were.
    """
    for offset, one in fixes:
        own = one.vectors[part]
        if own is not None:
            start = offset + 1
            own = own[: len(embedded) - start].to(embedded)
            embedded = torch.cat([embedded[:start], own, embedded[start + len(own) :]])
    return embedded


@contextmanager
def in_place(network: Any, rows: Sequence[Sequence[Fix]], part: str) -> Iterator[None]:  # noqa: ANN401
    """While the text encoder runs on as many chunks, their embeddings replace the placeholders.

    `part` is `l` for a checkpoint's first text encoder, `g` for SDXL's second.
    """

    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        pairs = zip(output, rows, strict=True)
        return torch.stack([insert(row, fixes, part) for row, fixes in pairs])

    if not any(rows):
        yield
        return
    handle = network.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
