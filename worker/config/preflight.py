"""Checks, before anything is started, whether this machine can run the engine.

start.sh runs it (`python -m worker.config.preflight`): it reads the settings, checks the machine,
and prints the settings as shell assignments. For each problem it logs
one sentence with the remedy, before time is spent on a boot that would fail. A problem is fatal
only if it is certain that no picture can be made; otherwise it is a warning.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker import log as worker_log
from worker.config.credentials import secret_values
from worker.config.ports import why_not_free
from worker.config.settings import EXIT_BAD_CONFIGURATION, PROJECT, Settings
from worker.config.shell import for_start_sh
from worker.errors import ConfigError

EXIT_UNFIT_MACHINE = 71  # EX_OSERR of sysexits.h, as in start.sh

EMBEDDED = "use the `embedded` image (outside the images: set ENGINE=embedded)"
# Names of nvidia-smi's values.
QUERY = ("name", "compute_cap", "driver_version", "memory.total", "memory.free")
# CUDA's major version -> oldest driver that runs it, whatever its minor version (NVIDIA's
# compatibility guide).
OLDEST_DRIVER = {"11": (450, 80, 2), "12": (525, 60, 13), "13": (580, 65, 6)}
SMALLEST_GPU = 3500  # MiB: SD1 at 512x512 in half precision
SMALL_MEMORY_FLAGS = {"--lowvram", "--medvram", "--medvram-sdxl"}

log = logging.getLogger("worker.config.preflight")  # it runs as __main__


@dataclass(frozen=True)
class MachineLimits:
    """How long to wait, and when to warn.

    Attributes:
        answer: seconds for nvidia-smi's answer; its first call may load the driver.
        nearly_full: a warning is logged if fewer bytes of the disk are free. This is the reserve
            plus about one checkpoint.
    """

    answer: float = 30.0
    nearly_full: int = 8 << 30


LIMITS = MachineLimits()


@dataclass(frozen=True)
class Finding:
    """A problem and its remedy, for the operator; `fatal` if not one picture can be made."""

    sentence: str
    fatal: bool = True


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it; None for an unknown value. Memory in MiB."""

    name: str
    capability: tuple[int, int] | None
    driver: str
    total: int | None
    free: int | None

    @classmethod
    def read(cls, line: str) -> Gpu:
        """Parse a line of `nvidia-smi --query-gpu --format=csv,noheader,nounits`.

        Raises:
            ValueError: the line is something else, such as a warning.
        """
        name, capability, driver, total, free = (part.strip() for part in line.rsplit(",", 4))
        numbers = re.fullmatch(r"(\d+)\.(\d+)", capability)
        return cls(
            name,
            (int(numbers[1]), int(numbers[2])) if numbers else None,
            driver,
            int(total) if total.isdigit() else None,
            int(free) if free.isdigit() else None,
        )


# --- the GPU: pure -----------------------------------------------------------------------------


def gpu_findings(
    gpus: Sequence[Gpu], torch: Mapping[str, Any], flags: Iterable[str]
) -> list[Finding]:
    """The problems of the first usable GPU; if none is usable, those of the first one.

    Args:
        gpus: what nvidia-smi lists, at least one.
        torch: `cuda` and `architectures` of A1111's torch (image/torch_build.py).
        flags: A1111's.
    """
    each = [list(_gpu_findings(gpu, torch, set(flags))) for gpu in gpus]
    usable = [found for found in each if not any(one.fatal for one in found)]
    return (usable or each)[0]


def _gpu_findings(gpu: Gpu, torch: Mapping[str, Any], flags: set[str]) -> Iterator[Finding]:
    oldest = OLDEST_DRIVER.get(torch["cuda"].split(".")[0], ())
    driver = _version(gpu.driver)
    if driver and driver < oldest:
        yield Finding(
            f"The NVIDIA driver {gpu.driver} is too old for CUDA {torch['cuda']}: install"
            f" {'.'.join(map(str, oldest))} or newer on the host."
        )
    if gpu.capability and not _runs_on(gpu.capability, torch["architectures"]):
        built_for = ", ".join(torch["architectures"])
        yield Finding(
            f"{gpu.name} (compute capability {gpu.capability[0]}.{gpu.capability[1]}) is not among"
            f" the GPUs for which A1111's torch was built ({built_for}): {EMBEDDED}, whose torch"
            f" supports newer GPUs, or another GPU (RTX 20, 30 or 40, A100, L4, L40, H100)."
        )
    if flags & SMALL_MEMORY_FLAGS:
        return
    if gpu.total and gpu.total < SMALLEST_GPU:
        yield Finding(
            f"{gpu.name} has {gpu.total} MiB of memory, and A1111 needs {SMALLEST_GPU} MiB: use a"
            " larger GPU, or set WEBUI_ARGS=--lowvram (slow)."
        )
    elif gpu.total and gpu.free is not None and gpu.free < SMALLEST_GPU:
        yield Finding(
            f"Only {gpu.free} of {gpu.total} MiB of {gpu.name} are free, so CUDA may run out of"
            " memory: end the other programs on this GPU.",
            fatal=False,
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _runs_on(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Machine code runs on its major version from its minor version on; PTX on anything newer."""
    for architecture in architectures:
        kind, _, digits = architecture.rstrip("a").partition("_")
        major, minor = int(digits[:-1]), int(digits[-1])
        if kind == "compute" and (major, minor) <= capability:
            return True
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
    return False


# --- the machine -------------------------------------------------------------------------------


def examine(settings: Settings, limits: MachineLimits = LIMITS) -> Iterator[Finding]:
    """All problems of this machine."""
    if settings.engine != "external":
        yield from _port_findings(settings)
    if settings.engine == "a1111" and "--use-cpu" not in settings.webui_args:
        yield from _gpus_findings(settings, limits)
    yield from _store_findings(settings, limits)


def _port_findings(settings: Settings) -> Iterator[Finding]:
    host, port = settings.engine_address
    if problem := why_not_free(host, port):
        yield Finding(
            f"The engine cannot listen on port {port} of {host} ({problem}): stop the"
            " program that uses it, or set WEBUI_URL to another address of this machine."
        )


def _gpus_findings(settings: Settings, limits: MachineLimits) -> Iterator[Finding]:
    if not shutil.which("nvidia-smi"):
        if not Path("/dev/nvidiactl").exists():
            yield Finding(
                "There is no NVIDIA GPU here, and A1111 needs one: start the container with `--gpus"
                f" all`, and install the NVIDIA Container Toolkit on the host; or {EMBEDDED}."
            )
        return  # without the driver's tools nothing else can be checked
    query = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    done = _run(query, limits.answer)
    if done.returncode or not done.stdout.strip():
        output = " ".join((done.stdout + done.stderr).split())[:300]
        yield Finding(
            f"nvidia-smi finds no usable GPU ({output}): repair the NVIDIA driver of the host, or"
            f" {EMBEDDED}."
        )
        return
    torch = torch_build(settings.webui_interpreter, limits.answer)
    if torch is None:
        return  # A1111's own error will be more precise
    if torch["cuda"] is None:
        yield Finding(
            f"The torch of WEBUI_PYTHON={settings.webui_interpreter} was built for the CPU: install"
            " one that was built for CUDA, or add --use-cpu all to WEBUI_ARGS."
        )
        return
    if gpus := _listed(done.stdout):
        yield from gpu_findings(gpus, torch, settings.webui_args)


def _listed(text: str) -> list[Gpu]:
    gpus = []
    for line in text.splitlines():
        with suppress(ValueError):  # a warning between the GPUs
            gpus.append(Gpu.read(line))
    return gpus


def torch_build(python: Path, timeout: float = LIMITS.answer) -> Any:  # noqa: ANN401
    """The CUDA version and architectures of this Python's torch; None if they are unknown.

    The image has them in a file; elsewhere that Python imports torch, which takes seconds.
    """
    file = python.parents[1] / "torch_build.json"
    if file.exists():
        return json.loads(file.read_text())
    done = _run([str(python), str(PROJECT / "image/torch_build.py")], timeout)
    return None if done.returncode else json.loads(done.stdout)


def _run(command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - nvidia-smi, and the operator's own Python
            command, capture_output=True, text=True, timeout=timeout, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _store_findings(settings: Settings, limits: MachineLimits) -> Iterator[Finding]:
    """A store that cannot be written is fatal only if there is no model yet."""
    folder = settings.models_dir
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
    except OSError as error:  # a network volume that is gone
        yield Finding(
            f"MODELS_DIR={folder} cannot be read ({error.strerror}): mount its volume again, or set"
            " MODELS_DIR to another folder."
        )
        return
    if not os.access(existing, os.W_OK | os.X_OK):
        places = (folder, settings.baked_models_dir, settings.webui_dir / "models")
        yield Finding(
            f"MODELS_DIR={folder} cannot be written by user {os.getuid()}, so no model can be"
            " downloaded: give that user the folder, or set MODELS_DIR to another one.",
            fatal=not any(map(_has_models, places)),
        )
    if free < limits.nearly_full:
        yield Finding(
            f"MODELS_DIR={folder} has {free / 1e9:.1f} GB of disk left, so unused models are"
            " removed for new ones: use a larger disk or volume (20 GB for a few models).",
            fatal=False,
        )


def _has_models(folder: Path) -> bool:
    return any(folder.rglob("*.safetensors")) or any(folder.rglob("*.ckpt"))


def main() -> int:
    """Print the settings for start.sh; returns 78 for a wrong setting, 71 for this machine."""
    try:
        settings = Settings.from_environ(os.environ)
        worker_log.configure(settings.log_level, settings.log_format, secret_values(os.environ))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_CONFIGURATION
    found = list(examine(settings))
    for one in found:
        log.log(logging.ERROR if one.fatal else logging.WARNING, "%s", one.sentence)
    if any(one.fatal for one in found):
        return EXIT_UNFIT_MACHINE
    sys.stdout.write(for_start_sh(settings, os.environ))
    return 0


if __name__ == "__main__":
    sys.exit(main())
