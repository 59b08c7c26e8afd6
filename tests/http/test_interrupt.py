"""A request that another thread ends."""

import threading

import pytest
from fakes.hosts.fixtures import client_for
from fakes.hosts.model_hosts import ModelHosts

from worker.errors import ModelHostFailed
from worker.http import client as http
from worker.http.interrupt import Interrupt

DATA = bytes(100_000)


@pytest.fixture(scope="module", params=[False, True], ids=["http", "https"])
def any_hosts(request):
    with ModelHosts(tls=request.param) as hosts:
        yield hosts


@pytest.fixture
def one(any_hosts, monkeypatch):
    """Hosts, a client, and the URL of a file; TLS works as on the internet."""
    any_hosts.reset()
    if any_hosts.tls:
        monkeypatch.setenv("SSL_CERT_FILE", str(any_hosts.ca_file))
        monkeypatch.setattr(http, "is_public", lambda _: True)
    patient = {"read_timeout": 600.0}  # the interrupt ends a request, not the socket's timeout
    of_internet = http.SafeHttpClient(limits=http.HttpLimits(**patient))
    client = of_internet if any_hosts.tls else client_for(any_hosts, **patient)
    return any_hosts, client, any_hosts.add_web("/x", DATA)


def request(client, url, interrupt):
    with interrupt.covers(), client.open(url) as reply:
        return reply.document(2 * len(DATA)).body


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", [{"name": "slow", "seconds": 600}, {"name": "stall"}])
@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
def test_a_request_ends_before_and_within_its_answer(one, fault, kept):
    hosts, client, url = one
    if kept:
        assert request(client, url, Interrupt()) == DATA
    hosts.fault(**fault, path="/x")
    interrupt = Interrupt()
    timer = threading.Timer(0.2, interrupt.cut)
    timer.start()
    with pytest.raises(ModelHostFailed):
        request(client, url, interrupt)
    timer.join()
    hosts.no_faults()
    with pytest.raises(ModelHostFailed):  # it stays cut
        request(client, url, interrupt)
    assert request(client, url, Interrupt()) == DATA


def test_a_connection_that_was_forgotten_is_not_cut(one):
    _, client, url = one
    interrupt = Interrupt()
    with interrupt.covers():
        client.open(url).document(len(DATA))
    with client.open(url) as reply:  # perhaps the same connection
        interrupt.cut()
        assert reply.read(len(DATA)) == DATA
