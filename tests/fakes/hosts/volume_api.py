"""The S3 API of a network volume: moto's server behind a proxy with the faults of RunPod's."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fakes.a1111.process import wait_until
from fakes.hosts.bucket import KEY_ID, NAME, SECRET, s3_server

VOLUME = NAME  # the bucket of the server is the volume
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>no</Message></Error>"
_HOP = {"connection", "transfer-encoding", "content-length", "expect", "keep-alive"}


@dataclass(frozen=True)
class Request:
    """A request that the API has received: `key` is the file's path on the volume."""

    method: str
    key: str
    query: dict[str, str]
    size: int
    md5: str | None = None

    @property
    def part(self) -> int | None:
        """The number of the part that it sends."""
        return int(self.query["partNumber"]) if self.method == "PUT" and self.query else None

    @property
    def completes(self) -> bool:
        """Whether it puts the parts together."""
        return self.method == "POST" and "uploadId" in self.query


Fault = Callable[[Request], Any]


@dataclass
class VolumeApi:
    """The running API.

    `fault` is asked for each request: None, "cut" (no answer), "damage" (another byte arrives),
    "late" (done, but 524), or a status, with a code of S3 if it is a pair. A fault may wait.
    """

    endpoint: str
    client: Any
    fault: Fault = lambda _: None
    requests: list[Request] = field(default_factory=list)
    running: int = 0  # requests
    counting: Any = field(default_factory=threading.Lock)

    def environ(self) -> dict[str, str]:
        """The key with which to push."""
        return {"RUNPOD_S3_ACCESS_KEY": KEY_ID, "RUNPOD_S3_SECRET_KEY": SECRET}

    def writes(self) -> list[Request]:
        """The requests that change something."""
        return [one for one in self.requests if one.method in {"PUT", "POST", "DELETE"}]

    def files(self) -> list[str]:
        """The files on the volume."""
        listed = self.client.list_objects_v2(Bucket=VOLUME).get("Contents", [])
        return [one["Key"] for one in listed]

    def content(self, key: str) -> bytes:
        """One of them."""
        return self.client.get_object(Bucket=VOLUME, Key=key)["Body"].read()

    def mount(self, folder: Path) -> Path:
        """Write the files below the folder, as a worker sees the volume; returns the folder."""
        for key in self.files():
            file = folder / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.content(key))
        return folder

    def reset(self) -> None:
        """Empty the volume, and forget the requests and the fault."""
        for key in self.files():
            self.client.delete_object(Bucket=VOLUME, Key=key)
        for one in self.client.list_multipart_uploads(Bucket=VOLUME).get("Uploads", []):
            what = {"Key": one["Key"], "UploadId": one["UploadId"]}
            self.client.abort_multipart_upload(Bucket=VOLUME, **what)
        self.forget_requests()
        self.fault = lambda _: None

    def forget_requests(self) -> None:
        """Wait for the end of those that run, and count from 0 again."""
        wait_until(lambda: self.running == 0, "the end of the requests")
        self.requests.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: VolumeApi
    backend: str

    def _pass_on(self) -> None:
        with self.api.counting:
            self.api.running += 1
        try:
            self._pass_one_on()
        except ConnectionError:  # the client was killed
            self.close_connection = True
        finally:
            with self.api.counting:
                self.api.running -= 1

    def _pass_one_on(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed while it sent; S3 stores no such part
            self.close_connection = True
            return
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        key = unquote(parts.path).removeprefix(f"/{VOLUME}").lstrip("/")
        md5 = self.headers.get("Content-MD5")
        request = Request(self.command, key, query, len(body), md5)
        self.api.requests.append(request)
        fault = self.api.fault(request)
        if fault == "cut":
            self.close_connection = True
            return
        if isinstance(fault, int | tuple):
            status, code = fault if isinstance(fault, tuple) else (fault, "")
            text = ERROR.format(code).encode() if code and self.command != "HEAD" else b""
            self._answer(status, {}, text)
            return
        if fault == "damage":
            body = bytes([body[0] ^ 1]) + body[1:]
        status, headers, content = self._ask(body)
        if fault == "late":
            status, headers, content = 524, {}, b""
        self._answer(status, headers, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.backend).netloc, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.headers), content

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        is_head = self.command == "HEAD"
        length = headers.get("Content-Length", "0") if is_head else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(b"" if is_head else content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def volume_api() -> Iterator[VolumeApi]:
    """Run it, with an empty volume; see `s3_server` for its scope."""
    with s3_server() as server:
        api = VolumeApi("", server.client)
        handler = type("Handler", (_Handler,), {"api": api, "backend": server.endpoint})
        proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        proxy.daemon_threads = True
        api.endpoint = f"http://127.0.0.1:{proxy.server_port}"
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield api
            api.reset()
        finally:
            proxy.shutdown()
            proxy.server_close()
