"""Tiny model files with the tensor names and widths of real ones, and almost no data."""

import hashlib
import json
import math
import os
import struct
from pathlib import Path

from worker.formats import stable_diffusion

UNET = "model.diffusion_model."
BITS = {"F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U8": 8, "F8_E4M3": 8}
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
    "conditioner.embedders.0.transformer.x.weight": (1,),
    "conditioner.embedders.1.model.ln_final.weight": (1,),
    "first_stage_model.decoder.conv_in.weight": (1, 4, 3, 3),
}
LORA = {
    f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.{part}.weight": shape
    for part, shape in {"lora_down": (1, 768), "lora_up": (1, 1)}.items()
}
VAE = {name: (1,) * len(shape) for name, shape in stable_diffusion.vae().items()}
VAE |= {"encoder.conv_in.weight": (1, 3, 3, 3), "decoder.conv_in.weight": (1, 4, 3, 3)}
EMBEDDING = {"emb_params": (1, 768)}
FLUX = {"double_blocks.0.img_attn.norm.key_norm.scale": (1,), "img_in.weight": (1, 64)}
UNKNOWN = {"weights": (1, 1)}
PICKLE = b"\x80\x02}q\x00."
GGUF = b"GGUF\x03\x00\x00\x00" + bytes(64)
HTML = b"<!DOCTYPE html><html><title>Login</title></html>"


def entries(shapes, dtype="F16", position=0) -> dict:
    """{name: shape} -> the header's object, with contiguous data from `position` on."""
    placed = {}
    for name, shape in shapes.items():
        end = position + math.prod(shape) * BITS[dtype] // 8
        placed[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    return placed


def framed(document) -> bytes:
    """The first bytes of a file: the length, and the header, given as an object or as bytes."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text


def safetensors(shapes=None, number=0, size=0, **metadata) -> bytes:
    """A whole file; another `number` is another content, `size` the bytes of a filling tensor."""
    header = entries(LORA if shapes is None else shapes)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    header |= entries({"filling": (size,)} if size else {}, "U8", end)
    header["__metadata__"] = {"number": str(number), **metadata}
    return framed(header) + bytes(end + size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_as_before(path: Path, text: str) -> None:
    """Write the file in its place, and set its time back; only its time of change differs then."""
    before = path.stat() if path.exists() else None
    while True:  # two changes within one tick of the file system's clock have one time
        path.write_text(text)
        if before is None:
            return
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if path.stat().st_ctime_ns != before.st_ctime_ns:
            return
