"""The list of parts; switches them on and reports which are on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from a1111_worker import (
    guard,
    kept_checkpoints,
    lora,
    pickles,
    requests_log,
    sampling,
    script_errors,
    unet,
)
from a1111_worker.expect import NotAsExpected


@dataclass(frozen=True)
class Part:
    """One change: its name in the log, and the function that makes it in these modules."""

    name: str
    change: Callable[..., None]
    modules: tuple[str, ...]


# The worker asks for this part before it lets A1111 keep several checkpoints.
KEEPS_APART = "checkpoints kept apart"
ALWAYS = [
    Part("errors of extensions in the infotext", script_errors.note_errors, ("modules.scripts",)),
    Part("members of new pickle files", pickles.allow_new_members, ("modules.safe",)),
    Part("numpy 2's names in pickle files", pickles.allow_new_names, ("modules.safe",)),
    Part(
        KEEPS_APART,
        kept_checkpoints.keep_apart,
        (
            "modules.sd_models",
            "modules.sd_hijack",
            "modules.sd_vae",
            "networks",
            "modules.sd_samplers_common",
        ),
    ),
    Part(
        "noise levels of each checkpoint",
        kept_checkpoints.reset_schedule,
        ("modules.sd_models", "modules.sd_samplers"),
    ),
    Part("no line for each request", requests_log.log_no_requests, ("uvicorn.config",)),
]
SPEEDUPS = [
    Part(
        "no state_dict() in SDXL's steps",
        unet.find_inpainting_by_attribute,
        ("sgm.models.diffusion",),
    ),
    Part(
        "timestep frequencies kept on the device",
        unet.keep_frequencies,
        (
            "modules.devices",
            "ldm.modules.diffusionmodules.openaimodel",
            "sgm.modules.diffusionmodules.openaimodel",
        ),
    ),
    Part(
        "sigmas on the CPU",
        sampling.keep_sigmas_on_cpu,
        ("modules.sd_samplers_kdiffusion", "k_diffusion.sampling"),
    ),
    Part(
        "one check for NaN",
        sampling.check_for_nans_once,
        ("modules.devices", "modules.sd_samplers_cfg_denoiser", "modules.processing"),
    ),
    Part("no bias copies without a LoRA", lora.skip_layers_without_lora, ("networks",)),
]
CHECKPOINTING = "no gradient checkpointing"

_OFF = {"0", "false", "no", "off", "n", "f"}  # what pydantic reads as false in other settings
_made_parts: list[str] = []
_asked: set[str] = set()  # each part once, also if A1111 loads its extensions again


def _logger() -> logging.Logger:
    # A1111 has no handler for logs unless it is asked for one, and Python then drops INFO.
    logger = logging.getLogger("a1111-worker")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


log = _logger()


def is_on(environ: Mapping[str, str]) -> bool:
    """Whether the speed parts are on; start.sh passes the checked setting on."""
    return environ.get("A1111_SPEEDUPS", "").strip().lower() not in _OFF


def switch_on(environ: Mapping[str, str]) -> list[str]:
    """Make all changes that the settings allow; returns the names of those that were made."""
    speed = is_on(environ)
    parts = [part for part in ALWAYS + SPEEDUPS * speed if part.name not in _asked]
    made = [part.name for part in parts if _made(part)]
    if speed:
        _asked.add(CHECKPOINTING)
        made.append(CHECKPOINTING)
    else:
        log.info("A1111_SPEEDUPS=false: no speed part is on")
    log.info("on: %s", ", ".join(made))
    _made_parts.extend(made)
    return made


def prepare_app(_demo: Any, app: Any) -> None:
    """A1111 calls this with its FastAPI app, before it serves.

    The worker can ask which parts are on, and web pages cannot ask anything.
    """
    app.add_api_route("/sdapi/v1/worker-parts", lambda: _made_parts, methods=["GET"])
    try:
        host = import_module("modules.shared").cmd_opts.server_name
        app.add_middleware(guard.Guard, host=host or "localhost")
    except (ImportError, AttributeError, RuntimeError) as reason:
        _report("no requests of web pages", reason)


def _made(part: Part) -> bool:
    _asked.add(part.name)
    try:
        part.change(*map(import_module, part.modules))
    except (NotAsExpected, ImportError, AttributeError) as reason:
        _report(part.name, reason)
        return False
    return True


def prepare_model(model: Any) -> None:
    """A1111 calls this with each model that it has loaded."""
    if CHECKPOINTING not in _asked:
        return
    try:
        unet.remove_checkpointing(model)
    except (NotAsExpected, AttributeError) as reason:
        _report(CHECKPOINTING, reason)


def _report(name: str, reason: Exception) -> None:
    log.warning("%r is off, because this A1111 differs from v1.9.3: %s", name, reason)
