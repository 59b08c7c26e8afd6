"""Where webhooks may go: a caller names the URL, and this server may be behind a firewall."""

import pytest

from gateway.jobs import BadRequest
from gateway.local.webhooks import Webhooks

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
