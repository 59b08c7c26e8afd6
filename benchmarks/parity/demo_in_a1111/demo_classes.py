"""The demo model's classes for a real A1111: `demo.yaml` names them.

Its UNet and its VAE have other numbers of groups in their norms than 32, which ldm has built in,
and a level of 2.5 times the width. It must be importable for A1111 (PYTHONPATH).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ldm.models.autoencoder import AutoencoderKL  # type: ignore[import-not-found]
from ldm.modules import attention  # type: ignore[import-not-found]
from ldm.modules.diffusionmodules import model, openaimodel  # type: ignore[import-not-found]
from ldm.modules.diffusionmodules.util import GroupNorm32  # type: ignore[import-not-found]


@contextmanager
def groups(count: int) -> Iterator[None]:
    """Give the norms of ldm this number of groups."""
    saved = attention.Normalize, model.Normalize, openaimodel.normalization

    def norm(channels: int, _groups: int | None = None) -> torch.nn.GroupNorm:
        return torch.nn.GroupNorm(count, channels, eps=1e-6)

    attention.Normalize = model.Normalize = norm
    openaimodel.normalization = lambda channels: GroupNorm32(count, channels)
    try:
        yield
    finally:
        attention.Normalize, model.Normalize, openaimodel.normalization = saved


class Factor(float):
    """A width's factor whose products are whole numbers."""

    def __mul__(self, other: float) -> int:
        return int(float(self) * other)

    __rmul__ = __mul__


class DemoUNet(openaimodel.UNetModel):  # type: ignore[misc]
    """The UNet, with 8 groups."""

    def __init__(self, *args: Any, channel_mult: list[float], **options: Any) -> None:  # noqa: ANN401
        with groups(8):
            super().__init__(*args, channel_mult=[Factor(one) for one in channel_mult], **options)


class DemoVae(AutoencoderKL):  # type: ignore[misc]
    """The VAE, with 4 groups."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        with groups(4):
            super().__init__(*args, **options)
