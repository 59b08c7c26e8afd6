"""Checks, before anything is started, whether this machine can run the engine.

start.sh runs it as the first part of `model_manager.py prepare-start`: it reads the settings,
checks the machine, and prints the settings and with what the engine computes
(`worker.config.gpu`) as shell assignments. For each problem it logs one sentence with the remedy,
before time is spent on a boot that would fail. A problem is fatal only if it is certain that no
picture can be made; otherwise it is a warning. Alone: `python -m worker.config.preflight`.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker import VERSION
from worker import log as worker_log
from worker.config import gpu
from worker.config.credentials import secret_values
from worker.config.gpu import Compute, Finding
from worker.config.platform_settings import (
    DEFAULT_INIT_TIMEOUT,
    EXIT_MARGIN,
    init_seconds,
    one_line,
)
from worker.config.ports import why_not_free
from worker.config.settings import EXIT_BAD_CONFIGURATION, Settings
from worker.config.shell import for_start_sh
from worker.config.store_settings import why_not_writable
from worker.errors import ConfigError

EXIT_UNFIT_MACHINE = 71  # EX_OSERR of sysexits.h, as in start.sh

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


def examine(
    settings: Settings, environ: Mapping[str, str], limits: MachineLimits = LIMITS
) -> tuple[list[Finding], Compute]:
    """All problems of this machine, and with what the engine computes on it."""
    found = [*_port_findings(settings)]
    of_gpu, compute = gpu.examine(settings, environ, limits.answer)
    of_store = [*_volume_findings(settings), *_store_findings(settings, limits)]
    of_times = (Finding(sentence, fatal=False) for sentence in warnings(settings))
    return [*found, *of_gpu, *of_store, *of_times], compute


def _port_findings(settings: Settings) -> Iterator[Finding]:
    if settings.engine == "external":
        return
    host, port = settings.engine_address
    if problem := why_not_free(host, port):
        yield Finding(
            f"The engine cannot listen on port {port} of {host} ({problem}): stop the"
            " program that uses it, or set WEBUI_URL to another address of this machine."
        )


def _volume_findings(settings: Settings) -> Iterator[Finding]:
    """A volume of RunPod that cannot be written: the container's disk is used instead."""
    folder = settings.read_only_models_dir
    if folder is None:
        return
    volume = settings.place["volume"]
    remedy = (
        f"let user {os.getuid()} write to the network volume {volume!r}"
        if volume
        else "attach a network volume (RUNPOD_VOLUME_ID is not set, so there seems to be none)"
    )
    yield Finding(
        f"{folder} cannot be written ({why_not_writable(folder) or 'when it was tried'}), so its"
        f" models are only read, and new ones are stored in {settings.models_dir} on this"
        f" container's disk: to keep them for other workers, {remedy}.",
        fatal=False,
    )


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
        hub = [settings.hub_cache_dir] if settings.hub_cache_dir else []
        places = (*settings.stores, *hub, settings.webui_dir / "models")
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


# The first lines of the log ----------------------------------------------------------------------


def introduction(settings: Settings) -> str:
    """The log's first line: the worker, its place, its engine and its GPU."""
    place, build = settings.place, one_line(settings.revision)
    of_runpod = [
        f"{word} {place[name]}"
        for word, name in (
            *(("on pod", "pod"), ("of endpoint", "endpoint"), ("in", "data_center")),
            ("with volume", "volume"),
        )
        if place[name]
    ]
    gpu, driver = one_line(settings.engine_gpu), one_line(settings.engine_driver)
    # A GPU that is wanted, but not there, is the next line.
    device = settings.engine_device if gpu or settings.engine_device == "cpu" else None
    parts = [
        " ".join([f"worker {VERSION}{f' ({build})' if build else ''}", *of_runpod]),
        " on ".join(filter(None, (f"engine {settings.engine}", device))),
        f"models in {settings.models_dir}",
        *([f"GPU {gpu}, driver {driver or 'unknown'}"] if gpu else []),
        f"ready within {settings.ready_timeout:g} s",
    ]
    return "; ".join(parts)


def warnings(settings: Settings) -> Iterator[str]:
    """Sentences about times for the start that do not fit together."""
    text, seconds = settings.runpod_init_timeout, init_seconds(settings.runpod_init_timeout)
    if text and seconds is None:
        yield (
            f"RUNPOD_INIT_TIMEOUT={one_line(text)} is no number of seconds above 0, so it counts as"
            f" not set ({DEFAULT_INIT_TIMEOUT:g}): set a number such as 800, without a unit."
        )
    if not (seconds or settings.is_serverless):
        return
    allowed, ready_timeout = seconds or DEFAULT_INIT_TIMEOUT, settings.ready_timeout
    if ready_timeout > allowed - EXIT_MARGIN:
        yield (
            f"READY_TIMEOUT is {ready_timeout:g} s, and RunPod ends a worker that is not ready"
            f" after {allowed:g} s (RUNPOD_INIT_TIMEOUT), perhaps before the log has the reason:"
            f" set RUNPOD_INIT_TIMEOUT={ready_timeout + EXIT_MARGIN:.0f} on the endpoint, or a"
            " shorter READY_TIMEOUT."
        )


def main() -> int:
    """Print the settings for start.sh; returns 78 for a wrong setting, 71 for this machine."""
    try:
        settings = Settings.from_environ(os.environ)
        worker_log.configure(settings.log_level, settings.log_format, secret_values(os.environ))
        return report(settings)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_CONFIGURATION


def report(settings: Settings) -> int:
    """Log what was found and print the settings for start.sh; returns 0, or 71.

    Raises:
        ConfigError: A1111 is not where the settings say.
    """
    check_webui(settings)
    found, compute = examine(settings, os.environ)
    of_gpu = {"engine_device": compute.device, "engine_gpu": compute.gpu}
    of_gpu |= {"engine_driver": compute.driver}
    log.info("%s", introduction(settings.model_copy(update=of_gpu)))
    for one in found:
        log.log(logging.ERROR if one.fatal else logging.WARNING, "%s", one.sentence)
    if any(one.fatal for one in found):
        return EXIT_UNFIT_MACHINE
    sys.stdout.write(for_start_sh(settings, compute, os.environ))
    sys.stdout.flush()
    return 0


def check_webui(settings: Settings) -> None:
    """A1111's program and its Python are there.

    Raises:
        ConfigError: names the setting to correct.
    """
    if settings.engine != "a1111":
        return
    if not (settings.webui_dir / "webui.py").is_file():
        raise ConfigError(
            f"WEBUI_DIR={settings.webui_dir} has no webui.py: set it to the folder of the A1111"
            " checkout, or set ENGINE=embedded"
        )
    if not os.access(settings.webui_interpreter, os.X_OK):
        raise ConfigError(
            f"WEBUI_PYTHON={settings.webui_interpreter} cannot be executed: set it to the Python of"
            " A1111's environment"
        )


if __name__ == "__main__":
    sys.exit(main())
