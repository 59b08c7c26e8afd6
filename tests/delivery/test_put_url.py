"""Uploads to a job's own URLs, on a host on loopback."""

import errno
import logging
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes.a1111.process import free_port, wait_until

from worker.delivery.limits import UploadLimits
from worker.delivery.put_url import put
from worker.errors import DeliveryFailed, ModelHostFailed
from worker.exhaustion import is_exhaustion
from worker.generation.picture import Picture
from worker.http.client import HttpLimits, SafeHttpClient

PNG = Picture(b"\x89PNG of some bytes", "png")
LIMITS = UploadLimits(longest_wait=0.0)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_the_bytes_arrive_with_their_type_and_the_query_stays_secret(host, form):
    returned = put(SafeHttpClient([host.address]), host.url("1"), Picture(PNG.data, form))
    assert returned == f"http://{host.address}/1"
    (received,) = host.received
    assert (received.body, received.query) == (PNG.data, {"X-Amz-Signature": "5ecret"})
    expected = {"content-type": f"image/{form}", "content-length": str(len(PNG.data))}
    assert expected.items() <= received.headers.items()
    assert "authorization" not in received.headers


def failing(name, times=1, **how):
    return {"name": name, "times": times, **how}


SIGNATURE = "<Error><Code>SignatureDoesNotMatch</Code></Error>"


@pytest.mark.parametrize(
    ("fault", "puts", "message"),
    [
        *((failing("status", status=number), 1, None) for number in (200, 201, 204)),
        *((failing("server_error", n, status=503, retry_after=60), n + 1, None) for n in (1, 2)),
        (failing("server_error", 3, status=503, retry_after=60), 3, "answered 503."),
        (failing("drop", 2), 3, None),
        (failing("drop", 3), 3, "the connection failed"),
        (failing("status", 3, status=429), 3, "answered 429."),
        (failing("status", status=403, body=SIGNATURE), 1, "403 (SignatureDoe"),
        (failing("status", status=403, body="5ecret"), 1, "answered 403."),
        (failing("status", status=404), 1, "answered 404."),
        (failing("redirect_to", url="http://127.0.0.1:1/"), 1, "answered 307."),
    ],
    ids=str,
)
def test_only_temporary_failures_are_followed_by_another_attempt(host, fault, puts, message):
    host.fault(**fault)
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


def test_an_exhausted_machine_is_recognized_behind_the_failure_of_the_upload():
    class Exhausted:
        def put(self, url, *_):
            cause = OSError(errno.EMFILE, f"Too many open files: {url}")
            raise ModelHostFailed("the connection failed.") from cause

    secret = "5ecret"  # the traceback has the lines of this test, too
    with pytest.raises(DeliveryFailed) as failed:
        put(Exhausted(), f"https://example.org/1.png?sig={secret}", PNG, LIMITS)
    assert is_exhaustion(failed.value)
    shown = "".join(traceback.format_exception(failed.value))
    assert f"sig={secret}" not in shown, "the log would have the whole URL"


@pytest.mark.timeout(60)
def test_a_host_that_never_answers_is_given_up_in_time(host):
    """A socket's own timeout is for one read: this host may be waited for much longer."""
    host.fault("slow", seconds=600)
    http = SafeHttpClient([host.address], limits=HttpLimits(read_timeout=600.0))
    with pytest.raises(DeliveryFailed, match="the connection failed") as failed:
        put(http, host.url("1.png"), PNG, UploadLimits(longest_wait=0.0, seconds=0.3))
    assert "5ecret" not in str(failed.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", ["slow", "retry later"])
def test_an_upload_ends_when_nobody_waits_for_it_any_more(host, fault):
    if fault == "slow":
        host.fault("slow", seconds=600)
    else:
        host.fault("server_error", times=-1, status=503, retry_after=600)
    http = SafeHttpClient([host.address], limits=HttpLimits(read_timeout=600.0))
    stop, limits = threading.Event(), UploadLimits(longest_wait=600.0, seconds=600.0)
    with ThreadPoolExecutor(1) as thread:
        putting = thread.submit(put, http, host.url("1.png"), PNG, limits, stop)
        wait_until(lambda: host.received, "the upload")
        stop.set()
        assert isinstance(putting.exception(), DeliveryFailed)
    assert len(host.received) == 1
