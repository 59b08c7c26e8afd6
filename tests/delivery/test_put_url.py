"""Uploads to a job's own URLs, on a host on loopback."""

import logging

import pytest
from fakes.a1111.process import free_port

from worker.delivery.limits import UploadLimits
from worker.delivery.put_url import put
from worker.errors import DeliveryFailed
from worker.http.client import SafeHttpClient
from worker.webui.picture import Picture

PNG = Picture(b"\x89PNG of some bytes", "png")
LIMITS = UploadLimits(longest_wait=0.0)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_the_bytes_arrive_with_their_type_and_the_query_stays_secret(host, form):
    returned = put(SafeHttpClient([host.address]), host.url("1"), Picture(PNG.data, form))
    assert returned == f"http://{host.address}/1"
    (received,) = host.received
    assert (received.body, received.query) == (PNG.data, {"X-Amz-Signature": ["5ecret"]})
    expected = {"content-type": f"image/{form}", "content-length": str(len(PNG.data))}
    assert expected.items() <= received.headers.items()
    assert "authorization" not in received.headers


BUSY, BROKEN, DONE = (503, {"Retry-After": "60"}, b""), (0, {}, b""), (200, {}, b"")


@pytest.mark.parametrize(
    ("answers", "puts", "message"),
    [
        *(([(status, {}, b"")], 1, None) for status in (200, 201, 204)),
        ([BUSY, DONE], 2, None),
        ([BUSY, BUSY, DONE], 3, None),
        ([BROKEN, BROKEN, DONE], 3, None),
        ([BUSY] * 3, 3, "answered 503."),
        ([BROKEN] * 3, 3, "the connection failed"),
        ([(429, {}, b"")] * 3, 3, "answered 429."),
        ([(403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")], 1, "403 (SignatureDoe"),
        ([(403, {}, b"5ecret")], 1, "answered 403."),
        ([(404, {}, b"")], 1, "answered 404."),
        ([(307, {"Location": "http://127.0.0.1:1/"}, b"")], 1, "answered 307."),
    ],
    ids=str,
)
def test_only_temporary_failures_are_followed_by_another_attempt(host, answers, puts, message):
    host.answers = list(answers)
    http = SafeHttpClient([host.address])
    if message is None:
        put(http, host.url("1.png"), PNG, LIMITS)
    else:
        with pytest.raises(DeliveryFailed) as raised:
            put(http, host.url("1.png"), PNG, LIMITS)
        assert message in str(raised.value)
        assert "5ecret" not in f"{raised.value}{raised.value.details}"
    assert [one.body for one in host.received] == [PNG.data] * puts


@pytest.mark.parametrize(
    ("trusted", "message"), [(True, "the connection failed"), (False, "was refused: ")]
)
def test_a_host_that_is_gone_or_private_is_reported_without_the_query(caplog, trusted, message):
    caplog.set_level(logging.DEBUG)
    gone = f"127.0.0.1:{free_port()}"
    with pytest.raises(DeliveryFailed, match=message) as raised:
        put(SafeHttpClient([gone] * trusted), f"http://{gone}/1.png?sig=5ecret", PNG, LIMITS)
    assert "5ecret" not in f"{raised.value}{caplog.text}"
