"""Gateways under test: a worker that serves HTTP, and the app over another endpoint."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests
import uvicorn

from fakes.a1111.process import free_port, wait_until
from fakes.worker_process import WorkerProcess, running_worker
from gateway.app import build
from gateway.endpoint import POLLING, Endpoint, Polling
from gateway.endpoint_http import Address
from gateway.guard import Access


@dataclass
class Served:
    """A worker that serves HTTP at `url`."""

    worker: WorkerProcess
    url: str


@contextmanager
def served_worker(folder: Path, **more: Any) -> Iterator[Served]:
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
        yield Served(worker, url)


@contextmanager
def bridged(
    endpoint_url: str, key: str = "rpa_FAKE_KEY", polling: Polling = POLLING
) -> Iterator[str]:
    """The gateway over a RunPod endpoint, in a thread; its URL."""
    port = free_port()
    servers: list[uvicorn.Server] = []

    async def run() -> None:
        endpoint = Endpoint(Address(endpoint_url, key), polling)
        app = build(endpoint, Access())
        config = uvicorn.Config(app, port=port, log_config=None, access_log=False)
        servers.append(uvicorn.Server(config))
        try:
            await servers[0].serve()
        finally:
            await endpoint.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    wait_until(lambda: bool(servers) and servers[0].started, "the gateway")
    try:
        yield f"http://localhost:{port}"
    finally:
        servers[0].should_exit = True
        thread.join(20)
