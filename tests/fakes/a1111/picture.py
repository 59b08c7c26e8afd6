"""The fake A1111's pictures: a PNG that depends on all parameters, its infotext, and `info`."""

import base64
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from fakes.a1111.models import AppliedLora, lora_hashes
from fakes.a1111.request import Params
from fakes.a1111.shape import SAMPLERS, picture_size
from fakes.recorded import recorded

SCHEDULERS = {
    row[key]: row["label"] for row in recorded("get_schedulers") for key in ("name", "label")
}
TIMESTEP_SAMPLERS = {"DDIM", "PLMS", "UniPC"}  # they have no schedule
VERSION = "1.9.3"


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(width: int, height: int, colour: bytes, text: str) -> bytes:
    """A one-coloured RGB picture whose `parameters` chunk holds the infotext."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + colour * width) * height
    try:
        note = _chunk(b"tEXt", b"parameters\0" + text.encode("latin-1"))
    except UnicodeEncodeError:  # Pillow's own rule for text beyond Latin-1
        note = _chunk(b"iTXt", b"parameters\0\0\0\0\0" + text.encode())
    body = _chunk(b"IHDR", header) + note + _chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + body + _chunk(b"IEND", b"")


def png_text(data: bytes) -> str:
    """The `parameters` text of a picture that `png` made; ValueError if it is not a PNG."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("not a PNG")
    offset = 8
    while offset < len(data):
        length, kind = struct.unpack(">I4s", data[offset : offset + 8])
        content = data[offset + 8 : offset + 8 + length]
        if kind == b"tEXt":
            return content.partition(b"\0")[2].decode("latin-1")
        if kind == b"iTXt":
            return content.partition(b"\0")[2][4:].decode()
        offset += length + 12
    return ""


def _quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",\n:") else text


@dataclass
class Job:
    """A running txt2img: the request, and the models that really take part."""

    params: Params
    prompt: str
    negative_prompt: str
    seed: int
    subseed: int
    clip_skip: Any
    model_name: str
    model_hash: str | None
    vae_name: str | None
    vae_hash: str | None
    timestamp: str
    embeddings: dict[str, str]
    loras: list[AppliedLora] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)

    @property
    def sampler(self) -> str:
        return str(self.params["sampler_name"] or self.params["sampler_index"])

    @property
    def count(self) -> int:
        return int(self.params["batch_size"] * self.params["n_iter"])

    def seeds(self, first: int) -> list[int]:
        """One seed per picture; a variation strength keeps the main seed for all."""
        step = 1 if self.params["subseed_strength"] == 0 else 0
        return [first + step * index for index in range(self.count)]

    def _schedule(self) -> str | None:
        if self.sampler in TIMESTEP_SAMPLERS:
            return None
        name = self.params["scheduler"] or "Automatic"
        if name == "Automatic":
            name = SAMPLERS[self.sampler]["options"].get("scheduler", "Automatic")
        label = SCHEDULERS.get(name, "Automatic")
        return label if label != "Automatic" else None

    def extra_params(self) -> dict[str, Any]:
        """`extra_generation_params`: contains only what took part."""
        hires = self.params["enable_hr"]
        used = [f"{name}: {short}" for name, short in self.embeddings.items() if short]
        extra = {
            "Denoising strength": self.params["denoising_strength"] if hires else None,
            "Hires upscale": self.params["hr_scale"] if hires else None,
            "Hires upscaler": self.params["hr_upscaler"] if hires else None,
            "Lora hashes": lora_hashes(self.loras),
            "TI hashes": ", ".join(used),
            "Schedule type": self._schedule(),
        }
        return {key: value for key, value in extra.items() if value not in (None, "")}

    def infotext(self, index: int) -> str:
        """The text inside picture number `index`."""
        params = self.params
        values = {
            "Steps": params["steps"],
            "Sampler": self.sampler,
            "Schedule type": params["scheduler"],
            "CFG scale": params["cfg_scale"],
            "Seed": self.seeds(self.seed)[index],
            "Size": f"{params['width']}x{params['height']}",
            "Model hash": self.model_hash,
            "Model": self.model_name,
            "VAE hash": self.vae_hash,
            "VAE": self.vae_name,
            "Clip skip": self.clip_skip if self.clip_skip > 1 else None,
            **self.extra_params(),
            "Version": VERSION,
        }
        negative = f"\nNegative prompt: {self.negative_prompt}" if self.negative_prompt else ""
        line = ", ".join(f"{key}: {_quote(v)}" for key, v in values.items() if v is not None)
        return f"{self.prompt}{negative}\n{line}".strip()

    def _colour(self, index: int, *, partial: bool) -> bytes:
        params = self.params
        used = [(item.lora.hash, item.te, item.unet) for item in self.loras]
        parts = [self.prompt, self.negative_prompt, self.seeds(self.seed)[index], self.model_name]
        parts += [self.model_hash, self.vae_name, self.clip_skip, used, sorted(self.embeddings)]
        parts += [params["steps"], params["cfg_scale"], self.sampler, self._schedule(), partial]
        return hashlib.sha256(repr(parts).encode()).digest()[:3]

    def draw(self, index: int, *, partial: bool) -> None:
        """Finish picture number `index`; an interrupted one looks different."""
        text = self.infotext(index)
        width, height = picture_size(self.params)
        self.infotexts.append(text)
        self.images.append(png(width, height, self._colour(index, partial=partial), text))

    def draw_grid(self) -> bool:
        """Put a grid in front when pictures are saved and there are several."""
        if not self.params["save_images"] or len(self.images) < 2:
            return False
        width, height = picture_size(self.params)
        text = self.infotext(0)
        self.infotexts.insert(0, text)
        grid = png(width * len(self.images), height, self._colour(0, partial=False), text)
        self.images.insert(0, grid)
        return True

    def info(self, *, has_grid: bool) -> dict[str, Any]:
        """The content of the answer's `info`."""
        params = self.params
        echoed = ("subseed_strength", "width", "height", "cfg_scale", "steps", "batch_size")
        echoed += ("seed_resize_from_w", "seed_resize_from_h", "denoising_strength")
        own = {
            "prompt": self.prompt,
            "all_prompts": [self.prompt] * self.count,
            "negative_prompt": self.negative_prompt,
            "all_negative_prompts": [self.negative_prompt] * self.count,
            "seed": self.seed,
            "all_seeds": self.seeds(self.seed),
            "subseed": self.subseed,
            "all_subseeds": [self.subseed + index for index in range(self.count)],
            "sampler_name": self.sampler,
            "restore_faces": bool(params["restore_faces"]),
            "face_restoration_model": "CodeFormer" if params["restore_faces"] else None,
            "sd_model_name": self.model_name,
            "sd_model_hash": self.model_hash,
            "sd_vae_name": self.vae_name,
            "sd_vae_hash": self.vae_hash,
            "extra_generation_params": self.extra_params(),
            "index_of_first_image": int(has_grid),
            "infotexts": self.infotexts or [self.infotext(0)],
            "styles": params["styles"] or [],
            "job_timestamp": self.timestamp,
            "clip_skip": self.clip_skip,
            "is_using_inpainting_conditioning": False,
            "version": VERSION,
        }
        return own | {name: params[name] for name in echoed}

    def answer(self, *, has_grid: bool) -> dict[str, Any]:
        """The body of the 200."""
        images = [base64.b64encode(image).decode() for image in self.images]
        return {
            "images": images if self.params["send_images"] else [],
            "parameters": self.params,
            "info": json.dumps(self.info(has_grid=has_grid)),
        }
