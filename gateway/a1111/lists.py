"""The lists of a back as A1111 answers them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from gateway.a1111 import checkpoints
from gateway.catalog.catalog import Lists

Item = Mapping[str, Any]
Json = Any

_MOST = 64.0  # an upscaler's factor that is larger is none
_USUAL_SCALE = 4.0  # what A1111 reports of an upscaler without a model
_RHO = {"karras": 7.0, "polyexponential": 1.0}
_NEEDS_MODEL = {"uniform", "sgm_uniform"}
_TASKS = ("txt2img", "img2img")


def _stem(one: Item) -> str:
    """The name without suffix; it has its folder where several files have the name."""
    return str(PurePosixPath(one["name"]).with_suffix("")) if one["name"].strip("/.") else ""


def _texts(one: Item, key: str) -> list[str]:
    """A list of texts; another version of the worker may have something else there."""
    value = one.get(key)
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _scale(one: Item) -> float:
    value = one.get("scale")
    is_factor = isinstance(value, int | float) and 1 <= value <= _MOST
    return float(value) if is_factor else _USUAL_SCALE  # type: ignore[arg-type]


def _samplers(lists: Lists) -> Json:
    return [
        {
            "name": one["name"],
            "aliases": _texts(one, "aliases"),
            "options": {"scheduler": str(one["scheduler"])} if one.get("scheduler") else {},
        }
        for one in lists.samplers
    ]


def _schedulers(lists: Lists) -> Json:
    return [_scheduler(one["name"], _texts(one, "aliases")) for one in lists.schedulers]


def _scheduler(label: str, aliases: list[str]) -> Json:
    name = aliases[0] if aliases else label
    return {
        "name": name,
        "label": label,
        "aliases": aliases[1:] or None,
        "default_rho": _RHO.get(name, -1.0),
        "need_inner_model": name in _NEEDS_MODEL,
    }


def _upscalers(lists: Lists) -> Json:
    enlargers = [one for one in lists.upscalers if "upscaler_1" in _texts(one, "fields")]
    return [
        {
            "name": one["name"],
            "model_name": None,
            "model_path": None,
            "model_url": None,
            "scale": _scale(one),
        }
        for one in ({"name": "None"}, *enlargers)
    ]


def _latent_modes(lists: Lists) -> Json:
    return [
        {"name": one["name"]}
        for one in lists.upscalers
        if "upscaler_1" not in _texts(one, "fields")
    ]


def _loras(lists: Lists) -> Json:
    return [
        {
            "name": _stem(one),
            "alias": _stem(one),
            "path": f"models/Lora/{one['name']}",
            "metadata": {},
        }
        for one in lists.loras
    ]


def _vaes(lists: Lists) -> Json:
    return [
        {"model_name": one["name"], "filename": f"models/VAE/{one['name']}"} for one in lists.vaes
    ]


def _embeddings(lists: Lists) -> Json:
    facts = ("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors")
    loaded = {_stem(one): dict.fromkeys(facts) for one in lists.embeddings}
    return {"loaded": loaded, "skipped": {}}


def _realesrgan(lists: Lists) -> Json:
    return [
        {"name": one["name"], "path": "", "scale": round(one["scale"])}
        for one in _upscalers(lists)
        if one["name"].startswith("R-ESRGAN")
    ]


def _styles(lists: Lists) -> Json:
    return [
        {
            "name": one["name"],
            "prompt": str(one.get("prompt") or ""),
            "negative_prompt": str(one.get("negative_prompt") or ""),
        }
        for one in lists.styles
    ]


def _scripts(lists: Lists) -> Json:
    return {
        task: [one["name"] for one in lists.scripts if task in _texts(one, "tasks")]
        for task in _TASKS
    }


def _script_info(lists: Lists) -> Json:
    empty = dict.fromkeys(("value", "minimum", "maximum", "step", "choices"))
    return [
        {
            "name": one["name"],
            "is_alwayson": bool(one.get("always_on")),
            "is_img2img": task == "img2img",
            "args": [{"label": label, **empty} for label in _texts(one, "args")],
        }
        for task in _TASKS
        for one in lists.scripts
        if task in _texts(one, "tasks")
    ]


# Route below /sdapi/v1/ -> its answer.
LISTS: dict[str, Callable[[Lists], Json]] = {
    "sd-models": checkpoints.as_a1111,
    "sd-vae": _vaes,
    "loras": _loras,
    "embeddings": _embeddings,
    "samplers": _samplers,
    "schedulers": _schedulers,
    "upscalers": _upscalers,
    "latent-upscale-modes": _latent_modes,
    "realesrgan-models": _realesrgan,
    "prompt-styles": _styles,
    "scripts": _scripts,
    "script-info": _script_info,
    # The worker lists none of these.
    "hypernetworks": lambda _: [],
    "face-restorers": lambda _: [],
    "extensions": lambda _: [],
}


def page_config(lists: Lists) -> Json:
    """The answer of GET /config, the page of A1111: aiyabot reads hires fix's upscalers in it."""
    names = [one["name"] for one in lists.upscalers if "hr_upscaler" in _texts(one, "fields")]
    return {"components": [{"props": {"elem_id": "txt2img_hr_upscaler", "choices": names}}]}
