"""What A1111's tab "PNG Info" tells of a picture. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from worker.images.input_image import InputImage
from worker.images.parameters import parameters_of

# NovelAI's names of the samplers -> A1111's.
_SAMPLERS = {
    "ddim": "DDIM",
    "k_dpm_2": "DPM2",
    "k_dpm_2_ancestral": "DPM2 a",
    "k_dpmpp_2m": "DPM++ 2M",
    "k_dpmpp_2m_sde": "DPM++ 2M SDE",
    "k_dpmpp_2s_ancestral": "DPM++ 2S a",
    "k_dpmpp_sde": "DPM++ SDE",
    "k_euler": "Euler",
    "k_euler_ancestral": "Euler a",
    "k_heun": "Heun",
    "k_lms": "LMS",
    "plms": "PLMS",
}


@dataclass(frozen=True)
class PngInfo:
    """The generation parameters of a picture.

    Attributes:
        info: the infotext; empty if the picture has none.
        items: name -> text of the other texts in the file; ComfyUI's are `prompt` and `workflow`.
        parameters: the infotext's values by A1111's names; empty if the picture has none.
        left_out: names of the texts in the file that were too long to read.
    """

    info: str
    items: Mapping[str, str]
    parameters: Mapping[str, object]
    left_out: tuple[str, ...] = ()


def describe(image: InputImage) -> PngInfo:
    """Read the generation parameters that the picture as sent carried."""
    info = _from_novelai(image) or image.infotext or ""
    return PngInfo(info, image.items, parameters_of(info), image.left_out)


def _from_novelai(image: InputImage) -> str | None:
    """NovelAI's JSON as A1111's infotext, for which A1111 assumes clip skip 2 and ENSD 31337."""
    if image.items.get("Software") != "NovelAI":
        return None
    try:
        facts = json.loads(image.items["Comment"])
        sampler = _SAMPLERS.get(facts["sampler"], "Euler a")
        return (
            f"{image.items['Description']}\nNegative prompt: {facts['uc']}\n"
            f"Steps: {facts['steps']}, Sampler: {sampler}, CFG scale: {facts['scale']},"
            f" Seed: {facts['seed']}, Size: {image.width}x{image.height}, Clip skip: 2, ENSD: 31337"
        )
    except (KeyError, TypeError, ValueError, RecursionError):  # written by another program
        return None
