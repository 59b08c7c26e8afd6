"""Names of other programs for fields and tasks: harmless here, or what to send instead. Pure.

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


def is_empty(value: Any) -> bool:  # noqa: ANN401 - any JSON
    """Whether a field with this value asks for nothing."""
    return value is None or value is False or value in ("", [], {})


def _is_one_of(*values: Any) -> Callable[[Any], bool]:  # noqa: ANN401 - any JSON
    """Whether it asks for nothing, or is one of the values that clients send unasked."""
    return lambda value: is_empty(value) or (not isinstance(value, list | dict) and value in values)


def _is_no_module(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return is_empty(value) or value == ["Use same choices"]


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
_TXT2IMG = "the txt2img request of A1111's API; clients send one body for both"

# The fields of img2img, with the values that are A1111's defaults in its API or on its page.
_IMG2IMG_UNASKED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("init_images", "mask", "latent_mask", "include_init_images"), ()),
    "resize_mode": (0,),
    **dict.fromkeys(("mask_blur", "mask_blur_x", "mask_blur_y"), (0, 4)),
    "mask_round": (True,),
    "inpainting_fill": (0, 1),
    "inpaint_full_res": (0, 1),
    "inpaint_full_res_padding": (0, 32),
    "inpainting_mask_invert": (0,),
    "initial_noise_multiplier": (0, 1),
}
# The fields of txt2img's second pass.
SECOND_PASS = {
    *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y"),
    *("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt"),
}

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
    "overlay_images": Harmless(_NOT_IN_API, _NO_IMG2IMG, is_empty),
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
        name: Harmless(_IMG2IMG, _NO_IMG2IMG, _is_one_of(*values))
        for name, values in _IMG2IMG_UNASKED.items()
    },
    "image_cfg_scale": Harmless(
        _IMG2IMG, "only InstructPix2Pix checkpoints read it, and this worker uses none"
    ),
    **{
        name: Harmless(_TXT2IMG, "it belongs to txt2img", _is_one_of(0))
        for name in ("enable_hr", "firstphase_width", "firstphase_height")
    },
    **{
        name: Harmless("webuiapi and the pages of other workers: a unit each", "it is empty", when)
        for name, when in (("controlnet_units", is_empty), ("adetailer", is_empty))
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

# Names of other workers and libraries for the same value. A job may have them: they are read as
# ours, see `worker.translation.diffusers_job`.
_SAME_VALUE = {
    "steps": "num_inference_steps inference_steps sampling_steps",
    "cfg_scale": "guidance_scale cfg",
    "batch_size": "num_images_per_prompt num_images num_outputs",
    "n_iter": "batch_count",
    "sampler_name": "sampler",
    "checkpoint": "sd_model_checkpoint ckpt_name",
    "vae": "sd_vae vae_name",
    "clip_skip": "CLIP_stop_at_last_layers",
    "negative_prompt": "negative",
}
SAME_VALUE = {other: name for name, others in _SAME_VALUE.items() for other in others.split()}

# Names that can mean the same, or nearly: an error names ours.
_OTHER_NAMES = {
    "cfg_scale": "guidance",
    "batch_size": "n",
    "scheduler": "scheduler_name schedule_type",
    "checkpoint": "model model_name sd_model checkpoint_name ckpt model_id",
    "vae": "vae_model",
    "wildcards": "dynamic_prompts",
    "loras": "lora lora_weights lora_name lora_model lora_path lora_url",
    "sampler_name": "sampler_id sampling_method",
    "denoising_strength": "strength denoise prompt_strength",
    "enable_hr": "hires_fix",
    "hr_scale": "upscale_by",
}
FOREIGN_NAMES = SAME_VALUE | {
    other: name for name, others in _OTHER_NAMES.items() for other in others.split()
}

_SECOND_ENCODER = (
    "is for SDXL's second text encoder in diffusers, and A1111 gives both the same text:"
    " leave it out"
)
_TENSORS = "is a tensor of diffusers: send the text in `prompt` and `negative_prompt`"
_REFINER_OF_DIFFUSERS = (
    "says where the refiner begins in diffusers: send `refiner_checkpoint` and `refiner_switch_at`"
)
_WEIGHT_OF_LORA = 'belongs to one of the LoRAs: send "loras": [{"name": "...", "scale": 0.8}]'
_OWN_PARTS = "is loaded beside the checkpoint in ComfyUI; A1111 takes it from the `checkpoint`"
_UPSCALER = (
    'enlarges either in a second pass, with `enable_hr` and `hr_upscaler`, or in "task": "upscale",'
    " with `upscaler_1`"
)
_BESIDE = "stands beside `input` in RunPod's request, not in it"
_OPENAI = (
    "belongs to OpenAI's form of a job: send openai_route and openai_input without other fields"
)
_OF_IMG2IMG = 'belongs to the task img2img: add "task": "img2img"'
_OF_TXT2IMG = "belongs to txt2img: img2img has no second pass"
_AS_INIT_IMAGE = 'is no field of a job that draws: send `init_images` with "task": "img2img"'
_UNITS = "belongs to an extension of A1111: send its units in `alwayson_scripts`"
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
    **dict.fromkeys(("prompt_2", "negative_prompt_2"), _SECOND_ENCODER),
    **dict.fromkeys(
        (
            *("prompt_embeds", "pooled_prompt_embeds", "latents"),
            *("negative_prompt_embeds", "negative_pooled_prompt_embeds"),
        ),
        _TENSORS,
    ),
    **dict.fromkeys(("denoising_start", "denoising_end"), _REFINER_OF_DIFFUSERS),
    **dict.fromkeys(("lora_scale", "lora_strength", "loras_scale"), _WEIGHT_OF_LORA),
    **dict.fromkeys(("clip_name", "unet_name"), _OWN_PARTS),
    **dict.fromkeys(("upscaler", "upscale_model"), _UPSCALER),
    "webhook": _BESIDE,
    "policy": _BESIDE,
    "s3Config": _BESIDE,
    "size": "is one text in other APIs: send the two numbers `width` and `height`",
    "url": "is no field of a job: name a model's URL in `checkpoint`, `loras`, `vae` or"
    " `embeddings`, and a picture's in `init_images`",
    **dict.fromkeys(
        (
            *_IMG2IMG_UNASKED,
            *("img2img_fix_steps", "img2img_color_correction", "img2img_extra_noise"),
            "inpainting_mask_weight",
        ),
        _OF_IMG2IMG,
    ),
    **dict.fromkeys(
        ("init_image", "image", "images", "image_url", "overlay_images"), _AS_INIT_IMAGE
    ),
    **dict.fromkeys(("enable_hr", *SECOND_PASS), _OF_TXT2IMG),
    **dict.fromkeys(
        ("controlnet", "controlnet_units", "controlnet_args", "adetailer", "ad_model"), _UNITS
    ),
    "reactor": "belongs to an extension of A1111 that this worker does not have",
    "hr_additional_modules": _FORGE_ONLY,
    "forge_additional_modules": _FORGE_ONLY,
    "samples_format": "is not used here: a job chooses the format with output.format",
}

# Of the task upscale, in a job that does not name it.
INSTEAD |= dict.fromkeys(
    (
        *("upscaler_1", "upscaler_2", "extras_upscaler_2_visibility", "upscaling_resize"),
        *("upscaling_resize_w", "upscaling_resize_h", "upscaling_crop", "imageList"),
        *("gfpgan_visibility", "codeformer_visibility", "codeformer_weight", "upscale_first"),
    ),
    'belongs to the task "upscale": send "task": "upscale"',
)

# Tasks --------------------------------------------------------------------------------------------

_MODELS_LISTED = "the worker lets the engine read new model files by itself: leave this job out"
_LOADED = (
    "the worker lets the engine load the checkpoint that a job names: leave this job out, and send"
    " `checkpoint` in the jobs that draw"
)
_TRAINING = "this worker does not train models"
_OPTIONS = "a job sends the options for its own picture in `override_settings`"
_OPERATOR = "only the operator can change that, with the endpoint's settings"
_CANCEL = "RunPod's /cancel ends a job"

# Routes of A1111's API below /sdapi/v1/, and words of other programs for a task -> our task, or a
# sentence about what there is instead.
TASKS_OF_OTHERS: dict[str, str] = {
    **dict.fromkeys(("text2img", "text-to-image", "text2image", "t2i", "generate"), "txt2img"),
    **dict.fromkeys(("image-to-image", "image2image", "i2i", "inpaint", "outpaint"), "img2img"),
    **dict.fromkeys(("inpainting", "image-variation"), "img2img"),
    **dict.fromkeys(("extra-single-image", "extra-batch-images", "extras"), "upscale"),
    **dict.fromkeys(("upscaling", "upscaler", "enlarge", "enhance"), "upscale"),
    **dict.fromkeys(("png-info", "pnginfo"), "png_info"),
    **dict.fromkeys(("caption", "describe", "clip-interrogate"), "interrogate"),
    **dict.fromkeys(("sd-models", "checkpoints", "checkpoint"), "models"),
    **dict.fromkeys(("sd-vae", "vae"), "vaes"),
    **dict.fromkeys(("lora", "sd-loras"), "loras"),
    **dict.fromkeys(("latent-upscale-modes", "realesrgan-models"), "upscalers"),
    **dict.fromkeys(("script-info", "extensions-scripts"), "scripts"),
    "prompt-styles": "styles",
    **dict.fromkeys(("memory", "status", "ping", "system-info", "queue"), "health"),
    **dict.fromkeys(
        ("download", "sync", "preload", "warmup", "v1/download", "v1/sync"), "prefetch"
    ),
    **dict.fromkeys(("help", "openapi", "openapi.json", "docs"), "schema"),
    **dict.fromkeys(("options", "set-options", "settings"), _OPTIONS),
    **dict.fromkeys(("refresh-checkpoints", "refresh-vae", "refresh-loras"), _MODELS_LISTED),
    **dict.fromkeys(("refresh-embeddings", "refresh"), _MODELS_LISTED),
    **dict.fromkeys(("unload-checkpoint", "reload-checkpoint"), _LOADED),
    **dict.fromkeys(("interrupt", "skip", "cancel", "stop"), _CANCEL),
    "progress": "RunPod's /status has the progress of a job",
    **dict.fromkeys(("train", "training", "train/embedding", "train/hypernetwork"), _TRAINING),
    **dict.fromkeys(("create/embedding", "create/hypernetwork", "preprocess"), _TRAINING),
    **dict.fromkeys(("dreambooth", "train-lora", "merge"), _TRAINING),
    **dict.fromkeys(("cmd-flags", "install-extension"), _OPERATOR),
    "extensions": "the task `scripts` lists what the installed extensions run, and only the"
    " operator installs them",
    **dict.fromkeys(("server-kill", "server-restart", "server-stop"), _OPERATOR),
    "hypernetworks": "this worker does not list hypernetworks; a prompt names one with a tag:"
    " <hypernet:name:1>",
    "face-restorers": "the task upscale restores faces with gfpgan_visibility or"
    " codeformer_visibility",
    "controlnet": "a txt2img or img2img job has ControlNet in `alwayson_scripts`, if it is"
    " installed; this worker returns no maps of its preprocessors",
    "controlnet/detect": "this worker returns no maps of ControlNet's preprocessors",
}


def task_instead(word: str) -> str:
    """Our task, or a sentence, for another program's word for a task or for a route.

    A word that is not in the table comes back as it would stand there.
    """
    word = word.strip().casefold().strip("/").removeprefix("sdapi/v1/").partition("?")[0]
    word = word.replace("_", "-").replace(" ", "-")
    return TASKS_OF_OTHERS.get(word, word)
