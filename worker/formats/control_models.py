"""For which checkpoints a ControlNet or a T2I-Adapter is, by its tensors. Pure."""

from __future__ import annotations

from typing import get_args

from worker.formats.names import Kind
from worker.formats.safetensors_header import Header

KIND: Kind = "controlnet"
ROLES = ("ControlNet", "T2I-Adapter")  # of `worker.formats.architecture`

# The extension builds SDXL's if it finds one of these, in original or in diffusers' naming.
_ONLY_SDXL = ("label_emb.0.0.weight", "add_embedding.linear_1.weight")
_CONTEXTS = {768: "SD1", 1024: "SD2", 2048: "SDXL"}
# T2I-Adapters cut the picture, of 1 or 3 channels, into squares of 8 pixels, SDXL's of 16.
_ADAPTER_INPUTS = {256: "SDXL", 768: "SDXL"}
_MATRIX = 2


def roles(kind: Kind) -> tuple[str, ...]:
    """The roles of files that a job can use as this kind, beside the one of its own name."""
    return ROLES if kind == KIND else ()


def kind_of(role: str | None) -> Kind:
    """The kind of a file with this role, if neither a job nor a host names it."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    return KIND if role in ROLES else next((kind for kind in kinds if kind == role), "checkpoint")


def family(role: str, header: Header) -> str | None:
    """`SD1`, `SD2` or `SDXL`; None if the tensors do not tell, or if the role is another."""
    if role not in ROLES:
        return None
    for name, tensor in header.tensors.items():
        if name.endswith(_ONLY_SDXL):
            return "SDXL"
        width = tensor.shape[1] if len(tensor.shape) >= _MATRIX else None
        if name.removeprefix("adapter.") == "conv_in.weight" and width in _ADAPTER_INPUTS:
            return _ADAPTER_INPUTS[width]
    widths = (
        tensor.shape[1]
        for name, tensor in header.tensors.items()
        if name.endswith("attn2.to_k.weight") and len(tensor.shape) == _MATRIX
    )
    return next((_CONTEXTS[width] for width in widths if width in _CONTEXTS), None)
