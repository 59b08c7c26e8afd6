"""The preprocessors of ControlNet that a job can use, and what each takes. Pure.

They are those of the extension's commit in the Dockerfile (v1.1.455). Others are left out: each
needs weights and packages that the image does not have, and the extension would download them
unchecked while a job waits.
"""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]
RESOLUTION: Range = (64, 2048)  # pixels
_FRACTION: Range = (0, 1)


@dataclass(frozen=True)
class Preprocessor:
    """What a preprocessor takes; the extension replaces other numbers with its defaults.

    Attributes:
        label: its other name, that of A1111's own page, which the API accepts too.
        threshold_a, threshold_b: smallest and largest value; None: it has no such number.
        resolution: whether it takes `processor_res`.
        has_model: whether it steers with a ControlNet model; the reference ones have none.
        mask: whether it reads the unit's `mask`.
    """

    label: str = ""
    threshold_a: Range | None = None
    threshold_b: Range | None = None
    resolution: bool = True
    has_model: bool = True
    mask: bool = False


_LINES = "(from white bg & black line)"
_INPAINT = Preprocessor(resolution=False, mask=True)
_REFERENCE = Preprocessor(threshold_a=_FRACTION, has_model=False)

PREPROCESSORS: dict[str, Preprocessor] = {
    "none": Preprocessor(),
    "blur_gaussian": Preprocessor(threshold_a=(0.01, 64)),
    "canny": Preprocessor(threshold_a=(1, 255), threshold_b=(1, 255)),
    "color": Preprocessor("t2ia_color_grid"),
    "inpaint": Preprocessor("inpaint_global_harmonious", resolution=False, mask=True),
    "inpaint_only": _INPAINT,
    "invert": Preprocessor(f"invert {_LINES}", resolution=False),
    "lineart_standard": Preprocessor(f"lineart_standard {_LINES}"),
    "recolor_intensity": Preprocessor(threshold_a=(0.1, 2)),
    "recolor_luminance": Preprocessor(threshold_a=(0.1, 2)),
    "reference_adain": _REFERENCE,
    "reference_adain+attn": _REFERENCE,
    "reference_only": _REFERENCE,
    "scribble_xdog": Preprocessor(threshold_a=(1, 64)),
    "shuffle": Preprocessor(resolution=False),
    "threshold": Preprocessor(threshold_a=(0, 255)),
    "tile_colorfix": Preprocessor(threshold_a=(3, 32)),
    "tile_colorfix+sharp": Preprocessor(threshold_a=(3, 32), threshold_b=(0, 2)),
    "tile_resample": Preprocessor(threshold_a=(1, 8)),
}
BY_NAME = PREPROCESSORS | {one.label: one for one in PREPROCESSORS.values() if one.label}
