"""The names of a LoRA's tensors in other tools, and the same names as kohya writes them. Pure.

A1111 v1.9.3 (extensions-builtin/Lora/networks.py) splits each name at its first dot into a layer
and a part, and ignores a layer that it does not know without an error. So these files do nothing:

    diffusers   down_blocks.1…to_k_lora.down.weight, unet.…to_k.lora.down.weight
    peft        unet.…to_k.lora_A.weight, base_model.model.…to_k.lora_A.default.weight
    ComfyUI     diffusion_model.input_blocks.4.1…to_k.lora_down.weight, text_encoders.clip_l.…
    OneTrainer  unet.input_blocks.4.1…to_k.lora_down.weight, clip_l.text_model.…, lora_unet.…
    LyCORIS     lycoris_down_blocks_1_…_to_k.lokr_w1
    kohya       names of another family: lora_te_… and lora_unet_add_embedding_linear_1 for SDXL

kohya names a UNet's layers as diffusers does for SD1 and SD2, and by their original names for
SDXL. The factors keep their values; only an alpha that diffusers writes to the metadata becomes a
tensor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from worker.errors import ModelNotSupported
from worker.formats import unet_names
from worker.formats.embedding_vectors import BUNDLED
from worker.formats.safetensors_header import Header, Tensor

ADAPTER_METADATA = "lora_adapter_metadata"
_LONGEST = 500  # characters of a name; real ones have up to 150
_LARGEST_ALPHA = 1e30

_UNET, _TEXT, _TEXT_2 = "unet", "text_encoder", "text_encoder_2"
_DIFFUSERS, _COMFYUI, _ONETRAINER = "diffusers", "ComfyUI", "OneTrainer"
_PEFT, _LYCORIS, _KOHYA = "peft", "LyCORIS", "kohya"

_DOWN, _UP, _ALPHA, _DIFF, _DIFF_B = (
    *("lora_down.weight", "lora_up.weight", "alpha"),
    *("diff", "diff_b"),
)
# Parts that A1111 reads (network_*.py there).
_PARTS = frozenset(
    [
        *(_DOWN, _UP, "lora_mid.weight", _ALPHA, "scale", "dora_scale", _DIFF, _DIFF_B),
        *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
        *(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
        *(f"{side}{number}.weight" for side in "ab" for number in "12"),
        *("w_norm", "b_norm", "oft_blocks", "oft_diag", "rescale", "on_input"),
    ]
)
# End of a name -> the part; the longer end comes first.
_ENDS = {
    f"{before}.{side}.weight": part
    for before in ("_lora", ".lora", ".lora_linear_layer")
    for side, part in (("down", _DOWN), ("up", _UP))
}
_ENDS |= {".lora_A.weight": _DOWN, ".lora_B.weight": _UP}
_ENDS |= {f"{before}.alpha": _ALPHA for before in ("_lora", ".lora", ".lora_linear_layer")}
_ENDS |= {f".{part}": part for part in sorted(_PARTS)}
_ADAPTER = {"lora_A": _DOWN, "lora_B": _UP}  # `lora_A.default.weight`

# Beginning of a name -> the network, and whose naming that is.
_STARTS = {
    "unet.": (_UNET, _DIFFUSERS),
    "text_encoder.": (_TEXT, _DIFFUSERS),
    "text_encoder_2.": (_TEXT_2, _DIFFUSERS),
    "model.diffusion_model.": (_UNET, _COMFYUI),
    "diffusion_model.": (_UNET, _COMFYUI),
    **{
        f"text_encoders.{clip}.{more}": (network, _COMFYUI)
        for clip, network in (("clip_l", _TEXT), ("clip_h", _TEXT), ("clip_g", _TEXT_2))
        for more in ("transformer.", "")
    },
    "cond_stage_model.transformer.": (_TEXT, _COMFYUI),
    "conditioner.embedders.0.transformer.": (_TEXT, _COMFYUI),
    "clip_l.": (_TEXT, _ONETRAINER),
    "clip_g.": (_TEXT_2, _ONETRAINER),
    "lora_unet.": (_UNET, _ONETRAINER),
    "lora_te.": (_TEXT, _ONETRAINER),
    "lora_te1.": (_TEXT, _ONETRAINER),
    "lora_te2.": (_TEXT_2, _ONETRAINER),
    "lycoris_": (None, _LYCORIS),
    "lora_unet_": (_UNET, _KOHYA),
    "lora_te_": (_TEXT, _KOHYA),
    "lora_te1_": (_TEXT, _KOHYA),
    "lora_te2_": (_TEXT_2, _KOHYA),
}
_BUNDLED = f"{BUNDLED}."  # A1111 reads these by the names that they have

# Names that A1111 does not find although they have kohya's form: it expects SD1's upsampler here.
_MISSED_IN_XL = ("add_embedding_linear_", "up_blocks_0_upsamplers_")
_ORIGINAL_STARTS = (
    *("input_blocks", "output_blocks", "middle_block", "time_embed.", "label_emb", "out."),
)
_UNET_STARTS = (
    *("down_blocks", "up_blocks", "mid_block", "time_embed", "add_embedding", "conv_"),
    *_ORIGINAL_STARTS,
)
_LAYER_OF_TEXT = re.compile(
    r"text_model_encoder_layers_\d{1,2}_"
    r"(?:self_attn_(?:q|k|v|out)_proj|mlp_fc[12]|(layer_norm[12]))"
)


@dataclass(frozen=True)
class Renaming:
    """How a LoRA file becomes one that A1111 reads.

    Attributes:
        naming: of the file, such as `peft`; `ComfyUI+peft` if it has both.
        keys: name in the file -> kohya's name; tensors that are left out are missing.
        alphas: kohya's name of a tensor that the file does not have -> its value.
        zeros: names in the file that A1111 cannot apply. They are left out, and the file can be
            converted only if all of their values are 0.
        factors: name in the file -> what its values are multiplied by.
        folded: names in the file of alphas that are left out, because a factor has their effect ->
            kohya's name.
    """

    naming: str
    keys: Mapping[str, str]
    alphas: Mapping[str, float]
    zeros: tuple[str, ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Key:
    """A tensor's name in the file, read.

    Attributes:
        layer: the part of the name that all tensors of a layer share.
        path: of the layer in its network, with underscores; None if A1111 cannot apply it.
        dots: of the layer in its network, with dots, as the metadata of diffusers name it.
    """

    name: str
    layer: str
    part: str
    network: str
    path: str | None
    dots: str
    naming: str


def find_renaming(name: str, header: Header, family: str | None) -> Renaming | None:
    """The new names of a LoRA's tensors; None if A1111 reads the file, or it is no such LoRA.

    Args:
        name: of the LoRA, for messages.
        header: of the file.
        family: of checkpoints that the LoRA is for, as `architecture.detect` finds it.

    Raises:
        ModelNotSupported: the file has the names of another tool, and cannot be converted.
    """
    tensors = header.tensors
    keys = {key: _read(key) for key in tensors if not key.startswith(_BUNDLED)}
    known = [key for key in keys.values() if key]
    is_xl = family == "SDXL" or any(key.network == _TEXT_2 for key in known)
    foreign = [key for key in known if _is_foreign(key, family, is_xl=is_xl)]
    if not foreign:
        return None
    namings = {key.naming for key in foreign}
    if _PEFT in namings:  # its files name alphas and other parts as diffusers does
        namings.discard(_DIFFUSERS)
    naming = "+".join(sorted(namings))
    refused = _Refusal(name, naming)
    if unknown := [key for key, read in keys.items() if read is None]:
        raise refused.because(f"{len(unknown)} of its tensors have other names ({unknown[0]!r})")
    _refuse_scales(tensors, known, refused)
    layers = _by_layer(known)
    new = {key: _new_layer(parts[0], family, is_xl=is_xl) for key, parts in layers.items()}
    renamed: dict[str, str] = {key: key for key in tensors if key.startswith(_BUNDLED)}
    zeros: list[str] = []
    for layer, parts in layers.items():
        kept, left_out = _parts_to_keep(parts, new[layer], refused)
        renamed |= {key.name: f"{new[layer]}.{key.part}" for key in kept}
        zeros += left_out
    _refuse_duplicates(renamed, refused)
    adapters = _adapters(header.metadata, refused)
    alphas = {
        f"{new[layer]}.{_ALPHA}": alpha
        for layer, parts in layers.items()
        if new[layer] and (alpha := _alpha(parts, tensors, adapters, refused)) is not None
    }
    return Renaming(naming, renamed, alphas, tuple(zeros))


@dataclass(frozen=True)
class _Refusal:
    name: str
    naming: str

    def because(self, reason: str) -> ModelNotSupported:
        return ModelNotSupported(
            f"{self.name!r} has the tensor names of {self.naming}, which A1111 v1.9.3 would ignore"
            f" silently, and it cannot be converted: {reason}.",
            hint="Use a LoRA in kohya's naming (`lora_unet_...`).",
            model=self.name,
            naming=self.naming,
        )


# Names ------------------------------------------------------------------------------------------


def _read(name: str) -> _Key | None:
    """A name of a known form; None for any other."""
    found = _split(name) if len(name) <= _LONGEST else None
    if found is None:
        return None
    layer, part, is_peft = found
    inner = layer
    if wraps := inner.startswith("base_model.model."):
        inner = inner.removeprefix("base_model.model.")
    start = next((one for one in _STARTS if inner.startswith(one)), "")
    network, naming = _STARTS.get(start, (None, _DIFFUSERS))
    inner = inner.removeprefix(start).removeprefix("base_model.model.")
    network = network or _network(inner)
    if network is None:
        return None
    if start == "unet." and inner.startswith(_ORIGINAL_STARTS):
        naming = _ONETRAINER
    if is_peft or (wraps and naming == _DIFFUSERS):
        naming = _PEFT
    dots = _dots(inner, network)
    return _Key(name, layer, part, network, _path(dots, network), dots, naming)


def _split(name: str) -> tuple[str, str, bool] | None:
    """(layer, part, whether the part has peft's name); None if the part is unknown."""
    for end, part in _ENDS.items():
        if name.endswith(end):
            return name[: -len(end)], part, end.startswith((".lora_A", ".lora_B"))
    layer, *rest = name.rsplit(".", 3)
    if len(rest) == len(("lora_A", "default", "weight")) and rest[0] in _ADAPTER:
        return (layer, _ADAPTER[rest[0]], True) if rest[2] == "weight" else None
    if name.startswith("lycoris_") and name.endswith(".weight") and name.count(".") == 1:
        return name.removesuffix(".weight"), "weight", False  # IA3
    return None


def _network(inner: str) -> str | None:
    """The network of a layer whose name does not begin with one."""
    if inner.startswith(_UNET_STARTS):
        return _UNET
    return _TEXT if inner.startswith(("text_model.", "text_model_", "encoder.layers.")) else None


def _dots(inner: str, network: str) -> str:
    """The path without the words that older versions of diffusers put into it."""
    inner = inner.replace(".processor.", ".")
    if network == _UNET:
        return f"{inner}.0" if inner.endswith(".to_out") else inner
    head, _, last = inner.rpartition(".self_attn.to_")
    if head:
        inner = f"{head}.self_attn.{last.removesuffix('.0')}_proj"
    return inner if inner.startswith("text_model") else f"text_model.{inner}"


def _path(dots: str, network: str) -> str | None:
    path = dots.replace(".", "_")
    if network == _UNET:
        return path
    match = _LAYER_OF_TEXT.fullmatch(path)
    is_usable = match and not (match[1] and network == _TEXT_2)
    return path if is_usable else None


def _is_foreign(key: _Key, family: str | None, *, is_xl: bool) -> bool:
    """Whether A1111 does not find the tensor under its name."""
    if key.naming != _KOHYA:
        return True
    layer, _, part = key.name.partition(".")
    if (layer, part) != (key.layer, key.part):
        return True  # kohya's layer with another tool's part
    missed = key.network == _UNET and (key.path or "").startswith(_MISSED_IN_XL)
    if family == "SD2":
        return layer.startswith("lora_te1_")
    return is_xl and (missed or layer.startswith("lora_te_"))


def _new_layer(key: _Key, family: str | None, *, is_xl: bool) -> str | None:
    """The layer's name in kohya's naming; None if A1111 cannot apply it."""
    if key.path is None:
        return None
    if key.network == _TEXT_2:
        return f"lora_te2_{key.path}"
    if key.network == _TEXT:
        # A1111 finds `lora_te1_` in SDXL and in SD1, but not in SD2.
        return f"lora_{'te' if family in {'SD1', 'SD2'} and not is_xl else 'te1'}_{key.path}"
    path = unet_names.kohya_path(key.path, is_xl=is_xl)
    return path and f"lora_unet_{path}"


# Layers -----------------------------------------------------------------------------------------


def _by_layer(keys: Iterable[_Key]) -> dict[str, list[_Key]]:
    layers: dict[str, list[_Key]] = {}
    for key in keys:
        layers.setdefault(key.layer, []).append(key)
    return layers


def _parts_to_keep(
    parts: list[_Key], layer: str | None, refused: _Refusal
) -> tuple[list[_Key], list[str]]:
    """The parts that A1111 applies, and the names of those that must be 0."""
    has = {key.part for key in parts}
    if layer is None:  # LoraSave writes all matrices, also those that were not changed
        zeros = [key.name for key in parts if key.part in {_UP, _DIFF, _DIFF_B}]
        if not zeros:
            raise refused.because(f"A1111 cannot apply its layer {parts[0].layer!r}")
        return [], zeros
    if _DIFF in has:
        return parts, []
    # A1111 reads the change of a bias only beside that of the weights.
    left_out = [key.name for key in parts if key.part == _DIFF_B]
    return [key for key in parts if key.part != _DIFF_B], left_out


def _refuse_scales(tensors: Mapping[str, Tensor], keys: Iterable[_Key], refused: _Refusal) -> None:
    for key in keys:
        if key.part == "dora_scale" and tensors[key.name].shape[:1] != (1,):
            raise refused.because(
                "it is a DoRA with one scale for each output; A1111 knows those with one for each"
                " input"
            )


def _refuse_duplicates(renamed: Mapping[str, str], refused: _Refusal) -> None:
    names: dict[str, str] = {}
    for old, new in renamed.items():
        other = names.setdefault(new, old)
        if other != old:
            raise refused.because(f"{other!r} and {old!r} are the same tensor of one layer")


# Alphas -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Adapter:
    """What diffusers writes to the metadata about the layers of one network.

    Attributes:
        alpha: of all layers; None means that each has its rank.
        ends: end of a layer's path -> (place in the metadata, alpha); `^` means the whole path.
        is_rank_stabilized: alpha is divided by the root of the rank, not by the rank.
    """

    alpha: object
    ends: Mapping[str, tuple[int, object]]
    is_rank_stabilized: bool

    def scale_of(self, path: str) -> object:
        """The alpha of a layer; the first pattern that means it decides."""
        words = path.split(".")
        names = [f"^{path}", *(".".join(words[n:]) for n in range(len(words)))]
        found = [self.ends[name] for name in names if name in self.ends]
        return min(found, key=lambda one: one[0])[1] if found else self.alpha


def _adapters(metadata: Mapping[str, str], refused: _Refusal) -> dict[str, _Adapter]:
    """The entries for each network, such as `unet.lora_alpha` and `unet.alpha_pattern`."""
    text = metadata.get(ADAPTER_METADATA)
    if text is None:
        return {}
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise refused.because(f"its metadata {ADAPTER_METADATA!r} is not a JSON object")
    adapters = {}
    for network in (_UNET, _TEXT, _TEXT_2):
        start = f"{network}."
        own = {k.removeprefix(start): v for k, v in options.items() if k.startswith(start)}
        if own:
            ends = _ends_of_paths(own.get("alpha_pattern") or {}, refused)
            adapters[network] = _Adapter(own.get("lora_alpha"), ends, bool(own.get("use_rslora")))
    return adapters


def _ends_of_paths(patterns: object, refused: _Refusal) -> dict[str, tuple[int, object]]:
    """The patterns without their signs of regular expressions.

    peft reads each as such an expression. Here only the plain ones that diffusers writes are
    allowed, because an expression from a file could take any time.
    """
    if not isinstance(patterns, dict):
        raise refused.because("the 'alpha_pattern' in its metadata is not an object")
    ends: dict[str, tuple[int, object]] = {}
    for place, (pattern, alpha) in enumerate(patterns.items()):
        plain = pattern.removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"\^?[\w.]+", plain):
            raise refused.because(f"its metadata name layers by the expression {pattern[:60]!r}")
        ends.setdefault(plain, (place, alpha))
    return ends


def _alpha(
    parts: list[_Key],
    tensors: Mapping[str, Tensor],
    adapters: Mapping[str, _Adapter],
    refused: _Refusal,
) -> float | None:
    """The alpha in the metadata; None if the file has one, or none is needed.

    Without an alpha A1111 takes the rank, so that the scale is 1. diffusers does the same.
    """
    by_part = {key.part: key for key in parts}
    down, adapter = by_part.get(_DOWN), adapters.get(parts[0].network)
    if down is None or _ALPHA in by_part or adapter is None:
        return None
    shape = tensors[down.name].shape
    rank = shape[0] if shape else 0
    found = adapter.scale_of(down.dots)
    alpha = rank if found is None else found
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not _is_float32(alpha):
        raise refused.because(f"the alpha {str(alpha)[:60]} in its metadata is not a number")
    return alpha * math.sqrt(rank) if adapter.is_rank_stabilized else float(alpha)


def _is_float32(number: float) -> bool:
    return abs(number) <= _LARGEST_ALPHA  # false for NaN
