"""Delivery as JPEG and WebP, compared with Pillow on the same PNGs one by one."""

from __future__ import annotations

import base64
import functools
import io
import time
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageChops, PngImagePlugin

from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns
from worker import cores
from worker.delivery.delivery import Delivery
from worker.generation.picture_answer import PictureAnswer
from worker.http.client import SafeHttpClient
from worker.images.metadata import infotext_of
from worker.job.output_fields import Output

OURS, OTHER = "this worker", "Pillow, one picture after the other"
TITLE = "Pictures as JPEG and WebP"
ABOUT = """\
The engine answers with base64 PNGs, and the job asks for JPEG or WebP. The rival is what a handler
does with Pillow in a loop: decode the base64 and the PNG, save it in the format with quality 90 and
Pillow's other defaults, encode that as base64. It drops the generation parameters. The worker's
delivery does the same with the same quality, keeps the parameters in EXIF, and measures the
size of the result; it converts as many pictures at once as it has cores. A round of the sides has
the same pictures: gradients with grain, about 2 MB as PNG at 1024 x 1024.
"""
ROUNDS, MOST, QUALITY = 5, 8, 90
CURVE = (1, 2, 4, 8)
WHY = (
    "The process may use {cores} cores, and both sides use the same codecs: with two cores, half of"
    " the time is about the limit, and only while nothing else uses one of them."
)
INFOTEXT = "a fox in the snow\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 1024x1024"


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """Seconds by number of pictures, for both formats."""
    side = 64 if bench.quick else 1024
    pngs = [_png(side) for _ in range(MOST)]
    for format_ in ("JPEG", "WEBP"):
        lines: dict[str, list[tuple[float, float]]] = {OURS: [], OTHER: []}
        for pictures in CURVE:
            given = pngs[:pictures]
            ours, other = (functools.partial(way, given, format_) for way in (_ours, _one_by_one))
            figure = Figure(
                f"{pictures} picture{'s' * (pictures > 1)} of {side} x {side} as {format_}",
                "ms",
                *in_turns(bench.rounds(ROUNDS), ours, other),
                OTHER,
                Goal(0.5) if pictures == CURVE[2] else None,
                WHY.format(cores=cores.usable()),
            )
            lines[OURS].append((pictures, figure.our_value))
            lines[OTHER].append((pictures, figure.other_value or 0.0))
            if figure.goal:
                yield figure
        points = {name: tuple(line) for name, line in lines.items()}
        yield Curve(f"Delivery as {format_}", f"pictures of {side} x {side}", "ms", points)


def _png(side: int) -> str:
    """A picture with grain, as base64."""
    ramp = Image.linear_gradient("L").resize((side, side))
    bands = (ramp, ramp.rotate(90), Image.radial_gradient("L").resize((side, side)))
    grain = [ImageChops.subtract(Image.effect_noise((side, side), 12), ramp, 2, 64) for _ in bands]
    mixed = [Image.blend(*pair, 0.5) for pair in zip(bands, grain, strict=True)]
    texts, file = PngImagePlugin.PngInfo(), io.BytesIO()
    texts.add_text("parameters", INFOTEXT)
    Image.merge("RGB", mixed).save(file, "PNG", pnginfo=texts)
    return base64.b64encode(file.getvalue()).decode()


def _ours(pngs: list[str], format_: str) -> float:
    delivery = Delivery(None, None, None, SafeHttpClient())
    answer: dict[str, Any] = {"images": [], "warnings": [], "timings": {}}
    output = Output.model_validate({"format": format_.lower(), "quality": QUALITY})
    start = time.perf_counter()
    found = delivery.deliver(PictureAnswer(pngs, {}, "", {}), answer, output, "bench")
    seconds = time.perf_counter() - start
    with Image.open(io.BytesIO(base64.b64decode(found["images"][-1]))) as last:
        if last.format != format_ or infotext_of(last) != INFOTEXT:
            raise SystemExit("the delivered picture is not the one that was asked for")
    return seconds * 1000


def _one_by_one(pngs: list[str], format_: str) -> float:
    start = time.perf_counter()
    for png in pngs:
        file = io.BytesIO()
        with Image.open(io.BytesIO(base64.b64decode(png))) as image:
            image.save(file, format_, quality=QUALITY)
        base64.b64encode(file.getvalue()).decode()
    return (time.perf_counter() - start) * 1000
