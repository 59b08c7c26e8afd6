"""img2img as A1111 v1.9.3 does it: its pictures and mask, what it refuses, and what it reports.

Recorded from a real one: `latent_mask` never works, a blank mask is ignored, and a mask that fits
the picture badly is used all the same.
"""

import base64
import hashlib
import io
import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

from fakes.a1111.request import Params, engine_error, refusal

CONTENTS = {0: "fill", 2: "latent noise", 3: "latent nothing"}
FAILING_STEPS = {  # sampler -> the error, and the fewest steps that the picture's noise is worth
    **dict.fromkeys(
        ("DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"), ("UnboundLocalError", 1)
    ),
    **dict.fromkeys(("DPM fast", "DPM adaptive"), ("ValueError", 1)),
    "UniPC": ("AssertionError", 3),
}
HALF = 128


def _picture(text: Any) -> Image.Image:
    if not isinstance(text, str):
        raise engine_error("AttributeError", f"{type(text).__name__!r} has no 'startswith'")
    if text.startswith(("http://", "https://")):
        refused = refusal(500, "Request to local resource not allowed")
        raise refused
    if text.startswith("data:image/"):
        parts = text.partition(";")[2].split(",")
        if len(parts) < 2 or not parts[0].startswith("base64"):
            raise engine_error("IndexError", "list index out of range")
        text = parts[1]
    try:
        image = Image.open(io.BytesIO(base64.b64decode(text)))
    except (OSError, ValueError):
        raise refusal(500, "Invalid encoded image") from None
    try:
        image.load()
    except OSError as error:
        raise engine_error("OSError", str(error)) from error
    return image


@dataclass
class Img2Img:
    """The pictures of one request."""

    pictures: list[Image.Image]
    mask: Image.Image | None

    @classmethod
    def of(cls, params: Params) -> "Img2Img | None":
        """The pictures of these params; None for txt2img. Raises what A1111 raises."""
        if "init_images" not in params:
            return None
        mask = None if params["mask"] is None else _mask(params)
        return cls([_picture(text) for text in params["init_images"]], mask)

    def refuse(self, params: Params) -> None:
        """Raise what A1111 raises once the job runs."""
        if self.mask:
            self._refuse_mask(params)
        count, sizes = len(self.pictures), {picture.size for picture in self.pictures}
        if count == 0 or count > max(1, params["batch_size"]):
            raise engine_error("RuntimeError", f"bad number of images passed: {count}")
        if params["resize_mode"] == 3 and min(map(min, sizes)) < 8:
            raise engine_error("RuntimeError", "Kernel size can't be greater than actual input")
        if params["resize_mode"] == 3 and len(sizes) > 1:
            raise engine_error("ValueError", "setting an array element with a sequence.")
        self._refuse_steps(params)

    def _refuse_mask(self, params: Params) -> None:
        if params["latent_mask"] is not None:
            raise engine_error("AttributeError", "'str' object has no attribute 'convert'")
        if None in {params["mask_blur_x"], params["mask_blur_y"]}:
            raise engine_error("TypeError", "'>' not supported between 'NoneType' and 'int'")
        padding = params["inpaint_full_res_padding"] or 0
        if params["inpaint_full_res"] and padding < -HALF:
            raise engine_error("ValueError", "Coordinate 'right' is less than 'left'")
        is_latent = params["resize_mode"] == 3 and not params["inpaint_full_res"]
        sizes = {(params["width"], params["height"]), *(one.size for one in self.pictures)}
        if is_latent and params["inpainting_fill"] != 1 and len(sizes) > 1:
            raise engine_error("ValueError", "images do not match")

    def _refuse_steps(self, params: Params) -> None:
        sampler = params["sampler_name"] or params["sampler_index"]
        error, fewest = FAILING_STEPS.get(sampler, ("", 0))
        settings = params["override_settings"] or {}
        steps, strength = params["steps"], params["denoising_strength"]
        if not math.isfinite(strength):
            raise engine_error("ValueError", f"cannot convert float {strength} to integer")
        noisy = int(min(strength, 0.999) * steps)
        if settings.get("img2img_fix_steps"):
            noisy = steps - 1
        if sampler == "UniPC":
            fewest = settings.get("uni_pc_order") or fewest
        if noisy < 0 or noisy < fewest:
            raise engine_error(error or "IndexError", "")

    def count(self, params: Params) -> int:
        """The number of pictures: the batch is as large as the list."""
        several = len(self.pictures) > 1
        return params["n_iter"] * (len(self.pictures) if several else params["batch_size"])

    def size(self, params: Params, index: int) -> tuple[int, int]:
        """Width and height of the finished picture number `index`."""
        if self._only_masked(params):
            return self.pictures[index % len(self.pictures)].size
        return params["width"] // 8 * 8, params["height"] // 8 * 8

    def drawn(self) -> str:
        """What the pictures and the mask look like, as a digest."""
        parts = [*self.pictures, *([self.mask] if self.mask else [])]
        pixels = b"".join(repr((one.size, one.mode)).encode() + one.tobytes() for one in parts)
        return hashlib.sha256(pixels).hexdigest()

    def reported(self, params: Params) -> dict[str, Any]:
        """The parameters in infotext and info."""
        noise = params["initial_noise_multiplier"]
        facts = {"Denoising strength": float(params["denoising_strength"])}
        facts |= {"Noise multiplier": float(noise)} if noise not in {None, 1} else {}
        extra = (params["override_settings"] or {}).get("img2img_extra_noise")
        facts |= {"Extra noise": extra} if extra else {}
        if self.mask is None:
            return facts
        if params["inpainting_mask_invert"]:
            facts["Mask mode"] = "Inpaint not masked"
        across = down = params["mask_blur"]
        if across is None:
            across, down = params["mask_blur_x"], params["mask_blur_y"]
        facts |= {"Mask blur": across} if across == down > 0 else {}
        if self._only_masked(params):
            facts["Inpaint area"] = "Only masked"
            facts["Masked area padding"] = params["inpaint_full_res_padding"]
        content = CONTENTS.get(params["inpainting_fill"])
        return facts | ({"Masked content": content} if content else {})

    def _only_masked(self, params: Params) -> bool:
        if self.mask is None or not params["inpaint_full_res"]:
            return False
        low, high = self.mask.getextrema()
        return bool(low < 255 if params["inpainting_mask_invert"] else high > 0)


def _mask(params: Params) -> Image.Image:
    if params["mask"] == "":
        raise engine_error("AttributeError", "'str' object has no attribute 'mode'")
    image = _picture(params["mask"])
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        alpha = image.getchannel("A")
        return alpha.point(lambda a: 255 * (a > HALF)) if params["mask_round"] else alpha
    return image.convert("L")
