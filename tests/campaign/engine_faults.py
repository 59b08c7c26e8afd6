"""Faults of the engine: its process, its answers, and its caches."""

import os
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from campaign.catalogue import LOST, RETIRED, Fault, Heal, Inject
from campaign.world import SLOW, World

POISONED = frozenset({"ENGINE_POISONED"}) | LOST
FAKE = ("fake",)


def _signal(number: int, then: int | None = None) -> Inject:
    def inject(world: World, _rng: random.Random) -> Heal | None:
        pid = world.main.pid_of("engine")
        if pid is None:
            return None
        _kill(pid, number)
        return (lambda: _kill(pid, then)) if then else None

    return inject


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _a1111(name: str, /, *, times: tuple[int, int] = (1, 2), **given: Any) -> Inject:
    """A fault of the fake A1111; how often it strikes is drawn."""

    def inject(world: World, rng: random.Random) -> Heal:
        worker = world.main
        with suppress(requests.RequestException):  # the engine is not there
            worker.fault(name, times=rng.randint(*times), **given)

        def heal() -> None:
            with suppress(requests.RequestException):
                worker.no_faults()
                worker.fault(**SLOW)

        return heal

    return inject


def _damage_cache(*, kills: bool) -> Inject:
    def inject(world: World, rng: random.Random) -> None:
        cache: Path = world.main.webui / "cache/hashes/cache.db"
        with suppress(OSError):
            cache.write_bytes(rng.randbytes(700))
        if kills:
            world.main.signal(signal.SIGKILL, "engine")

    return inject


def _one(name: str, codes: set[str], /, **given: Any) -> Fault:
    """A fault of one answer or two."""
    title = name.replace("_", " ")
    return Fault(f"engine: {title}", _a1111(name, **given), LOST | codes, RETIRED, engines=FAKE)


FAULTS = [
    Fault("engine: killed", _signal(signal.SIGKILL), LOST, RETIRED, weight=2),
    Fault("engine: stopped and continued", _signal(signal.SIGSTOP, signal.SIGCONT), LOST, RETIRED),
    Fault("engine: ended by SIGTERM", _signal(signal.SIGTERM), LOST, RETIRED),
    Fault("engine: ended by SIGSEGV", _signal(signal.SIGSEGV), LOST, RETIRED),
    _one("exit", set(), status=1),
    _one("hang", {"JOB_TIMEOUT"}, seconds=8, times=(1, 1)),
    _one("poisoned", {"ENGINE_POISONED"}, times=(1, 1)),
    _one("cuda_fault", {"ENGINE_POISONED"}),
    _one("device_mismatch", {"ENGINE_POISONED"}),
    _one("out_of_memory", {"OUT_OF_MEMORY"}, times=(1, 3)),
    _one("sqlite", {"ENGINE_CACHE_DAMAGED"}),
    _one("internal_error", {"ENGINE_ERROR"}),
    _one("wrong_checkpoint", {"WRONG_CHECKPOINT"}),
    _one("missing_lora", {"LORA_NOT_APPLIED"}),
    _one("mask_ignored", {"WRONG_DRAWING"}),
    _one("no_images", {"INCOMPLETE_ANSWER"}),
    _one("no_route", {"ENGINE_ROUTE_MISSING"}, times=(1, 4)),
    _one("vae_load_fails", {"ENGINE_ERROR"}),
    _one("checkpoint_load_fails", {"ENGINE_ERROR"}, name="second"),
    _one("drop", set()),
    _one("cut_answer", {"ENGINE_ERROR"}),
    _one("trickle_answer", set(), seconds=1),
    _one("odd_answer", {"ENGINE_ERROR"}, body="<html>502 Bad Gateway</html>"),
    _one("slow_steps", {"JOB_TIMEOUT"}, seconds=0.3, times=(1, 3)),
    _one("slow_encoding", {"JOB_TIMEOUT"}, seconds=0.5),
    _one("encoding_waits", {"JOB_TIMEOUT"}, seconds=1),
    Fault(
        "engine: cache damaged under the living engine",
        _damage_cache(kills=False),
        frozenset({"ENGINE_CACHE_DAMAGED", "ENGINE_ERROR"}) | LOST,
        RETIRED,
        engines=FAKE,
    ),
    Fault(
        "engine: cache damaged, and the engine killed",
        _damage_cache(kills=True),
        frozenset({"ENGINE_CACHE_DAMAGED", "ENGINE_ERROR"}) | LOST,
        RETIRED,
        engines=FAKE,
    ),
]
