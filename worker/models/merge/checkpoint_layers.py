"""The layers of a checkpoint by the names that kohya's LoRAs use for them. Pure.

    lora_unet_input_blocks_4_1_proj_in          the original names of the UNet's layers
    lora_unet_down_blocks_1_attentions_0_...    the names that diffusers gives them
    lora_te_text_model_encoder_layers_0_...     SD1's text encoder; `lora_te1_` by some trainers
    lora_te1_..., lora_te2_...                  SDXL's text encoders

diffusers numbers the levels and the blocks in each level; the original names number all blocks in
one sequence. The checkpoint's own tensor names show which block is which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from worker.formats.safetensors_header import Tensor

_UNET = "model.diffusion_model."
_CLIP = "cond_stage_model.transformer."
_CLIP_XL = "conditioner.embedders.0.transformer."
_OPENCLIP_XL = "conditioner.embedders.1.model.transformer.resblocks."
_WEIGHT = ".weight"
_MATRIX = 2

_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
}
_MIDDLE = {
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
_RESNET = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_OPENCLIP = {
    "attn.out_proj.weight": "self_attn.out_proj",
    "mlp.c_fc.weight": "mlp.fc1",
    "mlp.c_proj.weight": "mlp.fc2",
}
_OPENCLIP_QKV = "attn.in_proj_weight"


@dataclass(frozen=True)
class CheckpointLayer:
    """The weights of one layer: rows `first` to `end` (exclusive) of the tensor `key`.

    Attributes:
        in_text_encoder: a LoRA's `te` weight applies, not its `unet` weight.
    """

    key: str
    first: int
    end: int
    in_text_encoder: bool


def find_layers(tensors: Mapping[str, Tensor]) -> dict[str, CheckpointLayer]:
    """Every linear layer and convolution of UNet and text encoders, by all its LoRA names."""
    keys = [key for key, tensor in tensors.items() if len(tensor.shape) >= _MATRIX]
    layers = {}
    for key in keys:
        rows = tensors[key].shape[0]
        for name, part, parts in _text_names(key):
            size = rows // parts
            layers[name] = CheckpointLayer(
                key, part * size, (part + 1) * size, in_text_encoder=True
            )
    for name, key in _unet_names(keys):
        layers[name] = CheckpointLayer(key, 0, tensors[key].shape[0], in_text_encoder=False)
    return layers


def _text_names(key: str) -> Iterator[tuple[str, int, int]]:
    """(LoRA's name, index of the part, number of parts) for a text encoder's tensor."""
    if key.startswith(_OPENCLIP_XL):
        number, _, inner = key.removeprefix(_OPENCLIP_XL).partition(".")
        stem = f"lora_te2_text_model_encoder_layers_{number}_"
        if inner in _OPENCLIP:
            yield stem + _underscored(_OPENCLIP[inner]), 0, 1
        elif inner == _OPENCLIP_QKV:
            for part, letter in enumerate("qkv"):
                yield f"{stem}self_attn_{letter}_proj", part, 3
    for start, prefixes in ((_CLIP, ("te", "te1")), (_CLIP_XL, ("te1",))):
        # Old SD1 files have no `text_model.`; A1111 adds it.
        layer = key.removeprefix(start).removeprefix("text_model.")
        if key.startswith(start) and layer.startswith("encoder.layers."):
            for prefix in prefixes:
                yield f"lora_{prefix}_text_model_{_underscored(layer)}", 0, 1


def _unet_names(keys: list[str]) -> Iterator[tuple[str, str]]:
    """(LoRA's name, name of the tensor with the weights) for all layers of the UNet."""
    paths = [
        key.removeprefix(_UNET).removesuffix(_WEIGHT)
        for key in keys
        if key.startswith(_UNET) and key.endswith(_WEIGHT)
    ]
    blocks = _MIDDLE | _input_blocks(paths) | _output_blocks(paths)
    for path in paths:
        for name in (path, _in_diffusers(path, blocks)):
            yield f"lora_unet_{_underscored(name)}", f"{_UNET}{path}{_WEIGHT}"


def _in_diffusers(path: str, blocks: Mapping[str, str]) -> str:
    """The name of a UNet layer in diffusers, or its own name if it has no other."""
    if path in _TOP:
        return _TOP[path]
    match = re.match(r"((?:input|output)_blocks\.\d+\.\d|middle_block\.\d)\.(.+)", path)
    if not match or match[1] not in blocks:
        return path
    block, inner = blocks[match[1]], match[2]
    if ".resnets." in block:
        inner = _RESNET.get(inner, inner)
    return f"{block}.{inner}" if "sampler" not in block else block


def _input_blocks(paths: list[str]) -> dict[str, str]:
    """{`input_blocks.4.1`: `down_blocks.1.attentions.0`}: a downsampler ends each level."""
    down = {int(m[1]) for p in paths if (m := re.match(r"input_blocks\.(\d+)\.0\.op$", p))}
    names, level, number = {}, 0, 0
    for block in _numbers("input", paths):
        if block in down:
            names[f"input_blocks.{block}.0"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, number = level + 1, 0
        elif block:  # 0 is `conv_in`
            names[f"input_blocks.{block}.0"] = f"down_blocks.{level}.resnets.{number}"
            names[f"input_blocks.{block}.1"] = f"down_blocks.{level}.attentions.{number}"
            number += 1
    return names


def _output_blocks(paths: list[str]) -> dict[str, str]:
    """{`output_blocks.2.1`: `up_blocks.0.attentions.2`}: an upsampler is the level's last part."""
    pattern = re.compile(r"output_blocks\.(\d+)\.(\d)\.conv$")
    up = {int(m[1]): m[2] for path in paths if (m := pattern.match(path))}
    names, level, number = {}, 0, 0
    for block in _numbers("output", paths):
        names[f"output_blocks.{block}.0"] = f"up_blocks.{level}.resnets.{number}"
        names[f"output_blocks.{block}.1"] = f"up_blocks.{level}.attentions.{number}"
        number += 1
        if block in up:  # instead of an attention, or after it
            names[f"output_blocks.{block}.{up[block]}"] = f"up_blocks.{level}.upsamplers.0.conv"
            level, number = level + 1, 0
    return names


def _numbers(side: str, paths: list[str]) -> list[int]:
    """The numbers of the blocks of one side, sorted."""
    pattern = re.compile(rf"{side}_blocks\.(\d+)\.")
    return sorted({int(match[1]) for path in paths if (match := pattern.match(path))})


def _underscored(path: str) -> str:
    return path.removesuffix(_WEIGHT).replace(".", "_")
