"""A1111's generation parameters: the text in each PNG, and `info` in an answer."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, PngImagePlugin

from engine import __version__

VERSION = f"embedded-{__version__}"


@dataclass(frozen=True)
class Facts:
    """The values that were used for one request; `seeds` has one entry per requested picture.

    `asked_schedule` is the request's `scheduler`; `schedule_label` is the computed schedule, None
    for k-diffusion's own. `seed_resize` and `denoising_strength` have no effect and
    are only repeated, the same as in A1111.
    """

    prompt: str
    negative_prompt: str
    seeds: list[int]
    subseed: int
    width: int
    height: int
    sampler_name: str
    asked_schedule: str | None
    schedule_label: str | None
    eta_ddim: float | None
    cfg_scale: float
    steps: int
    batch_size: int
    model_name: str
    model_hash: str
    clip_skip: int
    lora_hashes: Mapping[str, str]
    seed_resize: tuple[int, int]
    denoising_strength: float | None
    job_timestamp: str
    noise_schedule: str = "Default"

    @property
    def extra_generation_params(self) -> dict[str, Any]:
        """The optional entries; only LoRAs that were applied are listed."""
        params: dict[str, Any] = {}
        if self.lora_hashes:
            hashes = (f"{_bare(name)}: {value}" for name, value in self.lora_hashes.items())
            params["Lora hashes"] = ", ".join(hashes)
        if self.schedule_label is not None:
            params["Schedule type"] = self.schedule_label
        if self.eta_ddim is not None:
            params["Eta DDIM"] = self.eta_ddim
        if self.noise_schedule != "Default":
            params["Noise Schedule"] = self.noise_schedule
        return params

    def infotext(self, index: int) -> str:
        """The text of picture `index`: byte for byte the same as A1111's, except the version."""
        extra = self.extra_generation_params
        entries = {
            "Steps": self.steps,
            "Sampler": self.sampler_name,
            "Schedule type": extra.pop("Schedule type", self.asked_schedule),
            "CFG scale": self.cfg_scale,
            "Seed": self.seeds[index],
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.model_hash,
            "Model": _bare(self.model_name),
            "Clip skip": self.clip_skip if self.clip_skip > 1 else None,
            **extra,
            "Version": VERSION,
        }
        written = {key: value for key, value in entries.items() if value is not None}
        last = ", ".join(f"{key}: {quote(value)}" for key, value in written.items())
        negative = f"\nNegative prompt: {self.negative_prompt}" if self.negative_prompt else ""
        return f"{self.prompt}{negative}\n{last}".strip()

    def info(self, made: int) -> dict[str, Any]:
        """A1111's `info` with its keys in its order, after `made` pictures."""
        count = len(self.seeds)
        return {
            "prompt": self.prompt,
            "all_prompts": [self.prompt] * count,
            "negative_prompt": self.negative_prompt,
            "all_negative_prompts": [self.negative_prompt] * count,
            "seed": self.seeds[0],
            "all_seeds": self.seeds,
            "subseed": self.subseed,
            "all_subseeds": [self.subseed + i for i in range(count)],
            "subseed_strength": 0,
            "width": self.width,
            "height": self.height,
            "sampler_name": self.sampler_name,
            "cfg_scale": self.cfg_scale,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": self.model_name,
            "sd_model_hash": self.model_hash,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": self.seed_resize[0],
            "seed_resize_from_h": self.seed_resize[1],
            "denoising_strength": self.denoising_strength,
            "extra_generation_params": self.extra_generation_params,
            "index_of_first_image": 0,
            "infotexts": [self.infotext(i) for i in range(made)],
            "styles": [],
            "job_timestamp": self.job_timestamp,
            "clip_skip": self.clip_skip,
            "is_using_inpainting_conditioning": False,
            "version": VERSION,
        }


def quote(value: object) -> str:
    """The value as text; as a JSON string if it contains a separator."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text


def _bare(name: str) -> str:
    return name.replace(",", "").replace(":", "")


def encode_png(picture: Image.Image, infotext: str) -> str:
    """The picture as base64 PNG with the text chunk `parameters`."""
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("parameters", infotext)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=metadata)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
