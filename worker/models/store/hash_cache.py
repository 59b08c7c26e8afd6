"""Writes known hashes into A1111's own cache, so that A1111 need not read 7 GB again.

A1111 v1.9.3 hashes each checkpoint before it loads it for the first time (`modules/hashes.py`)
and keeps the result with the library `diskcache` (`modules/cache.py`): key
`checkpoint/<file name>`, value `{"mtime": ..., "sha256": ...}`, valid while the file is not newer.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import diskcache

from worker.formats.model_file import ModelFile

_SETTINGS = {"size_limit": 2**32, "disk_min_file_size": 2**18}  # A1111's own

log = logging.getLogger(__name__)


def seed(webui_dir: Path, checkpoints: Iterable[ModelFile]) -> int:
    """Write the checkpoints whose hash is known; returns their number.

    If the cache cannot be written, A1111 computes the hashes itself.
    """
    known = [(file, file.verified_sha256) for file in checkpoints if file.verified_sha256]
    if not known:
        return 0
    try:
        with diskcache.Cache(str(webui_dir / "cache" / "hashes"), **_SETTINGS) as cache:
            for file, sha256 in known:
                # Written without reading the old entry, which may be damaged and is a pickle.
                mtime = file.path.stat().st_mtime
                cache[f"checkpoint/{file.filename}"] = {"mtime": mtime, "sha256": sha256}
    except (OSError, sqlite3.Error, diskcache.Timeout) as error:
        log.warning(
            "A1111's hash cache cannot be written: %s. A1111 will compute the hashes.", error
        )
        return 0
    return len(known)
