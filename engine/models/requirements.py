"""What a single-file checkpoint must contain for this engine, and what it must not be.

A file passes if it has every tensor of its architecture, in the right shape, and a UNet without
further ones. Anything less would mean a picture of random or of half used weights. A1111 (v1.9.3,
`load_model_weights`) does not check: it keeps what the previous checkpoint had there.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from engine.errors import Unsupported
from engine.models import ldm

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

FIRST = ldm.UNET + "input_blocks.0.0.weight"
LAST = ldm.UNET + "input_blocks.8.1.norm.weight"  # of SDXL; KOALA has fewer blocks
OTHER_SHAPES = "its shapes are not those of a checkpoint of Stable Diffusion"
# attention in the first level: SD1 and SD2 have it, SDXL and its refiner have not
FLAT = ldm.UNET + "input_blocks.1.1.norm.weight"
Family = Literal["SD1", "SD2", "SDXL", "refiner"]
# {diffusers' name of a text encoder: its prefix in the file} of each family
TEXTS: Mapping[Family, Mapping[str, str]] = {
    "SD1": {"text_encoder": ldm.CLIP},
    "SD2": {"text_encoder": ldm.OPENCLIP_SD2},
    "SDXL": {"text_encoder": ldm.CLIP_XL, "text_encoder_2": ldm.OPENCLIP_XL},
    "refiner": {"text_encoder_2": ldm.OPENCLIP_XL},
}


class Incomplete(ValueError):
    """The file is not a checkpoint that can be drawn with; the message gives the reason."""


# names before transformers 4.x; A1111 renames them, too
_OLD_CLIP = tuple(
    (f"{ldm.CLIP}{part}.", f"{ldm.CLIP}text_model.{part}.")
    for part in ("embeddings", "encoder", "final_layer_norm")
)


def today(keys: Iterable[str]) -> dict[str, str]:
    """{key of a tensor in the file: its present name}.

    The oldest SD1 files lack `text_model.`. SD2.1 Turbo has the names of SDXL's refiner, and the
    refiner here those of SDXL's second text encoder, which is the same one.
    """
    keys = list(keys)
    single = ldm.OPENCLIP_SD2 if FLAT in keys else ldm.OPENCLIP_XL
    renames = (*_OLD_CLIP, (ldm.OPENCLIP_REFINER, single))
    names = {}
    for key in keys:
        old, new = next((pair for pair in renames if key.startswith(pair[0])), ("", ""))
        names[key] = new + key.removeprefix(old)
    return names


def family(shapes: Shapes) -> Family:
    """The family of a checkpoint that passed `check_kind`; `shapes` has present names."""
    if _has(shapes, ldm.OPENCLIP_XL):
        return "SDXL" if _has(shapes, ldm.CLIP_XL) else "refiner"
    return "SD2" if _has(shapes, ldm.OPENCLIP_SD2) else "SD1"


def check_kind(shapes: Shapes) -> None:
    """Raise Unsupported for a model of another kind, Incomplete for a file without the main parts.

    `shapes` has present names.
    """
    if FIRST not in shapes:
        raise Incomplete(f"it is not a checkpoint of Stable Diffusion: {_instead(shapes)}")
    for kind, is_it in _OTHERS.items():
        if is_it(shapes):
            raise Unsupported(f"{kind} checkpoints")
    texts = [prefix for encoders in TEXTS.values() for prefix in encoders.values()]
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


# The order counts: a file may have several marks.
_OTHERS: Mapping[str, Callable[[Shapes], bool]] = {
    "scaled fp8": lambda s: any(k.endswith((".scale_weight", "scaled_fp8")) for k in s),
    "EDM (Playground 2.5)": lambda s: "edm_mean" in s or "edm_std" in s,
    "EDM v-prediction (CosXL)": lambda s: "edm_vpred.sigma_max" in s,
    "unCLIP": lambda s: "embedder.model.ln_final.weight" in s,
    "Alt-Diffusion": lambda s: _has(s, "cond_stage_model.roberta."),
    "instruct-pix2pix": lambda s: s[FIRST][1:2] == (8,),
    "depth": lambda s: s[FIRST][1:2] == (5,),
    "KOALA": lambda s: _has(s, ldm.OPENCLIP_XL) and LAST not in s,
}


def check_complete(shapes: Shapes, kind: Family, components: Mapping[str, Config]) -> None:
    """Raise Incomplete unless the file has exactly the tensors of these diffusers configurations.

    Other tensors are allowed outside the UNet: no part of the engine reads them.
    """
    try:
        expected = _expected(kind, components)
    except (LookupError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        cause = " ".join(str(error).split())[:100]
        raise Incomplete(f"{OTHER_SHAPES} ({cause})") from error
    missing = [key for key in expected if key not in shapes]
    if missing:
        raise Incomplete(f"it lacks tensors of its architecture: {first_ones(missing)}")
    for key, shape in expected.items():
        if without_ones(shapes[key]) != without_ones(shape):
            raise Incomplete(f"{key!r} has the shape {[*shapes[key]]}, expected {[*shape]}")
    further = [key for key in shapes if key.startswith(ldm.UNET) and key not in expected]
    if further:
        raise Incomplete(f"its UNet has unknown tensors: {first_ones(further)}")


def first_ones(keys: list[str]) -> str:
    """For example: 2 (the first: 'a.weight')."""
    return f"{len(keys)} (the first: {keys[0][:120]!r})"


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without trailing ones: the VAE's attention is stored as matrices or 1x1 convolutions."""
    while len(shape) > 2 and shape[-1] == 1:  # noqa: PLR2004 - a matrix
        shape = shape[:-1]
    return shape


def _expected(kind: Family, components: Mapping[str, Config]) -> dict[str, tuple[int, ...]]:
    """{key in the file: shape} of the networks, which are made without memory for weights."""
    unet, vae = components["unet"], components["vae"]
    with torch.device("meta"):
        made = UNet2DConditionModel.from_config(unet)  # type: ignore[no-untyped-call]
        tensors: dict[str, torch.Tensor] = ldm.export_unet(
            made.state_dict(), unet["layers_per_block"]
        )
        made = AutoencoderKL.from_config(vae)  # type: ignore[no-untyped-call]
        tensors |= ldm.export_vae(made.state_dict(), len(vae["block_out_channels"]))
        for name, prefix in TEXTS[kind].items():
            config = CLIPTextConfig(**components[name])
            has_projection = name == "text_encoder_2"
            encoder = (CLIPTextModelWithProjection if has_projection else CLIPTextModel)(config)
            export = ldm.export_clip if prefix in (ldm.CLIP, ldm.CLIP_XL) else ldm.export_openclip
            tensors |= export(encoder.state_dict(), prefix)
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
