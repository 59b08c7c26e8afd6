"""The content of a LoRA file: for each layer, under its name in the file, its tensors by part.

    kohya, LyCORIS  lora_unet_..._to_q.lora_down.weight, .lora_up.weight, .alpha, .hada_w1_a, ...
    peft            unet....to_q.lora_A.weight, .lora_B.weight, .lora_magnitude_vector
    diffusers       unet....to_q.lora.down.weight, and older ...processor.to_q_lora.down.weight

The parts have kohya's names afterwards. A file is applied completely or refused: a LoRA that is
applied only in part gives another picture than its author intended, and nothing in the answer would
show this.
"""

import re
from collections.abc import Mapping

import torch

from engine.models.lora.deltas import Misfit, Parts

__all__ = ["BUNDLED", "Misfit", "StateDict", "read"]

StateDict = Mapping[str, torch.Tensor]

_KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"(?:[._]lora|\.lora_linear_layer)?\.(?:"
    r"(?P<down>lora_down|lora_A(?:\.\w+)?|down)\.weight|(?P<up>lora_up|lora_B(?:\.\w+)?|up)\.weight"
    r"|(?P<alpha>alpha))"
    r"|\.(?P<lengths>lora_magnitude_vector)(?:\.\w+)*"
    r"|\.(?P<same>lora_mid\.weight|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
    r"|[ab][12]\.weight|oft_blocks|oft_diag|rescale|on_input|weight|diff|diff_b|[wb]_norm"
    r"|dora_scale|scale|bias))"
)
_NAMES = {"down": "lora_down.weight", "up": "lora_up.weight", "lengths": "dora_scale"}
SINGLE = ("alpha", "scale", "on_input")  # parts that are one number
BUNDLED = "bundle_emb."  # begins the keys of embeddings in a LoRA
# embeddings are taken out before (`embeddings.take_bundled`)
_KINDS = {"LoRA with biases": r"\.lora_\w+\.bias$"}  # A1111 does not read them either

LONGEST_NAME = 120  # of a name from the file, in a message


def read(state: StateDict) -> dict[str, Parts]:
    """{name of the layer: its tensors by part}. Raises Misfit."""
    _refuse_kinds(state)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    unknown = []
    for key, tensor in state.items():
        if match := _KEY.fullmatch(key):
            group = match.lastgroup or ""
            part = match[group] if group in {"same", "alpha"} else _NAMES[group]
            own = layers.setdefault(match["layer"], {})
            own[part] = _checked(match["layer"], part, tensor)
            if group == "lengths":  # peft has one for each output
                own[part] = tensor.reshape(-1, 1)
        else:
            unknown.append(key)
    if unknown:
        raise Misfit(
            f"{len(unknown)} of its {len(state)} keys are not LoRA keys "
            f"(first: {unknown[0][:LONGEST_NAME]!r})"
        )
    for name, parts in layers.items():
        _check_factors(name[:LONGEST_NAME], parts)
    return {**layers}


def _refuse_kinds(state: StateDict) -> None:
    for kind, pattern in _KINDS.items():
        if any(re.search(pattern, key) for key in state):
            raise Misfit(f"it is a {kind}; the embedded engine cannot apply this kind")


def _checked(layer: str, part: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor if it has numbers; a single number without axes."""
    what = f"the {part} of layer {layer[:LONGEST_NAME]!r}"
    if not tensor.numel():
        raise Misfit(f"{what} has no numbers: shape {[*tensor.shape]}")
    if part in SINGLE:
        if tensor.numel() != 1:
            raise Misfit(f"{what} is not a single number")
        tensor = tensor.reshape(())
    elif not tensor.is_floating_point():
        raise Misfit(f"{what} holds {tensor.dtype}, no fractions")
    if not tensor.float().isfinite().all():
        raise Misfit(f"{what} holds NaN or infinity")
    return tensor


def _check_factors(name: str, parts: Parts) -> None:
    found = [part in parts for part in ("lora_down.weight", "lora_up.weight")]
    if any(found) != all(found) or parts.keys() <= {"alpha", "scale", "dora_scale"}:
        raise Misfit(f"layer {name!r} does not have both of its matrices (down and up)")
