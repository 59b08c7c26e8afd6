"""Uploads to a job's own URLs, to a host on loopback."""

import logging

import pytest
from fakes.a1111.process import free_port
from fakes.hosts.put_host import put_host

from worker.delivery import put_url
from worker.delivery.put_url import put
from worker.errors import DeliveryFailed
from worker.http.client import SafeHttpClient
from worker.webui.picture import Picture

PNG = Picture(b"\x89PNG of some bytes", "png")
AT_ONCE = {"Retry-After": "0"}
BUSY = (503, AT_ONCE, b"")


@pytest.fixture
def host():
    with put_host() as running:
        yield running


@pytest.fixture
def internet(host):
    return SafeHttpClient([host.address])


def test_the_bytes_arrive_with_their_type_and_the_query_stays_secret(host, http):
    shown = put(http, host.url("1.png"), PNG)

    assert shown == f"http://{host.address}/1.png"
    (received,) = host.received
    assert received.body == PNG.data
    assert received.query == {"X-Amz-Signature": ["5ecret"]}
    assert received.headers["content-type"] == "image/png"
    assert received.headers["content-length"] == str(len(PNG.data))
    assert "authorization" not in received.headers


@pytest.mark.parametrize(("form", "content_type"), [("jpeg", "image/jpeg"), ("webp", "image/webp")])
def test_the_type_is_that_of_the_form(host, http, form, content_type):
    put(http, host.url("1"), Picture(b"x", form))

    assert host.received[0].headers["content-type"] == content_type


ENDS = [
    # answers, number of PUTs, what is told (None: it worked)
    ([(200, {}, b"")], 1, None),
    ([(201, {}, b"")], 1, None),
    ([(204, {}, b"")], 1, None),
    ([BUSY, (200, {}, b"")], 2, None),
    ([BUSY] * 2, 3, None),
    ([BUSY] * 3, 3, "answered 503."),
    ([(429, AT_ONCE, b"")] * 3, 3, "answered 429."),
    ([(403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")], 1, "403 (SignatureDoesNo"),
    ([(403, {}, b"5ecret")], 1, "answered 403."),
    ([(404, {}, b"")], 1, "answered 404."),
    ([(307, {"Location": "http://127.0.0.1:1/"}, b"")], 1, "answered 307."),
]


@pytest.mark.parametrize(("answers", "puts", "said"), ENDS, ids=str)
def test_a_busy_host_is_asked_again_and_no_other_one(host, http, answers, puts, said):
    host.answers = list(answers)
    if said is None:
        put(http, host.url("1.png"), PNG)
    else:
        with pytest.raises(DeliveryFailed) as raised:
            put(http, host.url("1.png"), PNG)
        assert said in str(raised.value)
        assert "5ecret" not in f"{raised.value}{raised.value.details}"

    assert [one.body for one in host.received] == [PNG.data] * puts


def test_a_broken_connection_is_tried_again(host, http, monkeypatch):
    monkeypatch.setattr(put_url, "LONGEST_WAIT", 0.0)
    host.answers = [(0, {}, b""), (0, {}, b"")]

    put(http, host.url("1.png"), PNG)
    assert len(host.received) == 3


def test_a_host_that_is_gone_is_told(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(put_url, "LONGEST_WAIT", 0.0)
    gone = f"127.0.0.1:{free_port()}"
    with pytest.raises(DeliveryFailed, match="the connection failed") as raised:
        put(SafeHttpClient([gone]), f"http://{gone}/1.png?sig=5ecret", PNG)

    assert "5ecret" not in f"{raised.value}{caplog.text}"


@pytest.mark.parametrize(
    "url",
    [
        "http://bucket.example/1.png?sig=5ecret",
        "https://127.0.0.1:1/1.png?sig=5ecret",
        "https://[::1]:1/1.png?sig=5ecret",
        "https://169.254.169.254/latest?sig=5ecret",
        "ftp://bucket.example/1.png?sig=5ecret",
        "https://me:5ecret@127.0.0.1:1/1.png",
    ],
)
def test_only_https_and_only_public_addresses(url):
    with pytest.raises(DeliveryFailed, match="refused") as raised:
        put(SafeHttpClient(), url, PNG)

    assert "5ecret" not in str(raised.value)
