"""Web pages cannot use the engine; the embedded engine and A1111 decide alike."""

import sys
import types

import a1111_worker.guard
import pytest
from a1111_worker import parts
from fastapi import FastAPI
from fastapi.testclient import TestClient

import engine.guard

OWN = "gpu.example.com"
ALLOWED = [
    *({"host": host} for host in ("127.0.0.1:3000", "localhost:3000", "[::1]:3000", "mybox")),
    *({"host": host} for host in (OWN, "192.168.1.5:3000", "box.local", "LOCALHOST.")),
    {"host": "localhost:3000", "origin": "http://localhost:3000", "sec-fetch-site": "same-origin"},
    {"host": "localhost", "sec-fetch-site": "none"},
]
REFUSED = [
    *(
        {"host": host}
        for host in ("evil.example", "evil.example:3000", "", "[", "127.0.0.1.nip.io")
    ),
    {},
    {"host": "localhost:3000", "origin": "https://evil.example"},
    {"host": "localhost:3000", "origin": "null"},
    {"host": "localhost:3000", "origin": "http://localhost:8000"},
    *({"host": "localhost", "sec-fetch-site": site} for site in ("cross-site", "same-site")),
]


@pytest.mark.parametrize("module", [engine.guard, a1111_worker.guard])
def test_only_requests_that_no_web_page_sends_are_answered(module):
    def is_refused(headers):
        pairs = {name.encode(): value.encode() for name, value in headers.items()}
        return bool(module.why_refused(pairs, OWN))

    assert [case for case in ALLOWED if is_refused(case)] == []
    assert [case for case in REFUSED if not is_refused(case)] == []


def test_a1111_refuses_web_pages_once_its_app_was_prepared(monkeypatch):
    shared = types.SimpleNamespace(cmd_opts=types.SimpleNamespace(server_name=None))
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    app = FastAPI()
    parts.prepare_app(None, app)
    client = TestClient(app, base_url="http://127.0.0.1:3000")
    path = "/sdapi/v1/worker-parts"
    assert client.get(path).status_code == 200
    assert client.get(path, headers={"Origin": "https://evil.example"}).status_code == 403
