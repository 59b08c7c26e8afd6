"""The body of a post to RunPod: JSON that is sent in parts, so that no copy of it is made."""

from __future__ import annotations

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from worker.large_json import Document

PART = 1 << 16  # bytes


class JsonPayload(Payload):
    """A JSON document as aiohttp sends it; other tasks run between its parts."""

    def __init__(self, document: Document) -> None:
        super().__init__(document)
        self._document = document
        self._size = document.size

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send it, as fast as the connection takes it."""
        for part in self._document.parts(PART):
            await writer.write(part)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The whole text; for aiohttp's own uses, such as a log."""
        return b"".join(self._document.parts(PART)).decode(encoding, errors)
