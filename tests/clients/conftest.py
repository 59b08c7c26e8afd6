"""One worker for the clients of this folder, and its two gateways: in its process, and a bridge."""

import json
from contextlib import asynccontextmanager

import pytest
from fakes.gateway_server import served
from fakes.hosts.model_hosts import ModelHosts
from fakes.served import served_worker

from gateway.app import build
from gateway.endpoint.http import Address
from gateway.endpoint.jobs import Endpoint, Polling
from gateway.http.guard import Access

TEMPLATES = {
    "templates": {
        "foxes": {"name": "Red foxes", "checkpoint": {"name": "second"}, "defaults": {"steps": 3}}
    },
    "default_template": "foxes",
}


@pytest.fixture(scope="module")
def hosts():
    """The hosts of models, on loopback."""
    with ModelHosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def worker(tmp_path_factory, hosts):
    """A worker with the fake A1111 that serves HTTP."""
    folder = tmp_path_factory.mktemp("worker")
    templates = folder / "templates.json"
    templates.write_text(json.dumps(TEMPLATES))
    settings = {"TEMPLATES_FILE": str(templates), "DEFAULT_TEMPLATE": "foxes"}
    with served_worker(folder, hosts=hosts, **settings) as served:
        yield served


@pytest.fixture(scope="module", params=["the worker", "an endpoint"])
def url(request, worker):
    """The address of a gateway: the worker's own, and one for an endpoint elsewhere."""
    if request.param == "the worker":
        yield worker.url
        return

    @asynccontextmanager
    async def bridge():
        endpoint = Endpoint(Address(f"{worker.url}/v2/local", "key"), Polling(running=0.2))
        yield build(endpoint, Access())
        await endpoint.close()

    with served(bridge) as gateway:
        yield gateway.url
