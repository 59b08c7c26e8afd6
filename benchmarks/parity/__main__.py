"""Compares the embedded engine with a real A1111, request by request.

    python -m benchmarks.parity --a1111 http://127.0.0.1:7860 --engine http://127.0.0.1:3000

Both must run on the CPU and have the same checkpoints, named by `--checkpoint`. It prints, in the
form of a Markdown table, the mean and the largest difference of the pictures' values (0 to 255),
and with `--infotexts` also the generation parameters that differ.

    python -m benchmarks.parity --a1111 http://127.0.0.1:7860 --record tests/engine/parity

writes the pictures of A1111 that a test compares with. Both need the files that
`python -m benchmarks.parity.files` writes; `--record` also needs the demo model as `demo` (for
A1111 with `benchmarks/parity/demo_in_a1111/demo.yaml` beside it), and as `demo-eps` the same file,
read as a model that predicts the noise. docs/internals/engine-parity.md describes how to set up
both.
"""

import argparse
import base64
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from benchmarks.parity import files
from benchmarks.parity import img2img as with_pictures
from engine.api.options import CHECKPOINT, DEFAULTS

Fields = dict[str, Any]
Pixels = np.ndarray[Any, np.dtype[Any]]

PROMPT = "a green star on a yellow background"
BASE: Fields = {
    "prompt": PROMPT,
    "seed": 1,
    "steps": 8,
    "width": 128,
    "height": 128,
    "cfg_scale": 4,
    "sampler_name": "Euler",
}
# Sent with every request: A1111 keeps an option that its config.json does not have.
OPTIONS: Fields = {name: value for name, value in DEFAULTS.items() if name != CHECKPOINT}
HIGHRES: Fields = {"enable_hr": True, "denoising_strength": 0.6, "hr_scale": 1.5}
LONG = "a red circle, " * 40

# {name: fields}; the options of a request are in `override_settings`
FEATURES: dict[str, Fields] = {
    "AND": {"prompt": "a green star AND a red circle on a white background"},
    "AND with weights": {"prompt": "a green star :0.7 AND a red circle :-0.3 AND a cross :0.9"},
    "AND, different lengths": {"prompt": f"a green star AND {LONG}"},
    "weight of the whole prompt": {"prompt": f"{PROMPT} :1.3"},
    "cfg_scale 1": {"cfg_scale": 1},
    "cfg_scale 0.5": {"cfg_scale": 0.5},
    "s_min_uncond": {"s_min_uncond": 3.0, "steps": 12},
    "s_min_uncond, DDIM": {"s_min_uncond": 500.0, "sampler_name": "DDIM"},
    "negative prompt of other length": {"negative_prompt": LONG},
    "pad_cond_uncond": {
        "negative_prompt": LONG,
        "override_settings": {"pad_cond_uncond": True},
    },
    "prompt editing and emphasis": {"prompt": "a [green:(red:1.4):0.4] star (on:0.8) [blue|white]"},
    "prompt editing beyond the last call": {
        "prompt": "a [green:red:0.3] star",
        "sampler_name": "DPM adaptive",
    },
    "emphasis None": {
        "prompt": "a (green:1.4) star",
        "override_settings": {"emphasis": "None"},
    },
    "emphasis Ignore": {
        "prompt": "a (green:1.4) star",
        "override_settings": {"emphasis": "Ignore"},
    },
    "emphasis No norm": {
        "prompt": "a (green:1.4) star",
        "override_settings": {"emphasis": "No norm"},
    },
    "comma_padding_backtrack": {
        "prompt": LONG,
        "override_settings": {"comma_padding_backtrack": 0},
    },
    "clip skip 2": {"override_settings": {"CLIP_stop_at_last_layers": 2}},
    "eta 0.5": {"sampler_name": "Euler a", "eta": 0.5},
    "eta 0": {"sampler_name": "DPM++ 2S a", "eta": 0},
    "eta 0.7, SDE": {"sampler_name": "DPM++ 2M SDE", "eta": 0.7},
    "eta, DDIM": {"sampler_name": "DDIM", "eta": 1.0},
    "eta_ancestral": {"sampler_name": "DPM2 a", "override_settings": {"eta_ancestral": 0.6}},
    "eta_ddim": {"sampler_name": "DDIM", "override_settings": {"eta_ddim": 0.5}},
    "s_churn": {"s_churn": 6.0, "s_noise": 1.1},
    "s_churn, s_tmin, s_tmax": {
        "sampler_name": "Heun",
        "s_churn": 6.0,
        "s_tmin": 0.5,
        "s_tmax": 5.0,
    },
    "s_churn as an option": {"sampler_name": "DPM2", "override_settings": {"s_churn": 4.0}},
    "s_noise": {"sampler_name": "DPM++ SDE", "s_noise": 0.9},
    "sigma_min, sigma_max, rho": {
        "scheduler": "Karras",
        "override_settings": {"sigma_min": 0.1, "sigma_max": 10.0, "rho": 5.0},
    },
    "rho, polyexponential": {
        "scheduler": "Polyexponential",
        "override_settings": {"rho": 1.5},
    },
    "always_discard_next_to_last_sigma": {
        "override_settings": {"always_discard_next_to_last_sigma": True},
    },
    "sgm_noise_multiplier": {"override_settings": {"sgm_noise_multiplier": True}},
    "zero terminal SNR": {"override_settings": {"sd_noise_schedule": "Zero Terminal SNR"}},
    "zero terminal SNR, DDIM": {
        "sampler_name": "DDIM",
        "override_settings": {"sd_noise_schedule": "Zero Terminal SNR"},
    },
    "UniPC bh2, logSNR": {
        "sampler_name": "UniPC",
        "override_settings": {"uni_pc_variant": "bh2", "uni_pc_skip_type": "logSNR"},
    },
    "UniPC vary_coeff, quadratic": {
        "sampler_name": "UniPC",
        "override_settings": {
            "uni_pc_variant": "vary_coeff",
            "uni_pc_skip_type": "time_quadratic",
        },
    },
    "UniPC order 2": {
        "sampler_name": "UniPC",
        "override_settings": {"uni_pc_order": 2, "uni_pc_lower_order_final": False},
    },
    "randn_source NV": {
        "sampler_name": "Euler a",
        "override_settings": {"randn_source": "NV"},
    },
    "randn_source NV, SDE": {
        "sampler_name": "DPM++ SDE",
        "override_settings": {"randn_source": "NV"},
    },
    "randn_source GPU": {
        "sampler_name": "Euler a",
        "override_settings": {"randn_source": "GPU"},
    },
    "ENSD": {
        "sampler_name": "Euler a",
        "override_settings": {"eta_noise_seed_delta": 31337},
    },
    "subseed": {"subseed": 5, "subseed_strength": 0.3},
    "subseed, NV": {
        "subseed": 5,
        "subseed_strength": 0.6,
        "sampler_name": "Euler a",
        "override_settings": {"randn_source": "NV"},
    },
    "seed resize, from smaller": {"seed_resize_from_w": 64, "seed_resize_from_h": 96},
    "seed resize, from larger": {
        "seed_resize_from_w": 256,
        "seed_resize_from_h": 192,
        "subseed_strength": 0.2,
        "subseed": 7,
        "sampler_name": "Euler a",
    },
    "batch": {"batch_size": 2, "sampler_name": "Euler a"},
    "batch, SDE": {"batch_size": 2, "sampler_name": "DPM++ SDE"},
    "batch with subseed": {"batch_size": 2, "subseed": 3, "subseed_strength": 0.4},
    "no_dpmpp_sde_batch_determinism": {
        "sampler_name": "DPM++ SDE",
        "override_settings": {"no_dpmpp_sde_batch_determinism": True},
    },
    "tiling": {"tiling": True},
    "odd size": {"width": 200, "height": 136},
    "fewer steps than Restart needs": {"sampler_name": "Restart", "steps": 5},
    "Restart, 24 steps": {"sampler_name": "Restart", "steps": 24},
    "Restart, 40 steps": {"sampler_name": "Restart", "steps": 40},
    "a single step": {"steps": 1},
    "a single step, DDIM": {"sampler_name": "DDIM", "steps": 1},
    "DPM fast, 9 steps": {"sampler_name": "DPM fast", "steps": 9},
    "30 steps, PLMS": {"sampler_name": "PLMS", "steps": 30},
    "highres fix": HIGHRES,
    "highres fix, Lanczos": {**HIGHRES, "hr_upscaler": "Lanczos"},
    "highres fix, Nearest": {**HIGHRES, "hr_upscaler": "Nearest", "hr_scale": 2},
    "highres fix, None": {**HIGHRES, "hr_upscaler": "None"},
    "highres fix, Latent (bicubic antialiased)": {
        **HIGHRES,
        "hr_upscaler": "Latent (bicubic antialiased)",
    },
    "highres fix, Latent (nearest-exact)": {**HIGHRES, "hr_upscaler": "Latent (nearest-exact)"},
    "highres fix, own sampler, scheduler and steps": {
        **HIGHRES,
        "hr_sampler_name": "DPM++ 2M SDE",
        "hr_scheduler": "Karras",
        "hr_second_pass_steps": 5,
    },
    "highres fix, own prompts": {
        **HIGHRES,
        "hr_prompt": "a red [star:heart:1.5]",
        "hr_negative_prompt": "gray",
    },
    "highres fix, cut to a size": {**HIGHRES, "hr_resize_x": 192, "hr_resize_y": 136},
    "highres fix, DDIM": {**HIGHRES, "sampler_name": "DDIM"},
    "highres fix, UniPC": {**HIGHRES, "sampler_name": "UniPC"},
    "highres fix, DPM adaptive": {**HIGHRES, "hr_sampler_name": "DPM adaptive"},
    "highres fix, extra noise": {**HIGHRES, "override_settings": {"img2img_extra_noise": 0.1}},
}


# With the files of benchmarks/parity/files.py, which both servers need
OF_FILES: dict[str, Fields] = {
    "embedding": {"prompt": f"{files.SAFETENSORS} on a yellow background"},
    "embeddings, weights": {
        "prompt": f"({files.SAFETENSORS}:1.2), {files.PICKLE}, [x]",
        "negative_prompt": f"{files.PICKLE} and {files.SAFETENSORS}",
    },
    "embeddings, AND": {
        "prompt": f"{files.SAFETENSORS} :0.5 AND {files.PICKLE} on white",
        "negative_prompt": "gray",
    },
    "embeddings, prompt editing": {"prompt": f"[{files.SAFETENSORS}:{files.PICKLE}:0.5] on yellow"},
    "embedding that does not fit into the chunk": {"prompt": "a " * 73 + files.SAFETENSORS},
    "embedding moved behind a comma": {
        "prompt": "word " * 68 + f", {files.SAFETENSORS} two three four five {files.PICKLE}",
    },
    "embedding of a LoRA": {"prompt": f"{files.BUNDLED} on blue <lora:{files.BUNDLE}:0>"},
    "another VAE": {"override_settings": {"sd_vae": files.VAE}},
    "another VAE, highres fix, Lanczos": {
        **HIGHRES,
        "hr_upscaler": "Lanczos",
        "override_settings": {"sd_vae": files.VAE},
    },
    "LoRA of two ranks": {"prompt": f"{PROMPT} <lora:{files.LORA}:0.5:0.5:2>"},
    "LoRA of one rank, by name": {"prompt": f"{PROMPT} <lora:{files.LORA}:0.5:dyn=1>"},
    "LoRA twice": {"prompt": f"{PROMPT} <lora:{files.LORA}:0.5><lora:{files.LORA}:0.2>"},
    "DoRA twice": {"prompt": f"{PROMPT} <lora:{files.DORA}:0.5><lora:{files.DORA}:0.3>"},
    "token merging": {"override_settings": {"token_merging_ratio": 0.5}},
    "token merging, odd size": {
        "width": 136,
        "height": 200,
        "override_settings": {"token_merging_ratio": 0.9},
    },
    "token merging, highres fix": {
        **HIGHRES,
        "override_settings": {"token_merging_ratio": 0.2, "token_merging_ratio_hr": 0.6},
    },
}


def with_lora(name: str) -> dict[str, Fields]:
    """Features with a LoRA that both servers have. A1111 cannot apply the demo model's."""
    return {
        "LoRA": {"prompt": f"{PROMPT} <lora:{name}:0.1>"},
        "LoRA of the second pass": {**HIGHRES, "hr_prompt": f"{PROMPT} <lora:{name}:0.1>"},
        "LoRA in both passes": {
            "prompt": f"{PROMPT} <lora:{name}:0.05>",
            **HIGHRES,
            "hr_prompt": f"a star <lora:{name}:0.1>",
        },
    }


# The pictures that a test compares with: small, and all of the same size.
SIDE, COLUMNS = 80, 8
SMALL: Fields = {"width": SIDE, "height": SIDE, "steps": 8, "cfg_scale": 2.5}
OTHER_PREDICTION = ("Euler", "DDIM", "PLMS", "UniPC", "LCM")
RECORDED_FEATURES = (
    *("AND with weights", "cfg_scale 0.5", "s_min_uncond", "negative prompt of other length"),
    *("prompt editing and emphasis", "emphasis No norm", "eta 0.7, SDE", "eta, DDIM"),
    *("s_churn, s_tmin, s_tmax", "sigma_min, sigma_max, rho", "zero terminal SNR"),
    *("UniPC vary_coeff, quadratic", "randn_source NV, SDE", "ENSD", "subseed, NV"),
    *("seed resize, from larger", "tiling", "Restart, 24 steps", "LCM, SGM Uniform"),
    *("highres fix", "highres fix, Lanczos", "highres fix, own prompts", "highres fix, UniPC"),
)
# of highres fix: 64 becomes 80
FIRST_PASS: Fields = {"width": 64, "height": 64}
SECOND_PASS: Fields = {"hr_scale": 1.25}


def recorded_requests(samplers: list[str]) -> dict[str, Fields]:
    """The requests of `--record`: every sampler, and some features."""
    found = {name: SMALL | {"sampler_name": name} for name in samplers}
    features = FEATURES | {"LCM, SGM Uniform": {"sampler_name": "LCM", "scheduler": "SGM Uniform"}}
    for name in RECORDED_FEATURES:
        is_small = "highres" in name
        found[name] = SMALL | features[name] | (FIRST_PASS | SECOND_PASS if is_small else {})
    for name in OTHER_PREDICTION:
        options = {"sd_model_checkpoint": "demo-eps"}
        fields = {"sampler_name": name, "cfg_scale": 1, "override_settings": options}
        found[f"{name}, predicting the noise"] = SMALL | fields
    return found


def recorded_with_files() -> dict[str, Fields]:
    """The requests of `--record` with other files than the demo model."""
    found = {}
    for name, fields in OF_FILES.items():
        if "odd size" not in name:
            is_small = "highres" in name
            found[name] = SMALL | fields | (FIRST_PASS | SECOND_PASS if is_small else {})
    return found


def record(server: "Server", folder: Path) -> None:
    """Write the requests, and one picture with the pictures of all of them."""
    names = [entry["name"] for entry in server.get("samplers")]
    record_sheet(
        server, folder / "pictures.png", folder / "requests.json", recorded_requests(names)
    )
    with_files = folder / "with_files.png"
    record_sheet(server, with_files, with_files.with_suffix(".json"), recorded_with_files())
    img2img = folder / "img2img.png"
    record_sheet(server, img2img, img2img.with_suffix(".json"), with_pictures.recorded())


def record_sheet(
    server: "Server", picture: Path, listed: Path, requests_: dict[str, Fields], side: int = SIDE
) -> None:
    """Write the requests to `listed`, and their pictures side by side to `picture`."""
    bodies = {name: server.body(fields) for name, fields in requests_.items()}
    sheet = Image.new("RGB", (COLUMNS * side, -(-len(bodies) // COLUMNS) * side))
    for number, fields in enumerate(requests_.values()):
        place = (number % COLUMNS * side, number // COLUMNS * side)
        sheet.paste(server.draw(fields)[0][0], place)
    lines = [f"{json.dumps(name)}: {json.dumps(body)}" for name, body in bodies.items()]
    picture.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(picture, optimize=True)
    text = "{\n" + ",\n".join(lines) + "\n}"
    listed.write_text(text + "\n", encoding="utf-8")


class Server:
    """A1111's API at this address."""

    def __init__(self, address: str, checkpoint: str) -> None:
        self._url, self._checkpoint = address.rstrip("/") + "/sdapi/v1/", checkpoint

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """The answer of GET."""
        return requests.get(self._url + path, timeout=60).json()

    def body(self, fields: Fields) -> Fields:
        """The request with all that it leaves out; one for upscaling has no prompt."""
        if "image" in fields:
            return fields
        own = fields.get("override_settings", {})
        options = {"sd_model_checkpoint": self._checkpoint} | OPTIONS | own
        return BASE | fields | {"override_settings": options, "do_not_save_grid": True}

    def draw(self, fields: Fields) -> tuple[list[Image.Image], Fields]:
        """The pictures and `info`, of upscaling only what was done. Raises RuntimeError with the
        server's message.
        """
        body = with_pictures.sent(self.body(fields))
        route = "img2img" if "init_images" in body else "txt2img"
        route = "extra-single-image" if "image" in body else route
        answer = requests.post(self._url + route, json=body, timeout=900)
        if not answer.ok:
            raise RuntimeError(f"{answer.status_code} {answer.text[:200]}")
        content = answer.json()
        found = [base64.b64decode(one) for one in content.get("images") or [content["image"]]]
        pictures = [Image.open(io.BytesIO(one)).convert("RGB") for one in found]
        if "html_info" in content:
            done = {"infotexts": [content["html_info"]], "extra_generation_params": {}}
            return pictures, done
        return pictures, json.loads(content["info"])


def difference(one: list[Image.Image], other: list[Image.Image]) -> tuple[float, int]:
    """Mean and largest difference of the values, of all pictures. Raises ValueError."""
    pairs = [
        (np.asarray(a, dtype=int), np.asarray(b, dtype=int))
        for a, b in zip(one, other, strict=True)
    ]
    if any(a.shape != b.shape for a, b in pairs):
        raise ValueError(f"sizes differ: {[(a.shape, b.shape) for a, b in pairs]}")
    found = np.concatenate([np.abs(a - b).ravel() for a, b in pairs])
    return float(found.mean()), int(found.max())


def combinations(server: Server) -> Iterator[tuple[str, Fields]]:
    """Every sampler with every schedule that it reads."""
    samplers = [entry["name"] for entry in server.get("samplers")]
    schedulers = [entry["label"] for entry in server.get("schedulers")]
    for sampler, scheduler in itertools.product(samplers, schedulers):
        if scheduler == "Automatic" or sampler not in {"DDIM", "PLMS", "UniPC"}:
            yield f"{sampler}, {scheduler}", {"sampler_name": sampler, "scheduler": scheduler}


def without_version(text: str) -> str:
    """The generation parameters without the part that differs by nature."""
    return re.sub(r", Version: [^,]*$", "", text)


def compare(name: str, fields: Fields, servers: tuple[Server, Server], *, infotexts: bool) -> str:
    """The line of the table."""
    try:
        (expected, wanted), (found, info) = (server.draw(fields) for server in servers)
        mean, largest = difference(expected, found)
    except (RuntimeError, ValueError) as error:
        return f"| {name} | {error} | |"
    line = f"| {name} | {mean:.3f} | {largest} |"
    texts = [without_version(one["infotexts"][0]) for one in (wanted, info)]
    if infotexts and texts[0] != texts[1]:
        line += f"\n    A1111:  {texts[0]}\n    engine: {texts[1]}"
    if infotexts and wanted["extra_generation_params"] != info["extra_generation_params"]:
        line += f"\n    A1111:  {wanted['extra_generation_params']}"
        line += f"\n    engine: {info['extra_generation_params']}"
    return line


def main() -> None:
    """Compare what the arguments select."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("--a1111", required=True)
    parser.add_argument("--engine")
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--lora", default="")
    parser.add_argument("--only", default="", help="a regular expression of names")
    parser.add_argument("--infotexts", action="store_true")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    real = Server(arguments.a1111, arguments.checkpoint)
    if arguments.record:
        record(real, arguments.record)
        return
    engine = Server(arguments.engine, arguments.checkpoint)
    print("| request | mean | largest |\n| --- | --- | --- |")
    features = (
        FEATURES
        | OF_FILES
        | with_pictures.compared()
        | (with_lora(arguments.lora) if arguments.lora else {})
    )
    for name, fields in itertools.chain(combinations(real), features.items()):
        if re.search(arguments.only, name):
            print(compare(name, fields, (real, engine), infotexts=arguments.infotexts), flush=True)


if __name__ == "__main__":
    main()
