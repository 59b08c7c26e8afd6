"""Uploads to a bucket that a job names: whatever its endpoint is, and whatever it answers."""

import itertools
import socket
import threading
from contextlib import contextmanager, suppress

import pytest
from fakes.hosts.bucket import KEY_ID, NAME, SECRET, volume_server

from handler import build_delivery
from worker.config.bucket_address import BucketAccess, BucketAddress
from worker.config.settings import Settings
from worker.delivery.bucket import Bucket
from worker.delivery.limits import UploadLimits
from worker.delivery.s3_config import FIELDS, read
from worker.errors import DeliveryFailed, InvalidInput
from worker.http.client import SafeHttpClient

LIMITS = UploadLimits(attempts=2, seconds=20.0)
HTTP = "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {}\r\n{}\r\n{}"


def config(endpoint, **change):
    return dict(zip(FIELDS, (KEY_ID, SECRET, NAME, endpoint), strict=True)) | change


def bucket(endpoint, limits=LIMITS, trusted=True):
    host = endpoint.partition("//")[2]
    return Bucket(read(config(endpoint)), limits=limits, http=SafeHttpClient([host] * trusted))


def reason(found, *stop):
    """Why the upload failed."""
    with pytest.raises(DeliveryFailed) as raised:
        found.upload("job/0.png", b"picture", "image/png", *stop)
    assert SECRET not in str(raised.value)
    assert KEY_ID not in str(raised.value)
    assert len(raised.value.message) < 200
    return raised.value.message


@contextmanager
def raw_server(answer):
    """A server that sends these bytes to each client: (address, the requests it got)."""
    got = []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                got.append(connection.recv(65536))
                for part in answer() if callable(answer) else [answer]:
                    connection.sendall(part if isinstance(part, bytes) else part.encode())
                # What is unread when a connection is closed would take the answer with it.
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.3)
                while connection.recv(65536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", got
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


# Where a request may go ---------------------------------------------------------------------------

PRIVATE = ["127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "localhost"]


@pytest.mark.parametrize("endpoint", [*(f"https://{one}" for one in PRIVATE), "http://s3.example"])
def test_an_endpoint_that_is_not_public_or_not_https_is_refused_before_the_engine_is_used(endpoint):
    delivery = build_delivery(Settings.from_environ({}))
    with pytest.raises(InvalidInput, match=r"s3Config\.endpointUrl: .*(public|https)"):
        delivery.to_bucket_of_job(read(config(endpoint)))


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.1.2.3", "::1"])
def test_a_name_that_leads_to_this_network_gets_no_request(monkeypatch, address):
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, *rest, **more: real(address, *rest, **more)
    )
    monkeypatch.setattr(socket.socket, "connect", None)  # fails if it is called
    found = reason(bucket("https://s3.example", trusted=False))
    assert "was refused: the host 's3.example' has no public address." in found


@pytest.mark.parametrize("region", ["x-amz-bucket-region: mars-1\r\n", ""])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status, region):
    """Without a region boto3 asks for it: that request is redirected as well, and not followed."""
    with raw_server(HTTP.format("200 OK", 0, "", "")) as (inner, got):
        head = f"Location: {inner}/{NAME}\r\n{region}"
        with raw_server(HTTP.format(f"{status} Moved", 0, head, "")) as (outer, asked):
            assert f"answered {status}" in reason(bucket(outer))
    assert got == []
    assert 0 < len(asked) < 10


# What comes back ----------------------------------------------------------------------------------

ERROR = "<Error><Code>{}</Code></Error>"
BOMB = '<!DOCTYPE x [<!ENTITY a "{}">]><x>{}</x>'.format("a" * 30_000, "&a;" * 8_000)
DEEP = "<a>" * 20_000
WRONG_NUMBERS = "ETag: x\r\nx-amz-object-size: many\r\nDate: never\r\nx-amz-retry-after: x\r\n"

ANSWERS = [
    ("403 Forbidden", "", ERROR.format("AccessDenied"), "answered 403 (AccessDenied)"),
    ("403 Forbidden", "", ERROR.format("x" * 500), "answered 403 (403)"),
    ("400 Bad", "", BOMB, "answered 400 (400)"),
    ("400 Bad", "", DEEP, "answered 400 (400)"),
    ("404 None", "", "<html><body>No such page", "answered 404 (404)"),
    ("503 Busy", "x-amz-retry-after: 999999999\r\n", "", "answered 503 (503)"),
    ("200 OK", "", "<html>Welcome</html>", "without an ETag, so it is no bucket"),
    ("200 OK", "", BOMB, "without an ETag"),
    ("200 OK", WRONG_NUMBERS, DEEP, None),
    ("999 Odd", "", "", "answered 999"),
]


@pytest.mark.parametrize(("status", "head", "body", "message"), ANSWERS, ids=lambda x: str(x)[:30])
def test_an_answer_of_any_kind_is_a_success_or_a_short_reason(status, head, body, message):
    with raw_server(HTTP.format(status, len(body), head, body)) as (endpoint, _):
        found = bucket(endpoint)
        if message:
            assert message in reason(found)
        else:
            assert found.upload("job/0.png", b"picture", "image/png").startswith(endpoint)


def endless(first, block):
    return lambda: itertools.chain([first], itertools.repeat(block))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (endless("HTTP/1.1 400 Bad\r\n\r\n", "x" * 65536), "answered 400"),
        (endless("HTTP/1.1 200 OK\r\n", "X: y\r\n" * 1000), "cannot be reached"),
        (endless("HTTP/1.1 200 OK\r\n", "X" * 65536), "cannot be reached"),
        ("garbage\r\n\r\n", "cannot be reached"),
        ("", "cannot be reached"),
    ],
    ids=["body", "headers", "header", "garbage", "nothing"],
)
def test_an_answer_without_end_or_sense_is_a_failure(answer, message):
    with raw_server(answer) as (endpoint, _):
        assert message in reason(bucket(endpoint))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("block", ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nX: "])
@pytest.mark.parametrize("end", ["its time is over", "nobody waits any more"])
def test_a_host_that_never_comes_to_an_end_is_cut_off(block, end):
    """Each read gets something, or waits for less than its own limit."""
    is_over, stop = threading.Event(), threading.Event()
    seconds = 1 if end == "its time is over" else 600

    def slowly():
        yield block
        while not is_over.wait(0.02):
            yield block if "100" in block else "y"
            if seconds == 600:
                stop.set()

    with raw_server(slowly) as (endpoint, _):
        found = reason(bucket(endpoint, UploadLimits(attempts=1, seconds=seconds)), stop)
        assert "cannot be reached" in found or "without an ETag" in found
        is_over.set()


# RunPod's network volumes -------------------------------------------------------------------------


def test_a_volume_signs_no_urls_and_has_a_limit_for_one_request():
    with volume_server(most=1000) as volume:
        access = BucketAccess(
            BucketAddress(volume.endpoint, volume.name, "EU-RO-1", signs_urls=False),
            *(volume.keys()),
        )
        found = Bucket(access, limits=LIMITS)
        assert found.upload("job/0.png", b"picture", "image/png") == f"s3://{volume.name}/job/0.png"
        assert volume.files() == {"job/0.png": ("image/png", b"picture")}
        with pytest.raises(DeliveryFailed, match="answered 400"):
            found.upload("job/1.png", bytes(1001), "image/png")
        what = {"Bucket": volume.name, "Key": "job/0.png"}
        signed = volume.client.generate_presigned_url("get_object", what)
        assert volume.status_of(signed) == 403
