"""Applying LoRAs: the model's layers under every name that files use, and the hooks on them.

diffusers can load LoRA files too, but silently ignores what it does not know (unknown layers,
DoRA's scales, the alphas in the metadata), and needs seconds. Here a file is applied completely or
not at all. The model's own weights and modules never change: a hook adds the LoRA to a layer's
output, and without the hook the model is the same as before, bit for bit.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from engine.models import ldm
from engine.models.lora_factors import LONGEST_NAME, Factors, Misfit, StateDict, read

UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
KOHYA_PREFIXES = {
    UNET: ("lora_unet_",),
    # SD1 has `lora_te_`, SDXL's first has `lora_te1_`; some trainers write the latter for SD1 too
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
DIFFUSERS_METADATA = "lora_adapter_metadata"
# ComfyUI's names of the networks
COMFY_UNET = "diffusion_model."
COMFY_TEXTS = {"text_encoder": "text_encoders.clip_l.", "text_encoder_2": "text_encoders.clip_g."}
# a pattern of peft without repetition: matching takes no more than linear time
_PLAIN_PATTERN = re.compile(r"[\w.|^$\\]{1,1000}")
# names that diffusers wrote before it used peft
_OLD_NAMES = (
    (r"^base_model\.model\.", ""),
    (r"\.processor\.", "."),
    (r"\.text_model\.", "."),
    (r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj"),
    (r"\.to_out$", ".to_out.0"),
)


@dataclass(frozen=True)
class Layer:
    """A linear layer or a convolution, at `path` in the pipeline's `component`."""

    component: str
    path: str
    module: Any


@dataclass(frozen=True)
class Addition:
    """The matrices that one LoRA adds to one layer."""

    layer: Layer
    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def add(self, weight: float, device: torch.device) -> RemovableHandle:
        """Add them to the layer's output until the handle is removed."""
        module, dtype = self.layer.module, self.layer.module.weight.dtype
        down, up = self.down.to(device, dtype), self.up.to(device, dtype)
        scale = weight * self.scale

        def hook(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
            # scaled between the two: there, overflow in half precision is least likely
            return output + _through(up, scale * _through(down, inputs[0], module))

        handle: RemovableHandle = module.register_forward_hook(hook)
        return handle


def _through(
    weight: torch.Tensor,
    given: torch.Tensor,
    like: Any = None,  # noqa: ANN401 - a torch.nn.Conv2d
) -> torch.Tensor:
    """A matrix, or a convolution with the stride and the padding of the layer `like`."""
    if weight.ndim == 2:  # noqa: PLR2004 - a matrix
        return functional.linear(given, weight)
    if like is None:
        return functional.conv2d(given, weight)
    return functional.conv2d(given, weight, None, like.stride, like.padding, like.dilation)


class Layers:
    """The layers of a pipeline that a LoRA may change."""

    def __init__(self, pipe: Any) -> None:  # noqa: ANN401 - diffusers
        self.by_name: dict[str, Layer] = {}
        for component in (UNET, *TEXT_ENCODERS):
            network = getattr(pipe, component, None)
            if network is not None:
                self._add(component, network)

    def _add(self, component: str, network: torch.nn.Module) -> None:
        originals = _original_names(network) if component == UNET else {}
        for path, module in network.named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                layer = Layer(component, path, module)
                for name in _names(component, path, originals.get(path)):
                    self.by_name[name] = layer

    def additions(self, state: StateDict, metadata: Mapping[str, Any]) -> list[Addition]:
        """The additions of a LoRA file. Raises Misfit unless all of the file can be applied."""
        found = {name: (self.find(name), factors) for name, factors in read(state).items()}
        if missing := [name for name, (layer, _) in found.items() if layer is None]:
            raise Misfit(
                f"{len(missing)} of its {len(found)} layers are not in the model "
                f"(first: {missing[0][:LONGEST_NAME]!r})"
            )
        if not found:
            raise Misfit("it contains no LoRA layers")
        options = metadata.get(DIFFUSERS_METADATA)
        options = options if isinstance(options, dict) else {}
        placed = [(layer, factors) for layer, factors in found.values() if layer]
        if len({id(layer) for layer, _ in placed}) < len(placed):
            raise Misfit("it contains the same layer under two names")
        return [_addition(layer, factors, options) for layer, factors in placed]

    def find(self, name: str) -> Layer | None:
        """The layer with this name; a name with dots may be in one of the older forms."""
        if name not in self.by_name and "." in name:
            for pattern, replacement in _OLD_NAMES:
                name = re.sub(pattern, replacement, name)
        return self.by_name.get(name)


def _original_names(unet: Any) -> dict[str, str]:  # noqa: ANN401 - diffusers
    """{path: name in the original UNet}; {} if the original code has no such UNet."""
    try:
        keys = {key: key for key in unet.state_dict()}
        exported = ldm.export_unet(keys, unet.config.layers_per_block)
    except (LookupError, TypeError):
        return {}
    return {
        key.removesuffix(".weight"): name.removeprefix(ldm.UNET).removesuffix(".weight")
        for name, key in exported.items()
    }


def _names(component: str, path: str, original: str | None) -> Iterator[str]:
    """Every name of a layer: kohya's with underscores, those of the others with dots."""
    bare = path.removeprefix("text_model.")
    yield f"{component}.{bare}"
    if component == UNET:
        yield bare
        yield COMFY_UNET + (original or path)
    elif bare.startswith("encoder."):
        path = f"text_model.{bare}"
        yield f"{COMFY_TEXTS[component]}transformer.{path}"
    for prefix in KOHYA_PREFIXES[component]:
        for name in filter(None, (path, original)):
            yield prefix + name.replace(".", "_")


def _addition(layer: Layer, factors: Factors, options: Mapping[str, Any]) -> Addition:
    """The factors, in the shapes that the layer needs."""
    out, *inner = layer.module.weight.shape
    rank, ones = factors.rank if factors.down.ndim else 0, [1] * len(inner[1:])
    expected = {"down": [rank, *inner], "up": [out, rank, *ones]}
    actual = {"down": factors.down, "up": factors.up}
    for part, shape in expected.items():
        if _trim(actual[part].shape) != _trim(shape):
            raise Misfit(
                f"its {part} matrix for {layer.component}.{layer.path} has the shape "
                f"{list(actual[part].shape)}; the layer has {list(layer.module.weight.shape)}"
            )
    down, up = (actual[part].reshape(shape) for part, shape in expected.items())
    return Addition(layer, down, up, _scale(layer, factors, options))


def _trim(shape: Any) -> list[int]:  # noqa: ANN401 - a list or a torch.Size
    """Without trailing ones: files store a 1x1 convolution with or without them."""
    trimmed = list(shape)
    while len(trimmed) > 2 and trimmed[-1] == 1:  # noqa: PLR2004 - a matrix
        trimmed.pop()
    return trimmed


def _scale(layer: Layer, factors: Factors, options: Mapping[str, Any]) -> float:
    """The factor alpha / rank. An alpha that is not in the file equals the rank.

    diffusers writes alphas to the metadata: one for a network, and others for patterns of paths.
    """
    if factors.alpha is not None:
        return factors.alpha / factors.rank
    own = {
        name.removeprefix(f"{layer.component}."): value
        for name, value in options.items()
        if name.startswith(f"{layer.component}.")
    }
    alpha = own.get("lora_alpha", factors.rank)
    for pattern, other in _patterns(own).items():
        if pattern.search(layer.path):
            alpha = other
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise Misfit(f"its metadata have the alpha {str(alpha)[:LONGEST_NAME]!r}, not a number")
    root: float = factors.rank ** (0.5 if own.get("use_rslora") else 1)
    return float(alpha) / root


def _patterns(options: Mapping[str, Any]) -> dict[re.Pattern[str], Any]:
    """The `alpha_pattern` of peft, {the end of a layer's path: alpha}. Raises Misfit.

    peft allows any regular expression, but one from a file could take hours.
    """
    patterns = options.get("alpha_pattern") or {}
    try:
        if not isinstance(patterns, dict) or not all(map(_PLAIN_PATTERN.fullmatch, patterns)):
            raise Misfit("the alpha_pattern in its metadata is not {path: number}")
        return {re.compile(rf"(?:^|\.)(?:{name})$"): alpha for name, alpha in patterns.items()}
    except re.error as error:
        raise Misfit(f"the alpha_pattern in its metadata is not valid: {error}") from error
