"""Compares the pictures of two A1111 servers, such as one with and one without the extension.

    python benchmarks/parity/speedups.py draw http://127.0.0.1:7861 before.npz
    python benchmarks/parity/speedups.py compare before.npz after.npz

Each server has checkpoints sd1, sd1b, xl and xl-inpaint, LoRAs one and two, the VAE vae.safetensors
and the embedding foxemb. Small random models are enough.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from typing import Any

import numpy as np
import requests
from PIL import Image

SMALL = {"prompt": "a fox in the snow", "negative_prompt": "blurry", "steps": 4, "seed": 1}
SMALL |= {"subseed": 2, "width": 128, "height": 128, "cfg_scale": 5, "sampler_name": "Euler"}
OPTIONS = {"sd_model_checkpoint": "sd1", "live_previews_enable": False}
SAMPLERS = (
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE"),
    *("Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart"),
    *("DDIM", "PLMS", "UniPC", "LCM"),
)
SCHEDULERS = ("Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform")
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
FIELDS: dict[str, dict[str, Any]] = {
    "LoRA": {"prompt": "a fox <lora:one:1>"},
    "LoRA, te 0.3, unet 0.8": {"prompt": "a fox <lora:one:0.3:0.8>"},
    "two LoRAs": {"prompt": "a fox <lora:one:0.7> <lora:two:0.5>"},
    "no LoRA after one": {},
    "emphasis": {"prompt": "a (fox:1.4) in the [snow], ((moon))"},
    "schedule": {"prompt": "a [fox:cat:0.5] in [snow::2]"},
    "alternation": {"prompt": "a [fox|cat] in the snow"},
    "AND": {"prompt": "a fox AND a cat :0.6"},
    "BREAK": {"prompt": "a fox BREAK in the snow"},
    "120 words": {"prompt": ", ".join(f"word{i} fox" for i in range(60))},
    "embedding": {"prompt": "a foxemb in the snow"},
    "batch": {"batch_size": 3},
    "batches": {"n_iter": 2, "batch_size": 2, "sampler_name": "DPM++ SDE"},
    "subseed": {"subseed_strength": 0.4},
    "seed resize": {"seed_resize_from_w": 64, "seed_resize_from_h": 64},
    "eta": {"sampler_name": "Euler a", "eta": 0.5},
    "churn": {"s_churn": 4, "s_tmin": 0.1, "s_noise": 1.01},
    "minimum sigma": {"steps": 8, "s_min_uncond": 3},
    "cfg 1": {"cfg_scale": 1},
    "hires Latent": HIRES,
    "hires Lanczos": HIRES | {"hr_upscaler": "Lanczos"},
    "hires with its own sampler": HIRES | {"hr_sampler_name": "DPM2 a"},
    "refiner": {"refiner_checkpoint": "sd1b", "refiner_switch_at": 0.5},
    "tiling": {"tiling": True},
    "odd size": {"width": 136, "height": 104},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "clip skip 2": {"CLIP_stop_at_last_layers": 2},
    "LoRA at run time": {"lora_functional": True},
    "checkpoint": {"sd_model_checkpoint": "sd1b"},
    "VAE": {"sd_vae": "vae.safetensors"},
    "token merging": {"token_merging_ratio": 0.5},
    "hypertile": {"hypertile_enable_unet": True},
    "noise CPU": {"randn_source": "CPU"},
    "noise NV": {"randn_source": "NV"},
    "ENSD": {"eta_noise_seed_delta": 31337},
    "SGM noise multiplier": {"sgm_noise_multiplier": True},
    "quantized sigmas": {"enable_quantization": True},
    "penultimate sigma discarded": {"always_discard_next_to_last_sigma": True},
    "own sigmas": {"sigma_min": 0.1, "sigma_max": 9, "rho": 5},
    "cond and uncond apart": {"batch_cond_uncond": False},
    "previews": {"live_previews_enable": True, "show_progress_every_n_steps": 1},
}


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def cases() -> dict[str, dict[str, Any]]:
    """The jobs by name; those with a picture go to img2img."""
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    mask = Image.new("L", (128, 128))
    mask.paste(255, (32, 32, 96, 96))
    picture = {"init_images": [_png(Image.fromarray(noise).resize((128, 128)))], "steps": 6}
    picture |= {"denoising_strength": 0.7}
    inpaint = picture | {"mask": _png(mask), "mask_blur": 4}
    loopback = {"script_name": "loopback", "script_args": [2, 0.5, "Linear", "None"]}
    jobs = {name: {"sampler_name": name} for name in SAMPLERS}
    jobs |= {f"{name} schedule": {"scheduler": name} for name in SCHEDULERS}
    jobs |= FIELDS | {name: {"override_settings": values} for name, values in SETTINGS.items()}
    jobs |= {
        f"img2img {name}": picture | {"sampler_name": name} for name in SAMPLERS if name != "LCM"
    }
    jobs |= {"inpainting": inpaint, "loopback": picture | loopback}
    for name in ("xl", "xl-inpaint"):
        shape = {"override_settings": {"sd_model_checkpoint": name}}
        jobs |= {f"{name} {one}": shape | {"sampler_name": one} for one in SAMPLERS[:8]}
        jobs[f"{name} inpainting"] = shape | inpaint
    # Not of the inpainting model: v1.9.3 answers 500, because the mask keeps its first size.
    return jobs | {"xl hires": {"override_settings": {"sd_model_checkpoint": "xl"}} | HIRES}


def draw(url: str, path: str) -> None:
    """Draw all cases and save the pictures and the infos."""
    pictures, infos = {}, {}
    for name, job in cases().items():
        route = "img2img" if "init_images" in job else "txt2img"
        settings = {"override_settings": OPTIONS | job.get("override_settings", {})}
        body = SMALL | job | settings
        answer = requests.post(f"{url}/sdapi/v1/{route}", json=body, timeout=600)
        answer.raise_for_status()
        info = json.loads(answer.json()["info"])
        drawn = answer.json()["images"][-len(info["all_seeds"]) :]
        images = [Image.open(io.BytesIO(base64.b64decode(one))) for one in drawn]
        pictures[name] = np.stack([np.asarray(image.convert("RGB")) for image in images])
        infos[name] = {key: value for key, value in info.items() if key != "job_timestamp"}
    np.savez_compressed(path, infos=json.dumps(infos), **pictures)


def compare(before: str, after: str) -> None:
    """Print the differences of each case that has one, and a summary."""
    one, other = np.load(before), np.load(after)
    infos = [json.loads(str(file["infos"])) for file in (one, other)]
    names = [name for name in one.files if name != "infos"]
    largest, mean = 0, 0.0
    for name in names:
        difference = np.abs(one[name].astype(int) - other[name])
        largest, mean = max(largest, difference.max()), max(mean, difference.mean())
        changed = [key for key, value in infos[0][name].items() if infos[1][name].get(key) != value]
        if difference.any() or changed:
            print(name, difference.max(), f"{difference.mean():.5f}", "info differs:", changed)
    print(f"{len(names)} cases, largest difference {largest} of 255, largest mean {mean:.5f}")


if __name__ == "__main__":
    {"draw": draw, "compare": compare}[sys.argv[1]](*sys.argv[2:])
