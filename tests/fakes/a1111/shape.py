"""Which txt2img requests A1111 v1.9.3 refuses, and with what: pure rules over the request.

`shape_error` is the whole verdict. The fake server calls its parts where A1111 has them:
`refuse_before_queue` before a request waits for its turn, `refuse_override` when it sets an option,
`refuse_in_job` while it generates.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from fakes.a1111.request import ApiError, Params, engine_error, read_request, refusal
from fakes.recorded import recorded

SCRIPTS_WITHOUT_NAME = {"comments"}  # always on, but missing in the recorded /scripts
SELECTABLE_SCRIPTS = {"prompt matrix", "prompts from file or textbox", "x/y/z plot"}
CLIP_HIDDEN_STATES = 13  # 12 layers and the embeddings
PIXEL_LIMIT = 2**28  # a batch above this fits no card
NAN_CFG = 1e10  # 1e30 was measured; where it starts depends on the model
LARGEST_COUNT = 10**7  # A1111 fails where the prompt list fits no memory

NAN_TEXT = (
    "A tensor with all NaNs was produced in Unet. This could be either because there's not enough"
    " precision to represent the picture, or because your video card does not support half type."
    ' Try setting the "Upcast cross attention layer to float32" option in Settings > Stable'
    " Diffusion or using the --no-half commandline argument to fix this."
    " Use --disable-nan-check commandline argument to disable this check."
)
OUT_OF_MEMORY_TEXT = (
    "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 23.69 GiB total capacity; 22.90 GiB"
    " already allocated; 11.06 MiB free; 23.20 GiB reserved in total by PyTorch) If reserved"
    " memory is >> allocated memory try setting max_split_size_mb to avoid fragmentation."
)


SAMPLERS = {sampler["name"]: sampler for sampler in recorded("get_samplers")}
SCRIPTS = {name.lower() for name in recorded("get_scripts")["txt2img"]} | SCRIPTS_WITHOUT_NAME


def refuse_before_queue(params: Params) -> None:
    """Raise for an unknown script or sampler."""
    script = params["script_name"]
    if script and script.lower() not in SELECTABLE_SCRIPTS:
        raise refusal(422, f"Script '{script}' not found")
    if (params["sampler_name"] or params["sampler_index"]) not in SAMPLERS:
        raise refusal(404, "Sampler not found")
    for name in params["alwayson_scripts"]:
        if name.lower() not in SCRIPTS:
            raise refusal(422, f"Script '{name}' not found")
        if name.lower() in SELECTABLE_SCRIPTS:
            raise refusal(422, "Cannot have a selectable script in the always on scripts params")


DEFAULT_OPTIONS: Mapping[str, Any] = recorded("get_options")


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


def first_pass_size(params: Params) -> tuple[Any, Any]:
    """Width and height that are sampled first; the old firstphase fields replace both."""
    if params["firstphase_width"] != 0 or params["firstphase_height"] != 0:
        return params["firstphase_width"], params["firstphase_height"]
    return params["width"], params["height"]


def _hires_target(params: Params) -> tuple[int, int]:
    width, height = first_pass_size(params)
    to_x, to_y = params["hr_resize_x"], params["hr_resize_y"]
    if to_x == 0 and to_y == 0:
        return int(width * params["hr_scale"]), int(height * params["hr_scale"])
    if to_y == 0:
        return to_x, to_x * height // width
    if to_x == 0:
        return to_y * width // height, to_y
    return to_x, to_y


def picture_size(params: Params) -> tuple[int, int]:
    """Width and height of the finished picture: both passes floor to multiples of 8."""
    width, height = _hires_target(params) if params["enable_hr"] else first_pass_size(params)
    return width // 8 * 8, height // 8 * 8


def closest_checkpoint(wanted: str, titles: Collection[str]) -> str | None:
    """The title that A1111's fuzzy search finds: the shortest that contains the text."""
    plain = wanted.rsplit(" [", 1)[0] if wanted.rstrip().endswith("]") else wanted
    for text in (wanted, plain):
        found = sorted((title for title in titles if text in title), key=len)
        if found:
            return found[0]
    return None


def _refuse_unknown_checkpoint(
    name: str | None, neutral: set[str], titles: Collection[str]
) -> None:
    if name and name not in neutral and closest_checkpoint(name, titles) is None:
        raise engine_error("Exception", f"Could not find checkpoint with name {name}")


class Rule(NamedTuple):
    """One way to fail: asked in the order in which A1111 comes across it."""

    fails: Callable[[Params], bool]
    error: str
    text: str


def _null(*names: str) -> Callable[[Params], bool]:
    return lambda params: any(params[name] is None for name in names)


def _largest_seed(params: Params) -> int:
    varied = params["subseed_strength"] != 0
    return (params["seed"] or 0) + (0 if varied else params["batch_size"] * params["n_iter"] - 1)


def _seed_overflows(params: Params) -> bool:
    too_small = (params["seed"] or 0) < -(2**63)
    return too_small or _largest_seed(params) >= 2**64


def _latent_size(params: Params) -> int:
    return min(side // 8 for side in first_pass_size(params))


def _fits_no_card(params: Params) -> bool:
    width, height = first_pass_size(params)
    return bool(width * height * params["batch_size"] > PIXEL_LIMIT)


COUNT_RULES = (
    Rule(
        _null("batch_size", "n_iter"),
        "TypeError",
        "unsupported operand type(s) for *: 'int' and 'NoneType'",
    ),
    Rule(lambda p: p["batch_size"] * p["n_iter"] < 1, "IndexError", "list index out of range"),
    Rule(lambda p: p["batch_size"] < 1, "IndexError", "list index out of range"),
    Rule(lambda p: p["batch_size"] * p["n_iter"] > LARGEST_COUNT, "MemoryError", ""),
    Rule(_null("negative_prompt"), "TypeError", "expected string or bytes-like object"),
)
SAMPLE_RULES = (
    Rule(
        lambda p: None in first_pass_size(p),
        "TypeError",
        "unsupported operand type(s) for //: 'NoneType' and 'int'",
    ),
    Rule(
        _null("steps"), "TypeError", "unsupported operand type(s) for //: 'NoneType' and 'NoneType'"
    ),
    Rule(lambda p: p["steps"] == 0, "ZeroDivisionError", "integer division or modulo by zero"),
    Rule(_null("subseed_strength", "cfg_scale"), "TypeError", "must be real number, not NoneType"),
    Rule(
        _null("seed_resize_from_w", "seed_resize_from_h"),
        "TypeError",
        "'<=' not supported between instances of 'NoneType' and 'int'",
    ),
    Rule(_seed_overflows, "RuntimeError", "Overflow when unpacking long"),
    Rule(
        lambda p: _latent_size(p) < 0,
        "RuntimeError",
        "Trying to create tensor with negative dimension",
    ),
    Rule(
        lambda p: _latent_size(p) == 0,
        "RuntimeError",
        "Calculated padded input size per channel: (2 x 2). Kernel size: (3 x 3)."
        " Kernel size can't be greater than actual input size",
    ),
    Rule(_fits_no_card, "OutOfMemoryError", OUT_OF_MEMORY_TEXT),
    Rule(lambda p: p["steps"] < 0, "RuntimeError", "number of steps must be non-negative"),
    Rule(
        lambda p: not math.isfinite(p["cfg_scale"]) or abs(p["cfg_scale"]) > NAN_CFG,
        "NansException",
        NAN_TEXT,
    ),
)
HIRES_RULES = (
    Rule(
        _null("hr_prompt", "hr_negative_prompt"),
        "TypeError",
        "expected string or bytes-like object",
    ),
    Rule(
        _null("hr_scale", "hr_resize_x", "hr_resize_y"),
        "TypeError",
        "unsupported operand type(s) for *: 'int' and 'NoneType'",
    ),
    Rule(
        _null("denoising_strength"),
        "TypeError",
        "'>' not supported between instances of 'NoneType' and 'int'",
    ),
    Rule(
        lambda p: p["hr_sampler_name"] is not None and p["hr_sampler_name"] not in SAMPLERS,
        "AssertionError",
        "bad sampler name",
    ),
    Rule(
        lambda p: not math.isfinite(p["hr_scale"]) or min(picture_size(p)) < 8,  # one latent pixel
        "RuntimeError",
        "Input and output sizes should be greater than 0",
    ),
    Rule(
        lambda p: math.prod(picture_size(p)) > PIXEL_LIMIT, "OutOfMemoryError", OUT_OF_MEMORY_TEXT
    ),
)
UPSCALERS = {
    item["name"]
    for route in ("get_upscalers", "get_latent-upscale-modes")
    for item in recorded(route)
}


def _refuse_by(rules: tuple[Rule, ...], params: Params) -> None:
    for rule in rules:
        if rule.fails(params):
            raise engine_error(rule.error, rule.text)


def refuse_in_job(params: Params, checkpoints: Collection[str] = ()) -> None:
    """Raise what generating raises; `checkpoints` are the listed titles for the fuzzy searches."""
    if params["prompt"] is None:
        raise engine_error("AssertionError", "")
    _refuse_unknown_checkpoint(params["refiner_checkpoint"], {"None", "none"}, checkpoints)
    _refuse_by(COUNT_RULES, params)
    if params["enable_hr"]:
        _refuse_unknown_checkpoint(
            params["hr_checkpoint_name"], {"Use same checkpoint"}, checkpoints
        )
        if params["hr_upscaler"] is not None and params["hr_upscaler"] not in UPSCALERS:
            raise engine_error(
                "Exception", f"could not find upscaler named {params['hr_upscaler']}"
            )
    _refuse_by(SAMPLE_RULES, params)
    if params["enable_hr"]:
        _refuse_by(HIRES_RULES, params)


def shape_error(
    payload: Mapping[str, Any], checkpoints: Collection[str] = ()
) -> tuple[int, dict[str, Any]] | None:
    """What A1111 answers because of this payload's shape alone; None when it generates."""
    try:
        params = read_request(payload)
        refuse_before_queue(params)
        override = params["override_settings"] or {}
        for name, value in override.items():
            refuse_override(name, value)
        refuse_clip_skip(override.get("CLIP_stop_at_last_layers", 1))
        refuse_in_job(params, checkpoints)
    except ApiError as error:
        return error.status, error.body
    return None
