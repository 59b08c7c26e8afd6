"""Field names of other programs: which have no effect here, and what to send instead. Pure.

`HARMLESS` is the list of names that a job may have although the worker does not know them: other
tools for A1111 send them, and they would not change the picture of A1111 v1.9.3. Such a field is
left out, and the answer's `warnings` name it. Every other unknown field is refused, because the
caller expects an effect that the picture would not have; `INSTEAD` says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit


def _any(_value: Any) -> bool:  # noqa: ANN401 - any JSON
    return True


def _is_empty(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return value is None or value is False or value in ("", [], {})


def _is_no_module(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return _is_empty(value) or value == ["Use same choices"]


def _is_server(value: Any) -> bool:  # noqa: ANN401 - any JSON
    """Whether it is the address of a server, and not that of a model."""
    if not isinstance(value, str) or len(value) > 512:  # noqa: PLR2004 - longer is no address
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.path in {"", "/"} and not parts.query


class Harmless(NamedTuple):
    """A field that may be left out without changing the picture.

    Attributes:
        source: which program sends it, and where that can be read.
        reason: why it has no effect, for the caller.
        when: the values for which this is true; others are refused.
    """

    source: str
    reason: str
    when: Callable[[Any], bool] = _any


_NOT_IN_API = "A1111 v1.9.3, API_NOT_ALLOWED in modules/api/models.py: its API leaves it out"
_FORGE = "Forge, modules/processing.py"
_IMG2IMG = "the img2img request of A1111's API; clients send one body for both"
_NO_IMG2IMG = "it belongs to img2img"

HARMLESS: dict[str, Harmless] = {
    "seed_enable_extras": Harmless(
        f"The example script of A1111's wiki page API. {_NOT_IN_API}",
        "A1111 v1.9.3 reads the subseed's own fields",
    ),
    "do_not_reload_embeddings": Harmless(_NOT_IN_API, "A1111's API does not read it"),
    "outpath_samples": Harmless(_NOT_IN_API, "the pictures are in the answer"),
    "outpath_grids": Harmless(_NOT_IN_API, "the pictures are in the answer"),
    "prompt_for_display": Harmless(_NOT_IN_API, "A1111's API does not read it"),
    "extra_generation_params": Harmless(_NOT_IN_API, "A1111's API does not read it"),
    "overlay_images": Harmless(_NOT_IN_API, _NO_IMG2IMG, _is_empty),
    "url": Harmless(
        "SillyTavern, src/endpoints/stable-diffusion.js: the address of the A1111 server",
        "the job has reached its worker",
        _is_server,
    ),
    "auth": Harmless(
        "SillyTavern, src/endpoints/stable-diffusion.js: the login of the A1111 server",
        "the job has reached its worker",
    ),
    "hr_additional_modules": Harmless(_FORGE, "it names no module", _is_no_module),
    "forge_additional_modules": Harmless(_FORGE, "it names no module", _is_no_module),
    "distilled_cfg_scale": Harmless(_FORGE, "only Flux models read it"),
    "hr_distilled_cfg": Harmless(_FORGE, "only Flux models read it"),
    **{
        name: Harmless(_IMG2IMG, _NO_IMG2IMG, _is_empty)
        for name in ("init_images", "mask", "latent_mask", "include_init_images")
    },
    **{
        name: Harmless("webuiapi and the pages of other workers: a unit each", "it is empty", when)
        for name, when in (("controlnet_units", _is_empty), ("adetailer", _is_empty))
    },
}

_OPTIONS = "A1111 v1.9.3, modules/shared_options.py: files and the page's own display"
HARMLESS_OPTIONS: dict[str, Harmless] = {
    name: Harmless(_OPTIONS, "the worker writes no such file")
    for name in ("samples_save", "grid_save", "save_txt", "save_to_dirs", "grid_save_to_dirs")
} | {
    "live_previews_enable": Harmless(_OPTIONS, "a job asks for previews with output.preview"),
    "show_progress_every_n_steps": Harmless(_OPTIONS, "progress reports have their own pace"),
    "return_grid": Harmless(_OPTIONS, "no grid is made"),
    "forge_additional_modules": Harmless(_FORGE, "it names no module", _is_no_module),
}

# Names that other APIs use for the same thing.
_OTHER_NAMES = {
    "steps": "num_inference_steps inference_steps sampling_steps",
    "cfg_scale": "guidance_scale cfg guidance",
    "batch_size": "num_images_per_prompt num_images num_outputs n",
    "n_iter": "batch_count",
    "sampler_name": "sampler",
    "scheduler": "scheduler_name schedule_type",
    "checkpoint": "model model_name sd_model sd_model_checkpoint ckpt ckpt_name checkpoint_name",
    "vae": "sd_vae vae_name",
    "clip_skip": "CLIP_stop_at_last_layers",
    "wildcards": "dynamic_prompts",
    "loras": "lora lora_weights lora_scale lora_strength lora_name",
    "negative_prompt": "negative",
    "denoising_strength": "strength denoise",
    "enable_hr": "hires_fix",
    "hr_scale": "upscale_by",
    "hr_upscaler": "upscaler",
}
FOREIGN_NAMES = {other: name for name, others in _OTHER_NAMES.items() for other in others.split()}

_BESIDE = "stands beside `input` in RunPod's request, not in it"
_OPENAI = "belongs to OpenAI's API, which this worker does not have: send A1111's fields"
_TEXT_ONLY = "belongs to img2img, which this worker does not have: it makes pictures from text only"
_EXTENSION = "belongs to an extension of A1111, and this worker has none installed"
_FORGE_ONLY = "names modules of Forge, and this worker runs A1111: use `vae` for a VAE"

# What to say of a field that is refused.
INSTEAD: dict[str, str] = {
    "api": 'belongs to the form {"api": ..., "payload": ...} of another worker: send the fields of'
    " the payload themselves as the input",
    "payload": "is no field: send its fields themselves as the input",
    "input": 'stands inside the input: send {"input": {"prompt": "..."}} with one `input`',
    "workflow": "is ComfyUI's, and this worker runs A1111: send A1111's fields, such as `prompt`",
    "openai_route": _OPENAI,
    "openai_input": _OPENAI,
    "s3Config": "is not used: the endpoint's BUCKET_... settings name the bucket, and a job asks"
    ' for it with "output": {"delivery": "s3"}',
    "webhook": _BESIDE,
    "policy": _BESIDE,
    "size": "is one text in other APIs: send the two numbers `width` and `height`",
    "url": "is no field of a job: name a model's URL in `checkpoint`, `loras`, `vae` or"
    " `embeddings`",
    **dict.fromkeys(
        (
            *("init_images", "init_image", "image", "images", "image_url", "mask", "mask_blur"),
            *("mask_blur_x", "mask_blur_y", "mask_round", "latent_mask", "resize_mode"),
            *("inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding"),
            *("inpainting_mask_invert", "include_init_images", "initial_noise_multiplier"),
            *("image_cfg_scale", "overlay_images"),
        ),
        _TEXT_ONLY,
    ),
    **dict.fromkeys(
        ("controlnet", "controlnet_units", "controlnet_args", "adetailer", "ad_model", "reactor"),
        _EXTENSION,
    ),
    "hr_additional_modules": _FORGE_ONLY,
    "forge_additional_modules": _FORGE_ONLY,
    "samples_format": "is not used here: a job chooses the format with output.format",
}
