"""A UNet for pictures whose sides are multiples of 8, but not of 64.

Going down, the UNet halves 25 to 13; going up, it doubles 13 to 26, one more than before. diffusers
enlarges to the former size at once, before the convolution. A1111 (v1.9.3, `sd_hijack_unet`)
doubles, convolves, and then takes the nearest pixels. The pictures differ, so this does as A1111.
"""

from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch.nn import functional


def follow(unet: torch.nn.Module) -> None:
    """Change how the UNet enlarges; without effect on sides that are multiples of 64."""
    for module in unet.modules():
        if type(module) is Upsample2D:
            module.__class__ = _Doubling


class _Doubling(Upsample2D):
    def forward(
        self,
        hidden_states: torch.Tensor,
        output_size: Any = None,  # noqa: ANN401 - declared as a number, given as a torch.Size
    ) -> torch.Tensor:
        """(batch, channels, height, width) -> of twice the size, or of `output_size`."""
        doubled = super().forward(hidden_states)
        if output_size is None or doubled.shape[2:] == output_size:
            return doubled
        return functional.interpolate(doubled, size=tuple(output_size), mode="nearest")
