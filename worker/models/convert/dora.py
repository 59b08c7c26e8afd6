"""A DoRA whose alpha is not its rank, as A1111 v1.9.3 computes it rightly.

LyCORIS and OneTrainer train m * (W + s d) / |W + s d| - W, where s is alpha / rank. A1111's
`finalize_updown` multiplies by s at the end: s * (m * (W + d) / |W + d| - W), which is another
delta, by half of it and more. Both are the same if s is 1. So the factor s moves into one of the
layer's matrices, in float32, and the alpha is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from worker.formats.lora_layers import parts_by_layer
from worker.formats.lora_names import Renaming
from worker.models.merge.float_formats import FORMATS
from worker.models.merge.lora_deltas import ALPHA
from worker.models.merge.tensor_file import TensorFile

# The part whose first axis A1111 takes for the rank -> a part that the delta is a multiple of.
_RANKS = {
    "lora_down.weight": "lora_up.weight",
    "hada_w1_b": "hada_w1_a",
    "lokr_w2_b": "lokr_w2_a",
    "lokr_w1_b": "lokr_w1_a",
}


def without_alphas(source: TensorFile, renaming: Renaming) -> Renaming:
    """The renaming with the factors of such layers; the same one if there is none."""
    old = {new: name for name, new in renaming.keys.items()}
    factors: dict[str, float] = {}
    folded: dict[str, str] = {}
    for layer, parts in parts_by_layer(old).items():
        found = _factor(source, {part: old[f"{layer}.{part}"] for part in parts})
        if found:
            name, factor = found
            factors[name] = factor
            alpha = f"{layer}.{ALPHA}"
            folded[old[alpha]] = alpha
    if not factors:
        return renaming
    keys = {name: new for name, new in renaming.keys.items() if name not in folded}
    return replace(renaming, keys=keys, factors=factors, folded=folded)


def _factor(source: TensorFile, names: Mapping[str, str]) -> tuple[str, float] | None:
    """The tensor to multiply, and by what; None if the layer is no DoRA, or its factor is 1."""
    tensors = source.header.tensors
    part = next((part for part in _RANKS if part in names), None)
    if part is None or not {"dora_scale", ALPHA, _RANKS[part]} <= names.keys() or "scale" in names:
        return None
    alpha, shape = tensors[names[ALPHA]], tensors[names[part]].shape
    is_number = alpha.dtype in {*FORMATS, "I32", "I64"} and math.prod(alpha.shape) == 1
    if not is_number or not shape or not shape[0]:
        return None  # the check of the layers refuses it where the model has this layer
    factor = source.number(names[ALPHA]) / shape[0]
    return None if factor == 1 else (names[_RANKS[part]], factor)
