"""The HTTP/1.1 of the fake model hosts: requests, answers and a wire that may spoil them."""

import asyncio
import fcntl
import hashlib
import json
import re
import socket
import struct
import termios
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from http.client import responses
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

BLOCK = 2**20
THROTTLED_BLOCK = 2**18
BLOCKS_PER_SECOND = 64
CATCH_UP_SECONDS = 0.1
LAST_MODIFIED = "Tue, 20 Jan 2026 10:00:00 GMT"


class Blob:
    """Bytes in memory or in a file of any size, read in pieces."""

    def __init__(self, data: bytes | Path) -> None:
        self.path = data if isinstance(data, Path) else None
        self._view = memoryview(b"" if isinstance(data, Path) else data)
        self.size = data.stat().st_size if isinstance(data, Path) else len(data)

    def open(self) -> AbstractContextManager[BufferedReader | None]:
        return self.path.open("rb") if self.path else nullcontext()

    def read(self, start: int, stop: int) -> bytes | memoryview:
        if not self.path:
            return self._view[start:stop]
        with self.path.open("rb") as source:
            source.seek(start)
            return source.read(max(0, stop - start))

    @cached_property
    def sha256(self) -> str:
        return self._digest(hashlib.sha256())

    @cached_property
    def git_sha1(self) -> str:
        return self._digest(hashlib.sha1(b"blob %d\0" % self.size))

    def _digest(self, hasher: Any) -> str:
        for offset in range(0, self.size, BLOCK):
            hasher.update(self.read(offset, offset + BLOCK))
        return str(hasher.hexdigest())


@dataclass(eq=False)
class Request:
    """One request, and how it ended."""

    role: str
    method: str
    target: str
    headers: dict[str, str]  # lower-case names
    connection: int = 0
    body: bytes = b""
    status: int | None = None
    sent: int = 0  # bytes of the body given to the kernel
    ended: float | None = None

    @cached_property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def raw_path(self) -> str:
        return self.target.partition("?")[0]

    @cached_property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2]))

    @property
    def authorized(self) -> bool:
        return "authorization" in self.headers

    @property
    def if_range(self) -> str | None:
        return self.headers.get("if-range")

    @property
    def range(self) -> tuple[int, int | None] | None:
        """First and last byte of the request."""
        spec = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return spec and (int(spec[1]), int(spec[2]) if spec[2] else None)


@dataclass
class Answer:
    """One response: its head, the piece of a blob that is its body, and how the wire spoils it."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    blob: Blob = field(default_factory=lambda: Blob(b""))
    start: int = 0
    stop: int = 0
    is_data: bool = False  # a model's bytes: what the storage faults are about
    surplus: int = 0  # zero bytes after the body
    length_error: int = 0
    chunked: bool = False
    cut_after: int | None = None
    reset: bool = False
    stall_after: int | None = None
    rate: float | None = None
    flipped: int | None = None  # offset in the blob of a byte whose lowest bit is wrong
    raw: bytes | None = None  # instead of HTTP

    @property
    def size(self) -> int:
        return self.stop - self.start + self.surplus

    @property
    def lasts(self) -> bool:
        """Whether the connection is kept after this answer."""
        return self.raw is None and self.cut_after is None and not self.length_error

    @property
    def is_untouched(self) -> bool:
        """Whether the body is the blob's own bytes."""
        return not (self.flipped is not None or self.surplus or self.chunked)

    def head(self) -> bytes:
        headers = dict(self.headers)
        if self.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(self.size + self.length_error)
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def piece(self, position: int, size: int) -> bytes | memoryview:
        """`size` bytes of the body."""
        first = self.start + position
        piece = self.blob.read(first, min(first + size, self.stop))
        if self.is_untouched:
            return piece
        body = bytearray(piece).ljust(size, b"\0")
        if self.flipped is not None and first <= self.flipped < first + len(piece):
            body[self.flipped - first] ^= 1
        return b"%x\r\n%b\r\n" % (len(body), body) if self.chunked else bytes(body)


def text_answer(status: int, body: str, kind: str, **headers: str) -> Answer:
    """A small answer; `Retry_After=…` becomes the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body.encode()
    return Answer(status, {"Content-Type": kind} | named, Blob(data), stop=len(data))


def json_answer(status: int, body: Any, **headers: str) -> Answer:
    return text_answer(status, json.dumps(body), "application/json; charset=utf-8", **headers)


def html_answer(status: int, title: str, **headers: str) -> Answer:
    page = f"<!DOCTYPE html><html><head><title>{title}</title></head><body></body></html>"
    return text_answer(status, page, "text/html; charset=utf-8", **headers)


def xml_error(status: int, code: str, message: str) -> Answer:
    body = '<?xml version="1.0" encoding="UTF-8"?>'
    body += f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return text_answer(status, body, "application/xml")


def redirect(status: int, location: str, **headers: str) -> Answer:
    """A redirect as Next.js writes it: the body repeats the target."""
    return text_answer(status, location, "text/plain", Location=location, **headers)


def data_answer(
    request: Request, blob: Blob, etag: str, headers: Mapping[str, str], *, ranges: bool = True
) -> Answer:
    """The whole blob, or the requested range of it."""
    shown = {"Content-Type": "application/octet-stream", "ETag": etag}
    shown |= {"Last-Modified": LAST_MODIFIED, **headers}
    if ranges:
        shown["Accept-Ranges"] = "bytes"
    unchanged = request.if_range in (None, etag, LAST_MODIFIED)
    if not (ranges and request.range and unchanged):
        return Answer(200, shown, blob, 0, blob.size, is_data=True)
    first, last = request.range
    stop = blob.size if last is None else min(blob.size, last + 1)
    if first >= stop:
        refused = xml_error(416, "InvalidRange", "The requested range is not satisfiable")
        refused.headers["Content-Range"] = f"bytes */{blob.size}"
        return refused
    shown["Content-Range"] = f"bytes {first}-{stop - 1}/{blob.size}"
    return Answer(206, shown, blob, first, stop, is_data=True)


@dataclass(frozen=True)
class Throttle:
    """The rate of each connection, and the seconds before each answer."""

    rate: float | None = None
    ttfb: float = 0.0


class Connection:
    """One client's connection: requests in turn, until either side ends it."""

    def __init__(
        self, role: str, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.role = role
        self.number = number
        self.throttle = Throttle()
        self._reader = reader
        self._writer = writer
        self._free_at = 0.0  # when the next bytes may be sent: debts survive keep-alive
        self._sendfile = writer.get_extra_info("ssl_object") is None
        # Drained means: in the kernel. TLS does not accept 0.
        writer.transport.set_write_buffer_limits(high=1)

    async def serve(self, respond: Callable[["Connection", Request], Awaitable[Answer]]) -> None:
        going = True
        while going and (request := await self._read()):
            try:
                going = await self._send(request, await respond(self, request))
            finally:
                request.ended = time.monotonic()

    async def close(self) -> None:
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), 1)
        except (OSError, asyncio.TimeoutError):
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def _read(self) -> Request | None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        if first.count(" ") != 2:
            return None
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = first.split(" ")
        return Request(self.role, method, target, headers, self.number, body)

    async def _send(self, request: Request, answer: Answer) -> bool:
        await asyncio.sleep(self.throttle.ttfb)
        self._free_at = max(self._free_at, time.monotonic())  # idling earns nothing
        request.status = answer.status if answer.raw is None else None
        self._writer.write(answer.head() if answer.raw is None else answer.raw)
        await self._writer.drain()
        if request.method != "HEAD":
            await self._send_body(request, answer)
        if answer.reset:
            await self._reset()
        return answer.lasts and request.headers.get("connection", "").lower() != "close"

    async def _send_body(self, request: Request, answer: Answer) -> None:
        ends = [one for one in (answer.cut_after, answer.stall_after) if one is not None]
        rate = min((one for one in (answer.rate, self.throttle.rate) if one), default=None)
        block = min(THROTTLED_BLOCK, int(rate / BLOCKS_PER_SECOND) or 1) if rate else BLOCK
        end = min([answer.size, *ends])
        with answer.blob.open() as source:
            for position in range(0, end, block):
                size = min(block, end - position)
                if rate:
                    now = time.monotonic()
                    self._free_at = max(self._free_at, now - CATCH_UP_SECONDS) + size / rate
                    await asyncio.sleep(self._free_at - now)
                await self._send_piece(source, answer, position, size)
                request.sent += size
        if end == answer.stall_after:
            await self._reader.read(1)  # until the client leaves
            raise ConnectionResetError("the client left")
        if answer.chunked and answer.cut_after is None:
            self._writer.write(b"0\r\n\r\n")
            await self._writer.drain()

    async def _send_piece(
        self, source: BufferedReader | None, answer: Answer, position: int, size: int
    ) -> None:
        if source and self._sendfile and answer.is_untouched:
            transport, loop = self._writer.transport, asyncio.get_running_loop()
            if transport.is_closing():  # which `sendfile` takes for a bug of ours
                raise ConnectionResetError("the client left")
            await loop.sendfile(transport, source, answer.start + position, size)
        else:
            self._writer.write(answer.piece(position, size))
            await self._writer.drain()

    async def _reset(self) -> None:
        """End the connection with RST, once the client has what was sent so far."""
        sock = self._writer.get_extra_info("socket")
        for _ in range(100):
            if not any(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))):
                break
            await asyncio.sleep(0.01)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()
