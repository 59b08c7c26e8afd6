"""Which models a LoRA is for, and whether A1111 can use it with a checkpoint. Pure.

A LoRA belongs to the family whose layers it fits best: the number of its layers that a model of
the family has, with the same shape. A LoRA for SD1 fits 20 of 64 layers of SDXL by accident.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from worker.errors import ModelMismatch, ModelNotSupported
from worker.formats.embedding_vectors import BUNDLED, bundled_fault
from worker.formats.lora_layers import (
    Fit,
    Layers,
    family_layers,
    find,
    fit,
    parts_by_layer,
)
from worker.formats.lora_modules import FOREIGN_PARTS, Shape, parts_fault
from worker.formats.lora_names import find_renaming
from worker.formats.safetensors_header import Header
from worker.formats.stable_diffusion import FAMILIES

# Layers of a UNet or a text encoder, whatever a tool puts before, between and behind the words.
_STABLE_DIFFUSION = re.compile(
    r"(?:down|up|input|output)_blocks_\d|mid(?:dle)?_block_|encoder_layers_\d|resblocks_\d"
)


def shapes_of(header: Header) -> dict[str, Shape]:
    """The shapes of the tensors by name."""
    return {name: tensor.shape for name, tensor in header.tensors.items()}


def family_fits(shapes: Mapping[str, Shape]) -> dict[str, Fit]:
    """How a LoRA fits each family."""
    return {family: fit(shapes, family_layers(family)) for family in FAMILIES}


def families_of(fits: Mapping[str, Fit]) -> list[str]:
    """The families that it fits best; several if it has only layers that they share."""
    best = max(one.used for one in fits.values())
    return [family for family, one in fits.items() if one.used == best] if best else []


def family_when_renamed(header: Header) -> str | None:
    """The family that a LoRA in other tools' names fits best with kohya's; None for several."""
    fits = {}
    for family in FAMILIES:
        try:
            renaming = find_renaming("", header, family)
        except ModelNotSupported:
            continue
        if renaming:
            shapes = {new: header.tensors[name].shape for name, new in renaming.keys.items()}
            fits[family] = fit(shapes, family_layers(family))
    families = families_of(fits) if fits else []
    return families[0] if len(families) == 1 else None


def is_read(shapes: Mapping[str, Shape], fits: Mapping[str, Fit]) -> bool:
    """Whether A1111 reads the names of some layers, and the parts of those that it reads."""
    own = parts_by_layer(shapes)
    if any(part.startswith(FOREIGN_PARTS) for parts in own.values() for part in parts):
        return False
    return not own or any(one.known for one in fits.values())


def can_be_renamed(shapes: Mapping[str, Shape], fits: Mapping[str, Fit]) -> bool:
    """Whether A1111 does not read the names, but they are those of Stable Diffusion's layers."""
    known = any(one.known for one in fits.values())
    named = (_STABLE_DIFFUSION.search(name.replace(".", "_")) for name in shapes)
    return not is_read(shapes, fits) and (known or any(named))


def fault(header: Header) -> str | None:
    """Why A1111 cannot use the LoRA with any checkpoint; None if it can, or if it is renamed.

    Names of other tools are no fault here, because the worker can rename them.
    """
    shapes = shapes_of(header)
    own = parts_by_layer(shapes)
    if reason := bundled_fault(shapes):
        return reason
    if not own:
        bundled = any(name.startswith(f"{BUNDLED}.") for name in shapes)
        return None if bundled else "has no layers"
    fits = family_fits(shapes)
    if not is_read(shapes, fits):
        if can_be_renamed(shapes, fits):
            return None
        return f"has no layer of SD1, SD2 or SDXL (first: {next(iter(own))!r})"
    for name, parts in own.items():
        if any(find(name, family_layers(family)) for family in FAMILIES):
            reason = parts_fault({part: shapes[f"{name}.{part}"] for part in parts})
            if reason:
                return f"cannot be applied: layer {name!r}: {reason}"
    broken = next((fits[family].broken for family in families_of(fits)), None)
    return f"cannot be applied: {broken}" if broken else None


def check_fit(
    lora_name: str, lora: Header, checkpoint_name: str, layers: Layers, family: str | None
) -> Fit:
    """How the LoRA fits the checkpoint with these layers.

    Args:
        lora_name: for the error.
        lora: its header.
        checkpoint_name: for the error.
        layers: of the checkpoint, see `lora_layers.layers_of`.
        family: of the checkpoint; None if it is not known.

    Raises:
        ModelMismatch: no layer fits, or another family fits better.
        ModelNotSupported: A1111 would load nothing of it, or compute a wrong delta.
    """
    shapes = shapes_of(lora)
    own = fit(shapes, layers)
    details = {"checkpoint": checkpoint_name, "checkpoint_family": family, "model": lora_name}
    fits = family_fits(shapes)
    better = [one for one in families_of(fits) if one != family and fits[one].used > own.used]
    if better and family not in families_of(fits):
        raise ModelMismatch(
            f"{lora_name!r} is a LoRA for {' or '.join(better)} ({fits[better[0]].used} of its"
            f" {own.layers} layers fit), but only {own.used} layers fit the checkpoint"
            f" {checkpoint_name!r}.",
            **details,
            model_family=better[0],
        )
    if own.broken:
        raise ModelNotSupported(
            f"{lora_name!r} cannot be applied to {checkpoint_name!r}: {own.broken}.",
            model=lora_name,
        )
    if own.layers and not own.used:
        why = f" ({own.misfit})" if own.misfit else ""
        raise ModelMismatch(
            f"none of the {own.layers} layers of the LoRA {lora_name!r} fits the checkpoint"
            f" {checkpoint_name!r}{why}; A1111 v1.9.3 would draw without it.",
            **details,
            model_family=None,
        )
    return own


def notes(name: str, found: Fit) -> list[str]:
    """Sentences about the layers of a LoRA that have no effect."""
    start = f"LoRA {name!r}: "
    absent, misfit, count = found.layers - found.known, found.known - found.used, found.layers
    lines = []
    if absent:
        lines.append(f"{absent} of {count} layers are not in the checkpoint and have no effect.")
    if misfit:
        lines.append(f"{misfit} of {count} layers do not fit the checkpoint and have no effect.")
    if found.unread:
        lines.append(f"A1111 reads only a part of {found.unread} of {count} layers.")
    return [start + one for one in lines]
