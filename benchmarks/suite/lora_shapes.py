"""The shapes of a LoRA as kohya's scripts train it by default."""

from __future__ import annotations

from collections.abc import Mapping

from worker.formats.safetensors_header import Tensor
from worker.models.merge.checkpoint_layers import find_layers

Shapes = dict[str, tuple[int, ...]]


def lora_shapes(checkpoint: Mapping[str, tuple[int, ...]], rank: int) -> Shapes:
    """For all linear layers of a checkpoint's transformer blocks and text encoders."""
    found: Shapes = {}
    taken = set()
    tensors = {name: Tensor("F16", shape, 0, 0) for name, shape in checkpoint.items()}
    for name, place in find_layers(tensors).items():
        shape = checkpoint[place.key]
        usual = place.in_text_encoder or any(
            part in name for part in ("transformer_blocks", "proj_in", "proj_out")
        )
        if usual and (place.key, place.first) not in taken and len(shape) == 2:  # noqa: PLR2004
            taken.add((place.key, place.first))
            found[f"{name}.lora_down.weight"] = (rank, shape[1])
            found[f"{name}.lora_up.weight"] = (place.end - place.first, rank)
            found[f"{name}.alpha"] = ()
    return found
