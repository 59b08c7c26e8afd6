"""The curves as SVG files, the same bytes for the same results."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from benchmarks.suite.figures import Curve

# Text stays text; without a date and with a fixed salt, the same curve makes the same file.
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",
    "font.family": "sans-serif",
}
SIZE_INCHES = (7.2, 3.6)


def draw(curve: Curve) -> str:
    """The curve as the text of an SVG file."""
    with mpl.rc_context(SETTINGS):
        canvas = Canvas(figsize=SIZE_INCHES, layout="constrained")
        axes = canvas.subplots()
        for number, (side, points) in enumerate(curve.lines.items()):
            axes.plot(*zip(*points, strict=True), marker="osD^v"[number % 5], label=side)
        if curve.log_x:
            axes.set_xscale("log")
            ticks = sorted({x for points in curve.lines.values() for x, _ in points})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set(title=curve.name, xlabel=curve.x, ylabel=curve.y)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
