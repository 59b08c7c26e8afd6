"""The steps that look at pictures: against CPU references, and the VAE in half precision.

The references were drawn in single precision on the CPU by `python -m benchmarks.gpu --record`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_proof.context import (
    Context,
    Outcome,
    Skipped,
    mean_difference,
    pixels,
    read_picture,
)
from benchmarks.gpu_proof.plane import Job

REFERENCES = Path(__file__).with_name("references")
BLACK = 2.0  # a picture whose values deviate less shows nothing
# In the engine's log, when it repeats a picture because its VAE overflowed.
FELL_BACK = ("NaNs was produced in VAE", "overflows in half precision")
VAE_TOLERANCE = 3.0  # mean difference to single precision, in 255ths


@dataclass(frozen=True)
class Reference:
    """A picture that was recorded on the CPU.

    Attributes:
        tolerance: largest mean difference, in 255ths. On the CPU, half precision differs from
            single precision by a tenth of it; another seed differs by several times it.
    """

    name: str
    fields: dict[str, Any]
    tolerance: float

    @property
    def file(self) -> Path:
        """The recorded picture; both engines draw the same one."""
        return REFERENCES / f"{self.name}.png"


def references_of(context: Context) -> list[Reference]:
    """The pictures that this engine draws for comparison."""
    size = 64 if context.tiny else 128
    checkpoint = context.checkpoint("SD1")
    fields = {"checkpoint": checkpoint, "width": size, "height": size, "steps": 4, "seed": 7}
    found = [Reference(checkpoint, fields, 2.0)]
    if context.engine == "embedded":
        demo = {"checkpoint": "demo-shapes", "width": 256, "height": 256, "steps": 8, "seed": 7}
        found.append(Reference("demo-shapes", demo, 1.0))
    return found


def compare_with_references(context: Context) -> Outcome:
    """Draw each reference again, and compare."""
    details: dict[str, Any] = {}
    checks = {}
    for reference in references_of(context):
        drawn = pixels(context.run(**reference.fields))
        difference = mean_difference(drawn, read_picture(reference.file.read_bytes()))
        other = mean_difference(drawn, pixels(context.run(**reference.fields | {"seed": 8})))
        details[f"{reference.name}, mean difference of 255"] = round(difference, 3)
        details[f"{reference.name}, of another seed"] = round(other, 3)
        passed = difference <= reference.tolerance
        checks[f"{reference.name} is within {reference.tolerance:g} of the CPU's picture"] = passed
    return Outcome(details, checks)


def record_references(context: Context) -> Outcome:
    """Draw the references, and write them into this package."""
    REFERENCES.mkdir(exist_ok=True)
    for reference in references_of(context):
        job = context.run(**reference.fields)
        reference.file.write_bytes(base64.b64decode(job.output["images"][0]))
    return Outcome({"references": [one.name for one in references_of(context)]})


def draw_in_half_precision(context: Context) -> Outcome:
    """The VAE in the precision that the engine chose: not black, and without a second try."""
    picture = pixels(_draw(context))
    context.pictures["vae"] = picture
    log = context.running.log()
    fell_back = [text for text in FELL_BACK if text in log]
    return Outcome(
        {"mean": round(float(picture.mean()), 1), "deviation": round(float(picture.std()), 1)},
        {
            "the picture is not black": bool(picture.std() > BLACK),
            "the VAE did not overflow": not fell_back,
        },
    )


def compare_with_single_precision(context: Context) -> Outcome:
    """The same picture with A1111's `--no-half-vae`; the worker was started with it."""
    if "vae" not in context.pictures:
        raise Skipped("there is no picture in half precision")
    difference = mean_difference(context.pictures["vae"], pixels(_draw(context)))
    return Outcome(
        {"mean difference of 255": round(difference, 3)},
        {f"half precision is within {VAE_TOLERANCE:g}": difference <= VAE_TOLERANCE},
    )


def _draw(context: Context) -> Job:
    return context.run(seed=6, steps=8)
