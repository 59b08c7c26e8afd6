"""The first lines of the log: what this worker is and where it runs, and times that do not fit."""

from __future__ import annotations

from collections.abc import Iterator

from worker import VERSION
from worker.config.runpod_settings import (
    DEFAULT_INIT_TIMEOUT,
    EXIT_MARGIN,
    init_seconds,
    one_line,
)
from worker.config.settings import Settings


def introduction(settings: Settings) -> str:
    """One line about the worker, for whoever reads only the log."""
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
    parts = [
        " ".join([f"worker {VERSION}{f' ({build})' if build else ''}", *of_runpod]),
        " on ".join(filter(None, (f"engine {settings.engine}", settings.engine_device))),
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
