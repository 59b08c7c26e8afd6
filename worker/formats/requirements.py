"""What A1111 v1.9.3 needs to draw with a file. Pure.

A1111 loads almost anything: it ignores tensors that it does not know. Weights that a file lacks
stay as they were, random or from the model before. So a file is not searched for known faults; it
must have what A1111 reads. The table `REQUIREMENTS` has each requirement with its reason. The
reasons come from these modules of A1111:

    sd_models.py                load_model_weights: `load_state_dict(strict=False)`
    sd_models_config.py         guess_model_config_from_state_dict: which model is built
    sd_vae.py                   _load_vae_dict: `load_state_dict` with exactly its own names
    textual_inversion.py        create_embedding_from_data
    extensions-builtin/Lora     see `worker.formats.lora_layers`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from worker.errors import ModelMismatch, ModelNotSupported
from worker.formats import lora_use, stable_diffusion
from worker.formats.architecture import Architecture, check_usable
from worker.formats.embedding_vectors import embedding_fault
from worker.formats.lora_layers import current_name
from worker.formats.lora_modules import Shape
from worker.formats.names import Kind
from worker.formats.safetensors_header import Header
from worker.formats.stable_diffusion import UNET
from worker.formats.stable_diffusion import VAE as VAE_PREFIX

_FIRST = f"{UNET}input_blocks.0.0.weight"
_SHOWN = 3  # names of tensors in a message

# What A1111 v1.9.3 loads without an error and computes with wrongly: (what it is, ends of names).
DRAWN_WRONGLY = (
    ("a model with EDM noise (Playground v2.5)", ("edm_mean", "edm_std")),
    ("a model with EDM noise and v-prediction (CosXL)", ("edm_vpred.sigma_max",)),
    ("a model in scaled 8-bit floats", (".scale_weight", ".weight_scale", "scaled_fp8")),
    ("a model quantised by ComfyUI", (".comfy_quant",)),
    ("a model quantised by bitsandbytes", (".absmax", ".quant_map")),
)
# A1111's `txt2img_image_conditioning` adds 5 channels to these, or none; they need 4 or 1.
_WITH_PICTURE = ("instruct-pix2pix", "depth")
# A1111 copies the numbers of other types as if they were weights.
_FLOATS = {"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True)
class File:
    """A model file to check, and what is known beside it.

    Attributes:
        header: of the file.
        found: what the file is.
        has_vae: the job names a VAE, which replaces the one in the checkpoint.
        has_config: a `.yaml` beside the checkpoint decides how A1111 builds the model.
    """

    header: Header
    found: Architecture
    has_vae: bool = False
    has_config: bool = False

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The tensors' shapes under the names that A1111 reads."""
        is_turbo = self.found.family == "SD2"
        return {
            _turbo_name(name) if is_turbo else current_name(name): tensor.shape
            for name, tensor in self.header.tensors.items()
        }

    @property
    def is_full_size(self) -> bool:
        """Whether the UNet has the family's width; smaller ones, made for tests, have any shape."""
        family, first = self.found.family, self.shapes.get(_FIRST, ())
        known = family in stable_diffusion.FAMILIES
        return known and first[:1] == stable_diffusion.unet(str(family))[_FIRST][:1]


@dataclass(frozen=True)
class Requirement:
    """What a file must have.

    Attributes:
        reason: what A1111 does with a file that lacks it.
        fault: the file -> what it lacks, as the end of "it ..."; None if it lacks nothing.
    """

    reason: str
    fault: Callable[[File], str | None]


def check(name: str, kind: Kind, file: File) -> None:
    """Reject a file that A1111 cannot use as the kind that the job names, or would draw wrongly.

    Raises:
        ModelNotSupported: with what the file lacks and what A1111 would do.
    """
    if file.found.role is not None:
        check_usable(name, kind, file.found)
    for requirement in REQUIREMENTS[kind]:
        if fault := requirement.fault(file):
            raise ModelNotSupported(
                f"{name!r} cannot be used as {_WORDS[kind]}: it {fault}. {requirement.reason}",
                model=name,
                wanted=kind,
                role=file.found.role,
                family=file.found.family,
            )


_WORDS: dict[Kind, str] = {
    "checkpoint": "a checkpoint",
    "lora": "a LoRA",
    "vae": "a VAE",
    "embedding": "an embedding",
    "controlnet": "a ControlNet",
}


def _turbo_name(name: str) -> str:
    """SD-Turbo is an SD2 whose text encoder has the name of SDXL's; A1111 renames it."""
    start = "conditioner.embedders.0."
    return f"cond_stage_model.{name.removeprefix(start)}" if name.startswith(start) else name


# Checkpoints ----------------------------------------------------------------------------------


def _first_layer(file: File) -> str | None:
    if _FIRST not in file.shapes:
        return f"has no tensor `{_FIRST}`"
    shape, dtype = file.shapes[_FIRST], file.header.tensors[_FIRST].dtype
    convolution = 4
    return None if len(shape) == convolution and dtype in _FLOATS else "has weights that are packed"


def _other_inputs(file: File) -> str | None:
    return next(
        (f"is a model for {one}" for one in _WITH_PICTURE if one in file.found.details), None
    )


def _wrong_arithmetic(file: File) -> str | None:
    for words, ends in DRAWN_WRONGLY:
        if name := next((name for name in file.header.tensors if name.endswith(ends)), None):
            return f"is {words} (`{name[:100]}`)"
    return None


def _unet(file: File) -> str | None:
    if not file.is_full_size or file.has_config:
        return None
    expected = dict(stable_diffusion.unet(str(file.found.family)))
    first = file.shapes[_FIRST]  # inpainting and depth models have more channels
    expected[_FIRST] = (*expected[_FIRST][:1], first[1], *expected[_FIRST][2:])
    if "SSD" in file.found.details:  # it lacks whole blocks
        blocks = {_block(name) for name in file.shapes}
        expected = {name: shape for name, shape in expected.items() if _block(name) in blocks}
    return _difference(file, expected, f"the UNet of {file.found.family}")


def _block(name: str) -> str:
    """The block that a tensor of the UNet belongs to: a transformer, or a layer of a level."""
    path, transformer, rest = name.partition(".transformer_blocks.")
    number = rest.partition(".")[0] if transformer else ""
    return ".".join(path.split(".")[:5]) + transformer + number


def _text_encoder(file: File) -> str | None:
    family = str(file.found.family)
    for prefix in stable_diffusion.TEXT_ENCODERS.get(family, ()):
        if not any(name.startswith(prefix) for name in file.shapes):
            return f"has no text encoder of {family} (`{prefix}*`)"
    if not file.is_full_size or file.has_config:
        return None
    return _difference(
        file, stable_diffusion.text_encoders(family), f"the text encoder of {family}"
    )


def _inner_vae(file: File) -> str | None:
    if file.has_vae:
        return None
    if not any(name.startswith(f"{VAE_PREFIX}decoder.") for name in file.shapes):
        return f"has no VAE (`{VAE_PREFIX}*`), and the job names none"
    if not file.is_full_size:
        return None
    expected = {VAE_PREFIX + name: shape for name, shape in stable_diffusion.vae().items()}
    return _difference(file, expected, "the VAE of Stable Diffusion")


def _difference(file: File, expected: Mapping[str, Shape], what: str) -> str | None:
    """How the file's tensors differ from the expected ones; others are allowed."""
    missing = [name for name in expected if name not in file.shapes]
    if missing:
        return f"lacks {len(missing)} of the {len(expected)} tensors of {what} ({_listed(missing)})"
    other = [name for name, shape in expected.items() if file.shapes[name] != shape]
    if other:
        return f"has other shapes than {what} ({_listed(other)})"
    packed = [
        name
        for name, tensor in file.header.tensors.items()
        if tensor.dtype not in _FLOATS and name in expected
    ]
    return f"has no floating-point weights ({_listed(packed)})" if packed else None


def _listed(names: Iterable[str]) -> str:
    shown = [f"`{name[:100]}`" for name in names]
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


_KEEPS = "A1111 v1.9.3 would draw with random weights or with those of the model before."

CHECKPOINTS = (
    Requirement("A1111 v1.9.3 loads none of its weights and keeps the model before.", _first_layer),
    Requirement("A1111 v1.9.3 needs a picture to draw with it, not a text alone.", _other_inputs),
    Requirement(
        "A1111 v1.9.3 does not know this and draws noise or wrong colours.", _wrong_arithmetic
    ),
    Requirement(_KEEPS, _unet),
    Requirement(_KEEPS, _text_encoder),
    Requirement(f"{_KEEPS} Name a VAE in the job's field `vae`.", _inner_vae),
)


# VAEs -----------------------------------------------------------------------------------------

_NOT_LOADED = {"model_ema.decay", "model_ema.num_updates"}


def _exact_names(file: File) -> str | None:
    own = {n for n in file.header.tensors if not n.startswith("loss") and n not in _NOT_LOADED}
    expected = stable_diffusion.vae()
    lacking = [name for name in expected if name not in own]
    more = sorted(own - expected.keys())
    if lacking:
        return f"lacks {len(lacking)} of the {len(expected)} tensors of a VAE ({_listed(lacking)})"
    return f"has {len(more)} tensors that no VAE has ({_listed(more)})" if more else None


def _exact_shapes(file: File) -> str | None:
    expected, first = stable_diffusion.vae(), "decoder.conv_in.weight"
    is_full_size = file.shapes[first][:1] == expected[first][:1]
    return _difference(file, expected, "the VAE of Stable Diffusion") if is_full_size else None


_BREAKS = "A1111 v1.9.3 replaces a part of its own VAE, then fails and stays broken."

VAES = (Requirement(_BREAKS, _exact_names), Requirement(_BREAKS, _exact_shapes))


def check_vae_sizes(name: str, vae: Header, checkpoint_name: str, checkpoint: Header) -> None:
    """Reject a VAE whose tensors have other shapes than the VAE in the checkpoint.

    Raises:
        ModelMismatch: A1111 would fail after it has replaced a part of its own VAE.
    """
    for tensor_name, tensor in vae.tensors.items():
        inner = checkpoint.tensors.get(VAE_PREFIX + tensor_name)
        if inner and inner.shape != tensor.shape:
            raise ModelMismatch(
                f"the VAE {name!r} has another shape than the VAE in the checkpoint"
                f" {checkpoint_name!r} (`{tensor_name}`: {tensor.shape}, not {inner.shape}).",
                checkpoint=checkpoint_name,
                model=name,
            )


# LoRAs ----------------------------------------------------------------------------------------


def _layers(file: File) -> str | None:
    return "has no layers" if file.found.role is None else lora_use.fault(file.header)


def _numbers(file: File) -> str | None:
    """Each weight must be of a type that A1111 computes with; alphas may have any."""
    for name, tensor in file.header.tensors.items():
        part = name.partition(".")[2]
        if not part or part in _SINGLE_NUMBERS:
            continue
        without_products = tensor.dtype in _WITHOUT_PRODUCTS and part.startswith(_PRODUCTS)
        if tensor.dtype not in _FLOATS or without_products:
            return f"has weights of the type {tensor.dtype} (`{name[:100]}`)"
    return None


_SINGLE_NUMBERS = ("alpha", "scale", "on_input")
# torch 2.1.2 has no products of 8-bit floats; A1111 copies only the factors of a plain LoRA into
# layers of another type.
_WITHOUT_PRODUCTS = ("F8_E4M3", "F8_E5M2")
_PRODUCTS = ("hada_", "lokr_", "diff", "oft_", "a1.", "a2.", "b1.", "b2.", "w_norm", "b_norm")

LORAS = (
    Requirement("A1111 v1.9.3 would draw without it, or wrongly.", _layers),
    Requirement("A1111 v1.9.3 cannot compute with them and would draw without it.", _numbers),
)


# Embeddings -----------------------------------------------------------------------------------


def _vectors(file: File) -> str | None:
    shapes = {name: tensor.shape for name, tensor in file.header.tensors.items()}
    if any(tensor.dtype not in _FLOATS for tensor in file.header.tensors.values()):
        return "has vectors that are no floating-point numbers"
    return embedding_fault(shapes)


EMBEDDINGS = (Requirement("A1111 v1.9.3 skips it, and its name is plain text.", _vectors),)

# ControlNet ------------------------------------------------------------------------------------


def _recognised(file: File) -> str | None:
    return None if file.found.role else "has no tensors of a ControlNet or a T2I-Adapter"


CONTROLNETS = (
    Requirement("The extension would fail, and A1111 draw without it.", _recognised),
    Requirement("The extension cannot compute with them.", _wrong_arithmetic),
)

REQUIREMENTS: dict[Kind, tuple[Requirement, ...]] = {
    "checkpoint": CHECKPOINTS,
    "lora": LORAS,
    "vae": VAES,
    "embedding": EMBEDDINGS,
    "controlnet": CONTROLNETS,
}
