"""A1111's own cache of checkpoint hashes, filled in so that it need not read 7 GB again.

A1111 v1.9.3 hashes each checkpoint before it loads it for the first time (`modules/hashes.py`)
and keeps the result with the library `diskcache` (`modules/cache.py`): key
`checkpoint/<file name>`, value `{"mtime": ..., "sha256": ...}`, good while the file is no newer.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import diskcache

from worker.formats.model_file import ModelFile

_SETTINGS = {"size_limit": 2**32, "disk_min_file_size": 2**18}  # A1111's own

log = logging.getLogger("worker.models")


def seed(webui_dir: Path, checkpoints: Iterable[ModelFile]) -> int:
    """Enter the checkpoints whose hash is known; returns how many they are.

    Only a convenience for A1111: if its cache cannot be written, it hashes by itself.
    """
    known = [(file, file.verified_sha256) for file in checkpoints if file.verified_sha256]
    if not known:
        return 0
    try:
        with diskcache.Cache(str(webui_dir / "cache" / "hashes"), **_SETTINGS) as cache:
            for file, sha256 in known:
                # Not read before: what is there may be damaged, and it is a pickle.
                mtime = file.path.stat().st_mtime
                cache[f"checkpoint/{file.filename}"] = {"mtime": mtime, "sha256": sha256}
    except (OSError, sqlite3.Error, diskcache.Timeout) as error:
        log.warning("A1111's hash cache was not filled in: %s", error)
        return 0
    return len(known)
