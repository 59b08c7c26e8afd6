"""Where webhooks may go: a caller names the URL, and this server may be behind a firewall."""

import asyncio
import socket
import threading
from contextlib import suppress

import pytest

from gateway.jobs import BadRequest
from gateway.local.webhooks import WebhookLimits, Webhooks

ENGINE, OWN = 3000, 8000
HERE = ("127.0.0.1", "localhost", "[::1]", "127.0.0.2")
REFUSED = [f"http://{host}:{port}/sdapi/v1/interrupt" for host in HERE for port in (ENGINE, OWN)]
REFUSED += ["http://10.0.0.1:9000/", "http://169.254.169.254/x", "http://example.com/", "ftp://a/"]


@pytest.mark.parametrize("url", REFUSED)
def test_a_webhook_reaches_neither_the_engine_nor_this_server_nor_the_network(url):
    """An https URL is allowed here; its address is checked when the connection is made."""
    with pytest.raises(BadRequest, match="webhook"):
        Webhooks(allow_loopback=True, own_ports={ENGINE, OWN}).check(url)


def test_a_webhook_may_reach_another_program_of_this_machine_if_only_that_one_is_served():
    url = "http://127.0.0.1:9000/done"
    assert Webhooks(allow_loopback=True, own_ports={ENGINE, OWN}).check(url) == url
    with pytest.raises(BadRequest):
        Webhooks().check(url)


def trickle(listening, ended):
    """Answer with a header that has no end, a byte at a time."""
    line = listening.accept()[0]
    with line, suppress(OSError):
        line.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not ended.wait(0.05):
            line.sendall(b"x")


@pytest.mark.timeout(60)
def test_a_webhook_whose_answer_never_ends_is_given_up():
    """The socket's own timeout is for one read."""
    limits, ended = WebhookLimits(attempts=1, seconds=0.3), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = threading.Thread(target=trickle, args=[listening, ended])
        host.start()

        async def post():
            webhooks = Webhooks(allow_loopback=True, limits=limits)
            webhooks.send(f"http://127.0.0.1:{listening.getsockname()[1]}/", {"id": "a"})
            _, waiting = await asyncio.wait(webhooks._sending, timeout=20)
            return waiting

        try:
            assert asyncio.run(post()) == set()
        finally:
            ended.set()
            host.join()


def test_webhooks_that_wait_keep_a_bounded_memory():
    limits = WebhookLimits(attempts=1, pending_bytes=25_000)

    async def send():
        webhooks, sent = Webhooks(limits=limits), []
        for size in (10_000, 10_000, 10_000, 1_000):
            webhooks.send("https://127.0.0.1:1/", {"id": "a", "output": "x" * size})
            sent.append(len(webhooks._sending))
        await webhooks.sent(20)
        return sent, len(webhooks._sending)

    assert asyncio.run(send()) == ([1, 2, 2, 3], 0)
