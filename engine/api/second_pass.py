"""Highres fix: the size of the second pass, and the enlarged picture that it starts from."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from engine.api.request import LATENT_FACTOR, LONGEST_SIDE, Txt2Img

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


def is_latent(upscaler: str | None) -> bool:
    """Whether the latent picture is enlarged, as without an upscaler, instead of the picture."""
    return upscaler is None or upscaler in LATENT_MODES


def enlarge(latent: torch.Tensor, target: Target, upscaler: str | None) -> torch.Tensor:
    """The latent picture in the size of the second pass; without an upscaler by "Latent"."""
    mode, antialias = LATENT_MODES[upscaler or LATENT]
    size = (target.height // LATENT_FACTOR, target.width // LATENT_FACTOR)
    return target.cropped(functional.interpolate(latent, size=size, mode=mode, antialias=antialias))
