"""Highres fix: the size of the second pass, and the enlarged picture that it starts from."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch.nn import functional

from engine.api.request import LATENT_FACTOR, LONGEST_SIDE, Txt2Img
from engine.models.loaded_model import LoadedModel, to_image

LATENT = "Latent"
# A1111's ways of enlarging the latent picture: (torch's name, antialiased)
LATENT_MODES = {
    LATENT: ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
# A1111's upscalers that need no model; "None" resizes as the last step of all does
UPSCALERS = {
    "None": Resampling.LANCZOS,
    "Lanczos": Resampling.LANCZOS,
    "Nearest": Resampling.NEAREST,
}


@dataclass(frozen=True)
class Target:
    """The size of the enlarged picture, and what is cut off from its latent picture."""

    width: int
    height: int
    cut_x: int = 0
    cut_y: int = 0

    @classmethod
    def of(cls, request: Txt2Img, width: int, height: int) -> "Target":
        """For a first pass of this size. Raises ValueError for an impossible size."""
        to_x, to_y = request.hr_resize_x, request.hr_resize_y
        if to_x == 0 and to_y == 0:
            found = cls(int(width * request.hr_scale), int(height * request.hr_scale))
        elif to_y == 0 or (to_x and width * to_y < to_x * height):
            found = cls(to_x, to_x * height // width)
        else:
            found = cls(to_y * width // height, to_y)
        if to_x and to_y:
            cuts = (found.width - to_x) // LATENT_FACTOR, (found.height - to_y) // LATENT_FACTOR
            found = cls(found.width, found.height, *cuts)
        cut = (found.cut_x * LATENT_FACTOR, found.cut_y * LATENT_FACTOR)
        if (
            min(found.width - cut[0], found.height - cut[1]) < LATENT_FACTOR
            or max(found.width, found.height) > LONGEST_SIDE
        ):
            raise ValueError(
                f"the second pass has the size {found.width}x{found.height}: each side must be "
                f"{LATENT_FACTOR} to {LONGEST_SIDE}"
            )
        return found

    def cropped(self, latent: torch.Tensor) -> torch.Tensor:
        """The middle of the enlarged latent picture."""
        height, width = latent.shape[2:]
        rows = slice(self.cut_y // 2, height - (self.cut_y + 1) // 2)
        columns = slice(self.cut_x // 2, width - (self.cut_x + 1) // 2)
        return latent[:, :, rows, columns]


def check_upscaler(name: str | None) -> None:
    """Raise LookupError for a name that neither list has."""
    if name is not None and name not in LATENT_MODES and name not in UPSCALERS:
        known = ", ".join([*LATENT_MODES, *UPSCALERS])
        raise LookupError(f"could not find upscaler named {name!r}. Known: {known}")


def enlarge(
    model: LoadedModel, latent: torch.Tensor, target: Target, upscaler: str | None
) -> torch.Tensor | Image.Image:
    """The latent picture in the size of the second pass, or the picture in the target's size.

    Without an upscaler it is "Latent".
    """
    if upscaler is None or upscaler in LATENT_MODES:
        mode, antialias = LATENT_MODES[upscaler or LATENT]
        size = (target.height // LATENT_FACTOR, target.width // LATENT_FACTOR)
        larger = functional.interpolate(latent, size=size, mode=mode, antialias=antialias)
        return target.cropped(larger)
    return upscale(to_image(model.decode(latent)), target, upscaler)


def to_pixels(picture: Image.Image) -> torch.Tensor:
    """(1, 3, height, width) in -1..1."""
    levels = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)
    return levels.permute(2, 0, 1)[None] * 2 - 1


def upscale(picture: Image.Image, target: Target, upscaler: str) -> Image.Image:
    """The picture in the target's size, in A1111's two steps: the upscaler, then Lanczos."""
    scale = max(target.width / picture.width, target.height / picture.height)
    if upscaler != "None" and scale > 1:
        picture = _scaled(picture, scale, UPSCALERS[upscaler])
    if picture.size != (target.width, target.height):
        picture = picture.resize((target.width, target.height), Resampling.LANCZOS)
    return picture


def _scaled(picture: Image.Image, scale: float, method: Resampling) -> Image.Image:
    """By the upscaler to about the size, then by Lanczos to a multiple of 8."""
    wanted = [int(side * scale // LATENT_FACTOR * LATENT_FACTOR) for side in picture.size]
    for _ in range(3):
        if all(side >= least for side, least in zip(picture.size, wanted, strict=True)):
            break
        picture = picture.resize([int(side * scale) for side in picture.size], method)
    if list(picture.size) != wanted:
        picture = picture.resize(wanted, Resampling.LANCZOS)
    return picture
