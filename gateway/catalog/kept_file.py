"""One JSON file in the user's cache folder, which only this user can read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.json_text import loads

logger = logging.getLogger(__name__)

_MOST_BYTES = 50_000_000


def cache_file(endpoint: str, kind: str = "lists", environ: Mapping[str, str] = os.environ) -> Path:
    """Where the lists of this endpoint are kept: a file in the cache folder of this system.

    Args:
        endpoint: its URL.
        kind: what is kept: `lists`, or `options` of clients.
        environ: names the folder.
    """
    home = Path.home()
    if sys.platform == "win32":
        folder = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = home / "Library" / "Caches"
    else:
        folder = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    name = hashlib.sha256(endpoint.encode()).hexdigest()[:16]
    return folder / "a1111-worker" / f"{kind}-{name}.json"


class KeptFile:
    """Reads and writes the file. What fails is only logged: the content can be had again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Any:  # noqa: ANN401 - any JSON
        """The content; None if there is no file, or if it cannot be used."""
        try:
            with self._path.open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
            return loads(content) if len(content) <= _MOST_BYTES else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be used: %s", self._path, type(error).__name__)
            return None

    def write(self, content: object) -> None:
        """Replace the content; a reader sees the old one or the new one."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # mkstemp makes a file that only this user can read.
            number, name = tempfile.mkstemp(dir=self._path.parent, prefix=".kept-")
            temporary = Path(name)
            try:
                with os.fdopen(number, "w", encoding="utf-8") as file:
                    json.dump(content, file)
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s is not written: %s", self._path, error.strerror)
