"""For a real A1111: registers the tiny OpenCLIP text encoder of `benchmarks.parity.families`.

The configurations name these classes, so that this module is imported before the text encoders are
made. It must be importable for A1111 (PYTHONPATH).
"""

from pathlib import Path

import open_clip  # type: ignore[import-not-found]
from ldm.modules.diffusionmodules import openaimodel  # type: ignore[import-not-found]
from sgm.modules.diffusionmodules import (  # type: ignore[import-not-found]
    openaimodel as xl_openaimodel,
)

open_clip.add_model_config(Path(__file__).parent / "open_clip_tiny")


class UNet(openaimodel.UNetModel):  # type: ignore[misc]
    """The UNet of SD1 and SD2, unchanged."""


class XlUNet(xl_openaimodel.UNetModel):  # type: ignore[misc]
    """The UNet of SDXL, unchanged."""
