"""All figures: the file of each, and what draws it. docs/generate.py writes them."""

from __future__ import annotations

from collections.abc import Callable

from docs.figures import container, gpus, job_path, terminal, timeline

FIGURES: dict[str, Callable[[], str]] = {
    "job-path.svg": job_path.draw,
    "job-timeline.svg": timeline.draw,
    "container-states.svg": container.draw,
    "gpu-matrix.svg": gpus.draw,
    "terminal.svg": terminal.draw,
}
