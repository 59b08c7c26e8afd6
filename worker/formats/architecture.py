"""Recognises a model file by its safetensors header: its role (checkpoint, LoRA) and its family.

The header is in the first bytes of a file, so an unusable file is rejected before the rest is
downloaded, and before A1111 fails on it with a message that does not name the cause. What a file
must have to be used is in `worker.formats.requirements`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from worker.errors import ModelMismatch, ModelNotSupported
from worker.formats import control_models, lora_use
from worker.formats.embedding_vectors import BUNDLED
from worker.formats.names import Kind
from worker.formats.safetensors_header import Header, Tensor

USABLE_FAMILIES = ("SD1", "SD2", "SDXL", "SDXL refiner")

_MATRIX = 2

_WORDS: dict[str | None, str] = {"lora": "LoRA", "vae": "VAE", None: "model"}
_WORDS[control_models.KIND] = "ControlNet"
_FIELDS = {"checkpoint": "checkpoint", "lora": "loras", "vae": "vae", "embedding": "embeddings"}
_FIELDS |= dict.fromkeys(control_models.ROLES, "alwayson_scripts.ControlNet")

_CONTEXT_WIDTHS = {768: "SD1", 1024: "SD2", 1280: "SDXL refiner", 2048: "SDXL"}
_TEXT_WIDTHS = {768: "SD1", 1024: "SD2"}
_SD_LATENTS = 4
_LATENT_FAMILIES = {_SD_LATENTS: None, 16: "Flux or SD3", 32: "Flux.2"}
_Z_IMAGE_WIDTH = 3840
_INPUTS = {9: "inpainting", 8: "instruct-pix2pix", 5: "depth"}
# Models that take more than the four channels of a latent.
MORE_INPUTS = frozenset(_INPUTS.values())

_WITHOUT_ALL = "diffusion model without text encoder and VAE"
_WITHOUT_TEXT = "diffusion model without text encoder"

# A mark is a part of a tensor's name. `_Names.text` has underscores instead of dots, as in kohya's
# LoRAs, so that one mark matches models and LoRAs. The first mark that is found decides.
_Marks = Mapping[str, tuple[str, ...]]

_FOREIGN_FAMILIES: _Marks = {
    "Chroma": ("distilled_guidance_layer_",),
    "Flux.2": ("double_stream_modulation_img_",),
    "HunyuanVideo": ("individual_token_refiner_", "double_blocks_0_img_mlp_fc1"),
    "AuraFlow": ("joint_transformer_blocks_", "double_layers_0_attn_w1q"),
    "Qwen-Image": ("transformer_blocks_0_img_mod_", "transformer_blocks_0_img_mlp_"),
    "Flux": ("double_blocks_", "single_blocks_", "single_transformer_blocks_"),
    "SD3": ("joint_blocks_", "_attn_add_k_proj"),
    "HiDream": ("double_stream_blocks_", "caption_projection_0_linear_"),
    "LTX": ("patchify_proj_",),
    "PixArt": ("adaln_single_", "cross_attn_kv_linear", "t_block_1_weight"),
    "Stable Cascade": ("clip_txt_mapper_", "clf_1_weight", "lora_prior_"),
    "HunyuanDiT": ("mlp_t5_0_weight", "attn2_kv_proj"),
    "OmniGen2": ("time_caption_embed_",),
    "Lumina": ("context_refiner_0_", "layers_0_attention_"),
    "Anima": ("llm_adapter_",),
    "Cosmos": ("blocks_0_self_attn_q_proj",),
    "Wan": ("blocks_0_self_attn_q_", "condition_embedder_text_embedder_"),
    "Kandinsky": ("visual_transformer_blocks_",),
    "Mochi": ("t5_yproj_",),
    "Kolors": ("encoder_hid_proj_weight",),
    "Stable Video Diffusion": ("_time_stack_0_", "temporal_transformer_blocks_"),
    "DiT": ("\ntransformer_transformer_blocks_", "\nlora_transformer_transformer_blocks_"),
}
_FOREIGN_ROLES: _Marks = {
    "ControlNet": ("\ncontrol_model_", "input_hint_block_", "controlnet", "\nlllite_"),
    "IP-Adapter": ("\nip_adapter_", "\nimage_proj_"),
    "AnimateDiff motion module": ("motion_modules_",),
    "T2I-Adapter": ("\nadapter_body_0_", "\nbody_0_block1_"),
    "upscaler": ("RDB1_conv1", "rdb1_conv1", "_residual_group_"),
    "hypernetwork": ("\n768_0_linear_", "\n320_0_linear_"),
}
# Whole checkpoints contain these parts too, so they are checked last.
_PARTS: _Marks = {
    "image encoder": ("vision_model_encoder_layers_",),
    "text encoder": ("transformer_resblocks_", "_SelfAttention_", "layers_0_self_attn_"),
}
# Prefixes of `ss_base_model_version` and `modelspec.architecture`.
_DECLARED: _Marks = {
    "SD1": ("sd_v1", "stable-diffusion-v1"),
    "SD2": ("sd_v2", "stable-diffusion-v2"),
    "SDXL refiner": ("stable-diffusion-xl-v1-refiner",),
    "SDXL": ("sdxl_", "stable-diffusion-xl"),
    "SD3": ("sd3", "stable-diffusion-3"),
    "Flux": ("flux1", "flux-1"),
    "Chroma": ("chroma",),
    "Lumina": ("lumina",),
}

_LORA = (
    "\nlora_",
    "\noft_",
    f"\n{BUNDLED}_",
    "\nlycoris_",
    "_lora_down_",
    "_lora_linear_layer_",
    "_lora_A_",
    "_hada_w1_",
    "_lokr_w",
)
_TEXT_ENCODER = re.compile(r"\n(?:cond_stage_model|conditioner_embedders|text_encoders)_")
_VAE = re.compile(r"\n(?:first_stage_model|vae)_")
_OTHER_TOOLS = re.compile(r"\n(?:base_model\.|unet\.|text_encoder|transformer\.)")
_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
_BLOCKS_OF_SSD = ("input_blocks_8_1", "middle_block_0")  # KOALA has fewer
# SD1 and SD2 have one transformer block per attention, and attentions in the first level.
_DEEP = re.compile(r"(?:attentions_\d|put_blocks_\d\d?_1|middle_block_1)_transformer_blocks_[1-9]_")
_FLAT = re.compile(r"input_blocks_[12]_1_|down_blocks_0_attentions_")
_DIFFUSERS_UNET = re.compile(r"\n(?:unet_)?down_blocks_0_resnets_")

_CONTEXT = re.compile(r"attn2[._](?:processor\.)?to_[kv](?:_lora)?\.")
# From the first place on, so that a name which repeats it is not read from each of them.
_TEXT = re.compile(r"\A(?:(?!lora_te_).)*lora_te_.*(?:q_proj|mlp_fc1)\.", re.DOTALL)
_PROJECTION = re.compile(r"proj_in\.(?:.*down\.weight|lora_A\.(?:.*\.)?weight|weight|diff)$")
# Parts of a module of shape (rank, inputs, ...) or (outputs, inputs, ...).
_INPUT_SIDE = re.compile(
    r"weight|diff|hada_w1_b|(?:lora_|lora\.|lora_linear_layer\.)?down\.weight|lora_A\.(?:\w+\.)?weight"
)


@dataclass(frozen=True)
class Architecture:
    """What a file is; None means not recognised.

    Attributes:
        role: a `Kind`, or the name of another role (`ControlNet`, `upscaler`).
        family: `SD1`, `SD2`, `SDXL`, `SDXL refiner`, or one that A1111 v1.9.3 cannot load.
        details: `inpainting`, `instruct-pix2pix`, `depth`; `v-prediction`; `zero-terminal-SNR`;
            `SSD` (an SDXL without attention in the middle: SSD-1B, Vega); `diffusers naming`
            (a LoRA in the naming of another tool, which A1111 does not read).
    """

    role: str | None = None
    family: str | None = None
    details: tuple[str, ...] = ()


class _Names:
    """The tensors of a header, and their names as one text to search."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        # the rest of such a name is a word that its author chose
        shown = (BUNDLED + "." if name.startswith(BUNDLED + ".") else name for name in tensors)
        self.plain = "\n" + "\n".join(shown) + "\n"
        self.text = self.plain.replace(".", "_")

    def has(self, marks: Iterable[str]) -> bool:
        """Whether some name contains one of the marks."""
        return any(mark in self.text for mark in marks)

    def first(self, words: _Marks) -> str | None:
        """The first word that has a mark in some name."""
        return next((word for word, marks in words.items() if self.has(marks)), None)

    def widths(self, module: re.Pattern[str]) -> Iterable[int]:
        """Input widths of the modules that `module` matches, up to the dot before the part."""
        for name in self.tensors:
            if match := module.search(name):
                width = self._width(name[: match.end()], name[match.end() :])
                if width is not None:
                    yield width

    def _width(self, module: str, part: str) -> int | None:
        if part.startswith("lokr_w2"):
            # A Kronecker product: its width is the product of both widths.
            first, second = (
                self.shape(f"{module}lokr_{w}") or self.shape(f"{module}lokr_{w}_b")
                for w in ("w1", "w2")
            )
            return first[1] * second[1] if min(len(first), len(second)) >= _MATRIX else None
        shape = self.tensors[module + part].shape
        return shape[1] if len(shape) >= _MATRIX and _INPUT_SIDE.fullmatch(part) else None

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; () if there is no such tensor."""
        tensor = self.tensors.get(name)
        return tensor.shape if tensor else ()


def detect(header: Header) -> Architecture:
    """What the file is, by the names of its tensors, then by widths, then by its metadata."""
    names = _Names(header.tensors)
    if found := _embedding(names):
        return found
    if _FIRST_LAYER in names.tensors:  # some checkpoints have tensors of a LoRA among their own
        return _model(names, header.metadata) or Architecture()
    if role := names.first(_FOREIGN_ROLES):
        return Architecture(role, control_models.family(role, header))
    if names.has(_LORA):
        return _lora(names, header)
    if found := _model(names, header.metadata) or _vae(names):
        return found
    part = names.first(_PARTS)
    return Architecture(part) if part else _declared(header.metadata)


def _embedding(names: _Names) -> Architecture | None:
    if {"clip_l", "clip_g"} <= names.tensors.keys():
        return Architecture("embedding", "SD3" if "t5xxl" in names.tensors else "SDXL")
    if len(names.tensors) != 1:
        return None
    ((name, tensor),) = names.tensors.items()
    family = _TEXT_WIDTHS.get(tensor.shape[-1]) if tensor.shape else None
    named = name == "emb_params" or name.startswith("string_to_param")
    is_vectors = "." not in name and len(tensor.shape) <= _MATRIX and "F" in tensor.dtype
    return Architecture("embedding", family) if named or (family and is_vectors) else None


def _lora(names: _Names, header: Header) -> Architecture:
    if foreign := _foreign_family(names):
        return Architecture("lora", foreign, _naming(_OTHER_TOOLS.search(names.plain) is not None))
    shapes = lora_use.shapes_of(header)
    fits = lora_use.family_fits(shapes)
    families = lora_use.families_of(fits)
    details = _naming(lora_use.can_be_renamed(shapes, fits))
    declared = _declared(header.metadata).family
    if len(families) == 1 or declared in families:
        return Architecture("lora", families[0] if len(families) == 1 else declared, details)
    family = None if families else _family_by_names(names) or lora_use.family_when_renamed(header)
    return Architecture("lora", family or declared, details)


def _naming(is_foreign: bool) -> tuple[str, ...]:
    return ("diffusers naming",) if is_foreign else ()


def _family_by_names(names: _Names) -> str | None:
    """For other namings, and for models of other widths than the family's."""
    family = _unet_family(names)
    if family is None and names.has(("\nlora_te2_", "\ntext_encoder_2_")):
        family = "SDXL"
    return family or _by_width(names.widths(_TEXT), _TEXT_WIDTHS)


def _model(names: _Names, metadata: Mapping[str, str]) -> Architecture | None:
    """A checkpoint, or the diffusion model alone, in original or in diffusers' naming."""
    foreign = _foreign_family(names)
    original = "input_blocks_0_0_weight\n" in names.text or "diffusion_model_" in names.text
    if not foreign and not original and not _DIFFUSERS_UNET.search(names.text):
        return None
    family = foreign or _text_encoder_family(names) or _unet_family(names)
    details = _details(names, metadata, family)
    if not original and not foreign:
        return Architecture("model in diffusers naming", family, details)
    if _TEXT_ENCODER.search(names.text):
        return Architecture("checkpoint", family, details)
    if not _VAE.search(names.text):
        return Architecture(_WITHOUT_ALL, family, details)
    return Architecture(_WITHOUT_TEXT, family, details)


def _foreign_family(names: _Names) -> str | None:
    family = names.first(_FOREIGN_FAMILIES)
    if family == "Lumina" and any(
        _Z_IMAGE_WIDTH in tensor.shape for tensor in names.tensors.values()
    ):
        return "Z-Image"
    return family


def _text_encoder_family(names: _Names) -> str | None:
    if "\nconditioner_embedders_1_" in names.text:
        return "SDXL"
    if "\nconditioner_embedders_0_model_" in names.text:
        # SD-Turbo is an SD2 in SDXL's naming.
        return "SD2" if _FLAT.search(names.text) else "SDXL refiner"
    if "\ncond_stage_model_model_" in names.text:
        return "SD2"
    return "SD1" if "\ncond_stage_model_" in names.text else None


def _unet_family(names: _Names) -> str | None:
    by_width = _by_width(names.widths(_CONTEXT), _CONTEXT_WIDTHS)
    if _DEEP.search(names.text):
        return "SDXL refiner" if by_width == "SDXL refiner" else "SDXL"
    if by_width:
        return by_width
    if not _FLAT.search(names.text):
        # kohya's LoRAs use original names only for SDXL.
        return "SDXL" if "\nlora_unet_input_blocks_" in names.text else None
    # LoHa and LoKr have matrices for convolutions, too.
    ranks = (len(t.shape) for name, t in names.tensors.items() if _PROJECTION.search(name))
    return {2: "SD2", 4: "SD1"}.get(max(ranks, default=0))


def _by_width(widths: Iterable[int], families: Mapping[int, str]) -> str | None:
    return next((families[width] for width in widths if width in families), None)


def _details(names: _Names, metadata: Mapping[str, str], family: str | None) -> tuple[str, ...]:
    first = names.shape(_FIRST_LAYER)
    words = [_INPUTS[first[1]]] if len(first) >= _MATRIX and first[1] in _INPUTS else []
    declared = metadata.get("modelspec.prediction_type", "").lower()
    is_v = declared.startswith("v") or metadata.get("modelspec.architecture", "").endswith("-v")
    if "v_pred" in names.tensors or is_v:
        words.append("v-prediction")
    if "ztsnr" in names.tensors or metadata.get("ss_zero_terminal_snr") == "True":
        words.append("zero-terminal-SNR")
    if family == "SDXL" and _is_ssd(names):
        words.append("SSD")
    return tuple(words)


def _is_ssd(names: _Names) -> bool:
    """Whether it has SDXL's blocks without the attention in the middle, as SSD-1B and Vega have."""
    blocks = (f"\nmodel_diffusion_model_{name}_" in names.text for name in _BLOCKS_OF_SSD)
    return all(blocks) and "\nmodel_diffusion_model_middle_block_1_" not in names.text


def _vae(names: _Names) -> Architecture | None:
    if "decoder_middle_0_residual_" in names.text:
        return Architecture("vae", "Wan")
    first = next((name for name in names.tensors if name.endswith("decoder.conv_in.weight")), None)
    if first is None:
        return None
    shape = names.shape(first)
    channels = shape[1] if len(shape) >= _MATRIX else _SD_LATENTS
    family = _LATENT_FAMILIES.get(channels, f"a model of {channels} latent channels")
    # A1111 requires the exact names of a VAE.
    if first != "decoder.conv_in.weight":
        return Architecture("VAE with prefixed names", family)
    diffusers = "\ndecoder_up_blocks_" in names.text
    return Architecture("VAE in diffusers naming" if diffusers else "vae", family)


def _declared(metadata: Mapping[str, str]) -> Architecture:
    """Recognise a file by its metadata; used last, because it is often copied from other files."""
    architecture = metadata.get("modelspec.architecture", "").lower()
    is_lora = architecture.endswith("/lora") or "ss_network_module" in metadata
    words = (metadata.get("ss_base_model_version", "").lower(), architecture)
    families = (f for word in words for f, starts in _DECLARED.items() if word.startswith(starts))
    family = "SD2" if metadata.get("ss_v2") == "True" else next(families, None)
    return Architecture("lora" if is_lora else None, family)


def check_usable(name: str, wanted: Kind, found: Architecture) -> None:
    """Reject a file that cannot be used as the kind that the job names.

    Raises:
        ModelNotSupported: it has another role, or a family that A1111 v1.9.3 cannot load.
    """
    loadable = found.family is None or found.family in USABLE_FAMILIES
    if loadable and found.role in {None, wanted, *control_models.roles(wanted)}:
        return
    field = _FIELDS.get(found.role or "")
    elsewhere = f"Name it in the job's field `{field}`." if field else "Name another file."
    raise ModelNotSupported(
        f"{name!r} is {_an(found.role)}{f' for {found.family}' if found.family else ''};"
        f" A1111 v1.9.3 cannot use it as {_an(wanted)}.",
        hint=elsewhere if loadable else None,
        model=name,
        wanted=wanted,
        role=found.role,
        family=found.family,
    )


def check_naming(name: str, found: Architecture) -> None:
    """Reject a LoRA whose tensor names A1111 v1.9.3 cannot read.

    A1111 splits each name at its first dot, finds no layer `unet`, and makes the picture without
    the LoRA, but lists it as used.

    Raises:
        ModelNotSupported: the LoRA has the tensor names of diffusers, PEFT, ComfyUI or the like.
    """
    if found.role == "lora" and "diffusers naming" in found.details:
        raise ModelNotSupported(
            f"{name!r} has tensor names of another tool, such as diffusers; A1111 v1.9.3 would"
            " ignore it silently.",
            hint="Use a LoRA in kohya's naming (`lora_unet_...`), or convert it.",
            model=name,
        )


def check_config(name: str, found: Architecture, *, has_config: bool) -> None:
    """Reject a checkpoint that A1111 v1.9.3 builds wrongly without a `.yaml`, if there is none.

    A1111 recognises v-prediction only in SD2, and draws others with the wrong noise.

    Raises:
        ModelNotSupported: it has v-prediction and other inputs than text, and no `.yaml` beside it.
    """
    special = MORE_INPUTS & {*found.details}
    if has_config or found.family == "SD2" or "v-prediction" not in found.details or not special:
        return
    raise ModelNotSupported(
        f"{name!r} is a checkpoint for {next(iter(special))} with v-prediction; A1111 v1.9.3"
        " draws it wrongly without a configuration.",
        hint=f"Put the model's `{name}.yaml` beside the file.",
        model=name,
        family=found.family,
    )


def check_match(
    checkpoint_name: str, checkpoint: Architecture, lora_name: str, lora: Architecture
) -> None:
    """Reject a LoRA or an embedding for another family than the checkpoint's.

    Raises:
        ModelMismatch: both families are known and differ.
    """
    if None in {checkpoint.family, lora.family} or checkpoint.family == lora.family:
        return
    raise ModelMismatch(
        f"{lora_name!r} is {_an(lora.role)} for {lora.family}, but the checkpoint"
        f" {checkpoint_name!r} is {checkpoint.family}.",
        hint=f"Use {_an(lora.role)} and a checkpoint of the same family.",
        checkpoint=checkpoint_name,
        checkpoint_family=checkpoint.family,
        model=lora_name,
        model_family=lora.family,
    )


def _an(role: str | None) -> str:
    word = _WORDS.get(role) or str(role)
    return f"{'an' if word[0] in 'AEIOaeiou' else 'a'} {word}"
