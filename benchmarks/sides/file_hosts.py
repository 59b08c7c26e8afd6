"""A model file of any size, and hosts on loopback that serve it."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fakes.hosts.tls import make_certificates

MIB = 1 << 20
# No multiple of the size of a part: a part in the wrong place changes the hash.
BLOCK = 61 * MIB
HEADER = 1024  # bytes
NAME = "model.safetensors"
PROJECT = Path(__file__).resolve().parents[2]

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
_WAIT = 10.0  # seconds for a host to start


@dataclass(frozen=True)
class Sample:
    """A valid safetensors file: `block`, a file, again and again until `size` bytes."""

    block: Path
    size: int
    sha256: str

    @classmethod
    def make(cls, folder: Path, size: int) -> Sample:
        """Write the block, and compute the hash of the whole file."""
        header = b'{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
        data = size - HEADER
        start = (HEADER - 8).to_bytes(8, "little") + (header % (data, data)).ljust(HEADER - 8)
        block = start + os.urandom(min(BLOCK, size) - HEADER)
        path = folder / "block"
        path.write_bytes(block)
        digest = hashlib.sha256()
        for at in range(0, size, len(block)):
            digest.update(block[: size - at])
        return cls(path, size, digest.hexdigest())

    def write(self, path: Path) -> None:
        """Write the whole file."""
        block = self.block.read_bytes()
        with path.open("wb") as file:
            for at in range(0, self.size, len(block)):
                file.write(block[: self.size - at])

    def check(self, path: Path) -> None:
        """Compare every byte.

        Raises:
            RuntimeError: the file has other bytes.
        """
        block = self.block.read_bytes()
        same = path.stat().st_size == self.size
        with path.open("rb") as file:
            for at in range(0, self.size, len(block)):
                same = same and file.read(len(block)) == block[: self.size - at]
        if not same:
            raise RuntimeError(f"{path} has other bytes than the host's file.")


@dataclass(frozen=True)
class Host:
    """The URL of the file, and the certificate of a host that speaks TLS."""

    url: str
    ca_file: Path | None

    def environment(self) -> dict[str, str]:
        """The environment of a client. A given PYTHONPATH comes first: another worker's version."""
        path = ":".join(filter(None, [os.environ.get("PYTHONPATH"), str(PROJECT)]))
        trusted = {"SSL_CERT_FILE": str(self.ca_file)} if self.ca_file else {}
        return {**os.environ, "PYTHONPATH": path, "NO_PROXY": "*", "no_proxy": "*", **trusted}


@contextmanager
def paced(sample: Sample, rate: int, delay: float, *, tls: bool) -> Iterator[Host]:
    """A host that sends `rate` bytes per second over each connection; see paced_host.py."""
    ca_file, pem = _certificates(sample.block.parent) if tls else (None, "")
    program = str(Path(__file__).with_name("paced_host.py"))
    options = [str(sample.block), str(sample.size), str(rate), str(delay), str(pem)]
    command = [sys.executable, program, *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process, process.stdin:  # type: ignore[union-attr]  # closing it lets the host end
        port = int(process.stdout.readline())  # type: ignore[union-attr]
        yield Host(f"{'https' if tls else 'http'}://127.0.0.1:{port}/{NAME}", ca_file)


@contextmanager
def unlimited(sample: Sample, *, tls: bool) -> Iterator[Host]:
    """Start nginx with sendfile, in the folder of the sample's block."""
    folder, port = sample.block.parent, _free_port()
    sample.write(folder / NAME)
    ca_file, pem = _certificates(folder) if tls else (None, "")
    configuration = NGINX.format(
        port=port,
        tls=" ssl" if tls else "",
        certificate=f"ssl_certificate {pem}; ssl_certificate_key {pem};" if tls else "",
        temporary=" ".join(f"{name}_temp_path temp_{name};" for name in _TEMPORARY),
    )
    (folder / "nginx.conf").write_text(configuration)
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    process = subprocess.Popen(command)
    try:
        _wait_for(port)
        scheme = "https" if tls else "http"
        yield Host(f"{scheme}://127.0.0.1:{port}/{NAME}", ca_file)
    finally:
        process.terminate()
        process.wait()


def _certificates(folder: Path) -> tuple[Path, Path]:
    ca_file, pem = make_certificates(folder)
    return ca_file, pem


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _WAIT
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError("nginx does not listen")
