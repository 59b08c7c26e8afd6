"""The contenders written in Python, each run in a fresh process: NAME URL TARGET SIZE SHA256.

Prints one line of JSON: seconds and CPU seconds without the imports, and the SHA-256 if it was
computed. What a long-lived process does once (a connection pool, the certificates) is done
before the clock starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

MIB = 1 << 20
NAIVE = 8192  # bytes; as in many scripts

Work = Callable[[], str | None]


@dataclass(frozen=True)
class Task:
    """What to download, and to which file."""

    url: str
    target: Path
    size: int
    sha256: str


def ours(task: Task, *, hashed: bool = True) -> Work:
    """The worker's download: in parallel, hashed, inspected, synced to disk, published."""
    from worker.errors import ModelFileInvalid
    from worker.files import discard
    from worker.formats.safetensors_header import header_length, parse_header
    from worker.http.client import SafeHttpClient
    from worker.models.download.download import Hooks, download
    from worker.models.download.source import Source

    def inspect(start: bytes, size: int | None) -> int | None:
        needed = header_length(start)
        if needed and len(start) < min(needed, size or needed):
            return needed
        if size is not None and parse_header(start).size != size:
            raise ModelFileInvalid("the host has another size than the header.")
        return None

    http = SafeHttpClient([urlsplit(task.url).netloc])
    part = task.target.with_suffix(".part")
    expected = task.sha256 if hashed else None

    def work() -> str | None:
        source = Source(http, task.url, lambda answer: ModelFileInvalid(f"status {answer.status}"))
        fetched = download(source, part, expected, Hooks(inspect=inspect))
        part.replace(task.target)
        _sync_folder(task.target.parent)
        discard(part)
        return fetched.sha256 if hashed else None

    return work


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class _NoHash:
    """Replaces `hashlib.sha256()` and computes nothing."""

    def __init__(self, _data: bytes = b"") -> None:
        pass

    def update(self, _data: object) -> None:
        """Do nothing."""

    def hexdigest(self) -> str:
        """A text that looks like a digest."""
        return "0" * 64


def ours_without_hash(task: Task) -> Work:
    """The worker's download without the hash: the time of the transfer alone."""
    hashlib.sha256 = _NoHash  # type: ignore[assignment, misc]  # before the worker is imported
    return ours(task, hashed=False)


def with_requests(task: Task, *, block: int, hashed: bool) -> Work:
    """One connection, `iter_content`."""
    import requests

    session = requests.Session()
    verify = os.environ.get("SSL_CERT_FILE") or True

    def work() -> str | None:
        digest = hashlib.sha256()
        file = task.target.open("wb")
        with session.get(task.url, stream=True, verify=verify) as reply, file:
            reply.raise_for_status()
            for piece in reply.iter_content(block):
                if hashed:
                    digest.update(piece)
                file.write(piece)
        return digest.hexdigest() if hashed else None

    return work


def hash_alone(task: Task) -> Work:
    """SHA-256 of the same number of bytes, which are already in the core's cache."""
    block = bytes(MIB // 4)

    def work() -> None:
        digest = hashlib.sha256()
        for _ in range(task.size // len(block)):
            digest.update(block)

    return work


CLIENTS: dict[str, Callable[[Task], Work]] = {
    "ours": ours,
    "ours-without-hash": ours_without_hash,
    "requests-1MiB-hash": partial(with_requests, block=MIB, hashed=True),
    "requests-8KiB": partial(with_requests, block=NAIVE, hashed=False),
    "hash-alone": hash_alone,
}


def main(name: str, url: str, target: str, size: str, sha256: str) -> None:
    """Run one contender once."""
    work = CLIENTS[name](Task(url, Path(target), int(size), sha256))
    cpu, begun = time.process_time(), time.monotonic()
    found = work()
    seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu, "sha256": found}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
