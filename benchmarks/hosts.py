"""The hosts of the benchmark, on loopback, and the file that they serve.

Unthrottled: nginx with sendfile. Throttled: the tests' fake object store, in its own process. Each
connection has a token bucket that lasts over several requests (nginx's `limit_rate` starts anew
with each request and does not limit its first MiB or two), and each answer begins with a delay.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil

MIB = 1 << 20
RATE = 20 * MIB  # bytes per second of a throttled connection
FIRST_BYTE = 0.08  # seconds
TENSORS = 64
ROOT = Path(__file__).resolve().parent.parent

NGINX = """
user root;  # the file is in a private folder; has an effect only if root starts nginx
daemon off;
worker_processes 2;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    sendfile on;
    {temporary}
    server {{
        listen 127.0.0.1:{port}{tls};
        root .;
    }}
    ssl_protocols TLSv1.3;
    {certificate}
}}
"""
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass(frozen=True)
class Sample:
    """A valid safetensors file of random bytes."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Host:
    """The URL of the file, and the process that serves it."""

    url: str
    ca_file: Path | None
    pid: int

    def cpu(self) -> float:
        """CPU seconds that the process has used so far."""
        process = psutil.Process(self.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children()))


def environment(**more: str) -> dict[str, str]:
    """The environment of our Python processes, which import the worker and the fakes.

    The given PYTHONPATH comes first, so that another version of the worker can be measured.
    """
    path = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "tests")]
    return {**os.environ, "PYTHONPATH": ":".join(filter(None, path)), **more}


def make_sample(path: Path, size: int) -> Sample:
    """Write a file of about `size` bytes."""
    each = size // TENSORS // MIB * MIB
    entries = {
        f"block.{n}.weight": {
            "dtype": "F16",
            "shape": [each // 2],
            "data_offsets": [n * each, (n + 1) * each],
        }
        for n in range(TENSORS)
    }
    header = json.dumps(entries).encode()
    pieces = (os.urandom(MIB) for _ in range(TENSORS * each // MIB))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in chain([len(header).to_bytes(8, "little"), header], pieces):
            digest.update(piece)
            file.write(piece)
    return Sample(path, path.stat().st_size, digest.hexdigest())


@contextmanager
def unthrottled(sample: Sample, *, tls: bool) -> Iterator[Host]:
    """nginx; at most one at a time, because it uses the sample's folder."""
    folder, port = sample.path.parent, _free_port()
    ca_file = None
    certificate = ""
    if tls:
        make = [sys.executable, __file__, "certificates", str(folder)]
        subprocess.run(make, env=environment(), check=True)
        ca_file = folder / "ca.pem"
        server = folder / "server.pem"
        certificate = f"ssl_certificate {server}; ssl_certificate_key {server};"
    configuration = folder / "nginx.conf"
    configuration.write_text(
        NGINX.format(
            port=port,
            tls=" ssl" if tls else "",
            certificate=certificate,
            temporary=" ".join(f"{name}_temp_path temp_{name};" for name in _TEMPORARY),
        )
    )
    command = ["nginx", "-p", str(folder), "-c", str(configuration), "-e", "stderr"]
    process = subprocess.Popen(command)
    try:
        _wait_for(port, process)
        scheme = "https" if tls else "http"
        yield Host(f"{scheme}://127.0.0.1:{port}/{sample.path.name}", ca_file, process.pid)
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit("nginx has ended")


@contextmanager
def throttled(sample: Sample, *, tls: bool) -> Iterator[Host]:
    """The fake object store."""
    command = [sys.executable, __file__, "throttled", str(sample.path), "tls" if tls else ""]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment(), **pipes)  # type: ignore[call-overload]
    try:
        started = json.loads(process.stdout.readline())
        ca_file = Path(started["ca_file"]) if tls else None
        yield Host(started["url"], ca_file, process.pid)
    finally:
        process.stdin.close()  # lets it end
        process.wait()


def _serve_throttled(path: str, tls: str) -> None:
    from fakes.hosts.model_hosts import ModelHosts

    with ModelHosts(tls=bool(tls)) as hosts:
        hosts.throttle(RATE, FIRST_BYTE)
        url = hosts.add_web("/model.safetensors", Path(path))
        print(json.dumps({"url": url, "ca_file": str(hosts.ca_file)}), flush=True)
        sys.stdin.read()


def _make_certificates(folder: str) -> None:
    from fakes.hosts.tls import make_certificates

    make_certificates(Path(folder))


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    {"throttled": _serve_throttled, "certificates": _make_certificates}[role](*arguments)
