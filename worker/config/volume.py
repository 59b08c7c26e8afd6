"""RunPod's volume, and whether a folder on it can be written: that is tried."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

# RunPod mounts a network volume here, and the cached model of an endpoint below it.
VOLUME = Path("/runpod-volume")
HUB_CACHE = VOLUME / "huggingface-cache" / "hub"

_FULL = {errno.ENOSPC, errno.EDQUOT}


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be made in the folder; None if one can.

    Permissions do not show a mount that is read-only, so a temporary file is made and removed. If
    the folder does not exist, it is tried in the next one above that does. A full disk counts as
    writable: models can be removed from it.
    """
    above = (folder, *folder.parents)
    existing = next(path for path in above if os.path.isdir(path))  # noqa: PTH112 - never raises
    if not existing.is_relative_to(VOLUME):
        return f"{VOLUME} does not exist"
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".write-test-"):
            return None
    except OSError as error:
        return None if error.errno in _FULL else error.strerror
