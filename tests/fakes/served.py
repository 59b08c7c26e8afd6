"""A whole worker that serves HTTP: the real start.sh and handler, with the fake A1111."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests

from fakes.a1111.process import free_port, wait_until
from fakes.worker_process import WorkerProcess, running_worker


@dataclass
class ServedWorker:
    """A worker that serves HTTP at `url`."""

    worker: WorkerProcess
    url: str


@contextmanager
def served_worker(
    folder: Path, *, by_port: bool = False, wait_until_ready: bool = True, **more: Any
) -> Iterator[ServedWorker]:
    """start.sh with the fake A1111, serving HTTP; `more` as for `running_worker`.

    With `by_port` it has no argument, and the variable PORT, as in the images.
    """
    port = free_port()
    no_plane: Any = SimpleNamespace(worker_env=dict)
    if by_port:
        more["PORT"] = str(port)
    else:
        more["arguments"] = ("--rp_serve_api", "--rp_api_port", str(port))
    statuses = {200} if wait_until_ready else {200, 204}
    with running_worker(folder, no_plane, wait=False, **more) as worker:
        url = f"http://localhost:{port}"

        def is_ready() -> bool:
            assert worker.process.poll() is None, worker.log()
            try:
                return requests.get(f"{url}/ping", timeout=5).status_code in statuses
            except requests.ConnectionError:
                return False

        wait_until(is_ready, "the worker's /ping")
        yield ServedWorker(worker, url)
