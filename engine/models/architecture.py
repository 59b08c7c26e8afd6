"""A checkpoint's architecture, inferred from the tensor shapes in its safetensors header.

diffusers' `from_single_file` needs a configuration folder, and otherwise downloads it from the hub.
The shapes show the widths, the depths and the kinds of blocks. They do not show the number of
attention heads, which follows fixed rules (SD1: 8 heads; SDXL and CLIP: heads of width 64). For
everything else the engine reads the file's metadata: `prediction_type` or
`modelspec.prediction_type`, and `engine.config` (JSON: {component: {option: value}}) for models of
unusual size.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import Unsupported
from engine.models.ldm import CLIP, CLIP_XL, OPENCLIP_XL, UNET, VAE

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

LATENT_CHANNELS = 4
HEAD_SIZE = 64
CLIP_VOCABULARY = 49408
MATRIX_RANK = 2


@dataclass(frozen=True)
class Architecture:
    """What `from_single_file` needs: {component: configuration}, and the kind of pipeline."""

    is_xl: bool
    components: dict[str, Config]

    def write(self, folder: Path) -> None:
        """Write the diffusers configuration folder."""
        files = {"model_index.json": _model_index(self.is_xl)}
        for name, config in self.components.items():
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            files[f"{name}/{file}"] = config
        for name, config in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(config), encoding="utf-8")


def infer(shapes: Shapes, metadata: Mapping[str, str]) -> Architecture:
    """The architecture of an SD1.x or SDXL checkpoint.

    Raises KeyError or ValueError if tensors of such a model are missing, and Unsupported for
    Stable Diffusion models with other inputs (inpainting, pix2pix).
    """
    is_xl = OPENCLIP_XL + "positional_embedding" in shapes
    if is_xl and not _below(shapes, f"{UNET}middle_block.1."):
        raise Unsupported("checkpoints without the middle block's attention (SSD-1B, Vega, KOALA)")
    components = {
        "unet": _unet(_below(shapes, UNET), is_xl),
        "vae": _vae(_below(shapes, VAE), is_xl),
        "text_encoder": _clip(_below(shapes, (CLIP_XL if is_xl else CLIP) + "text_model.")),
        "scheduler": _scheduler(_prediction_type(shapes, metadata)),
    }
    if is_xl:
        components["text_encoder_2"] = _openclip(_below(shapes, OPENCLIP_XL))
    for name, options in json.loads(metadata.get("engine.config", "{}")).items():
        components[name] |= options
    check_channels(components["unet"])
    return Architecture(is_xl, components)


def check_channels(unet: Mapping[str, Any]) -> None:
    """Raise Unsupported for a UNet that has more inputs than the latent image."""
    if unet["in_channels"] != LATENT_CHANNELS:
        raise Unsupported("checkpoints whose UNet takes more than the latent image (inpainting)")


def _below(shapes: Shapes, prefix: str) -> Shapes:
    return {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}


def _count(shapes: Shapes, prefix: str) -> int:
    """The number of numbered children below `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(m[1]) for key in shapes if (m := pattern.match(key))), default=-1)


def _norm_groups(channels: list[int]) -> int:
    return 32 if all(width % 32 == 0 for width in channels) else 16


def _unet(shapes: Shapes, is_xl: bool) -> Config:
    blocks = range(_count(shapes, "input_blocks."))
    downsamplers = [i for i in blocks if f"input_blocks.{i}.0.op.weight" in shapes]
    layers = downsamplers[0] - 1 if downsamplers else len(blocks) - 1
    firsts = [f"input_blocks.{1 + level * (layers + 1)}." for level in range(len(downsamplers) + 1)]
    channels = [shapes[first + "0.out_layers.3.weight"][0] for first in firsts]
    attention = [first + "1.norm.weight" in shapes for first in firsts]
    depths = [max(1, _count(shapes, first + "1.transformer_blocks.")) for first in firsts]
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
        "transformer_layers_per_block": depths,
        "norm_num_groups": _norm_groups(channels),
    }
    if is_xl:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config


def _vae(shapes: Shapes, is_xl: bool) -> Config:
    levels = _count(shapes, "encoder.down.")
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
        "projection_dim": shapes["text_projection"][1],
    }


def _prediction_type(shapes: Shapes, metadata: Mapping[str, str]) -> str:
    """What the UNet predicts: by our own entry, an empty tensor `v_pred`, or the model spec."""
    declared = metadata.get("modelspec.prediction_type", "")
    is_v = "v_pred" in shapes or declared.startswith("v")
    return metadata.get("prediction_type", "v_prediction" if is_v else "epsilon")


def _scheduler(prediction_type: str) -> Config:
    return {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }


def _model_index(is_xl: bool) -> Config:
    index: Config = {
        "_class_name": "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    if is_xl:
        second = {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"}
        index |= {name: ["transformers", cls] for name, cls in second.items()}
        return index | {"force_zeros_for_empty_prompt": True}
    absent = ("safety_checker", "feature_extractor", "image_encoder")
    return index | {name: [None, None] for name in absent} | {"requires_safety_checker": False}
