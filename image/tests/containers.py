"""Containers of the images, started by buildah as Docker would start them."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from fakes.a1111.process import free_port
from fakes.hosts.model_hosts import ModelHosts

from worker.config.settings import PROJECT

ISOLATION = ("--isolation", "chroot")
OLD_CODE = "/old"  # where a test has copied the worker before the last change of the images


def run(*command: object, **more: Any) -> str:
    """Run a program to its end; returns its standard output."""
    words = list(map(str, command))
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False, **more)
    assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stdout}"
    return done.stdout.strip()


def buildah(*arguments: object) -> str:
    return run("buildah", *arguments)


@dataclass(frozen=True)
class Layer:
    """A layer of an image: its digest, its size unpacked, in bytes, and the paths of its files."""

    digest: str
    size: int
    files: frozenset[str]


def layers(image: str) -> list[Layer]:
    """The image's layers, the base image's first, read where the overlay driver keeps them."""
    store = json.loads(buildah("info"))["store"]
    assert store["GraphDriverName"] == "overlay", "set STORAGE_DRIVER=overlay"
    root = Path(store["GraphRoot"])
    known = json.loads((root / "overlay-layers/layers.json").read_text())
    by_digest = {layer["diff-digest"]: layer for layer in known if "diff-digest" in layer}
    digests = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["rootfs"][
        "diff_ids"
    ]
    return [
        Layer(
            digest,
            by_digest[digest].get("diff-size", 0),
            _files(root / "overlay" / by_digest[digest]["id"] / "diff"),
        )
        for digest in digests
    ]


def _files(folder: Path) -> frozenset[str]:
    return frozenset(
        os.path.join(path, name)[len(str(folder)) :]  # noqa: PTH118 - fast, for 60,000 files
        for path, _, names in os.walk(folder)
        for name in names
    )


class Container:
    """A container of an image, with the host's network and process numbers.

    `buildah run` does not know an image's entry point; `start` reads it from the image.
    """

    def __init__(self, image: str, log: Path) -> None:
        self.name = buildah("from", image)
        self.image = json.loads(buildah("inspect", "--type", "image", image))["Docker"]
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: object, **environ: object) -> list[str]:
        given = [word for name, value in environ.items() for word in ("--env", f"{name}={value}")]
        return ["buildah", "run", *ISOLATION, *given, self.name, "--", *map(str, words)]

    def run(self, *words: object, **environ: object) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = self.command(*words, **environ)
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def old_manager(self, *words: str, **environ: object) -> None:
        """Run the old model manager as the worker's user."""
        self.run("chown", "worker:worker", "/models")
        command = f'cd {OLD_CODE} && exec "$PYTHON" model_manager.py {shlex.join(words)}'
        as_worker = ("setpriv", "--reuid=worker", "--regid=worker", "--clear-groups")
        environ |= {"MODELS_DIR": "/models"}
        done = self.run(*as_worker, "bash", "-c", command, **environ)
        assert done.returncode == 0, done.stderr

    def fetch_with_old_code(self, old_code: Path, model: Path) -> None:
        """Let the worker of an older image download a model to the volume."""
        shutil.copytree(old_code, self.file(OLD_CODE))
        with ModelHosts() as hosts:
            hosts.add_model(version_id=7, data=model, name=model.name)
            trusted = ",".join(urlsplit(url).netloc for url in (hosts.civitai, hosts.storage))
            address = {"CIVITAI_URL": hosts.civitai, "TRUSTED_HOSTS": trusted}
            self.old_manager("fetch", "7", CIVITAI_API_KEY=hosts.civitai_key, **address)

    def entry_point(self, *arguments: object, **environ: object) -> list[str]:
        """The command that `docker run IMAGE ARGUMENTS` would run."""
        return self.command(*self.image["config"]["Entrypoint"], *arguments, **environ)

    def start(self, *arguments: object, **environ: object) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.entry_point(*arguments, **environ), stdout=log, stderr=subprocess.STDOUT
            )

    def processes(self) -> list[tuple[int, int, str, str]]:
        """(PID, parent, user number, command) of each process in the container, oldest first."""
        assert self.process
        listing = run("ps", "-e", "-o", "pid=,ppid=,uid=,args=")
        rows = [line.split(None, 3) for line in listing.splitlines()]
        found = {self.process.pid}
        below = []
        for pid, parent, user, command in rows:
            if int(parent) in found:
                found.add(int(pid))
                below.append((int(pid), int(parent), user, command))
        return below

    def worker(self) -> list[tuple[int, int, str, str]]:
        """tini and the processes below it."""
        everything = self.processes()
        first = next(n for n, row in enumerate(everything) if row[3].startswith("tini "))
        return everything[first:]

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, timeout: float = 60) -> int:
        """Send SIGTERM to the process that would be PID 1; returns the exit status."""
        assert self.process
        os.kill(self.worker()[0][0], signal.SIGTERM)
        return self.process.wait(timeout)

    def remove(self) -> None:
        while self.process and self.process.poll() is None:
            for pid, *_ in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        buildah("rm", self.name)

    def file(self, path: str) -> Path:
        """The path on this machine of a file of the container."""
        return Path(buildah("mount", self.name)) / path.lstrip("/")


class LocalApi:
    """The worker behind HTTP in a container, and the engine's API beside it."""

    def __init__(self, container: Container, timeout: float, **environ: object) -> None:
        self.container = container
        self.url = f"http://127.0.0.1:{free_port()}"
        self.engine = f"http://127.0.0.1:{free_port()}"
        container.start(
            *("--rp_serve_api", "--rp_api_host", "127.0.0.1"),
            *("--rp_api_port", self.url.rpartition(":")[2]),
            WEBUI_URL=self.engine,
            **environ,
        )
        deadline = time.monotonic() + timeout
        while not self._is_ready():
            assert time.monotonic() < deadline, container.text()
            time.sleep(0.5)

    def _is_ready(self) -> bool:
        assert self.container.process
        assert self.container.process.poll() is None, self.container.text()
        return "ready for jobs" in self.container.text() and _answers(self.url)

    def run_job(self, timeout: float = 300, **job: object) -> dict[str, Any]:
        """Run a job; returns its output."""
        answer = requests.post(f"{self.url}/runsync", json={"input": job}, timeout=timeout)
        assert answer.json()["status"] == "COMPLETED", answer.text[:2000]
        return answer.json()["output"]


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=5).ok
    except requests.ConnectionError:
        return False


@contextmanager
def changed_code() -> Iterator[None]:
    """Add a comment to a file of the worker while the block lasts."""
    file = PROJECT / "worker" / "log.py"
    before = file.read_bytes()
    file.write_bytes(before + b"# changed by image/tests\n")
    try:
        yield
    finally:
        file.write_bytes(before)
