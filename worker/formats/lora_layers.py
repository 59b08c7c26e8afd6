"""What A1111 v1.9.3 does with each layer of a LoRA, judged by names and shapes alone. Pure.

It follows `extensions-builtin/Lora` of A1111. `load_network` takes the part of a tensor's name
before its first dot as the name of a layer, and ignores a layer that the model does not have.
It gives the parts of a layer (`lora_up.weight`) to the first of its module types that accepts
them; if none does, it loads nothing of the file. `network_apply_weights` adds a delta to the
layer's weight; if the shapes do not fit, that layer stays as it was, and A1111 only counts this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from worker.formats import stable_diffusion
from worker.formats.embedding_vectors import BUNDLED
from worker.formats.lora_modules import Broken, Layer, Misfit, Shape, check_module
from worker.formats.unet_names import RESNET

_INPAINTING = 9  # channels into the UNet; A1111 pads the delta of an ordinary LoRA

_OPENCLIP = {"mlp_fc1": "mlp_c_fc", "mlp_fc2": "mlp_c_proj", "self_attn": "attn"}
_ATTENTION = re.compile(r"(.*)_([qkv])_proj")
_OUTPUT = re.compile(r"(.*)_out_proj")


Layers = Mapping[str, Layer]


@dataclass(frozen=True)
class Fit:
    """How a LoRA fits a model.

    Attributes:
        layers: the LoRA's layers.
        known: those that the model has, by their names.
        used: those that change the model.
        misfit: a layer that is in the model but does not fit, and why; None if there is none.
        broken: why A1111 loads nothing of the file, or computes a wrong delta; None if it is right.
        unread: layers with parts that A1111 does not read.
    """

    layers: int
    known: int
    used: int
    misfit: str | None = None
    broken: str | None = None
    unread: int = 0


def layers_of(shapes: Mapping[str, Shape]) -> dict[str, Layer]:
    """The layers of a checkpoint, under A1111's names, from its tensors' names and shapes."""
    found: dict[str, Layer] = {}
    paths: set[str] = set()
    is_turbo = shapes.get("conditioner.embedders.0.model.ln_final.weight") == (1024,)
    for name, shape in shapes.items():
        path, _, part = name.rpartition(".")
        place = _place(path, is_turbo=is_turbo)
        if place is None or not shape:
            continue
        layer = place.replace(".", "_")
        if part == "weight":
            if shape[2:] and shape[1] == _INPAINTING:
                shape = (shape[0], 4, *shape[2:])  # noqa: PLW2901
            is_fixed = path.endswith("position_embedding") or (
                len(shape) == 1 and ".model." in path and not path.startswith("model.")
            )
            is_group = path.endswith("token_embedding")  # A1111 wraps it
            found[layer] = Layer(shape, is_fixed=is_fixed, is_group=is_group)
        elif part == "in_proj_weight":
            found[layer] = Layer((shape[0] // 3, *shape[1:]), is_attention=True)
        else:
            continue
        paths.add(place)
    groups = {group.replace(".", "_") for path in paths for group in _groups(path)}
    return dict.fromkeys(groups, Layer((), is_group=True)) | found


def _groups(path: str) -> Iterator[str]:
    """`diffusion_model.out.2` -> `diffusion_model.out`, `diffusion_model`."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _place(path: str, *, is_turbo: bool) -> str | None:
    """`model.diffusion_model.out.2` -> `diffusion_model.out.2`; None for a part of the VAE."""
    if path.startswith("model.diffusion_model."):
        return path.removeprefix("model.")
    if path.startswith("cond_stage_model."):
        return current_name(path).removeprefix("cond_stage_model.")
    if path.startswith("conditioner.embedders."):
        inner = path.removeprefix("conditioner.embedders.")
        return inner.removeprefix("0.") if is_turbo else inner
    return None


def current_name(name: str) -> str:
    """The name of a tensor of SD1's text encoder as A1111 has it; older files lack a part."""
    start = "cond_stage_model.transformer."
    inner = name.removeprefix(start)
    is_old = inner.startswith(("embeddings.", "encoder.", "final_layer_norm"))
    return f"{start}text_model.{inner}" if is_old and inner != name else name


@cache
def family_layers(family: str) -> Layers:
    """The layers of a family's models."""
    return layers_of(stable_diffusion.network(family))


def parts_by_layer(names: Iterable[str]) -> dict[str, list[str]]:
    """The tensors of a LoRA by layer: {`lora_unet_out_2`: [`lora_up.weight`, ...]}."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layer, dot, part = name.partition(".")
        if dot and layer != BUNDLED:
            layers.setdefault(layer, []).append(part)
    return layers


def find(name: str, layers: Layers) -> str | None:
    """A1111's name for a LoRA's layer if the model has it; `..._attn_q_proj` is a third of one."""
    is_sd2 = "model_transformer_resblocks_0_attn" in layers
    converted, *others = _candidates(name, is_sd2=is_sd2)
    if converted in layers:
        return converted
    third = _ATTENTION.fullmatch(converted)
    if third and third[1] in layers and layers[third[1]].is_attention:
        return converted
    return next((other for other in others if other in layers), None)


@lru_cache(maxsize=8192)  # each family is tried with each name of one LoRA
def _candidates(name: str, *, is_sd2: bool) -> tuple[str, ...]:
    """The names under which A1111 looks for a layer, in its order."""
    converted = _converted(name, is_sd2=is_sd2)
    if "lora_unet" in name:
        return converted, name.replace("lora_unet", "diffusion_model")
    if "lora_te1_text_model" in name:
        paths = ("0_transformer_text_model", "transformer_text_model")
        return converted, *(name.replace("lora_te1_text_model", path) for path in paths)
    if "oft_unet" in name:
        return converted, name.replace("oft_unet", "diffusion_model")
    return (converted,)


def _converted(name: str, *, is_sd2: bool) -> str:
    """A name that kohya made from diffusers' paths, as the name in the original code."""
    for pattern, original in _NAMES.items():
        if match := pattern.match(name):
            return original(*match.groups())
    if match := _TEXT.match(name):
        return _text_name(*match.groups(), is_sd2=is_sd2)
    return name


def _down_block(level: str, kind: str, place: str, path: str) -> str:
    number = 3 * int(level) + int(place) + 1
    return f"diffusion_model_input_blocks_{number}_{_inner(kind, path)}"


def _up_block(level: str, kind: str, place: str, path: str) -> str:
    number = 3 * int(level) + int(place)
    return f"diffusion_model_output_blocks_{number}_{_inner(kind, path)}"


def _middle_block(kind: str, place: str, path: str) -> str:
    number = 1 if kind == "attentions" else 2 * int(place)
    return f"diffusion_model_middle_block_{number}_{_inner(kind, path)[2:]}"


def _inner(kind: str, path: str) -> str:
    return f"1_{path}" if kind == "attentions" else f"0_{RESNET.get(path, path)}"


def _downsampler(level: str) -> str:
    return f"diffusion_model_input_blocks_{3 * int(level) + 3}_0_op"


def _upsampler(level: str) -> str:
    place = 2 if int(level) else 1
    return f"diffusion_model_output_blocks_{3 * int(level) + 2}_{place}_conv"


def _time_embedding(number: str, path: str) -> str:
    return f"diffusion_model_time_embed_{2 * int(number) - 2}{path}"


def _text_name(which: str, number: str, path: str, *, is_sd2: bool) -> str:
    if not which and not is_sd2:
        return f"transformer_text_model_encoder_layers_{number}_{path}"
    for diffusers, openclip in _OPENCLIP.items():
        path = path.replace(diffusers, openclip)
    return f"{'1_' if which else ''}model_transformer_resblocks_{number}_{path}"


_UNET, _NUMBER = "lora_unet_", r"(\d{1,3})"
_NAMES: dict[re.Pattern[str], Callable[..., str]] = {
    re.compile(f"{_UNET}down_blocks_{_NUMBER}_(attentions|resnets)_{_NUMBER}_(.+)"): _down_block,
    re.compile(f"{_UNET}up_blocks_{_NUMBER}_(attentions|resnets)_{_NUMBER}_(.+)"): _up_block,
    re.compile(f"{_UNET}mid_block_(attentions|resnets)_{_NUMBER}_(.+)"): _middle_block,
    re.compile(f"{_UNET}down_blocks_{_NUMBER}_downsamplers_0_conv"): _downsampler,
    re.compile(f"{_UNET}up_blocks_{_NUMBER}_upsamplers_0_conv"): _upsampler,
    re.compile(f"{_UNET}time_embedding_linear_{_NUMBER}(.*)"): _time_embedding,
    re.compile(f"{_UNET}conv_in(.*)"): "diffusion_model_input_blocks_0_0{}".format,
    re.compile(f"{_UNET}conv_out(.*)"): "diffusion_model_out_2{}".format,
}
_TEXT = re.compile(f"lora_te(2?)_text_model_encoder_layers_{_NUMBER}_(.+)")


def fit(shapes: Mapping[str, Shape], layers: Layers) -> Fit:
    """How the LoRA with these tensors fits the model with these layers."""
    own = parts_by_layer(shapes)
    places, broken = _places(own, layers)
    used: set[str] = set()
    misfits: list[str] = []
    unread = 0
    for place, name in places.items():
        layer = layers.get(place) or layers[place[: -len("_q_proj")]]
        try:
            ignored = check_module({part: shapes[f"{name}.{part}"] for part in own[name]}, layer)
        except Misfit as reason:
            misfits.append(f"layer {name!r}: {reason}")
        except Broken as reason:
            broken.append(f"layer {name!r}: {reason}")
        else:
            used.add(place)
            unread += bool(ignored)
    for place in _incomplete(used, layers):
        used.remove(place)
        lacks = "A1111 needs q, k, v and out of this attention together"
        misfits.append(f"layer {places[place]!r}: {lacks}")
    first = next(iter(misfits), None), next(iter(broken), None)
    return Fit(len(own), len(places), len(used), *first, unread)


def _places(names: Iterable[str], layers: Layers) -> tuple[dict[str, str], list[str]]:
    """A1111's name -> the LoRA's, of the layers that the model has; and why it would fail."""
    places: dict[str, str] = {}
    broken = []
    for name in names:
        place = find(name, layers)
        if place is None:
            continue
        if place in layers and layers[place].is_group:
            broken.append(f"A1111 fails on {name!r}, which has no weight, and loads nothing at all")
            continue
        if place in places:
            broken.append(f"layers {places[place]!r} and {name!r} are the same layer")
        places[place] = name
    return places, broken


def _incomplete(used: set[str], layers: Layers) -> list[str]:
    """The parts of OpenCLIP's attentions that have no effect, because another part is missing."""
    attentions: dict[str, list[str]] = {}
    for place in used:
        match = _ATTENTION.fullmatch(place) or _OUTPUT.fullmatch(place)
        if match and match[1] in layers and layers[match[1]].is_attention:
            attentions.setdefault(match[1], []).append(place)
    complete = 4  # q, k, v and out
    return [place for places in attentions.values() if len(places) < complete for place in places]
