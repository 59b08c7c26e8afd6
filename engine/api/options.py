"""The A1111 options that the engine has: config.json, POST /options, override_settings."""

# must be importable in an older Python, where `__main__` reports that the version is too old
from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import Unsupported, shown

log = logging.getLogger(__name__)

CHECKPOINT = "sd_model_checkpoint"
CHECKPOINT_HASH = "sd_checkpoint_hash"
CHECKPOINTS_LIMIT = "sd_checkpoints_limit"
MOST_CHECKPOINTS = 10  # A1111's setting ends there, too
CLIP_SKIP = "CLIP_stop_at_last_layers"
MOST_CLIP_SKIP = 12  # layers of CLIP; A1111's setting ends there, too
VAE = "sd_vae"
COMMENTS = "enable_prompt_comments"
EXTRA_NOISE = "img2img_extra_noise"
BACKGROUND = "img2img_background_color"
FIX_STEPS = "img2img_fix_steps"
MASK_WEIGHT = "inpainting_mask_weight"
NOISE_MULTIPLIER = "initial_noise_multiplier"
MOST_NOISE = 10
OVERLAY = "overlay_inpaint"
RETURN_COMPOSITE = "return_mask_composite"
RETURN_MASK = "return_mask"
TILE = "ESRGAN_tile"
TILE_OVERLAP = "ESRGAN_tile_overlap"
UPSCALER = "upscaler_for_img2img"
MERGING, MERGING_HR = "token_merging_ratio", "token_merging_ratio_hr"
NO_BATCH_DETERMINISM = "no_dpmpp_sde_batch_determinism"
PAD = "pad_cond_uncond"
NOISE_SCHEDULE = "sd_noise_schedule"
RANDN_SOURCE = "randn_source"
ZERO_TERMINAL_SNR = "Zero Terminal SNR"

# A1111's names and order, and A1111's defaults except for two.
ALL: dict[str, Any] = {
    "samples_format": "png",
    TILE: 192,
    TILE_OVERLAP: 8,
    UPSCALER: None,
    "face_restoration": False,
    CHECKPOINT: None,
    CHECKPOINTS_LIMIT: 1,
    "emphasis": "Original",
    "comma_padding_backtrack": 20,
    CLIP_SKIP: 1,
    RANDN_SOURCE: "CPU",  # A1111: GPU
    "tiling": False,
    "sdxl_crop_top": 0,
    "sdxl_crop_left": 0,
    VAE: "Automatic",
    MASK_WEIGHT: 1.0,
    NOISE_MULTIPLIER: 1.0,
    EXTRA_NOISE: 0.0,
    "img2img_color_correction": False,
    FIX_STEPS: False,
    BACKGROUND: "#ffffff",
    RETURN_MASK: False,
    RETURN_COMPOSITE: False,
    OVERLAY: True,
    "s_min_uncond": 0.0,
    MERGING: 0.0,
    MERGING_HR: 0.0,
    PAD: False,
    NO_BATCH_DETERMINISM: False,
    "enable_pnginfo": True,
    "add_model_name_to_info": True,
    "add_model_hash_to_info": True,
    "add_version_to_infotext": True,
    "live_previews_enable": False,  # A1111: True
    "eta_ddim": 0.0,
    "eta_ancestral": 1.0,
    "s_churn": 0.0,
    "s_tmin": 0.0,
    "s_tmax": 0.0,
    "s_noise": 1.0,
    "sigma_min": 0.0,
    "sigma_max": 0.0,
    "rho": 0.0,
    "eta_noise_seed_delta": 0,
    "always_discard_next_to_last_sigma": False,
    "sgm_noise_multiplier": False,
    "uni_pc_variant": "bh1",
    "uni_pc_skip_type": "time_uniform",
    "uni_pc_order": 3,
    "uni_pc_lower_order_final": True,
    NOISE_SCHEDULE: "Default",
    CHECKPOINT_HASH: "",
    "lora_add_hashes_to_infotext": True,
    COMMENTS: True,
}
# The options that can be changed, and the values that they can have. A word that is not one of
# these is a feature that the engine does not have.
_WORDS = {
    NOISE_SCHEDULE: ("Default", ZERO_TERMINAL_SNR),
    "emphasis": ("None", "Ignore", "Original", "No norm"),
    RANDN_SOURCE: ("CPU", "GPU", "NV"),
    "uni_pc_variant": ("bh1", "bh2", "vary_coeff"),
    "uni_pc_skip_type": ("time_uniform", "time_quadratic", "logSNR"),
}
_TEXTS = {CHECKPOINT, VAE, UPSCALER}
_RANGES: dict[str, tuple[type, float, float]] = {
    CHECKPOINTS_LIMIT: (int, 1, MOST_CHECKPOINTS),
    CLIP_SKIP: (int, 0, MOST_CLIP_SKIP),
    "comma_padding_backtrack": (int, 0, 74),
    "sdxl_crop_top": (int, 0, 8192),
    "sdxl_crop_left": (int, 0, 8192),
    TILE: (int, 0, 512),
    TILE_OVERLAP: (int, 0, 48),
    MASK_WEIGHT: (float, 0, 1),
    NOISE_MULTIPLIER: (float, 0, MOST_NOISE),
    EXTRA_NOISE: (float, 0, 10),
    "s_min_uncond": (float, 0, 10_000),
    MERGING: (float, 0, 1),
    MERGING_HR: (float, 0, 1),
    "eta_ddim": (float, 0, 1),
    "eta_ancestral": (float, 0, 1),
    "s_churn": (float, 0, 10_000),
    "s_tmin": (float, 0, 10_000),
    "s_tmax": (float, 0, 10_000),
    "s_noise": (float, 0, 10),
    "sigma_min": (float, 0, 10_000),
    "sigma_max": (float, 0, 10_000),
    "rho": (float, 0, 100),
    "eta_noise_seed_delta": (int, 0, 2**32),
    "uni_pc_order": (int, 1, 50),
}
_SWITCHES = {
    *(
        "tiling",
        PAD,
        NO_BATCH_DETERMINISM,
        "always_discard_next_to_last_sigma",
        "sgm_noise_multiplier",
    ),
    *("uni_pc_lower_order_final", COMMENTS, FIX_STEPS, OVERLAY, RETURN_MASK, RETURN_COMPOSITE),
}
_COLOR = re.compile(r"#[0-9a-fA-F]{6}\Z")
CHANGEABLE = {*_TEXTS, BACKGROUND, *_WORDS, *_RANGES, *_SWITCHES}
DEFAULTS = {name: value for name, value in ALL.items() if name in CHANGEABLE}
WITHOUT_EFFECT = {"live_previews_enable"}  # accepted; there are no previews
FIXED = {name: value for name, value in ALL.items() if name not in {*DEFAULTS, CHECKPOINT_HASH}}


class Options:
    """The current values. `file` is A1111's config.json; its other entries are kept, not used."""

    def __init__(self, file: Path) -> None:
        """Raises OSError, or ValueError or TypeError if the file's content is not valid."""
        self.file = file
        content = self._read()
        known = {name: value for name, value in content.items() if name in CHANGEABLE}
        check(known)
        self.values: dict[str, Any] = DEFAULTS | known

    def _read(self) -> dict[str, Any]:
        """The file's content; {} if there is no file. Raises ValueError if it is not JSON."""
        if not self.file.exists():
            return {}
        if not self.file.is_file():  # a pipe would wait for ever
            raise OSError(f"{self.file} is not a regular file")
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            json.dumps(content, indent=4)  # as `change` writes it: what is nested too deep fails
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.file} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise TypeError(f"{self.file} is not a JSON object")
        return content

    def change(self, changes: Mapping[str, Any]) -> None:
        """Apply the changes, which must be checked already, and write them to the file."""
        self.values |= {name: value for name, value in changes.items() if name in DEFAULTS}
        content = self._read() | {name: v for name, v in self.values.items() if v is not None}
        self.file.write_text(json.dumps(content, indent=4), encoding="utf-8")

    def merged(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The values for one request."""
        return self.values | dict(overrides)


def check(changes: Mapping[str, Any]) -> None:
    """Raise Unsupported for an option that the engine does not have, TypeError or ValueError for a
    value that it cannot have.

    Whether a checkpoint exists is not checked: POST /options and override_settings treat an unknown
    one differently. An unknown VAE means the checkpoint's own, as in A1111.
    """
    for name, value in changes.items():
        if name in WITHOUT_EFFECT or (name in FIXED and value == FIXED[name]):
            continue
        is_unknown_word = name in _WORDS and value not in _WORDS[name]
        if name not in CHANGEABLE or is_unknown_word:
            raise Unsupported(f"the option {shown(name)} with the value {shown(value)}")
        if name in _RANGES:
            _check_number(name, value, *_RANGES[name])
        if name in _SWITCHES and not isinstance(value, bool):
            raise TypeError(f"{name} must be true or false, not {shown(value)}")
        if name in _TEXTS and not isinstance(value, str | None):
            raise TypeError(f"{name} must be a text, not {shown(value)}")
        if name == BACKGROUND and not (isinstance(value, str) and _COLOR.match(value)):
            raise ValueError(f"{name} must be a color such as #ffffff, not {shown(value)}")


def _check_number(name: str, value: object, kind: type, least: float, most: float) -> None:
    kinds = (int,) if kind is int else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {shown(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be {least} to {most}, not {shown(value)}")
