"""The WebUI's config.json.

After a request A1111 v1.9.3 restores an overridden setting only if config.json has its key;
otherwise the clip skip of one job applies to all later jobs. So config.json gets A1111's default
for each setting that a job can override.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from worker.files import is_folder, read_small, unfinished_writes, write_atomically

_SETTLED = 2.0  # seconds; a file that changed less than this ago may change within the same tick

log = logging.getLogger(__name__)

# A1111's defaults for the fields of `worker.job.img2img.Img2ImgOptions`, without
# sd_model_checkpoint, which A1111 writes itself when it loads a model.
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
    "img2img_fix_steps": False,
    "img2img_color_correction": False,
    "img2img_extra_noise": 0.0,
    "inpainting_mask_weight": 1.0,
}

# The worker needs exactly these values.
RELIED_ON: dict[str, Any] = {
    "samples_format": "png",  # an override would not reach the returned picture
    "enable_pnginfo": True,
    "add_model_hash_to_info": True,
    "add_model_name_to_info": True,
    "lora_add_hashes_to_infotext": True,  # proves that a LoRA was applied
    "live_previews_enable": False,  # previews cost time: a job that wants them overrides this
    "show_progress_type": "Approx cheap",  # "Approx NN" would fetch a decoder from GitHub
    "show_progress_every_n_steps": 1,
    "api_enable_requests": False,  # the worker fetches the pictures that a job names by URL
    # A1111 finds an enlarged picture again by its pixels without its width, so a picture of another
    # width can be the answer.
    "upscaling_max_images_in_cache": 0,
}

# A1111 saves each limit that the worker sets, so the file notes that it is not the operator's own.
LIMIT = "sd_checkpoints_limit"
DECIDED = "checkpoints_limit_by_worker"

# The same of ControlNet and ADetailer; without the extensions these have no effect.
OF_EXTENSIONS: dict[str, Any] = {
    "control_net_unit_count": 3,
    "control_net_no_detectmap": False,  # a unit's map proves that it was applied
    "control_net_detectmap_autosaving": False,
    "control_net_model_cache_size": 1,
    "ad_max_models": 4,
}


def checkpoint(webui_dir: Path) -> str | None:
    """The name of the checkpoint that the engine loads for a job that names none."""
    path = f"{webui_dir}/config.json"
    try:
        one = os.stat(path)  # noqa: PTH116 - runs for each job
        if abs(time.time() - one.st_ctime) < _SETTLED:
            return _checkpoint_in(path)
        return _known_checkpoint(path, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns)
    except (OSError, ValueError, RecursionError):
        return None


@lru_cache(maxsize=8)
def _known_checkpoint(path: str, *_version: int) -> str | None:
    """The name in this version of the file, which A1111 fills with hundreds of settings."""
    return _checkpoint_in(path)


def _checkpoint_in(path: str) -> str | None:
    options = json.loads(read_small(Path(path)))
    title = options.get("sd_model_checkpoint") if isinstance(options, dict) else None
    if not isinstance(title, str):
        return None
    return title.rpartition(" [")[0] if title.endswith("]") else title  # without a title's hash


def own_checkpoints_limit(webui_dir: Path) -> int | None:
    """The operator's own `sd_checkpoints_limit` in config.json; None if it has none."""
    try:
        options = json.loads(read_small(webui_dir / "config.json"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(options, dict) or options.get(DECIDED):
        return None
    limit = options.get(LIMIT)
    return limit if isinstance(limit, int) else None


def write(
    webui_dir: Path, checkpoint: str | None = None, pickles: Callable[[str], Path] | None = None
) -> None:
    """Add the missing settings to `config.json`; the operator's own values are kept.

    A file that is not a JSON object is renamed: A1111 would exit with status 1 at start.

    Args:
        webui_dir: the engine's data folder.
        checkpoint: name of the checkpoint to load at start, unless the file names one.
        pickles: gives the folders `adetailer` and `annotators`, whose files can run code when they
            are loaded; None: A1111 gets none of them.
    """
    path = webui_dir / "config.json"
    webui_dir.mkdir(parents=True, exist_ok=True)
    first = {"sd_model_checkpoint": checkpoint} if checkpoint else {}
    extensions = OF_EXTENSIONS | {
        "ad_extra_models_dir": str(pickles("adetailer")) if pickles else "",
        "control_net_modules_path": _made(pickles("annotators")) if pickles else "",
    }
    options = {**first, **OVERRIDABLE, **_read(path), **RELIED_ON, **extensions}
    if LIMIT not in options or options.get(DECIDED):
        options |= {LIMIT: 1, DECIDED: True}
    write_atomically(path, json.dumps(options, indent=4))
    for left in unfinished_writes(path):
        left.unlink(missing_ok=True)


def _made(folder: Path) -> str:
    """The folder, which is made now: ControlNet would not start without it. Empty if it cannot."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return str(folder) if is_folder(folder) else ""


def set_checkpoint(webui_dir: Path, checkpoint: str) -> None:
    """Have the engine load this checkpoint at its next start; start.sh calls it at each restart.

    Without it A1111 v1.9.3 would load what the file says, or else the first file by its name, even
    if it cannot load that one.
    """
    path = webui_dir / "config.json"
    options = _read(path) | {"sd_model_checkpoint": checkpoint}
    write_atomically(path, json.dumps(options, indent=4))


def _read(path: Path) -> dict[str, Any]:
    try:
        options = json.loads(read_small(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):  # also of a pipe, which could block for ever
        options = None
    if isinstance(options, dict):
        return options
    damaged = path.replace(path.with_suffix(".json.damaged"))
    log.warning(
        "config.json was not a JSON object and is renamed to %s",
        damaged.name,
    )
    return {}


if __name__ == "__main__":
    set_checkpoint(Path(sys.argv[1]), sys.argv[2])
