"""A checkpoint's architecture, inferred from the tensor shapes in its safetensors header.

diffusers' `from_single_file` needs a configuration folder, and otherwise downloads it from the hub.
The shapes show the widths, the depths and the kinds of blocks. They do not show the number of
attention heads, which follows fixed rules (SD1: 8 heads; SDXL and CLIP: heads of width 64). For
everything else the engine reads the file's metadata: `prediction_type` or
`modelspec.prediction_type`, and `engine.config` (JSON: {component: {option: number}}) for models
with other numbers of heads or of groups in their norms.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import Unsupported
from engine.models import requirements
from engine.models.ldm import CLIP, CLIP_XL, UNET, VAE
from engine.models.requirements import TEXTS, Config, Family, Incomplete, Shapes

CONFIG = "engine.config"
CONFIGURABLE = ("attention_head_dim", "num_attention_heads", "norm_num_groups")
MOST_BLOCKS = 100  # numbered parts in a row: SDXL has 32 at most

LATENT_CHANNELS = 4
INPAINTING_CHANNELS = 9  # and the mask, and the masked picture's latent
HEAD_SIZE = 64
CLIP_VOCABULARY = 49408
MATRIX_RANK = 2
FIRST_TRANSFORMER = "transformer_blocks.0.attn1.to_q.weight"


@dataclass(frozen=True)
class Architecture:
    """What `from_single_file` needs: {component: configuration}, and the kind of pipeline."""

    family: Family
    components: dict[str, Config]

    @property
    def is_xl(self) -> bool:
        """Whether it has SDXL's pipeline; the refiner lacks one of its text encoders."""
        return self.family in ("SDXL", "refiner")

    def write(self, folder: Path) -> None:
        """Write the diffusers configuration folder."""
        files = {"model_index.json": _model_index(self)}
        for name, config in self.components.items():
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            files[f"{name}/{file}"] = config
        for name, config in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(config), encoding="utf-8")


def infer(shapes: Shapes, metadata: Mapping[str, str]) -> Architecture:
    """The architecture of a checkpoint of SD1, SD2, SDXL or its refiner; {key: shape of a tensor}.

    Raises Incomplete if the file is not a whole checkpoint, and Unsupported for a whole one that
    the engine cannot draw with (instruct-pix2pix, KOALA, ...).
    """
    names = requirements.today(shapes)
    shapes = {names[key]: shape for key, shape in shapes.items()}
    requirements.check_kind(shapes)
    family = requirements.family(shapes)
    try:
        components = _components(shapes, family, metadata)
    except (LookupError, StopIteration, TypeError) as error:
        raise Incomplete(requirements.OTHER_SHAPES) from error
    for name, options in _read_config(metadata).items():
        components[name] |= options
    check_channels(components["unet"])
    given = sum(components[name]["hidden_size"] for name in TEXTS[family])
    if (wanted := components["unet"]["cross_attention_dim"]) != given:
        raise Incomplete(
            f"its UNet needs {wanted} numbers for a token, its text encoders give {given}"
        )
    requirements.check_complete(shapes, family, components)
    return Architecture(family, components)


def _components(shapes: Shapes, family: Family, metadata: Mapping[str, str]) -> dict[str, Config]:
    is_xl = family in ("SDXL", "refiner")
    components = {
        "unet": _unet(_below(shapes, UNET), is_xl),
        "vae": _vae(_below(shapes, VAE), is_xl),
        "scheduler": _scheduler(shapes, metadata, family),
    }
    for name, prefix in TEXTS[family].items():
        is_clip = prefix in (CLIP, CLIP_XL)
        infer_text = _clip if is_clip else _openclip
        components[name] = infer_text(_below(shapes, prefix + ("text_model." if is_clip else "")))
    if family == "SD2":
        # trained with the output of the last layer but one; the last one is never computed
        components["text_encoder"]["num_hidden_layers"] -= 1
    return components


def _read_config(metadata: Mapping[str, str]) -> dict[str, Config]:
    """The file's own options. Raises Incomplete for others than the known ones."""
    try:
        config = json.loads(metadata.get(CONFIG, "{}"))
        given = [(name, value) for options in config.values() for name, value in options.items()]
        known = config.keys() <= {"unet", "vae", "text_encoder", "text_encoder_2"}
        good = all(name in CONFIGURABLE and type(value) is int for name, value in given)
    except (AttributeError, RecursionError, ValueError):
        known = good = False
    if not (known and good):
        raise Incomplete(f"its metadata {CONFIG!r} is not {{component: {{option: number}}}}")
    return dict(config)


def check_channels(unet: Mapping[str, Any]) -> None:
    """Raise Unsupported for a UNet with other inputs than a picture, or those of inpainting."""
    if unet["in_channels"] not in (LATENT_CHANNELS, INPAINTING_CHANNELS):
        raise Unsupported(f"checkpoints whose UNet takes {unet['in_channels']} channels")


class _Part(dict[str, tuple[int, ...]]):
    """The shapes of one network; its keys lack `prefix`."""

    def __init__(self, shapes: Shapes, prefix: str) -> None:
        below = ((key, shape) for key, shape in shapes.items() if key.startswith(prefix))
        super().__init__((key.removeprefix(prefix), shape) for key, shape in below)
        self.prefix = prefix

    def __missing__(self, key: str) -> tuple[int, ...]:
        raise Incomplete(f"it has no tensor {self.prefix + key!r}")


def _below(shapes: Shapes, prefix: str) -> Shapes:
    return _Part(shapes, prefix)


def _count(shapes: Shapes, prefix: str) -> int:
    """The number of numbered children below `prefix`. Raises Incomplete for more than 100."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,9})\.")
    count = 1 + max((int(m[1]) for key in shapes if (m := pattern.match(key))), default=-1)
    if count > MOST_BLOCKS:
        raise Incomplete(f"it has a tensor of {prefix}{count - 1}; at most {MOST_BLOCKS} are known")
    return count


def _norm_groups(channels: list[int]) -> int:
    return 32 if all(width % 32 == 0 for width in channels) else 16


def _unet(shapes: Shapes, is_xl: bool) -> Config:
    blocks = range(_count(shapes, "input_blocks."))
    downsamplers = [i for i in blocks if f"input_blocks.{i}.0.op.weight" in shapes]
    layers = downsamplers[0] - 1 if downsamplers else len(blocks) - 1
    firsts = [1 + level * (layers + 1) for level in range(len(downsamplers) + 1)]
    channels = [shapes[f"input_blocks.{first}.0.out_layers.3.weight"][0] for first in firsts]
    attention = [f"input_blocks.{first}.1.norm.weight" in shapes for first in firsts]
    context = next(s[1] for k, s in shapes.items() if k.endswith("attn2.to_k.weight"))
    projection = next(s for k, s in shapes.items() if k.endswith(".1.proj_in.weight"))
    linear = len(projection) == MATRIX_RANK
    config: Config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128 if is_xl else 64,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "cross_attention_dim": context,
        # diffusers' historical misnomer: this is the number of heads, not their width
        "attention_head_dim": [max(1, c // HEAD_SIZE) for c in channels] if linear else 8,
        "use_linear_projection": linear,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1]],
        "norm_num_groups": _norm_groups(channels),
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config | _depths(shapes, firsts, attention, layers)


def _depths(shapes: Shapes, firsts: list[int], attention: list[bool], layers: int) -> Config:
    """The numbers of transformers in the attentions; SSD-1B and Vega lack some of SDXL's."""

    def count(block: str) -> int:
        return max(1, _count(shapes, f"{block}.1.transformer_blocks."))

    middle = "UNetMidBlock2D"
    down = [[count(f"input_blocks.{first + i}") for i in range(layers)] for first in firsts]
    if f"middle_block.1.{FIRST_TRANSFORMER}" in shapes:
        middle += "CrossAttn"
        if not attention[-1]:
            # the refiner's last level has no attention; diffusers takes the middle's depth from it
            down[-1] = [count("middle_block")] * layers
    up = [
        [count(f"output_blocks.{level * (layers + 1) + i}") for i in range(layers + 1)]
        for level in range(len(firsts))
    ]
    depths: Config = {
        "mid_block_type": middle,
        "transformer_layers_per_block": [one[0] if len(set(one)) == 1 else one for one in down],
    }
    is_uneven = any(len(set(one)) > 1 for one in down) or any(
        is_used and {*there} != {*back}
        for is_used, there, back in zip(attention, down, up[::-1], strict=True)
    )
    if is_uneven:
        depths["reverse_transformer_layers_per_block"] = up
    return depths


def _vae(shapes: Shapes, is_xl: bool) -> Config:
    levels = max(1, _count(shapes, "encoder.down."))
    firsts = (f"encoder.down.{level}.block.0.conv2.weight" for level in range(levels))
    channels = [shapes[first][0] for first in firsts]
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": channels,
        "layers_per_block": _count(shapes, "encoder.down.0.block."),
        "latent_channels": shapes["post_quant_conv.weight"][1],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": _norm_groups(channels),
        "sample_size": 1024 if is_xl else 512,
        "scaling_factor": 0.13025 if is_xl else 0.18215,
        "force_upcast": is_xl,
    }


def _text_model(positions: tuple[int, ...], tokens: int, inner: int, layers: int) -> Config:
    """The configuration that CLIP and OpenCLIP share; `positions` has shape (length, width)."""
    has_clip_vocabulary = tokens == CLIP_VOCABULARY
    return {
        "model_type": "clip_text_model",
        "max_position_embeddings": positions[0],
        "hidden_size": positions[1],
        "projection_dim": positions[1],
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, positions[1] // HEAD_SIZE),
        "vocab_size": tokens,
        "bos_token_id": tokens - 2 if has_clip_vocabulary else 0,
        "eos_token_id": tokens - 1 if has_clip_vocabulary else 1,
        "pad_token_id": 1,
    }


def _clip(shapes: Shapes) -> Config:
    config = _text_model(
        shapes["embeddings.position_embedding.weight"],
        shapes["embeddings.token_embedding.weight"][0],
        shapes["encoder.layers.0.mlp.fc1.weight"][0],
        _count(shapes, "encoder.layers."),
    )
    return config | {"architectures": ["CLIPTextModel"], "hidden_act": "quick_gelu"}


def _openclip(shapes: Shapes) -> Config:
    config = _text_model(
        shapes["positional_embedding"],
        shapes["token_embedding.weight"][0],
        shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        _count(shapes, "transformer.resblocks."),
    )
    return config | {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": "gelu",
        "projection_dim": shapes.get("text_projection", shapes["positional_embedding"])[1],
    }


def _prediction_type(shapes: Shapes, metadata: Mapping[str, str], family: Family) -> str | None:
    """What the UNet predicts: by our own entry, an empty tensor `v_pred`, or the model spec.

    None if nothing tells SD2 (noise) from SD2 for 768 pixels (v-prediction).
    """
    declared = metadata.get("modelspec.prediction_type", "")
    if "prediction_type" in metadata:
        return metadata["prediction_type"]
    if "v_pred" in shapes or declared.startswith("v"):
        return "v_prediction"
    return None if family == "SD2" and not declared else "epsilon"


def _scheduler(shapes: Shapes, metadata: Mapping[str, str], family: Family) -> Config:
    has_marker = "ztsnr" in shapes or metadata.get("ss_zero_terminal_snr") == "True"
    return {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "prediction_type": _prediction_type(shapes, metadata, family),
        "rescale_betas_zero_snr": has_marker,
    }


def _model_index(found: Architecture) -> Config:
    index: Config = {
        "_class_name": "StableDiffusionXLPipeline" if found.is_xl else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    for end, kind in (("", "CLIPTextModel"), ("_2", "CLIPTextModelWithProjection")):
        if f"text_encoder{end}" in found.components:
            index |= {f"text_encoder{end}": ["transformers", kind]}
            index |= {f"tokenizer{end}": ["transformers", "CLIPTokenizer"]}
    if found.is_xl:
        return index | {"force_zeros_for_empty_prompt": True}
    absent = ("safety_checker", "feature_extractor", "image_encoder")
    return index | {name: [None, None] for name in absent} | {"requires_safety_checker": False}
