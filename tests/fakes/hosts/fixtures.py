"""Fixtures of tests that talk to the fake hosts; the conftest.py of a folder imports them."""

import pytest

from fakes.hosts.model_hosts import ModelHosts
from fakes.hosts.tls import make_certificates
from worker.http import client as http
from worker.http.client import HttpLimits, SafeHttpClient

AT_ONCE = {"first_pause": 0.0, "longest_wait": 0.0}  # failed attempts are repeated at once


@pytest.fixture(scope="session")
def no_ca(tmp_path_factory):
    """A certificate authority that has signed nothing."""
    return make_certificates(tmp_path_factory.mktemp("ca"))[0]


@pytest.fixture(autouse=True)
def _one_authority(monkeypatch, no_ca):
    """Reading all the world's authorities takes 0.1 s for each client."""
    monkeypatch.setenv("SSL_CERT_FILE", str(no_ca))
    monkeypatch.setattr(http.certifi, "where", lambda: str(no_ca))


@pytest.fixture(scope="module")
def running_hosts():
    with ModelHosts() as hosts:
        yield hosts


@pytest.fixture
def hosts(running_hosts):
    running_hosts.reset()
    return running_hosts


def client_for(hosts, *roles, tokens=None, **limits):
    """A client that trusts the roles; all of them if none is named."""
    trusted = [getattr(hosts, role).partition("//")[2] for role in roles] or hosts.netlocs
    return SafeHttpClient(trusted, tokens, HttpLimits(**AT_ONCE | limits))
