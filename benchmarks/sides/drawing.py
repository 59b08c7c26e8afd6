"""The embedded engine and diffusers' pipeline as processes that draw the same pictures."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from fakes.a1111.process import free_port

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("diffusers_script.py")
CHECKPOINT = PROJECT / "demo" / "Stable-diffusion" / "demo-shapes.safetensors"
PROMPT = "a red circle on a blue background"
STEPS, CFG = 20, 7.0
PATIENCE = 600.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Side:
    """A running process.

    Attributes:
        pid: of the process.
        draw: draws pictures: (pixels of a side, number of pictures, seed).
        boot: seconds from its start to its first picture, of 256 x 256.
    """

    pid: int
    draw: Callable[[int, int, int], None]
    boot: float

    def seconds(self, size: int, pictures: int = 1, seed: int = 0) -> float:
        """The seconds until the caller has the pictures."""
        start = time.perf_counter()
        self.draw(size, pictures, seed)
        return time.perf_counter() - start

    def cpu_seconds(self) -> float:
        """The CPU time of the process so far."""
        return float(sum(psutil.Process(self.pid).cpu_times()[:2]))

    def peak(self) -> float:
        """The largest resident memory so far, in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6


@contextmanager
def engine(folder: Path) -> Iterator[Side]:
    """The embedded engine with its own defaults; it keeps its files in `folder`."""
    models = folder / "models" / "Stable-diffusion"
    models.mkdir(parents=True, exist_ok=True)
    if not (models / CHECKPOINT.name).exists():
        (models / CHECKPOINT.name).symlink_to(CHECKPOINT)
    port = free_port()
    command = [sys.executable, "-m", "engine", "--data-dir", str(folder), "--port", str(port)]
    url = f"http://127.0.0.1:{port}/sdapi/v1"
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=PROJECT, env=_environ(), stdout=subprocess.DEVNULL)
    try:
        _wait(f"{url}/sd-models", process)
        with requests.Session() as session:

            def draw(size: int, pictures: int, seed: int) -> None:
                _ask(session, url, size, pictures, seed)

            draw(256, 1, 0)
            yield Side(process.pid, draw, time.perf_counter() - start)
    finally:
        process.kill()
        process.wait()


def _ask(session: requests.Session, url: str, size: int, pictures: int, seed: int) -> None:
    request = {
        "prompt": PROMPT,
        "seed": seed,
        "steps": STEPS,
        "cfg_scale": CFG,
        "width": size,
        "height": size,
        "batch_size": pictures,
        "sampler_name": "Euler a",
    }
    answer = session.post(f"{url}/txt2img", json=request, timeout=PATIENCE)
    answer.raise_for_status()
    for image in answer.json()["images"]:
        base64.b64decode(image)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            requests.get(url, timeout=PATIENCE).raise_for_status()
        except requests.ConnectionError:
            time.sleep(POLL_SECONDS)
        else:
            return
    raise SystemExit("the embedded engine did not start")


def write_configuration(folder: Path) -> None:
    """Write what `from_single_file` otherwise downloads: the configurations and the tokenizer."""
    subprocess.run(
        [sys.executable, str(SCRIPT), "--write-configuration", str(CHECKPOINT), str(folder)],
        cwd=PROJECT,
        check=True,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def pipeline(configuration: Path) -> Iterator[Side]:
    """Diffusers' pipeline with its own defaults."""
    command = [sys.executable, str(SCRIPT), str(CHECKPOINT), str(configuration)]
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        text=True,
        env=_environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:

        def draw(size: int, pictures: int, seed: int) -> None:
            request = {"size": size, "pictures": pictures, "seed": seed}
            print(json.dumps(request | {"steps": STEPS, "cfg": CFG, "prompt": PROMPT}),
                  file=process.stdin, flush=True)  # fmt: skip
            if process.stdout is None or process.stdout.readline().strip() != "done":
                raise SystemExit("diffusers' pipeline has ended")

        try:
            draw(256, 1, 0)
            yield Side(process.pid, draw, time.perf_counter() - start)
        finally:
            process.kill()


def _environ() -> dict[str, str]:
    """Without what would change a side's own number of threads and way of waiting."""
    return {name: v for name, v in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
