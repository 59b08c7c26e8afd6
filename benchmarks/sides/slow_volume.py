"""A slow network volume: a folder behind FUSE, each of whose streams gets a limited rate.

    python -m benchmarks.sides.slow_volume SOURCE MOUNT BYTES_A_SECOND

A stream is an opened file, as at a volume whose servers give each connection its share. The kernel
keeps what was read in its page cache, as it does for RunPod's volumes.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.suite.machine import PROJECT

MOUNT_SECONDS = 20


class SlowFolder:
    """The operations of FUSE that a reader needs; paths begin with a slash."""

    use_ns = True

    def __init__(self, source: Path, rate: float) -> None:
        self._source = source
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at: dict[int, float] = {}  # when a stream may send again

    def init(self, _path: str) -> None:
        """Nothing is to be prepared."""

    destroy = init

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        """A file's size and times."""
        found = os.lstat(self._real(path))
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_mtime_ns")
        return {name.removesuffix("_ns"): getattr(found, name) for name in names}

    def readdir(self, path: str, _handle: int) -> list[str]:
        """The names in a folder."""
        return [".", "..", *(one.name for one in self._real(path).iterdir())]

    def open(self, path: str, flags: int) -> int:
        """Open a file: a new stream."""
        return os.open(self._real(path), flags)

    def read(self, _path: str, size: int, offset: int, handle: int) -> bytes:
        """Bytes of the file, not before the stream may send them."""
        content = os.pread(handle, size, offset)
        with self._lock:
            begin = max(self._free_at.get(handle, 0.0), time.monotonic())
            self._free_at[handle] = begin + len(content) / self._rate
        time.sleep(max(0.0, self._free_at[handle] - time.monotonic()))
        return content

    def release(self, _path: str, handle: int) -> int:
        """Close a file."""
        self._free_at.pop(handle, None)
        os.close(handle)
        return 0

    def _real(self, path: str) -> Path:
        return self._source / path.lstrip("/")


def why_impossible() -> str | None:
    """Why this machine cannot mount such a volume; None if it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is not installed"
    try:
        importlib.import_module("mfusepy")
    except (ImportError, OSError) as error:
        return str(error)
    return None


@contextmanager
def mounted(source: Path, mount: Path, rate: float) -> Iterator[None]:
    """The folder `source` at `mount`, with this many bytes a second for each stream."""
    mount.mkdir(parents=True, exist_ok=True)
    arguments = [str(source), str(mount), str(rate)]
    command = [sys.executable, "-m", "benchmarks.sides.slow_volume", *arguments]
    with mount.with_suffix(".log").open("wb") as errors:
        process = subprocess.Popen(command, cwd=PROJECT, stderr=errors)
    try:
        end = time.monotonic() + MOUNT_SECONDS
        while not mount.is_mount():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(mount.with_suffix(".log").read_text())
            time.sleep(0.05)
        yield
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mount)], check=False)
        process.terminate()
        process.wait(MOUNT_SECONDS)


def main() -> None:
    """Serve one folder until it is unmounted."""
    source, mount, rate = sys.argv[1:]
    import mfusepy

    folder = SlowFolder(Path(source), float(rate))
    mfusepy.FUSE(folder, mount, foreground=True, ro=True, kernel_cache=True)


if __name__ == "__main__":
    main()
