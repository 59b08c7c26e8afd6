"""Which tensors A1111 v1.9.3 reads as an embedding, in a file of its own or inside a LoRA. Pure.

It follows `create_embedding_from_data` in A1111's textual_inversion.py. An embedding inside a LoRA
that it cannot read is an error in `load_network`: nothing of the LoRA is applied, and the picture
is drawn without it.
"""

from __future__ import annotations

from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

BUNDLED = "bundle_emb"  # begins the names of embeddings inside a LoRA
_OLD = "string_to_param"  # A1111's own name of the vectors; it is followed by a word
_MATRIX = 2


def embedding_fault(shapes: Shapes) -> str | None:
    """Why A1111 does not read an embedding from these tensors; None if it does."""
    if {"clip_l", "clip_g"} <= shapes.keys():
        small, large = shapes["clip_l"], shapes["clip_g"]
        if len(small) != _MATRIX or len(large) != _MATRIX or small[0] != large[0]:
            return "does not have as many vectors in `clip_l` as in `clip_g`"
        return None
    if half := {"clip_l", "clip_g"} & shapes.keys():
        return f"has only `{half.pop()}`; an embedding for SDXL has `clip_l` and `clip_g`"
    if len(shapes) != 1:
        return f"has {len(shapes)} tensors, not one with the vectors, nor `clip_l` and `clip_g`"
    ((name, shape),) = shapes.items()
    return None if 0 < len(shape) <= _MATRIX else f"has no list of vectors in {name!r}"


def bundled_fault(shapes: Shapes) -> str | None:
    """Why A1111 cannot read an embedding among the tensors of a LoRA; None if there is no reason.

    Args:
        shapes: of all tensors of the LoRA; those of embeddings are `bundle_emb.<word>.<part>`.
    """
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        start, _, rest = name.partition(".")
        if start != BUNDLED:
            continue
        word, dot, part = rest.partition(".")
        if not dot:
            return f"contains an embedding without a name (`{name[:100]}`)"
        part = part.partition(".")[0] if part.startswith(f"{_OLD}.") else part
        found.setdefault(word, {})[part] = shape
    for word, tensors in found.items():
        # A1111 takes a single tensor whatever its name is
        single = {"vectors": tensors.get(_OLD, next(iter(tensors.values())))}
        is_single = len(tensors) == 1 or _OLD in tensors
        if reason := embedding_fault(single if is_single else tensors):
            return f"contains the embedding {word[:60]!r}, which {reason}"
    return None
