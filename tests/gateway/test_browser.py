"""A real browser opens a page of another site, which tries everything to start a job here."""

import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fakes.gateway_server import served_endpoint
from fakes.runpod_endpoint import RunPodEndpoint, completed

from gateway.http.guard import Access

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PAGE = (Path(__file__).parent / "attack.html").read_bytes()

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


class Site(ThreadingHTTPServer):
    """The other site; `report` is what its page has found."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.report, self.done = None, threading.Event()


class Requests(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE if self.path.startswith("/attack") else b"")

    def do_POST(self):
        self.server.report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def log_message(self, *_):
        pass


@contextmanager
def site():
    with Site() as running:
        threading.Thread(target=running.serve_forever).start()
        try:
            yield running
        finally:
            running.shutdown()


def visit(url, running, folder):
    """Open the page until it has tried everything; returns what it reports."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    names = "MAP evil.test 127.0.0.1, MAP rebind.test 127.0.0.1"
    command += [f"--user-data-dir={folder}", f"--host-resolver-rules={names}", url]
    with (folder / "chromium.log").open("wb") as log:
        browser = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        assert running.done.wait(120), (folder / "chromium.log").read_text()
    finally:
        browser.terminate()
        browser.wait()
    return running.report


@pytest.fixture
def runpod():
    with RunPodEndpoint(lambda _input: [completed(images=["aGk="])]) as endpoint:
        yield endpoint


def test_a_page_of_another_site_starts_no_job_and_reads_nothing(runpod, tmp_path):
    """Under this machine's own names, and under a name of its own that leads here."""
    with site() as running, served_endpoint(runpod) as gateway:
        page = f"http://evil.test:{running.server_port}/attack?port={gateway.port}"
        report = visit(page, running, tmp_path)
    assert runpod.events() == []
    assert report["tries"] > 200
    assert report["readable"] == []


def test_a_page_of_an_allowed_origin_starts_jobs(runpod, tmp_path):
    """The same page; it shows that the tries of the test before reach the server."""
    with site() as running:
        origin = f"http://evil.test:{running.server_port}"
        with served_endpoint(runpod, Access(origins=[origin])) as gateway:
            report = visit(f"{origin}/attack?port={gateway.port}", running, tmp_path)
    assert runpod.events("run")
    assert 200 in report["readable"]
