"""Starts the RunPod SDK with our own transport in it; docs/internals/runpod-sdk.md explains why.

The SDK keeps its arguments, `--test_input`, the local API, fitness checks and pings. Only its
JobScaler, which takes, runs and posts jobs, is replaced by `worker.runpod.transport`. That depends
on the SDK's internals, so it is done only with the exact release it was written for. With any
other release the plain SDK runs, and a warning is logged.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import logging
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.runpod.timing import TIMING, TransportTiming

if TYPE_CHECKING:  # they load aiohttp, for which the start of a download must not wait
    from worker.runpod.poller import RunPodJob
    from worker.runpod.transport import JobHandler, Transport
    from worker.service.stream import PostChunk

logger = logging.getLogger("worker.runpod")


@dataclass(frozen=True)
class SdkRelease:
    """A release of the SDK.

    Attributes:
        sources: the beginning of the SHA-256 of each file that our transport replaces or uses.
    """

    version: str
    sources: Mapping[str, str]


SUPPORTED = SdkRelease(
    "1.12.0",
    {
        "http_client.py": "4ccfe9a495b1e973",
        "serverless/__init__.py": "7f820d01d8d8aae8",
        "serverless/worker.py": "86e4714e3d7d5b7e",
        "serverless/modules/rp_fitness.py": "90770dbc7de68cc8",
        "serverless/modules/rp_http.py": "0da3784eecf5260b",
        "serverless/modules/rp_job.py": "46e51db31fc84da9",
        "serverless/modules/rp_ping.py": "6db09105cd27cfa7",
        "serverless/modules/rp_scale.py": "42d855bb17ff46fb",
        "serverless/modules/worker_state.py": "7b6da9f219d4368f",
    },
)

# The SDK's automatic checks end a healthy worker: one with a full model cache, or without a route
# to 8.8.8.8. Ours are in worker/runpod/fitness.py.
OWN_CHECKS_ONLY = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true"}

# Libraries that the SDK imports at once, and of which a worker uses nothing.
UNUSED = ("paramiko", "cpuinfo")

_transport: Transport | None = None


def start(
    handler: JobHandler,
    *,
    concurrency: int = 1,
    checks: Iterable[Callable[[], None]] = (),
    timing: TransportTiming = TIMING,
    release: SdkRelease = SUPPORTED,
) -> None:
    """Run the SDK; returns when the worker has ended.

    `concurrency` is how many jobs run at once. `checks` are named functions that raise if this
    worker must not take a job; they run once, before the first job, and only on RunPod.

    Raises:
        SystemExit: from the SDK, after a test input.
    """
    for name, value in OWN_CHECKS_ONLY.items():
        os.environ.setdefault(name, value)
    runpod = import_sdk()
    changed = differences(release)
    if changed:
        logger.warning("the plain RunPod SDK takes and posts jobs, because %s", "; ".join(changed))
    else:
        _replace_job_scaler(handler, concurrency, timing)
    for check in checks:
        runpod.serverless.register_fitness_check(check)
    config = {"handler": handler, "concurrency_modifier": lambda _current: concurrency}
    runpod.serverless.start(config)


def import_sdk() -> Any:  # noqa: ANN401 - a module without types
    """Import the SDK, without two libraries of which a worker uses nothing.

    paramiko is for the SDK's command line; it takes 17 MB and 0.2 s. py-cpuinfo reads the name of
    the processor for the SDK's debugger; that takes 1.2 s.
    """
    absent = {name: types.ModuleType(name) for name in UNUSED if name not in sys.modules}
    for module in absent.values():
        module.get_cpu_info = dict  # type: ignore[attr-defined]
    known = not differences()  # another release may use them
    sys.modules.update(absent if known else {})
    try:
        return importlib.import_module("runpod")
    finally:
        for name, module in absent.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def report_unhealthy(check: str, reason: str) -> None:
    """Report to RunPod that this worker failed a check, so that it is replaced; for at most 2 s.

    For a fault that is found before `start`, which reports failed checks itself. Outside RunPod,
    and with another release of the SDK, nothing is sent.
    """
    if differences():
        return
    from runpod.serverless.modules import rp_fitness  # noqa: PLC0415

    rp_fitness._report_unhealthy(check, reason)  # noqa: SLF001 - the guard knows this release


async def post_progress(job: RunPodJob, output: object) -> bool:
    """Report a job's progress; returns whether RunPod accepted it. Call it in the handler's loop.

    One attempt of at most 5 s; it raises nothing but cancellation. Reports that are awaited one
    after the other arrive in that order, and before a result that is returned after them. With the
    plain SDK nothing is sent: its reports may arrive after the result, and the job would stay in
    progress for ever. Outside RunPod nothing is sent either.
    """
    if _transport and _transport.poster:
        return await _transport.poster.post_progress(job["id"], output)
    return False


def stream_of(job: RunPodJob) -> PostChunk | None:
    """What sends chunks to the job's `/stream`; call it in the handler's loop.

    None where there is no stream: outside RunPod, without RUNPOD_WEBHOOK_POST_STREAM, and with the
    plain SDK.
    """
    poster = _transport.poster if _transport else None
    if poster is None or not poster.can_stream:
        return None
    return functools.partial(poster.post_chunk, job["id"])


def take_next(job: RunPodJob) -> None:
    """Let the next job be taken: this one needs the engine no more. Call it in the handler's loop.

    Outside RunPod, and with the plain SDK, the next job is taken when the handler has returned.
    """
    if _transport:
        _transport.take_next(job["id"])


def differences(release: SdkRelease = SUPPORTED) -> list[str]:
    """How the installed SDK differs from that release; an empty list if it does not."""
    try:
        version = metadata.version("runpod")
    except metadata.PackageNotFoundError:
        return ["it is not installed as a package"]
    if version != release.version:
        return [f"it is runpod {version} and not {release.version}"]
    sources = release.sources.items()
    return [f"{name} was changed" for name, expected in sources if fingerprint(name) != expected]


def fingerprint(name: str) -> str:
    """The beginning of the SHA-256 of a file of the installed SDK; empty if it does not exist."""
    package = util.find_spec("runpod")
    try:
        folder = Path(str(package.origin if package else "")).parent
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def _replace_job_scaler(handler: JobHandler, concurrency: int, timing: TransportTiming) -> None:
    """Let the SDK run our transport where it would run its JobScaler."""
    from runpod import http_client  # noqa: PLC0415
    from runpod.serverless.modules import rp_http, rp_job, rp_scale, worker_state  # noqa: PLC0415

    from worker.runpod.transport import Routes, Transport  # noqa: PLC0415
    from worker.runpod.watchdog import end_forks_with_parent  # noqa: PLC0415
    from worker.service import threads  # noqa: PLC0415

    end_forks_with_parent()

    class Scaler:
        """`run_worker` makes one with the SDK's config, and starts it once."""

        def __init__(self, _config: dict[str, Any]) -> None:
            routes = Routes(
                rp_job.JOB_GET_URL,
                rp_http.JOB_DONE_URL,
                http_client.get_auth_header(),
                # Without the variable, the SDK has a word that is no URL.
                rp_http.JOB_STREAM_URL if "://" in rp_http.JOB_STREAM_URL else None,
            )
            running_jobs = worker_state.JobsProgress()  # the SDK's pings report these jobs
            self._transport = Transport(
                routes, handler, running_jobs, concurrency=concurrency, timing=timing
            )

        def start(self) -> None:
            """Run until the worker ends."""
            threads.run_loop(_serve(self._transport, timing.silence))

    rp_scale.JobScaler = Scaler


async def _serve(transport: Transport, silence: float) -> None:
    from worker.runpod.watchdog import end_within, start_watchdog  # noqa: PLC0415
    from worker.service import threads  # noqa: PLC0415

    global _transport  # noqa: PLW0603 - a process is one worker
    threads.use_more()
    start_watchdog(asyncio.get_running_loop(), silence)
    _transport = transport
    await transport.serve()
    end_within(silence)
