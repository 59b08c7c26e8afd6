"""A1111's options that change a picture and that a job cannot set, with A1111's defaults. Pure.

A client may name any option of A1111 in `override_settings`. One that has its default value asks
for nothing. With another value it would change the picture, so it stays, and the worker refuses it
by name. All other options are about files, the page and its display.
"""

from __future__ import annotations

from typing import Any

# Option of A1111 v1.9.3 -> its default, as GET /sdapi/v1/options has it after a first start.
PICTURE_OPTIONS: dict[str, Any] = {
    **dict.fromkeys(("ESRGAN_tile", "DAT_tile"), 192),
    **dict.fromkeys(("ESRGAN_tile_overlap", "DAT_tile_overlap"), 8),
    "upscaler_for_img2img": None,
    "face_restoration": False,
    "face_restoration_model": "CodeFormer",
    "code_former_weight": 0.5,
    "sd_unet": "Automatic",
    "enable_quantization": False,
    "enable_batch_seeds": True,
    "upcast_attn": False,
    "tiling": False,
    "hires_fix_refiner_pass": "second pass",
    "hires_fix_use_firstpass_conds": False,
    "refiner_switch_by_sample_steps": False,
    "sdxl_refiner_low_aesthetic_score": 2.5,
    "sdxl_refiner_high_aesthetic_score": 6.0,
    "sd_vae_overrides_per_model_preferences": True,
    "auto_vae_precision": True,
    "auto_vae_precision_bfloat16": False,
    **dict.fromkeys(("sd_vae_encode_method", "sd_vae_decode_method"), "Full"),
    **dict.fromkeys(("inpainting_mask_weight", "initial_noise_multiplier"), 1.0),
    "img2img_extra_noise": 0.0,
    "img2img_color_correction": False,
    "img2img_fix_steps": False,
    "img2img_background_color": "#ffffff",
    "overlay_inpaint": True,
    **dict.fromkeys(("return_mask", "return_mask_composite"), False),
    "cross_attention_optimization": "Automatic",
    **dict.fromkeys(("s_min_uncond", "s_churn", "s_tmin", "s_tmax"), 0.0),
    "s_noise": 1.0,
    "token_merging_ratio_img2img": 0.0,
    "pad_cond_uncond_v0": False,
    "batch_cond_uncond": True,
    "fp8_storage": "Disable",
    "cache_fp16_weight": False,
    "auto_backcompat": True,
    "ddim_discretize": "uniform",
    **dict.fromkeys(
        (
            *("use_old_emphasis_implementation", "use_old_karras_scheduler_sigmas"),
            *("use_old_hires_fix_width_height", "dont_fix_second_order_samplers_schedule"),
            *("use_old_scheduling", "use_downcasted_alpha_bar", "lora_functional"),
        ),
        False,
    ),
    "extra_networks_default_multiplier": 1.0,
    **dict.fromkeys(("sd_hypernetwork", "sd_lora"), "None"),
    "postprocessing_enable_in_main_ui": [],
    "postprocessing_operation_order": [],
    "enable_prompt_comments": True,
}


def is_default(name: str, value: object) -> bool:
    """Whether the option of a picture has A1111's default; 0 is no false, and 1 no true."""
    default = PICTURE_OPTIONS[name]
    return value == default and isinstance(value, bool) == isinstance(default, bool)
