"""Which requests for pictures A1111 v1.9.3 refuses, and with what: pure rules over the request.

`shape_error` is the whole verdict. The fake server calls its parts where A1111 has them:
`refuse_before_queue` before a request waits for its turn, `refuse_override` when it sets an option,
`refuse_in_job` while it generates.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fakes.a1111.extensions import installed
from fakes.a1111.img2img import Img2Img
from fakes.a1111.request import ApiError, Params, engine_error, read_request, refusal
from fakes.recorded import recorded

SCRIPTS_WITHOUT_NAME = {"comments"}  # always on, but missing in the recorded /scripts
IMG2IMG_SCRIPTS = {
    *("loopback", "sd upscale", "outpainting mk2", "poor man's outpainting"),
    "img2img alternative test",
}
SELECTABLE_SCRIPTS = {"prompt matrix", "prompts from file or textbox", "x/y/z plot"}
CLIP_HIDDEN_STATES = 13  # 12 layers and the embeddings
PIXEL_LIMIT = 2**28  # a batch above this fits no card
NAN_CFG = 1e10  # 1e30 was measured; where it starts depends on the model
LARGEST_COUNT = 10**7  # A1111 fails where the prompt list fits no memory
OUT_OF_MEMORY_TEXT = (
    "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 23.69 GiB total capacity; 22.90 GiB"
    " already allocated; 11.06 MiB free; 23.20 GiB reserved in total by PyTorch) If reserved"
    " memory is >> allocated memory try setting max_split_size_mb to avoid fragmentation."
)

DEFAULT_OPTIONS: Mapping[str, Any] = recorded("get_options")
SAMPLERS = {sampler["name"]: sampler for sampler in recorded("get_samplers")}
SCRIPTS = {
    route: {name.lower() for name in names} | SCRIPTS_WITHOUT_NAME
    for route, names in recorded("get_scripts").items()
}
UPSCALERS = {
    item["name"]
    for route in ("get_upscalers", "get_latent-upscale-modes")
    for item in recorded(route)
}


def refuse_before_queue(params: Params) -> None:
    """Raise for a missing picture, an unknown script or sampler."""
    is_img2img = "init_images" in params
    if is_img2img and params["init_images"] is None:
        raise refusal(404, "Init image not found")
    script, more = params["script_name"], IMG2IMG_SCRIPTS if is_img2img else set()
    if script and script.lower() not in SELECTABLE_SCRIPTS | more:
        raise refusal(422, f"Script '{script}' not found")
    if (params["sampler_name"] or params["sampler_index"]) not in SAMPLERS:
        raise refusal(404, "Sampler not found")
    for name in params["alwayson_scripts"]:
        known = SCRIPTS["img2img" if is_img2img else "txt2img"] | {*installed()}
        if name.lower() not in known:
            raise refusal(422, f"Script '{name}' not found")
        if name.lower() in SELECTABLE_SCRIPTS | more:
            raise refusal(422, "Cannot have a selectable script in the always on scripts params")


def refuse_override(name: str, value: Any) -> None:
    """Raise where A1111 sets an option it does not know; null equals the missing old value."""
    if name not in DEFAULT_OPTIONS and value is not None:
        raise engine_error("KeyError", repr(name))


def refuse_clip_skip(value: Any) -> None:
    """Raise for a CLIP_stop_at_last_layers that the text encoder cannot index with."""
    if not isinstance(value, (int, float)):
        raise engine_error("TypeError", f"bad operand type for unary -: {type(value).__name__!r}")
    if value > 1 and isinstance(value, float):
        raise engine_error("TypeError", "tuple indices must be integers or slices, not float")
    if value > CLIP_HIDDEN_STATES:
        raise engine_error("IndexError", "tuple index out of range")


def _first_pass_size(params: Params) -> tuple[Any, Any]:
    """Width and height that are sampled first; the old firstphase fields replace both."""
    if params.get("firstphase_width") or params.get("firstphase_height"):
        return params["firstphase_width"], params["firstphase_height"]
    return params["width"], params["height"]


def _hires_target(params: Params) -> tuple[int, int]:
    width, height = _first_pass_size(params)
    to_x, to_y = params["hr_resize_x"], params["hr_resize_y"]
    if to_x == 0 and to_y == 0:
        return int(width * params["hr_scale"]), int(height * params["hr_scale"])
    return to_x or to_y * width // height, to_y or to_x * height // width


def picture_size(params: Params) -> tuple[int, int]:
    """Width and height of the finished picture: both passes floor to multiples of 8."""
    is_hires = params.get("enable_hr")
    width, height = _hires_target(params) if is_hires else _first_pass_size(params)
    return width // 8 * 8, height // 8 * 8


def _refuse_unknown_checkpoint(
    name: str | None, neutral: set[str], titles: Collection[str]
) -> None:
    """A1111's fuzzy search takes a title that contains the text, with its hash or without."""
    if not name or name in neutral:
        return
    plain = name.rsplit(" [", 1)[0] if name.rstrip().endswith("]") else name
    if not any(text in title for text in (name, plain) for title in titles):
        raise engine_error("Exception", f"Could not find checkpoint with name {name}")


def _null(*names: str) -> Callable[[Params], bool]:
    return lambda params: any(params[name] is None for name in names)


def _seed_overflows(params: Params) -> bool:
    seed, varied = params["seed"] or 0, params["subseed_strength"] != 0
    largest = seed + (0 if varied else params["batch_size"] * params["n_iter"] - 1)
    return seed < -(2**63) or largest >= 2**64


def _latent_size(params: Params) -> int:
    return min(side // 8 for side in _first_pass_size(params))


# The ways to fail, in the order in which A1111 comes across them.
Rules = list[tuple[str, Callable[[Params], bool]]]
COUNT_RULES: Rules = [
    ("TypeError", _null("batch_size", "n_iter")),
    ("IndexError", lambda p: p["batch_size"] * p["n_iter"] < 1 or p["batch_size"] < 1),
    ("MemoryError", lambda p: p["batch_size"] * p["n_iter"] > LARGEST_COUNT),
    ("TypeError", _null("negative_prompt")),
]
SAMPLE_RULES: Rules = [
    ("TypeError", lambda p: None in _first_pass_size(p)),
    ("TypeError", _null("steps")),
    ("ZeroDivisionError", lambda p: p["steps"] == 0),
    ("TypeError", _null("subseed_strength", "cfg_scale")),
    ("TypeError", _null("seed_resize_from_w", "seed_resize_from_h")),
    ("RuntimeError", _seed_overflows),
    ("RuntimeError", lambda p: _latent_size(p) <= 0),
    ("OutOfMemoryError", lambda p: math.prod(_first_pass_size(p)) * p["batch_size"] > PIXEL_LIMIT),
    ("RuntimeError", lambda p: p["steps"] < 0),
    ("NansException", lambda p: not abs(p["cfg_scale"]) <= NAN_CFG),
]
HIRES_RULES: Rules = [
    ("TypeError", _null("hr_prompt", "hr_negative_prompt")),
    ("TypeError", _null("hr_scale", "hr_resize_x", "hr_resize_y")),
    ("TypeError", _null("denoising_strength")),
    ("AssertionError", lambda p: p["hr_sampler_name"] not in {None, *SAMPLERS}),
    ("RuntimeError", lambda p: not math.isfinite(p["hr_scale"]) or min(picture_size(p)) < 8),
    ("OutOfMemoryError", lambda p: math.prod(picture_size(p)) > PIXEL_LIMIT),
]


def _refuse_by(rules: Rules, params: Params) -> None:
    for error, fails in rules:
        if fails(params):
            raise engine_error(error, OUT_OF_MEMORY_TEXT if error == "OutOfMemoryError" else "")


def refuse_in_job(params: Params, checkpoints: Collection[str] = ()) -> None:
    """Raise what generating raises; `checkpoints` are the listed titles for the fuzzy searches."""
    if params["prompt"] is None:
        raise engine_error("AssertionError", "")
    _refuse_unknown_checkpoint(params["refiner_checkpoint"], {"None", "none"}, checkpoints)
    _refuse_by(COUNT_RULES, params)
    if params.get("enable_hr"):
        same = {"Use same checkpoint"}
        _refuse_unknown_checkpoint(params["hr_checkpoint_name"], same, checkpoints)
        if params["hr_upscaler"] not in {None, *UPSCALERS}:
            raise engine_error("Exception", f"could not find upscaler {params['hr_upscaler']}")
    _refuse_by(SAMPLE_RULES, params)
    if params.get("enable_hr"):
        _refuse_by(HIRES_RULES, params)
    if img2img := Img2Img.of(params):
        img2img.refuse(params)


def shape_error(
    payload: Mapping[str, Any], checkpoints: Collection[str] = (), route: str = "txt2img"
) -> tuple[int, dict[str, Any]] | None:
    """What A1111 answers because of this payload's shape alone; None when it generates."""
    try:
        params = read_request(payload, route)
        refuse_before_queue(params)
        override = params["override_settings"] or {}
        for name, value in override.items():
            refuse_override(name, value)
        refuse_clip_skip(override.get("CLIP_stop_at_last_layers", 1))
        refuse_in_job(params, checkpoints)
    except ApiError as error:
        return error.status, error.body
    return None
