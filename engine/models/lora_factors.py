"""The content of a LoRA file: for each layer, under its name in the file, two factors of a matrix.

    kohya      lora_unet_..._to_q.lora_down.weight, .lora_up.weight, .alpha
    peft       unet....to_q.lora_A.weight, .lora_B.weight
    diffusers  unet....to_q.lora.down.weight, and older ...processor.to_q_lora.down.weight

A file is applied completely or refused: a LoRA that is applied only in part gives another picture
than its author intended, and nothing in the answer would show this.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

StateDict = Mapping[str, torch.Tensor]

_KEY = re.compile(
    r"(?P<layer>.+?)(?:[._]lora|\.lora_linear_layer)?\."
    r"(?:(?P<down>lora_down|lora_A(?:\.\w+)?|down)\.weight"
    r"|(?P<up>lora_up|lora_B(?:\.\w+)?|up)\.weight"
    r"|(?P<alpha>alpha))"
)
# other kinds of networks, recognized by a part of their keys; A1111 can apply most of them
_KINDS = {
    "DoRA": r"\.(dora_scale|lora_magnitude_vector)",
    "LoHa": r"\.hada_",
    "LoKr": r"\.lokr_",
    "GLoRA": r"\.[ab][12]\.weight$",
    "OFT": r"\.(oft|boft)_",
    "IA3": r"\.on_input$",
    "LoCon in three factors": r"\.lora_mid\.",
    "weight difference": r"\.diff(_b)?$",
    "LoRA of norms": r"\.[wb]_norm$",
    "LoRA with biases": r"\.lora_\w+\.bias$",
    "LoRA with an embedding": r"^bundle_emb\.",
}


LONGEST_NAME = 120  # of a name from the file, in a message


class Misfit(ValueError):
    """The file cannot be applied completely; the message gives the reason."""


@dataclass(frozen=True)
class Factors:
    """`up` @ `down` is added to a layer, times alpha / rank; `alpha` is None if not in the file."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        """The number of columns of `up`, and of rows of `down`."""
        return self.down.shape[0]


def read(state: StateDict) -> dict[str, Factors]:
    """{name of the layer: its factors}. Raises Misfit."""
    matches = {key: _KEY.fullmatch(key) for key in state}
    _refuse_kinds(state)
    if unknown := [key for key, match in matches.items() if match is None]:
        first = unknown[0][:LONGEST_NAME]
        raise Misfit(
            f"{len(unknown)} of its {len(state)} keys are not LoRA keys (first: {first!r})"
        )
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, match in matches.items():
        if match and match.lastgroup:
            layers.setdefault(match["layer"], {})[match.lastgroup] = state[key]
    return {name: _factors(name, parts) for name, parts in layers.items()}


def _refuse_kinds(state: StateDict) -> None:
    for kind, pattern in _KINDS.items():
        if any(re.search(pattern, key) for key in state):
            raise Misfit(f"it is a {kind}; the embedded engine cannot apply this kind")


def _factors(name: str, parts: Mapping[str, torch.Tensor]) -> Factors:
    name = name[:LONGEST_NAME]
    if not {"down", "up"} <= parts.keys():
        raise Misfit(f"layer {name!r} does not have both of its matrices (down and up)")
    for part, tensor in parts.items():
        if not tensor.numel():
            raise Misfit(f"the {part} of layer {name!r} has no numbers: shape {[*tensor.shape]}")
        if not tensor.is_floating_point():
            raise Misfit(f"the {part} of layer {name!r} holds {tensor.dtype}, no fractions")
        if not tensor.float().isfinite().all():
            raise Misfit(f"the {part} of layer {name!r} holds NaN or infinity")
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise Misfit(f"the alpha of layer {name!r} is not a single number")
    return Factors(parts["down"], parts["up"], None if alpha is None else float(alpha))
