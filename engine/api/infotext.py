"""A1111's generation parameters: the text in each PNG, and `info` in an answer."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, PngImagePlugin

from engine import __version__
from engine.api import options as option
from engine.api import parameters
from engine.api.job import Job
from engine.api.parameters import Used
from engine.prompt.syntax import bare

VERSION = f"embedded-{__version__}"


@dataclass(frozen=True)
class Facts:
    """The values that were used for one job, as A1111 tells them.

    `seeds` and `subseeds` have one entry per requested picture. `asked_schedule` is the request's
    `scheduler`; `main` and `extra` are the entries that are not always there, see
    `engine.api.parameters`.
    """

    prompt: str
    negative_prompt: str
    seeds: list[int]
    subseeds: list[int]
    subseed_strength: float
    width: int
    height: int
    sampler_name: str
    asked_schedule: str | None
    cfg_scale: float
    steps: int
    batch_size: int
    is_inpainting: bool
    model_name: str
    model_hash: str
    vae: tuple[str, str] | None
    clip_skip: int
    seed_resize: tuple[int, int]
    denoising_strength: float | None
    job_timestamp: str
    styles: list[str]
    main: Mapping[str, Any]
    extra: Mapping[str, Any]

    @classmethod
    def of(cls, job: Job, used: Used, timestamp: str) -> "Facts":
        """The facts of a job that was drawn."""
        request, first = job.request, job.first
        return cls(
            first.texts.prompt,
            first.texts.negative,
            job.seeds,
            [job.subseed + i for i in range(job.asked)],
            request.subseed_strength,
            first.width,
            first.height,
            first.sampling.sampler.name,
            request.scheduler,
            request.cfg_scale,
            request.steps,
            job.batch,
            used.is_inpainting,
            used.model_name,
            used.model_hash,
            used.vae,
            job.settings[option.CLIP_SKIP],
            (request.seed_resize_from_w, request.seed_resize_from_h),
            request.denoising_strength,
            timestamp,
            request.styles or [],
            parameters.main_entries(job, used),
            parameters.optional_entries(job, used),
        )

    def infotext(self, index: int) -> str:
        """The text of picture `index`: byte for byte the same as A1111's, except the version."""
        extra = dict(self.extra)
        entries = {
            "Steps": self.steps,
            "Sampler": self.sampler_name,
            "Schedule type": extra.pop("Schedule type", self.asked_schedule),
            "CFG scale": self.cfg_scale,
            "Seed": self.seeds[index],
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.model_hash,
            "Model": bare(self.model_name),
            "VAE hash": self.vae and self.vae[1],
            "VAE": self.vae and self.vae[0],
            "Variation seed": self.subseeds[index] if self.subseed_strength else None,
            **self.main,
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
        hidden = dict.fromkeys(parameters.HIRES_PROMPTS & self.extra.keys())
        return {
            "prompt": self.prompt,
            "all_prompts": [self.prompt] * count,
            "negative_prompt": self.negative_prompt,
            "all_negative_prompts": [self.negative_prompt] * count,
            "seed": self.seeds[0],
            "all_seeds": self.seeds,
            "subseed": self.subseeds[0],
            "all_subseeds": self.subseeds,
            "subseed_strength": self.subseed_strength,
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
            "sd_vae_name": self.vae and self.vae[0],
            "sd_vae_hash": self.vae and self.vae[1],
            "seed_resize_from_w": self.seed_resize[0],
            "seed_resize_from_h": self.seed_resize[1],
            "denoising_strength": self.denoising_strength,
            "extra_generation_params": {**self.extra, **hidden},
            "index_of_first_image": 0,
            "infotexts": [self.infotext(i) for i in range(made)],
            "styles": self.styles,
            "job_timestamp": self.job_timestamp,
            "clip_skip": self.clip_skip,
            "is_using_inpainting_conditioning": self.is_inpainting,
            "version": VERSION,
        }


def quote(value: object) -> str:
    """The value as text; as a JSON string if it contains a separator."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text


def encode_png(picture: Image.Image, texts: Mapping[str, Any]) -> str:
    """The picture as base64 PNG with these text chunks; values that are no text are left out."""
    metadata = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        if isinstance(text, str):
            metadata.add_text(name, text)
    picture = picture.copy()
    picture.info = {}  # otherwise Pillow writes a profile and others of the given picture, too
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=metadata)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
