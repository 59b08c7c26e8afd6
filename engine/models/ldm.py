"""Rename diffusers' tensors to the original (LDM, "CivitAI") keys of a single-file checkpoint.

diffusers has only the other direction (`from_single_file`). The functions take and return state
dicts: {key: tensor}. Covers Stable Diffusion 1.x, 2.x and SDXL, also its refiner.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

T = TypeVar("T")
StateDict = dict[str, torch.Tensor]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."
CLIP_XL = "conditioner.embedders.0.transformer."
OPENCLIP_XL = "conditioner.embedders.1.model."
OPENCLIP_SD2 = "cond_stage_model.model."
OPENCLIP_REFINER = "conditioner.embedders.0.model."  # also of SD2.1 Turbo

_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_VAE_RENAMES = (
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"encoder\.down_blocks\.(\d+)\.resnets", r"encoder.down.\1.block"),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample"),
)
_OPENCLIP_RENAMES = (
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.", ""),
    ("final_layer_norm", "ln_final"),
    ("encoder.layers.", "transformer.resblocks."),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
)


def _rename_resnet(rest: str) -> str:
    layer, _, parameter = rest.rpartition(".")
    return f"{_RESNET[layer]}.{parameter}"


def _unet_key(key: str, layers: int, with_attention: set[int]) -> str:
    """One UNet key. LDM numbers all blocks; a level has `layers` blocks and a resampler."""
    if m := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
        side, kind, rest = m[1], m[3], m[5]
        number = int(m[2]) * (layers + 1) + int(m[4]) + (side == "down")
        block = f"{'input' if side == 'down' else 'output'}_blocks.{number}"
        return f"{block}.1.{rest}" if kind == "attentions" else f"{block}.0.{_rename_resnet(rest)}"
    if m := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", key):
        return f"input_blocks.{(int(m[1]) + 1) * (layers + 1)}.0.op.{m[2]}"
    if m := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", key):
        level = int(m[1])
        place = 2 if level in with_attention else 1
        return f"output_blocks.{level * (layers + 1) + layers}.{place}.conv.{m[2]}"
    if m := re.match(r"mid_block\.attentions\.0\.(.*)", key):
        return f"middle_block.1.{m[1]}"
    if m := re.match(r"mid_block\.resnets\.(\d+)\.(.*)", key):
        return f"middle_block.{2 * int(m[1])}.{_rename_resnet(m[2])}"
    layer, _, parameter = key.rpartition(".")
    return f"{_UNET_TOP[layer]}.{parameter}"


def export_unet(state: Mapping[str, T], layers_per_block: int) -> dict[str, T]:
    """A UNet2DConditionModel's state dict under LDM keys. Raises KeyError for an unknown key."""
    attention = {int(m[1]) for k in state if (m := re.match(r"up_blocks\.(\d+)\.attentions", k))}
    return {UNET + _unet_key(k, layers_per_block, attention): v for k, v in state.items()}


def _vae_key(key: str, levels: int) -> str:
    """One VAE key. LDM and diffusers number the decoder's levels in opposite order."""
    for pattern, replacement in _VAE_RENAMES:
        key = re.sub(pattern, replacement, key)
    if m := re.match(r"(decoder\.up)_blocks\.(\d+)\.(resnets|upsamplers\.0)(.*)", key):
        kind = "block" if m[3] == "resnets" else "upsample"
        return f"{m[1]}.{levels - 1 - int(m[2])}.{kind}{m[4]}"
    if m := re.match(r"(.*)mid_block\.resnets\.(\d+)(.*)", key):
        return f"{m[1]}mid.block_{int(m[2]) + 1}{m[3]}"
    if m := re.match(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)", key):
        return f"{m[1]}mid.attn_1.{_VAE_ATTENTION[m[2]]}.{m[3]}"
    return key


def export_vae(state: StateDict, levels: int) -> StateDict:
    """An AutoencoderKL's state dict under LDM keys; LDM's attention is a 1x1 convolution."""
    exported = {VAE + _vae_key(key, levels): value for key, value in state.items()}
    for key, value in exported.items():
        if ".attn_1." in key and value.ndim == 2:  # noqa: PLR2004 - a matrix
            exported[key] = value[:, :, None, None]
    return exported


def export_clip(state: StateDict, prefix: str = CLIP) -> StateDict:
    """A CLIPTextModel's state dict. The original has `text_model.`, transformers 5 has not."""
    plain = {k.removeprefix("text_model."): v for k, v in state.items() if "position_ids" not in k}
    return {f"{prefix}text_model.{key}": value for key, value in plain.items()}


def export_openclip(state: StateDict, prefix: str = OPENCLIP_XL) -> StateDict:
    """The state dict of a CLIPTextModel(WithProjection) for OpenCLIP: q, k and v are one matrix."""
    exported: StateDict = {}
    for full, value in state.items():
        key = full.removeprefix("text_model.")
        if m := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", key):
            parts = [state[full.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            exported[f"transformer.resblocks.{m[1]}.attn.in_proj_{m[2]}"] = torch.cat(parts)
        elif key == "text_projection.weight":
            exported["text_projection"] = value.T
        elif not re.search(r"[kv]_proj|position_ids", key):
            for name, replacement in _OPENCLIP_RENAMES:
                key = key.replace(name, replacement)
            exported[key] = value
    return {prefix + key: value for key, value in exported.items()}


def export_pipeline(pipe: Any, dtype: torch.dtype = torch.float16) -> StateDict:  # noqa: ANN401
    """A StableDiffusionPipeline or StableDiffusionXLPipeline as one contiguous state dict."""
    state = export_unet(pipe.unet.state_dict(), pipe.unet.config.layers_per_block)
    state |= export_vae(pipe.vae.state_dict(), len(pipe.vae.config.block_out_channels))
    if getattr(pipe, "text_encoder_2", None) is None:
        state |= export_clip(pipe.text_encoder.state_dict())
    else:
        state |= export_clip(pipe.text_encoder.state_dict(), CLIP_XL)
        state |= export_openclip(pipe.text_encoder_2.state_dict())
    return {key: value.to(dtype).contiguous() for key, value in state.items()}
