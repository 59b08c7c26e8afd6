"""The WebUI's config.json.

A1111 v1.9.3 gives an overridden setting its old value back after a request only if config.json
has that key; otherwise one job's clip skip holds for every later job. So each key that a job can
override stands there with A1111's default.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from worker.files import write_atomically

log = logging.getLogger("worker.webui_config")

# A1111's defaults for everything in `worker.job.request.OverrideSettings`; sd_model_checkpoint is
# not here, because A1111 writes it itself when it loads a model.
OVERRIDABLE: dict[str, Any] = {
    "sd_vae": "Automatic",
    "CLIP_stop_at_last_layers": 1,
    "eta_noise_seed_delta": 0,
    "eta_ancestral": 1.0,
    "eta_ddim": 0.0,
    "randn_source": "GPU",
    "emphasis": "Original",
    "comma_padding_backtrack": 20,
    "token_merging_ratio": 0.0,
    "token_merging_ratio_hr": 0.0,
    "pad_cond_uncond": False,
    "sd_noise_schedule": "Default",
    "sgm_noise_multiplier": False,
    "always_discard_next_to_last_sigma": False,
    "no_dpmpp_sde_batch_determinism": False,
    "sigma_min": 0.0,
    "sigma_max": 0.0,
    "rho": 0.0,
    "uni_pc_variant": "bh1",
    "uni_pc_skip_type": "time_uniform",
    "uni_pc_order": 3,
    "uni_pc_lower_order_final": True,
    "sdxl_crop_top": 0,
    "sdxl_crop_left": 0,
}

# What the worker relies on.
RELIED_ON: dict[str, Any] = {
    "samples_format": "png",  # an override of it does not reach the returned picture
    "enable_pnginfo": True,
    "add_model_hash_to_info": True,
    "add_model_name_to_info": True,
    "lora_add_hashes_to_infotext": True,  # the proof that a LoRA was applied
    "live_previews_enable": False,  # they cost time: jobs that want previews override it
    "show_progress_type": "Approx cheap",  # "Approx NN" would fetch a decoder from GitHub
    "show_progress_every_n_steps": 1,
}


def write(webui_dir: Path, checkpoint: str | None = None) -> None:
    """Complete `config.json`: the operator's own values are kept.

    A file that is not a JSON object would end A1111 at start (exit status 1): it is put aside.

    Args:
        webui_dir: the engine's data folder.
        checkpoint: name of the one to load at start, unless the file names one.
    """
    path = webui_dir / "config.json"
    webui_dir.mkdir(parents=True, exist_ok=True)
    first = {"sd_model_checkpoint": checkpoint} if checkpoint else {}
    options = {**first, **OVERRIDABLE, **_read(path), **RELIED_ON}
    write_atomically(path, json.dumps(options, indent=4))


def _read(path: Path) -> dict[str, Any]:
    try:
        options = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        options = None
    if isinstance(options, dict):
        return options
    damaged = path.replace(path.with_suffix(".json.damaged"))
    log.warning("config.json was not a JSON object; it is now %s", damaged.name)
    return {}
