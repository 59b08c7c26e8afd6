"""A browser, and what every page must fulfil: no error on its console, no foreign request."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import requests
from fakes.a1111.process import free_port, wait_until
from fakes.gateway_server import served_endpoint
from fakes.runpod_endpoint import RunPodEndpoint, completed, queued
from playwright.sync_api import sync_playwright

from tests.page.use import lists_of_a_worker
from worker.config.settings import PROJECT

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 60_000  # ms; ends only a test that would never end


# Not of the session: while the driver is there, no test of its process can run an event loop.
@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as driver:
        # Chromium's own sandbox needs a user that is not root, and kernels that allow it.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """Open a page in a fresh browser profile; what went wrong in it fails the test at its end."""
    contexts, faults = [], []

    def make(url, *, allowed=(), **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        own = urlsplit(url).netloc

        def on_console(message):
            if message.type in {"error", "warning"} and not any(
                one in message.text for one in allowed
            ):
                faults.append(message.text)

        def on_request(request):
            address = urlsplit(request.url)
            if address.scheme.startswith("http") and address.netloc != own:
                faults.append(request.url)

        page.on("console", on_console)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", on_request)
        page.goto(url)
        return page

    yield make
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def runpod():
    """An endpoint whose worker answers lists; a test gives the states of jobs that draw."""

    def states(job_input):
        if job_input.get("task") == "batch":
            return [completed(results=lists_of_a_worker())]
        return itertools.chain([queued()], endpoint.drawing(job_input))

    with RunPodEndpoint(states) as endpoint:
        endpoint.drawing = lambda _input: []
        endpoint.health = {"jobs": {"inQueue": 0}, "workers": {"running": 1}}
        yield endpoint


@pytest.fixture
def bridge(runpod):
    """The address of a gateway over that endpoint."""
    with served_endpoint(runpod) as gateway:
        yield gateway.url


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """The address of a worker with the embedded engine and the demo model."""
    pytest.importorskip("fakes.tiny_models", reason="the engine's packages are not installed")
    folder, port = tmp_path_factory.mktemp("worker"), free_port()
    names = ("webui", "models", "output", "run")
    environ = {f"{name.upper()}_DIR": str(folder / name) for name in names} | {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "PYTHON": sys.executable,
        "PYTHONPATH": str(PROJECT),
        "ENGINE": "embedded",
        "DEVICE": "cpu",
        "BAKED_MODELS_DIR": str(PROJECT / "demo"),
        "DEFAULT_TEMPLATE": "demo",
        "RESULT_LIMIT_MB": "0",
        "WEBUI_URL": f"http://127.0.0.1:{free_port()}",
        "OMP_NUM_THREADS": "1",  # tests run side by side
    }
    command = ["./start.sh", "--rp_serve_api", "--rp_api_port", str(port)]
    url = f"http://localhost:{port}"
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:

        def is_ready():
            assert process.poll() is None
            with suppress(requests.ConnectionError):
                return requests.get(f"{url}/ping", timeout=5).status_code == requests.codes.ok

        try:
            wait_until(is_ready, "the worker", 180)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
