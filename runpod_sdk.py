"""Starts the RunPod SDK with our own transport in it; docs/modules/runpod-sdk.md says why.

The SDK keeps what it does well: its arguments, `--test_input`, the local API, fitness checks and
pings. Where it has its JobScaler, which takes, runs and posts jobs, it gets
`worker.runpod.transport`. That depends on the SDK's internals, so it is done only with the exact
release it was written for. With any other release the plain SDK runs, and a warning is logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from importlib import metadata, util
from pathlib import Path
from typing import Any

from worker.runpod.poller import Job
from worker.runpod.transport import JobHandler, Routes, Transport
from worker.runpod.watchdog import start_watchdog

logger = logging.getLogger("worker.runpod")

VERSION = "1.12.0"

# The beginning of the SHA-256 of each file that our transport replaces or relies on.
SOURCES = {
    "http_client.py": "4ccfe9a495b1e973",
    "serverless/__init__.py": "7f820d01d8d8aae8",
    "serverless/worker.py": "86e4714e3d7d5b7e",
    "serverless/modules/rp_fitness.py": "90770dbc7de68cc8",
    "serverless/modules/rp_http.py": "0da3784eecf5260b",
    "serverless/modules/rp_job.py": "46e51db31fc84da9",
    "serverless/modules/rp_ping.py": "6db09105cd27cfa7",
    "serverless/modules/rp_scale.py": "42d855bb17ff46fb",
    "serverless/modules/worker_state.py": "7b6da9f219d4368f",
}

# The SDK's automatic checks end a healthy worker: one with a full model cache, or without a way
# to 8.8.8.8. Ours are in worker/runpod/fitness.py.
OWN_CHECKS_ONLY = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true"}

_serving: Transport | None = None


def start(
    handler: JobHandler, *, concurrency: int = 1, checks: Iterable[Callable[[], None]] = ()
) -> None:
    """Give the process to the SDK; returns when the worker has ended.

    `concurrency` is how many jobs run at once. `checks` are named functions that raise when this
    worker must not take a job; they run once, before the first one, and only on RunPod.

    Raises:
        SystemExit: from the SDK, when it only had to run a test input.
    """
    for name, value in OWN_CHECKS_ONLY.items():
        os.environ.setdefault(name, value)
    import runpod  # noqa: PLC0415 - takes 1.4 s, which the engine's boot hides

    changed = differences()
    if changed:
        logger.warning("the plain RunPod SDK takes and posts jobs, because %s", "; ".join(changed))
    else:
        _put_in(handler, concurrency)
    for check in checks:
        runpod.serverless.register_fitness_check(check)
    config = {"handler": handler, "concurrency_modifier": lambda _current: concurrency}
    runpod.serverless.start(config)


async def post_progress(job: Job, output: object) -> bool:
    """Report how far a job is; whether RunPod has it. Call it in the event loop of the handler.

    One attempt of at most 5 s, and no error but cancellation. Reports that are awaited one after
    the other arrive in that order, and before a result that is returned after them. With the
    plain SDK there are none: its reports may arrive behind the result, and the job would stay in
    progress for good. Away from RunPod there is nobody to report to.
    """
    if _serving and _serving.poster:
        return await _serving.poster.progress(job["id"], output)
    return False


def differences() -> list[str]:
    """How the installed SDK differs from the one that our transport was written for."""
    try:
        version = metadata.version("runpod")
    except metadata.PackageNotFoundError:
        return ["it is not installed as a package"]
    if version != VERSION:
        return [f"it is runpod {version} and not {VERSION}"]
    return [f"{name} was changed" for name in SOURCES if fingerprint(name) != SOURCES[name]]


def fingerprint(name: str) -> str:
    """The beginning of the SHA-256 of a file of the installed SDK; empty if it is not there."""
    package = util.find_spec("runpod")
    try:
        folder = Path(str(package.origin if package else "")).parent
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def _put_in(handler: JobHandler, concurrency: int) -> None:
    """Let the SDK make our transport where it makes its JobScaler."""
    from runpod import http_client  # noqa: PLC0415
    from runpod.serverless.modules import rp_http, rp_job, rp_scale, worker_state  # noqa: PLC0415

    class Scaler:
        """What `run_worker` calls: made with the SDK's config, then started once."""

        def __init__(self, _config: dict[str, Any]) -> None:
            routes = Routes(rp_job.JOB_GET_URL, rp_http.JOB_DONE_URL, http_client.get_auth_header())
            running = worker_state.JobsProgress()  # the pings name what is in it
            self._transport = Transport(routes, handler, running, concurrency=concurrency)

        def start(self) -> None:
            """Run until the worker ends."""
            asyncio.run(_serve(self._transport))

    rp_scale.JobScaler = Scaler


async def _serve(transport: Transport) -> None:
    global _serving  # noqa: PLW0603 - a process is one worker
    start_watchdog(asyncio.get_running_loop())
    _serving = transport
    await transport.serve()
