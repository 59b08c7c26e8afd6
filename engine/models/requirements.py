"""What a single-file checkpoint must contain for this engine, and what it must not be.

A file passes if it has every tensor of its architecture, in the right shape, and a UNet without
further ones. Anything less would mean a picture of random or of half used weights. A1111 (v1.9.3,
`load_model_weights`) does not check: it keeps what the previous checkpoint had there.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from engine.errors import Unsupported
from engine.models import ldm

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

FIRST = ldm.UNET + "input_blocks.0.0.weight"
MIDDLE = ldm.UNET + "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
SD2_TEXT = "cond_stage_model.model."
REFINER_TEXT = "conditioner.embedders.0.model."
SD2_WIDTH = 1024  # of the text encoder of SD2.1 Turbo, which has the refiner's names
PARTS = {ldm.UNET: "UNet", ldm.VAE: "VAE"}


class Incomplete(ValueError):
    """The file is not a checkpoint that can be drawn with; the message gives the reason."""


# names before transformers 4.x; A1111 renames them, too
_OLD_CLIP = tuple(
    (f"{ldm.CLIP}{part}.", f"{ldm.CLIP}text_model.{part}.")
    for part in ("embeddings", "encoder", "final_layer_norm")
)


def today(key: str) -> str:
    """The key of a tensor under its present name: the oldest SD1 files lack `text_model.`."""
    for old, new in _OLD_CLIP:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def check_kind(shapes: Shapes) -> None:
    """Raise Unsupported for a model of another kind, Incomplete for a file without the main parts.

    `shapes` has present names.
    """
    if FIRST not in shapes:
        raise Incomplete(f"it is not an SD1 or SDXL checkpoint: {_instead(shapes)}")
    for kind, is_it in _OTHERS.items():
        if is_it(shapes):
            raise Unsupported(f"{kind} checkpoints")
    texts = (ldm.CLIP, ldm.CLIP_XL)
    if not _has(shapes, *texts):
        raise Incomplete(f"it has no text encoder (no tensor begins with {texts[0]})")
    if not _has(shapes, ldm.VAE):
        raise Incomplete(
            f"it has no VAE (no tensor begins with {ldm.VAE}), "
            "and the embedded engine cannot add one"
        )


def _has(shapes: Shapes, *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in shapes)


def _instead(shapes: Shapes) -> str:
    """What a file without a UNet has."""
    if not shapes:
        return "it has no tensors"
    if any(".lora_down." in key or ".lora_A." in key for key in shapes):
        return "it is a LoRA"
    first = min(shapes)
    return f"it has no tensor {FIRST!r} (its first one is {first[:80]!r})"


def _is_distilled(shapes: Shapes) -> bool:
    """SSD-1B, Vega and KOALA are SDXL without some of its blocks."""
    return _has(shapes, ldm.OPENCLIP_XL) and MIDDLE not in shapes


def _is_refiner(shapes: Shapes) -> bool:
    norm = shapes.get(REFINER_TEXT + "ln_final.weight")
    return norm is not None and norm[:1] != (SD2_WIDTH,)


# The order counts: a file may have several marks.
_OTHERS: Mapping[str, Callable[[Shapes], bool]] = {
    "scaled fp8": lambda s: any(k.endswith((".scale_weight", "scaled_fp8")) for k in s),
    "EDM (Playground 2.5)": lambda s: "edm_mean" in s or "edm_std" in s,
    "EDM v-prediction (CosXL)": lambda s: "edm_vpred.sigma_max" in s,
    "SDXL refiner": _is_refiner,
    "SD2": lambda s: _has(s, SD2_TEXT, REFINER_TEXT),
    "unCLIP": lambda s: "embedder.model.ln_final.weight" in s,
    "Alt-Diffusion": lambda s: _has(s, "cond_stage_model.roberta."),
    "distilled SDXL (SSD-1B, Vega, KOALA)": _is_distilled,
}


def check_complete(shapes: Shapes, is_xl: bool, components: Mapping[str, Config]) -> None:
    """Raise Incomplete unless the file has exactly the tensors of these diffusers configurations.

    Other tensors are allowed outside the UNet: no part of the engine reads them.
    """
    try:
        expected = _expected(is_xl, components)
    except (LookupError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        cause = " ".join(str(error).split())[:100]
        raise Incomplete(f"its shapes are not those of an SD1 or SDXL checkpoint ({cause})") from (
            error
        )
    missing = [key for key in expected if key not in shapes]
    if missing:
        raise Incomplete(f"it lacks tensors of its architecture: {_list(missing)}")
    for key, shape in expected.items():
        if _trim(shapes[key]) != _trim(shape):
            raise Incomplete(f"{key!r} has the shape {[*shapes[key]]}, expected {[*shape]}")
    further = [key for key in shapes if key.startswith(ldm.UNET) and key not in expected]
    if further:
        raise Incomplete(f"its UNet has unknown tensors: {_list(further)}")


def _list(keys: list[str]) -> str:
    """For example: 2 (the first: 'a.weight')."""
    return f"{len(keys)} (the first: {keys[0][:120]!r})"


def _trim(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without trailing ones: the VAE's attention is stored as matrices or 1x1 convolutions."""
    while len(shape) > 2 and shape[-1] == 1:  # noqa: PLR2004 - a matrix
        shape = shape[:-1]
    return shape


def _expected(is_xl: bool, components: Mapping[str, Config]) -> dict[str, tuple[int, ...]]:
    """{key in the file: shape} of the networks, which are made without memory for weights."""
    unet, vae = components["unet"], components["vae"]
    with torch.device("meta"):
        networks = {
            "unet": UNet2DConditionModel.from_config(unet),  # type: ignore[no-untyped-call]
            "vae": AutoencoderKL.from_config(vae),  # type: ignore[no-untyped-call]
            "text": CLIPTextModel(CLIPTextConfig(**components["text_encoder"])),
        }
        if is_xl:
            second = CLIPTextConfig(**components["text_encoder_2"])
            networks["text 2"] = CLIPTextModelWithProjection(second)
    states = {name: network.state_dict() for name, network in networks.items()}
    tensors: dict[str, torch.Tensor] = ldm.export_unet(states["unet"], unet["layers_per_block"])
    tensors |= ldm.export_vae(states["vae"], len(vae["block_out_channels"]))
    tensors |= ldm.export_clip(states["text"], ldm.CLIP_XL if is_xl else ldm.CLIP)
    if is_xl:
        tensors |= ldm.export_openclip(states["text 2"])
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
