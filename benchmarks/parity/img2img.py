"""The parity requests that bring a picture: img2img and upscaling.

In a request, `@name` is a picture of `GIVEN`; `sent` puts its base64 in place of the name.
"""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.parity import files

Fields = dict[str, Any]

SIDE = 80
WIDE = (120, 64)


def _disc(width: int, height: int) -> Image.Image:
    """A red disc on a background from blue to green."""
    down, across = np.mgrid[0:height, 0:width]
    pixels = np.stack([0 * across, 2 * across, 255 - 2 * across], 2).clip(0, 255)
    is_disc = (across - width / 2) ** 2 + (down - height / 2) ** 2 < (height / 3) ** 2
    pixels[is_disc] = (230, 20, 30)
    return Image.fromarray(pixels.astype(np.uint8))


def _mask(width: int, height: int) -> Image.Image:
    """A white rectangle, not in the middle."""
    levels = np.zeros((height, width), np.uint8)
    levels[height // 5 : height * 3 // 4, width // 4 : width * 4 // 5] = 255
    return Image.fromarray(levels)


def _with_alpha() -> Image.Image:
    picture = _disc(SIDE, SIDE).convert("RGBA")
    picture.putalpha(Image.fromarray(np.full((SIDE, SIDE), 90, np.uint8)))
    picture.paste((9, 200, 9, 255), (10, 10, 40, 30))
    return picture


GIVEN = {
    "square": _disc(SIDE, SIDE),
    "small": _disc(40, 40),
    "wide": _disc(*WIDE),
    "large": _disc(260, 220),
    "alpha": _with_alpha(),
    "mask": _mask(SIDE, SIDE),
    "wide mask": _mask(*WIDE),
    "alpha mask": Image.merge("RGBA", [*_disc(SIDE, SIDE).split(), _mask(SIDE, SIDE)]),
}


def sent(value: Any) -> Any:  # noqa: ANN401 - JSON
    """The request with the pictures that it names."""
    if isinstance(value, str) and value.startswith("@"):
        file = io.BytesIO()
        GIVEN[value[1:]].save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()
    if isinstance(value, list):
        return [sent(one) for one in value]
    if isinstance(value, dict):
        return {name: sent(one) for name, one in value.items()}
    return value


def _with(checkpoint: str, **options: Any) -> Fields:  # noqa: ANN401 - JSON
    return {"override_settings": {"sd_model_checkpoint": checkpoint} | options}


BASE: Fields = {
    "init_images": ["@square"],
    "denoising_strength": 0.6,
    "width": SIDE,
    "height": SIDE,
    "cfg_scale": 2.5,
    "override_settings": {"sd_model_checkpoint": files.STILL},
}
WHOLE: Fields = {"mask": "@mask", "inpaint_full_res": False}
PART: Fields = {"mask": "@mask", "inpaint_full_res": True}
FILLS = ("fill", "original", "latent noise", "latent nothing")
SAMPLERS = (
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE Heun", "Euler a", "LMS", "DPM2", "DPM fast"),
    *("DPM adaptive", "Restart", "DDIM", "PLMS", "UniPC", "LCM"),
)

IMG2IMG: dict[str, Fields] = {
    "plain": {},
    **{f"resize mode {n}": {"init_images": ["@wide"], "resize_mode": n} for n in range(4)},
    "alpha": {"init_images": ["@alpha"]},
    "alpha, other background": {
        "init_images": ["@alpha"],
        **_with(files.STILL, img2img_background_color="#104080"),
    },
    "upscaler Nearest": {
        "init_images": ["@small"],
        **_with(files.STILL, upscaler_for_img2img="Nearest"),
    },
    "upscaler with a model": {
        "init_images": ["@small"],
        **_with(files.STILL, upscaler_for_img2img=files.UPSCALER),
    },
    **{f"whole picture, {name}": WHOLE | {"inpainting_fill": n} for n, name in enumerate(FILLS)},
    **{
        f"only masked, {name}": PART | {"inpainting_fill": n, "inpaint_full_res_padding": 8}
        for n, name in enumerate(FILLS)
    },
    "mask without blur": WHOLE | {"mask_blur": 0},
    "mask blurred across and down": WHOLE | {"mask_blur_x": 2, "mask_blur_y": 9},
    "mask not rounded": WHOLE | {"mask_round": False, "mask_blur": 8},
    "mask inverted": WHOLE | {"inpainting_mask_invert": 1},
    "mask in the alpha channel": WHOLE | {"mask": "@alpha mask"},
    "mask, resize mode 1": WHOLE
    | {"init_images": ["@wide"], "mask": "@wide mask"}
    | {"resize_mode": 1},
    "mask, resize mode 2": WHOLE
    | {"init_images": ["@wide"], "mask": "@wide mask"}
    | {"resize_mode": 2},
    "without overlay": PART | _with(files.STILL, overlay_inpaint=False),
    "noise multiplier": {"initial_noise_multiplier": 0.8},
    "extra noise": {"sampler_name": "Euler a", **_with(files.STILL, img2img_extra_noise=0.2)},
    "fixed steps": _with(files.STILL, img2img_fix_steps=True),
    "fixed steps, DDIM": {"sampler_name": "DDIM", **_with(files.STILL, img2img_fix_steps=True)},
    "denoising 0": {"denoising_strength": 0},
    "denoising 1": {"denoising_strength": 1},
    "img2img, AND": {"prompt": "a green star AND a red circle :0.6"},
    "img2img, subseed": WHOLE | {"inpainting_fill": 2, "subseed": 5, "subseed_strength": 0.3},
    "img2img, tiling": {"tiling": True},
    "inpainting model": _with(files.INPAINTING),
    "inpainting model, mask": WHOLE | _with(files.INPAINTING),
    "inpainting model, only masked": PART | _with(files.INPAINTING),
    "inpainting model, mask not rounded": WHOLE
    | {"mask_round": False, "mask_blur": 8}
    | _with(files.INPAINTING, inpainting_mask_weight=0.4),
    **{f"img2img, {name}": WHOLE | {"sampler_name": name} for name in SAMPLERS},
}
# These are not recorded: more pictures, or of another size.
MORE: dict[str, Fields] = {
    "img2img, batch": WHOLE | {"batch_size": 2, "n_iter": 2, "inpainting_fill": 2},
    "several pictures": WHOLE | {"init_images": ["@square", "@wide"], "batch_size": 3, "n_iter": 2},
    "returned masks": WHOLE | _with(files.STILL, return_mask=True, return_mask_composite=True),
    "returned masks, only masked": PART
    | _with(files.STILL, return_mask=True, return_mask_composite=True),
    "only masked, wide": PART | {"init_images": ["@wide"], "mask": "@wide mask"},
    "mask, odd size": WHOLE | {"width": 92, "height": 76},
    "img2img, odd size": {"width": 200, "height": 140},
    "only masked, odd size": PART | {"width": 92, "height": 76},
    "resize mode 3, mask": WHOLE | {"resize_mode": 3},
    "img2img, refiner": {
        **_with(files.INPAINTING),
        "refiner_checkpoint": files.STILL,
        "refiner_switch_at": 0.7,
    },
}
UPSCALING: dict[str, Fields] = {
    "upscaled by None": {"image": "@square"},
    "upscaled by Lanczos": {"image": "@small", "upscaler_1": "Lanczos"},
    "upscaled by Nearest": {"image": "@small", "upscaler_1": "Nearest"},
    "upscaled by a model": {"image": "@small", "upscaler_1": files.UPSCALER},
    "upscaled in tiles": {
        "image": "@large",
        "upscaler_1": files.UPSCALER,
        "resize_mode": 1,
        "upscaling_resize_w": 280,
        "upscaling_resize_h": 230,
    },
    "upscaled to a size": {
        "image": "@wide",
        "upscaler_1": "Lanczos",
        "resize_mode": 1,
        "upscaling_resize_w": SIDE,
        "upscaling_resize_h": SIDE,
    },
    "upscaled by two": {
        "image": "@small",
        "upscaler_1": files.UPSCALER,
        "upscaler_2": "Lanczos",
        "extras_upscaler_2_visibility": 0.4,
    },
}
NOT_SMALL = {"upscaled in tiles"}


def compared() -> dict[str, Fields]:
    """All of these requests."""
    return {name: BASE | fields for name, fields in (IMG2IMG | MORE).items()} | UPSCALING


def recorded() -> dict[str, Fields]:
    """Those with one picture of the size of all recorded ones."""
    upscaling = {name: fields for name, fields in UPSCALING.items() if name not in NOT_SMALL}
    return {name: BASE | {"steps": 8} | fields for name, fields in IMG2IMG.items()} | upscaling
