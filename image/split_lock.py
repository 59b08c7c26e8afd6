"""Splits a lock file into one for each layer of an environment.

A layer of every large part is downloaded beside the others, and stays the same while its packages
do.

usage: split_lock.py LOCK FOLDER
"""

import re
import sys
from pathlib import Path

# Part -> which packages it has that no part before it has. The first ones are about 1.5 GB each.
PARTS = {
    "cudnn": r"nvidia-(cudnn|nccl)-",
    "blas": r"nvidia-(cublas|cusolver|cusparse)-",
    "cuda": r"nvidia-",
    "torch": r"torch==",
    "rest": r"",
}


def split(lock: str) -> dict[str, str]:
    """{part: its lines of the lock file}."""
    parts = dict.fromkeys(PARTS, "")
    for package in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE):
        name = next(name for name, pattern in PARTS.items() if re.match(pattern, package))
        parts[name] += package
    return parts


if __name__ == "__main__":
    lock, folder = map(Path, sys.argv[1:])
    folder.mkdir()
    for name, lines in split(lock.read_text()).items():
        (folder / f"{name}.lock").write_text(lines)
