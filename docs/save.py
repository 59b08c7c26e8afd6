"""Writes the pictures of a job's answer to files: `curl ... | python docs/save.py NAME`.

The answer is that of `/runsync` or `/status` on standard input. Files are never replaced.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

# The first characters of a picture's base64 -> its suffix.
SUFFIXES = {"iVBOR": "png", "/9j/": "jpeg", "UklGR": "webp"}


def save(answer: dict[str, object], name: str) -> int:
    """Write `NAME-0.png`, `NAME-1.png`, ... and print their names; returns the exit status."""
    output = answer.get("output")
    if not isinstance(output, dict) or "images" not in output:
        reason = answer.get("error") or f"the job is {answer.get('status', 'not there')}"
        sys.stderr.write(f"no picture: {reason}\n")
        return 1
    for number, image in enumerate(output["images"]):
        if image.startswith("https://"):  # in a bucket
            sys.stdout.write(f"{image}\n")
            continue
        suffix = next(kind for start, kind in SUFFIXES.items() if image.startswith(start))
        path = Path(f"{name}-{number}.{suffix}")
        try:
            with path.open("xb") as file:
                file.write(base64.b64decode(image))
        except OSError as error:
            sys.stderr.write(f"{path} is not written: {error.strerror}\n")
            return 1
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(save(json.load(sys.stdin), *sys.argv[1:2] or ["picture"]))
