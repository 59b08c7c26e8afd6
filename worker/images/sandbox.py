"""Starts the process that decodes the pictures of a job, and ends it in time."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker.errors import FetchStopped, InvalidInput
from worker.images.input_image import InputImage
from worker.images.limits import ImageLimits

log = logging.getLogger(__name__)

_ROOT = Path(__file__).parents[2]
_COMMAND = [sys.executable, "-m", "worker.images.decoder"]
_KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")  # no secrets
_TICK = 0.05  # seconds
_HINT = "Send the picture in another format, or smaller."


def decode_all(
    files: Mapping[str, bytes], limits: ImageLimits, stop: threading.Event
) -> dict[str, InputImage]:
    """Decode pictures: field -> file becomes field -> picture, in the same order.

    Raises:
        InvalidInput: names the field of the first picture that cannot be used.
        FetchStopped: `stop` was set.
    """
    requests = [json.dumps(asdict(limits)).encode(), b"\n"]
    for data in files.values():
        requests += [b"%d\n" % len(data), data]
    output = io.BytesIO(_run(b"".join(requests), limits, stop))
    return {field: _image(field, data, output) for field, data in files.items()}


def _image(field: str, data: bytes, output: io.BytesIO) -> InputImage:
    line = output.readline()
    facts: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {"size": 1}
    body = output.read(facts["size"])
    if len(body) < facts.pop("size"):  # the process has ended before
        raise InvalidInput(
            f"{field}: the picture cannot be decoded: it takes too much memory or time.", hint=_HINT
        )
    if problem := facts.get("problem"):
        raise InvalidInput(f"{field}: {problem}", hint=facts["hint"])
    facts["data"] = data if facts["data"] == "as sent" else body
    return InputImage(**{**facts, "left_out": tuple(facts["left_out"])})


def _kill_in_time(
    process: subprocess.Popen[bytes], seconds: float, stop: threading.Event, done: threading.Event
) -> None:
    deadline = time.monotonic() + seconds
    while not done.wait(_TICK):
        if stop.is_set() or time.monotonic() > deadline:
            process.kill()
            return


def _run(request: bytes, limits: ImageLimits, stop: threading.Event) -> bytes:
    """The standard output of the process; shorter than expected if the process was ended."""
    environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environ["MALLOC_ARENA_MAX"] = "2"  # each reserves memory, which is limited
    process = subprocess.Popen(  # noqa: S603 - our own module
        _COMMAND,
        cwd=_ROOT,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    done = threading.Event()
    clock = threading.Thread(
        target=_kill_in_time, args=[process, limits.decode_seconds, stop, done], daemon=True
    )
    with process:
        clock.start()
        try:
            output, errors = process.communicate(request)
        finally:
            done.set()
            process.kill()  # does nothing to a process that has ended
    clock.join()
    if stop.is_set():
        raise FetchStopped("the job was stopped while its pictures were read.", hint="")
    if process.returncode:
        last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        log.warning("the decoder of pictures ended with status %s: %s", process.returncode, last)
    return output
