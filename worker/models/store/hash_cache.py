"""Writes known hashes into A1111's own cache, so that A1111 need not read 7 GB again.

A1111 v1.9.3 hashes each checkpoint before it loads it for the first time (`modules/hashes.py`)
and keeps the result with the library `diskcache` (`modules/cache.py`): key
`checkpoint/<file name>`, value `{"mtime": ..., "sha256": ...}`, valid while the file is not newer.
The key of an embedding is `textual_inversion/<stem>`: of two files that had one name in turn, A1111
would report the hash of the newer one for both.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from worker.formats.model_file import ModelFile

_SETTINGS = {"size_limit": 2**32, "disk_min_file_size": 2**18}  # A1111's own

log = logging.getLogger(__name__)


def seed(webui_dir: Path, files: Iterable[ModelFile]) -> int:
    """Write the checkpoints whose hash is known, and all embeddings; returns their number.

    If the cache cannot be written, A1111 computes the hashes itself.
    """
    known = [(key, file, sha256) for file in files for key, sha256 in _entry(file)]
    if not known:
        return 0
    import diskcache  # noqa: PLC0415 - not needed where there is nothing to write

    try:
        with diskcache.Cache(str(webui_dir / "cache" / "hashes"), **_SETTINGS) as cache:
            for key, file, sha256 in known:
                # Written without reading the old entry, which may be damaged and is a pickle.
                cache[key] = {"mtime": file.path.stat().st_mtime, "sha256": sha256}
    except (OSError, sqlite3.Error, diskcache.Timeout) as error:
        log.warning(
            "A1111's hash cache cannot be written: %s. A1111 will compute the hashes.", error
        )
        return 0
    return len(known)


def _entry(file: ModelFile) -> list[tuple[str, str]]:
    """Key and hash, if there is one: an embedding is small enough to be hashed here."""
    if file.kind == "embedding":
        sha256 = file.sha256()
        return [(f"textual_inversion/{file.stem}", sha256)] if sha256 else []
    sha256 = file.verified_sha256 if file.kind == "checkpoint" else None
    return [(f"checkpoint/{file.filename}", sha256)] if sha256 else []
