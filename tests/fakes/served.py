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
def served_worker(folder: Path, **more: Any) -> Iterator[ServedWorker]:
    """start.sh with the fake A1111, serving HTTP; `more` as for `running_worker`."""
    port = free_port()
    no_plane: Any = SimpleNamespace(worker_env=dict)
    arguments = ("--rp_serve_api", "--rp_api_port", str(port))
    with running_worker(folder, no_plane, wait=False, arguments=arguments, **more) as worker:
        url = f"http://localhost:{port}"

        def is_ready() -> bool:
            assert worker.process.poll() is None, worker.log()
            try:
                return requests.get(f"{url}/ping", timeout=5).status_code == 200
            except requests.ConnectionError:
                return False

        wait_until(is_ready, "the worker's /ping")
        yield ServedWorker(worker, url)
