"""Tiny model files with the tensor names and widths of real ones, and almost no data."""

import hashlib
import json
import math
import struct

UNET = "model.diffusion_model."
BITS = {"F16": 16, "U8": 8}
CROSS = "transformer_blocks.0.attn2.to_k.weight"
SD1 = {
    UNET + "input_blocks.0.0.weight": (1, 4, 3, 3),
    UNET + f"input_blocks.1.1.{CROSS}": (1, 768),
    "cond_stage_model.transformer.x.weight": (1,),
    "first_stage_model.decoder.conv_in.weight": (1, 4, 3, 3),
}
SDXL = {
    UNET + "input_blocks.0.0.weight": (1, 4, 3, 3),
    UNET + f"input_blocks.4.1.{CROSS}": (1, 2048),
    "conditioner.embedders.1.model.ln_final.weight": (1,),
    "first_stage_model.decoder.conv_in.weight": (1, 4, 3, 3),
}
LORA = {
    f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.{part}.weight": shape
    for part, shape in {"lora_down": (1, 768), "lora_up": (1, 1)}.items()
}
VAE = {"encoder.conv_in.weight": (1, 3, 3, 3), "decoder.conv_in.weight": (1, 4, 3, 3)}
EMBEDDING = {"emb_params": (1, 768)}
FLUX = {
    "double_blocks.0.img_attn.norm.key_norm.scale": (1,),
    "img_in.weight": (1, 64),
}
UNKNOWN = {"weights": (1, 1)}
PICKLE = b"\x80\x02}q\x00."
GGUF = b"GGUF\x03\x00\x00\x00" + bytes(64)
HTML = b"<!DOCTYPE html><html><title>Login</title></html>"


def safetensors(shapes=None, number=0, size=0, **metadata) -> bytes:
    """A whole file; another `number` is another content, `size` the bytes of a filling tensor."""
    header, offset = {}, 0
    tensors = [(name, "F16", shape) for name, shape in (LORA if shapes is None else shapes).items()]
    for name, dtype, shape in [*tensors, *([("filling", "U8", (size,))] if size else [])]:
        end = offset + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, end)}
        offset = end
    header["__metadata__"] = {"number": str(number), **metadata}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
