"""The worker's download in a process of its own: URL TARGET SHA256.

It does all that the worker does with a model: SHA-256, inspection, sync to the disk, rename. Prints
one line of JSON: seconds without the imports and without what a worker creates once (connection
pools, certificates), and the peak of the process's memory in bytes.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from worker.errors import ModelFileInvalid
from worker.files import discard
from worker.formats.safetensors_header import header_length, parse_header
from worker.http.client import SafeHttpClient
from worker.models.download.download import download
from worker.models.download.hooks import Hooks
from worker.models.download.source import Source


def inspect(start: bytes, size: int | None) -> int | None:
    """What the store checks in the first bytes, without the model's architecture."""
    needed = header_length(start)
    if needed and len(start) < min(needed, size or needed):
        return needed
    if size is not None and parse_header(start).size != size:
        raise ModelFileInvalid("the host has another size than the header.")
    return None


def peak_memory() -> int:
    """Bytes of resident memory at the peak, since the program was started."""
    status = Path("/proc/self/status").read_text()
    return sum(int(kilobytes) * 1024 for kilobytes in re.findall(r"VmHWM:\s+(\d+) kB", status))


def main(url: str, target: Path, sha256: str) -> None:
    """Download once."""
    http = SafeHttpClient([urlsplit(url).netloc])
    partial = target.with_suffix(".part")
    began = time.monotonic()
    source = Source(http, url, lambda answer: ModelFileInvalid(f"status {answer.status}"))
    download(source, partial, sha256, Hooks(inspect=inspect))
    partial.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    discard(partial)
    print(json.dumps({"seconds": time.monotonic() - began, "peak": peak_memory()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
