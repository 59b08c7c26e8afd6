"""The input of a txt2img job."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from worker.job.request import PictureRequest, SecondPass, check

_LEAST_DENOISING = 0.01
_LEAST_SIDE = 8  # pixels; A1111 rounds sides down to multiples of 8


class Txt2ImgRequest(SecondPass, PictureRequest):
    """The input of a txt2img job."""

    task: Literal["txt2img"] = Field("txt2img", description="The task: this one, or another task.")

    def _conflicts(self) -> list[tuple[bool, str]]:
        return [
            (
                # With 0 most samplers of A1111 v1.9.3 fail, and some never end (measured).
                self.enable_hr and (self.denoising_strength or 0) < _LEAST_DENOISING,
                f"enable_hr needs denoising_strength of at least {_LEAST_DENOISING}",
            ),
            (
                self.enable_hr and self._hires_side() < _LEAST_SIDE,
                f"hr_resize makes a side of {self._hires_side()} pixels, less than {_LEAST_SIDE}",
            ),
            *super()._conflicts(),
        ]

    def _hires_side(self) -> int:
        """The shorter side of the upscaled picture, in pixels."""
        x, y = self.hr_resize_x, self.hr_resize_y
        if not x and not y:
            return min(self.width, self.height)
        return min(x or y * self.width // self.height, y or x * self.height // self.width)


def parse(job_input: object) -> Txt2ImgRequest:
    """Check the input of a txt2img job.

    Raises:
        InvalidInput: see `worker.job.request.check`.
    """
    return check(job_input, Txt2ImgRequest)
