"""The tests' A1111 with pictures of noise, and a log of when it was asked and when it answered.

    python benchmarks/sides/noise_engine.py --port 3000 --data-dir DIR

The noise has 4 bits for each colour, so that a picture of 1024 x 1024 has 1.6 MB, as those of a
real model. Each size is drawn once, so that an answer costs the engine little. `GET /_bench/posts`
has for each POST to txt2img the seconds of `time.monotonic` at its arrival and at the end of its
answer.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT)]

import uvicorn  # noqa: E402
from fakes.a1111 import __main__ as program  # noqa: E402
from fakes.a1111 import picture, server  # noqa: E402

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def png(width: int, height: int, _colour: bytes, text: str) -> bytes:
    """A picture of noise with this infotext."""
    note = picture._chunk(b"tEXt", b"parameters\0" + text.encode("latin-1", "replace"))  # noqa: SLF001
    header, rest = _noise(width, height)
    return header + note + rest


@functools.cache
def _noise(width: int, height: int) -> tuple[bytes, bytes]:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    dark = bytes(value & 15 for value in range(256))
    rows = b"".join(b"\0" + os.urandom(3 * width).translate(dark) for _ in range(height))
    chunk = picture._chunk  # noqa: SLF001 - the tests' own way to write one
    data = chunk(b"IDAT", zlib.compress(rows, 1))
    return picture.SIGNATURE + chunk(b"IHDR", header), data + chunk(b"IEND", b"")


class Watched:
    """The engine's application, with the times of its POSTs."""

    def __init__(self, app: Any) -> None:  # noqa: ANN401 - an ASGI application
        self._app = app
        self.posts: list[tuple[float, float]] = []
        app.add_api_route("/_bench/posts", lambda: self.posts)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        began = time.monotonic()
        await self._app(scope, receive, send)
        if str(scope.get("path")).endswith("txt2img"):
            self.posts.append((began, time.monotonic()))


def main() -> None:
    """Be the engine."""
    picture.png = png
    program.build_app = lambda engine: Watched(server.build_app(engine))
    program.main()


if __name__ == "__main__":
    uvicorn.config.LOGGING_CONFIG["loggers"] = {}
    main()
