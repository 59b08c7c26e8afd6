"""Splits a lock file into one for each layer of an environment.

A layer of every large part is downloaded beside the others, and stays the same while its packages
do.

usage: split_lock.py LOCK FOLDER
       split_lock.py --beyond BASE LOCK     leave in LOCK only what BASE does not have
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
    for package in _packages(lock):
        name = next(name for name, pattern in PARTS.items() if re.match(pattern, package))
        parts[name] += package
    return parts


def beyond(base: str, lock: str) -> str:
    """The packages of `lock` that `base` lacks, or has in another version."""
    known = {package.split()[0] for package in _packages(base)}
    return "".join(package for package in _packages(lock) if package.split()[0] not in known)


def _packages(lock: str) -> list[str]:
    return re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]


if __name__ == "__main__":
    if sys.argv[1] == "--beyond":
        base, extension = map(Path, sys.argv[2:])
        extension.write_text(beyond(base.read_text(), extension.read_text()))
        sys.exit()
    lock, folder = map(Path, sys.argv[1:])
    folder.mkdir()
    for name, lines in split(lock.read_text()).items():
        (folder / f"{name}.lock").write_text(lines)
