"""OUTPUT_DIR: pictures as files on this machine."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker import log
from worker.errors import DeliveryFailed, ResultTooLarge
from worker.generation.picture import Picture

_NAMED = 4  # files in one message; `files` in the job's answer has all

logger = logging.getLogger(__name__)


class OutputDir:
    """The operator's folder for pictures; `folder` is None if there is none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def save(
        self,
        facts: Mapping[str, Any],
        answer: Mapping[str, Any],
        pictures: Sequence[Picture],
        job_id: str,
    ) -> None:
        """Also write delivered pictures; if that fails, the caller gets them with a warning."""
        if self._folder is None:
            return
        try:
            files = write(pictures, self._folder, job_id)
        except OSError as error:
            answer["warnings"].append(f"not saved to OUTPUT_DIR: {error.strerror}")
        else:
            logger.info("saved\n%s", summary(facts, answer, files), extra=log.OWN_LINES)

    def keep(
        self, error: DeliveryFailed | ResultTooLarge, pictures: Sequence[Picture], job_id: str
    ) -> None:
        """Write pictures that cannot be delivered, and add their file names to the error."""
        if self._folder is None:
            error.hint += " With OUTPUT_DIR set, the pictures would have been kept there."
            return
        try:
            files = write(pictures, self._folder, job_id)
        except OSError as problem:
            error.hint += f" The pictures could not be kept in OUTPUT_DIR: {problem.strerror}."
        else:
            error.details["files"] = [str(file) for file in files]
            more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
            named = ", ".join(map(str, files[:_NAMED])) + more
            error.hint += f" The pictures are kept in OUTPUT_DIR: {named}."


def cleaned(job_id: str, longest: int = 128) -> str:
    """A job's id as part of a file name or a key, without special characters.

    Of an id that is too long the end counts: there is the number of a batch's input.
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "_", job_id)[-longest:] or "job"


def write(pictures: Sequence[Picture], folder: Path, job_id: str) -> list[Path]:
    """Write each picture as `<time>-<job>-<n>.<suffix>`; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{cleaned(job_id, 64)}"
    files = [folder / f"{stem}-{number}.{one.suffix}" for number, one in enumerate(pictures)]
    for file, picture in zip(files, pictures, strict=True):
        file.write_bytes(picture.data)
    return files


def summary(facts: Mapping[str, Any], result: Mapping[str, Any], files: Sequence[Path]) -> str:
    """A few lines for a person: prompt, seed, models, seconds, files and warnings."""
    shown = result["timings"].keys() - {"gpu_seconds", "usd_per_picture"}
    timings = ", ".join(f"{name} {s}" for name, s in result["timings"].items() if name in shown)
    lines = [
        *_about_drawing(facts, result),
        f"seconds  {timings}",
        *(f"file     {file}" for file in files),
        *(f"warning  {warning}" for warning in result["warnings"]),
    ]
    return "\n".join(" ".join(line.splitlines()) for line in lines)


def _about_drawing(facts: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """The lines about a picture that was drawn; none about one that was enlarged."""
    if "prompt" not in facts:
        return []
    size, models = f"{facts['width']}x{facts['height']}", result["models"]
    return [
        f"prompt   {facts['prompt']}",
        f"picture  {size}, {facts['steps']} steps of {facts['sampler_name']}, seed {facts['seed']}",
        f"models   {', '.join(str(model['name']) for model in models)}",
    ]
