"""The fake A1111's pictures: a PNG that depends on all parameters, its infotext, and `info`."""

import base64
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from fakes.a1111.img2img import Img2Img
from fakes.a1111.models import TAG, AppliedLora
from fakes.a1111.request import Params
from fakes.a1111.shape import SAMPLERS, picture_size
from fakes.recorded import recorded

SCHEDULERS = {
    row[key]: row["label"] for row in recorded("get_schedulers") for key in ("name", "label")
}
TIMESTEP_SAMPLERS = {"DDIM", "PLMS", "UniPC"}  # they have no schedule
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, colour: bytes, text: str) -> bytes:
    """A one-coloured RGB picture whose `parameters` chunk holds the infotext."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + colour * width) * height
    try:
        note = _chunk(b"tEXt", b"parameters\0" + text.encode("latin-1"))
    except UnicodeEncodeError:  # Pillow's own rule for text beyond Latin-1
        note = _chunk(b"iTXt", b"parameters\0\0\0\0\0" + text.encode())
    body = _chunk(b"IHDR", header) + note + _chunk(b"IDAT", zlib.compress(rows, 1))
    return SIGNATURE + body + _chunk(b"IEND", b"")


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each part of a PNG; ValueError if it is none."""
    if not data.startswith(SIGNATURE):
        raise ValueError("not a PNG")
    chunks, at = [], len(SIGNATURE)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += length + 12
    return chunks


def png_text(data: bytes) -> str:
    """The `parameters` text of a picture."""
    for kind, content in png_chunks(data):
        if kind == b"tEXt":
            return content.partition(b"\0")[2].decode("latin-1")
        if kind == b"iTXt":
            return content.partition(b"\0")[2][4:].decode()
    return ""


def _quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",\n:") else text


@dataclass
class Job:
    """A running job: the request, its prompts without comments, and what takes part."""

    params: Params
    prompt: str
    negative_prompt: str
    seed: int
    subseed: int
    clip_skip: Any
    model_name: str
    model_hash: str | None
    vae_name: str | None
    timestamp: str
    embeddings: dict[str, str]
    conditioning: list[list[str]]
    loras: list[AppliedLora]
    weights: list[tuple[str, float, float]]  # hash and weights of each LoRA inside the model
    has_half_a_vae: bool
    settings: dict[str, Any]
    infotexts: list[str] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler = str(self.params["sampler_name"] or self.params["sampler_index"])
        # A variation strength keeps the main seed for all pictures.
        step = 1 if self.params["subseed_strength"] == 0 else 0
        self.from_pictures = Img2Img.of(self.params)
        self.count = self.params["batch_size"] * self.params["n_iter"]
        if self.from_pictures:
            self.count = self.from_pictures.count(self.params)
        self.seeds = [self.seed + step * index for index in range(self.count)]
        self.schedule = self._schedule()
        hires = self.params if self.params.get("enable_hr") else {}
        extra = {
            "Denoising strength": hires.get("denoising_strength"),
            "Hires upscale": hires.get("hr_scale"),
            "Hires upscaler": hires.get("hr_upscaler"),
            **(self.from_pictures.reported(self.params) if self.from_pictures else {}),
            "Lora hashes": ", ".join(
                f"{it.mention.replace(',', '')}: {it.lora.hash[:12]}" for it in self.loras
            ),
            "TI hashes": ", ".join(f"{name}: {short}" for name, short in self.embeddings.items()),
            "Schedule type": self.schedule,
        }
        # It contains only what took part.
        self.extra = {key: value for key, value in extra.items() if value not in (None, "")}

    def _schedule(self) -> str | None:
        if self.sampler in TIMESTEP_SAMPLERS:
            return None
        name = self.params["scheduler"] or "Automatic"
        if name == "Automatic":
            name = SAMPLERS[self.sampler]["options"].get("scheduler", "Automatic")
        label = SCHEDULERS.get(name, "Automatic")
        return label if label != "Automatic" else None

    def infotext(self, index: int, without: str = "") -> str:
        """The text inside picture number `index`, `without` one of its fields."""
        params = self.params
        values = {
            "Steps": params["steps"],
            "Sampler": self.sampler,
            "Schedule type": params["scheduler"],
            "CFG scale": params["cfg_scale"],
            "Seed": self.seeds[index],
            "Size": f"{params['width']}x{params['height']}",
            "Model hash": self.model_hash,
            "Model": self.model_name,
            "VAE": self.vae_name,
            "Clip skip": self.clip_skip if self.clip_skip > 1 else None,
            **self.extra,
            "Version": "1.9.3",
        }
        negative = self.negative_prompt and f"\nNegative prompt: {self.negative_prompt}"
        line = ", ".join(
            f"{key}: {_quote(v)}" for key, v in values.items() if v is not None and key != without
        )
        return f"{self.prompt}{negative}\n{line}".strip()

    def draw(self, index: int, *, partial: bool) -> None:
        """Finish picture number `index`; an interrupted one looks different."""
        words = TAG.sub("", self.prompt).split()
        # A1111 reports no hashes of what it reuses; `conditioning` has what the embeddings contain.
        text, half = self.infotext(index, without="TI hashes"), self.has_half_a_vae
        line = text.removeprefix(self.prompt)
        parts = [words, line, self.weights, self.conditioning, self.schedule, partial, half]
        parts.append(self.settings)
        size = picture_size(self.params)
        if self.from_pictures:
            parts.append(self.from_pictures.drawn())
            size = self.from_pictures.size(self.params, index)
        colour = hashlib.sha256(repr(parts).encode()).digest()[:3]
        self.infotexts.append(self.infotext(index))
        self.images.append(png(*size, colour, self.infotext(index)))

    def info(self) -> dict[str, Any]:
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
            "all_seeds": self.seeds,
            "subseed": self.subseed,
            "all_subseeds": [self.subseed + index for index in range(self.count)],
            "sampler_name": self.sampler,
            "restore_faces": bool(params["restore_faces"]),
            "face_restoration_model": "CodeFormer" if params["restore_faces"] else None,
            "sd_model_name": self.model_name,
            "sd_model_hash": self.model_hash,
            "sd_vae_name": self.vae_name,
            "sd_vae_hash": None,
            "extra_generation_params": self.extra,
            "index_of_first_image": 0,
            "infotexts": self.infotexts or [self.infotext(0)],
            "styles": params["styles"] or [],
            "job_timestamp": self.timestamp,
            "clip_skip": self.clip_skip,
            "is_using_inpainting_conditioning": False,
            "version": "1.9.3",
        }
        if (params["script_name"] or "").lower() == "prompts from file or textbox":
            own |= dict.fromkeys(("sd_model_name", "sd_model_hash", "sd_vae_name"))
        return own | {name: params[name] for name in echoed}

    def answer(self) -> dict[str, Any]:
        """The body of the 200."""
        images = [base64.b64encode(image).decode() for image in self.images]
        echo = self.params
        if self.from_pictures and not echo["include_init_images"]:
            echo = echo | {"init_images": None, "mask": None}
        return {"images": images, "parameters": echo, "info": json.dumps(self.info())}
