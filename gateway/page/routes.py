"""The routes of the page: its files, and what its form needs to know of the back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.http.json_answer import JsonAnswer
from gateway.jobs import NoSuchFile
from gateway.page.data import PageData

FOLDER = Path(__file__).parent

_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles come from this server only. Pictures also come from memory, and by https from
# the bucket to which an endpoint delivers them.
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data: https:; object-src 'none'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # the browser asks each time whether its copy is the newest
}


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str
    etag: str


class Page:
    """The page's routes. Its files are read once; no other file can be asked for."""

    def __init__(self, data: PageData) -> None:
        self._data = data
        self._files = {path.name: _read(path) for path in FOLDER.iterdir() if path.suffix in _KINDS}

    def routes(self) -> list[BaseRoute]:
        """All routes."""
        return [
            Route("/", self._index),
            Route("/page/data", self._lists),
            Route("/page/{name}", self._file),
        ]

    async def _index(self, request: Request) -> Response:
        return _answer(request, self._files["index.html"])

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            raise NoSuchFile(f"The page has no file {name[:80]!r}.")
        return _answer(request, self._files[name])

    async def _lists(self, _request: Request) -> Response:
        return JsonAnswer(await self._data.get(), headers={"Cache-Control": "no-store"})


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _KINDS[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _answer(request: Request, file: _File) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    known = [one.strip() for one in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.kind})
