"""A host on loopback that stores what is PUT to it, or answers as a test asks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class Received:
    """One PUT."""

    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class PutHost:
    """The host.

    Attributes:
        address: `host:port`.
        received: every PUT, in order of arrival.
        answers: (status, headers, body) for the next PUTs, then 200; status 0 breaks the
            connection.
    """

    address: str
    received: list[Received] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)

    def url(self, path: str) -> str:
        """A presigned URL on it."""
        return f"http://{self.address}/{path}?X-Amz-Signature=5ecret"

    def files(self) -> dict[str, bytes]:
        """Path -> body of the last PUT."""
        return {one.path: one.body for one in self.received}


@contextmanager
def put_host() -> Iterator[PutHost]:
    """Run it in its own threads."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                host.received.append(Received(parts.path, parse_qs(parts.query), headers, body))
                status, more, text = host.answers.pop(0) if host.answers else (200, {}, b"")
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    lock = threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host = PutHost(f"127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
