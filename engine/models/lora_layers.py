"""Applying LoRAs: the model's layers under every name that files use, and the hooks on them.

diffusers can load LoRA files too, but silently ignores what it does not know (unknown layers,
DoRA's scales, the alphas in the metadata), and needs seconds. Here a file is applied completely or
not at all. Each layer gets another weight for the time of the picture, as in A1111, and then the
very tensor from before: the model is the same again, bit for bit. This serves every kind of LoRA
(some depend on the weight, and have no output of their own), and costs no time in the steps.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear, Parameter

from engine.models import ldm
from engine.models.lora import deltas
from engine.models.lora.deltas import Misfit, Parts
from engine.models.lora_factors import LONGEST_NAME, SINGLE, StateDict, read

UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
RESERVE = 4 * 10**9  # bytes on a GPU that drawing needs beside the weights
KOHYA_PREFIXES = {
    # kohya's OFTs have a prefix of their own, LyCORIS without kohya's trainer another one
    UNET: ("lora_unet_", "oft_unet_", "lycoris_"),
    # SD1 has `lora_te_`, SDXL's first has `lora_te1_`; some trainers write the latter for SD1 too
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
DIFFUSERS_METADATA = "lora_adapter_metadata"
# ComfyUI's names of the networks
COMFY_UNET = "diffusion_model."
COMFY_TEXTS = {
    "text_encoder": ("text_encoders.clip_l.", "text_encoders.clip_h."),
    "text_encoder_2": ("text_encoders.clip_g.",),
}
# OneTrainer's
ONETRAINER_UNET = ("unet.", "lora_unet.")
ONETRAINER_TEXTS = {
    "text_encoder": ("clip_l.", "clip_h.", "lora_te.", "lora_te1."),
    "text_encoder_2": ("clip_g.", "lora_te2."),
}
# A1111 changes no norm of OpenCLIP, whose blocks compute their norms themselves
LAYERS = {UNET: (Linear, Conv2d, GroupNorm, LayerNorm), "text_encoder": (Linear, LayerNorm)}
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
    """A linear layer, a convolution or a norm, at `path` in the pipeline's `component`."""

    component: str
    path: str
    module: Any


@dataclass(frozen=True)
class Addition:
    """What one LoRA adds to one layer."""

    layer: Layer
    parts: Parts

    def add(self, weight: float, device: torch.device, dyn: int | None = None) -> ExitStack:
        """Add it to the layer's weights until the stack is closed; computed on `device`.

        Several additions to a layer are closed in the opposite order, as an ExitStack does. `dyn`
        is the rank that is used of a LoRA's.
        """
        return add_all([(self, weight, dyn)], device)


def add_all(
    additions: Iterable[tuple[Addition, float, int | None]], device: torch.device
) -> ExitStack:
    """Make the additions, each with its weight and `dyn`, until the stack is closed.

    Those to one layer are made one after another, as some depend on the weight that they find; the
    layer has one other weight, however many there are.
    """
    by_layer: dict[int, list[tuple[Addition, float, int | None]]] = {}
    for one in additions:
        by_layer.setdefault(id(one[0].layer.module), []).append(one)
    with ExitStack() as added:
        for group in by_layer.values():
            _add_to_layer(added, group, device)
        return added.pop_all()


def _add_to_layer(
    until: ExitStack, group: list[tuple[Addition, float, int | None]], device: torch.device
) -> None:
    module = group[0][0].layer.module
    weight = module.weight.data.to(device, torch.float32)
    bias = None
    for addition, factor, dyn in group:
        parts = {name: part.to(device, torch.float32) for name, part in addition.parts.items()}
        found = deltas.delta(parts, weight, dyn)
        weight = weight + factor * found.weight
        if found.bias is not None:
            own = 0 if module.bias is None else module.bias.data.to(device, torch.float32)
            bias = (own if bias is None else bias) + factor * found.bias
    _replace(until, module, "weight", weight)
    if bias is not None:
        _replace(until, module, "bias", bias)


def _replace(until: ExitStack, module: Any, name: str, value: torch.Tensor) -> None:  # noqa: ANN401
    """Give the module another parameter until the stack is closed, and then the former object."""
    original = getattr(module, name)
    like = module.weight.data
    until.callback(_put_back, module, name, original)
    value = value.to(like.dtype)
    if original is not None and _is_nearly_full(like):
        original.data = original.data.cpu()
    setattr(module, name, Parameter(value.to(like.device), requires_grad=False))


def _put_back(module: Any, name: str, original: Parameter | None) -> None:  # noqa: ANN401
    """The former parameter, where the present one is: an offloaded model moves meanwhile."""
    if original is not None:
        original.data = original.data.to(getattr(module, name).device)
    setattr(module, name, original)


def _is_nearly_full(weight: torch.Tensor) -> bool:
    """Whether its GPU has too little memory for a copy of each layer, and for drawing."""
    if weight.device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(weight.device)
    unused = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
    return free + unused < RESERVE


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
        is_openclip = getattr(network.config, "hidden_act", None) == "gelu"
        kinds = (Linear,) if is_openclip else LAYERS.get(component, (Linear,))
        for path, module in network.named_modules():
            if isinstance(module, kinds):
                layer = Layer(component, path, module)
                for name in _names(component, path, originals.get(path)):
                    self.by_name[name] = layer

    def additions(self, state: StateDict, metadata: Mapping[str, Any]) -> list[Addition]:
        """The additions of a LoRA file. Raises Misfit unless all of the file can be applied."""
        found = {name: (self.find(name), parts) for name, parts in read(state).items()}
        if missing := [name for name, (layer, _) in found.items() if layer is None]:
            raise Misfit(
                f"{len(missing)} of its {len(found)} layers are not in the model "
                f"(first: {missing[0][:LONGEST_NAME]!r})"
            )
        if not found:
            raise Misfit("it contains no LoRA layers")
        options = metadata.get(DIFFUSERS_METADATA)
        options = options if isinstance(options, dict) else {}
        placed = [(layer, parts) for layer, parts in found.values() if layer]
        if len({id(layer) for layer, _ in placed}) < len(placed):
            raise Misfit("it contains the same layer under two names")
        return [_addition(layer, parts, options) for layer, parts in placed]

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
        for name in {path, original or path}:
            yield from (prefix + name for prefix in ONETRAINER_UNET)
    elif bare.startswith("encoder."):
        path = f"text_model.{bare}"
        yield from (f"{prefix}transformer.{path}" for prefix in COMFY_TEXTS[component])
        yield from (prefix + path for prefix in ONETRAINER_TEXTS[component])
    for prefix in KOHYA_PREFIXES[component]:
        for name in filter(None, (path, original)):
            yield prefix + name.replace(".", "_")


def _addition(layer: Layer, parts: Parts, options: Mapping[str, Any]) -> Addition:
    """The parts, after a computation without numbers that shows whether their shapes fit."""
    if "alpha" not in parts and "lora_down.weight" in parts:
        parts = {**parts, "alpha": torch.tensor(_alpha(layer, parts, options))}
    shapes = {
        name: part.float() if name in SINGLE else torch.empty(part.shape, device="meta")
        for name, part in parts.items()
    }
    try:
        deltas.delta(shapes, torch.empty(layer.module.weight.shape, device="meta"))
    except (RuntimeError, Misfit, IndexError) as error:
        given = ", ".join(f"{name} {[*part.shape]}" for name, part in sorted(parts.items()))
        reason = f": {error}" if isinstance(error, Misfit) else ""
        raise Misfit(
            f"its tensors for {layer.component}.{layer.path} do not fit the layer, which has the "
            f"shape {[*layer.module.weight.shape]} ({given[:LONGEST_NAME]}){reason}"
        ) from error
    return Addition(layer, parts)


def _alpha(layer: Layer, parts: Parts, options: Mapping[str, Any]) -> float:
    """The alpha of a LoRA that is not in the file: the rank, or as the metadata say.

    diffusers writes alphas to the metadata: one for a network, and others for patterns of paths.
    """
    rank = parts["lora_down.weight"].shape[0]
    own = {
        name.removeprefix(f"{layer.component}."): value
        for name, value in options.items()
        if name.startswith(f"{layer.component}.")
    }
    alpha = own.get("lora_alpha", rank)
    for pattern, other in _patterns(own).items():
        if pattern.search(layer.path):
            alpha = other
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise Misfit(f"its metadata have the alpha {str(alpha)[:LONGEST_NAME]!r}, not a number")
    root: float = rank**0.5 if own.get("use_rslora") else 1.0
    return float(alpha) * root


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
