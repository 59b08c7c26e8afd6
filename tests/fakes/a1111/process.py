"""The fake A1111 as a process under test, and the model files it reads."""

import itertools
import json
import math
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

from fakes import model_files

FAKE = Path(__file__).parent / "__main__.py"
DEADLINE = 60.0
KINDS = {
    "Stable-diffusion": model_files.SD1,
    "Lora": model_files.LORA,
    "VAE": model_files.VAE,
}
SMALL = {"prompt": "a fox", "steps": 4, "width": 64, "height": 64, "seed": 1}


def write_safetensors(path: Path, content: bytes = b"\0" * 8, **metadata: str) -> None:
    """A whole model file of the kind that its folder has, with one more tensor of these bytes."""
    shapes = next((KINDS[part] for part in reversed(path.parts) if part in KINDS), {})
    header: dict[str, Any] = model_files.entries(shapes)
    begin = sum(math.prod(shape) * 2 for shape in shapes.values())
    more = "loss.w" if "VAE" in path.parts else "w"  # A1111 ignores both
    end = begin + len(content)
    header[more] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [begin, end]}
    if metadata:
        header["__metadata__"] = metadata
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model_files.framed(header) + bytes(begin) + content)


def _ports() -> Iterator[int]:
    """Ports below those that the system gives to other programs; each xdist worker has its own."""
    first = 20_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 12)
    begin = random.SystemRandom().randrange(1_000)  # another run of the tests may use them, too
    return itertools.cycle(first + (begin + number) % 1_000 for number in range(1_000))


PORTS = _ports()


def free_port() -> int:
    """A free port on loopback."""
    while True:
        port = next(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(happened: Callable[[], Any], what: str, timeout: float = DEADLINE) -> None:
    """Wait for something; `timeout` only ends a test that would never end."""
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout} s"
        time.sleep(0.02)


class A1111:
    """A started fake and shorthands for talking to it."""

    def __init__(self, data_dir: Path, flags: tuple[str, ...], faults: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        where = ["--port", str(self.port), "--data-dir", str(data_dir)]
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE), "--nowebui", *where, *flags],
            env=os.environ | {"FAKE_A1111_FAULTS": json.dumps(faults)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def listens(self) -> bool:
        """Whether the port is open."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def ready(self) -> bool:
        """Whether the last route is there."""
        assert self.process.poll() is None, self.process.communicate()
        return self.listens() and self.get("loras").status_code == 200

    def get(self, route: str) -> requests.Response:
        """GET below /sdapi/v1."""
        return requests.get(f"{self.url}/sdapi/v1/{route}", timeout=DEADLINE)

    def post(self, route: str, body: Any = None) -> requests.Response:
        """POST below /sdapi/v1."""
        return requests.post(f"{self.url}/sdapi/v1/{route}", json=body, timeout=DEADLINE)

    def fault(self, fault: str, **params: Any) -> None:
        """Switch a fault on."""
        body = {"fault": fault, **params}
        requests.post(f"{self.url}/_fake/faults", json=body, timeout=DEADLINE).raise_for_status()

    def log(self) -> list[dict[str, Any]]:
        """The requests it received below /sdapi."""
        return list(requests.get(f"{self.url}/_fake/log", timeout=DEADLINE).json())

    def info(self, **changes: Any) -> dict[str, Any]:
        """The `info` of a small picture, generated with these changes."""
        answer = self.post("txt2img", SMALL | changes)
        assert answer.status_code == 200, answer.text
        return dict(json.loads(answer.json()["info"]))

    def lora_hashes(self, prompt: str) -> str | None:
        """Which LoRAs took part in a picture of this prompt."""
        return self.info(prompt=prompt)["extra_generation_params"].get("Lora hashes")


@contextmanager
def running_a1111(
    data_dir: Path, *flags: str, faults: tuple[dict[str, Any], ...] = (), wait: bool = True
) -> Iterator[A1111]:
    """A fake on a free port, by default once it is ready; killed at the end."""
    engine = A1111(data_dir, flags, faults)
    with engine.process:
        try:
            if wait:
                wait_until(engine.ready, "the start of the fake A1111")
            yield engine
        finally:
            engine.process.kill()
