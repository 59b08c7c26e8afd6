"""What A1111 v1.9.3 has without any model file, in the form of this worker's lists. Pure.

The answer to a client while a worker that sleeps has not said yet what it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Item = Mapping[str, Any]

# Name, its other spellings, the scheduler that it uses by default.
_SAMPLERS: tuple[tuple[str, str, str | None], ...] = (
    ("DPM++ 2M", "k_dpmpp_2m", "karras"),
    ("DPM++ SDE", "k_dpmpp_sde", "karras"),
    ("DPM++ 2M SDE", "k_dpmpp_2m_sde", "exponential"),
    ("DPM++ 2M SDE Heun", "k_dpmpp_2m_sde_heun", "exponential"),
    ("DPM++ 2S a", "k_dpmpp_2s_a", "karras"),
    ("DPM++ 3M SDE", "k_dpmpp_3m_sde", "exponential"),
    ("Euler a", "k_euler_a k_euler_ancestral", None),
    ("Euler", "k_euler", None),
    ("LMS", "k_lms", None),
    ("Heun", "k_heun", None),
    ("DPM2", "k_dpm_2", "karras"),
    ("DPM2 a", "k_dpm_2_a", "karras"),
    ("DPM fast", "k_dpm_fast", None),
    ("DPM adaptive", "k_dpm_ad", None),
    ("Restart", "restart", "karras"),
    ("DDIM", "ddim", None),
    ("PLMS", "plms", None),
    ("UniPC", "unipc", None),
    ("LCM", "k_lcm", None),
)
SAMPLERS: tuple[Item, ...] = tuple(
    {"name": name, "aliases": aliases.split(), "scheduler": scheduler}
    for name, aliases, scheduler in _SAMPLERS
)
SCHEDULERS: tuple[Item, ...] = (
    {"name": "Automatic", "aliases": ["automatic"]},
    {"name": "Uniform", "aliases": ["uniform"]},
    {"name": "Karras", "aliases": ["karras"]},
    {"name": "Exponential", "aliases": ["exponential"]},
    {"name": "Polyexponential", "aliases": ["polyexponential"]},
    {"name": "SGM Uniform", "aliases": ["sgm_uniform", "SGMUniform"]},
)
# Name and factor of an upscaler's model; A1111 lists them although it has not fetched them yet.
_WITH_MODEL = {
    "DAT x2": 2.0,
    "DAT x3": 3.0,
    "DAT x4": 4.0,
    **dict.fromkeys(("ESRGAN_4x", "LDSR", "R-ESRGAN 4x+", "R-ESRGAN 4x+ Anime6B"), 4.0),
    **dict.fromkeys(("ScuNET GAN", "ScuNET PSNR", "SwinIR 4x"), 4.0),
}
_LATENT = ("", " (antialiased)", " (bicubic)", " (bicubic antialiased)", " (nearest)")
UPSCALERS: tuple[Item, ...] = (
    *(
        {"name": name, "fields": ["upscaler_1", "upscaler_2", "hr_upscaler"], "scale": scale}
        for name, scale in ({"Lanczos": None, "Nearest": None} | _WITH_MODEL).items()
    ),
    *(
        {"name": f"Latent{kind}", "fields": ["hr_upscaler"], "scale": None}
        for kind in (*_LATENT, " (nearest-exact)")
    ),
)
