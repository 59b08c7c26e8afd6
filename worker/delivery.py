"""Pictures as files, for people who run the worker on their own machine."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.webui import Txt2ImgAnswer


def save(images: Sequence[str], folder: Path, job_id: str) -> list[Path]:
    """Write each base64 PNG as `<time>-<job>-<n>.png`; return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^\w-]+", "_", job_id)[:64]
    files = [folder / f"{stamp}-{name}-{number}.png" for number in range(len(images))]
    for file, image in zip(files, images, strict=True):
        file.write_bytes(base64.b64decode(image))
    return files


def summary(answer: Txt2ImgAnswer, result: Mapping[str, Any], files: Sequence[Path]) -> str:
    """A few lines for people: what ran, with which seed and model, how long, where it is."""
    facts = answer.facts
    size = f"{facts['width']}x{facts['height']}"
    models = ", ".join(str(model["name"]) for model in result["models"])
    timings = ", ".join(f"{name} {value}" for name, value in result["timings"].items())
    lines = [
        f"prompt   {facts['prompt']}",
        f"picture  {size}, {facts['steps']} steps of {facts['sampler_name']}, seed {facts['seed']}",
        f"models   {models}",
        f"seconds  {timings}",
        *(f"file     {file}" for file in files),
        *(f"warning  {warning}" for warning in result["warnings"]),
    ]
    return "\n".join(lines)
