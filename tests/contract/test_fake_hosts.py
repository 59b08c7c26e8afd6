"""The storages of the fake model hosts answer as the recorded facts say, and each fault is seen on
the wire. What CivitAI and Hugging Face answer is shown by the tests in tests/hosts."""

import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import urllib3
from fakes.a1111.process import wait_until
from fakes.hosts.model_hosts import ModelHosts

DATA = random.Random(1).randbytes(200_000)
SIZE = len(DATA)
BROKEN = urllib3.exceptions.HTTPError


def asker(**pool):
    """A urllib3 without its help: no retries, no redirects."""
    manager = urllib3.PoolManager(retries=False, timeout=30, maxsize=16, **pool)

    def ask(url, key=None, method="GET", part=None, **headers):
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        headers |= {"Range": f"bytes={part}"} if part else {}
        return manager.request(method, url, headers=headers, redirect=False)

    ask.manager = manager
    return ask


@pytest.fixture
def ask():
    made = asker()
    yield made
    made.manager.clear()


@pytest.fixture
def model(hosts):
    return hosts.add_model(version_id=128713, data=DATA, name="dream.safetensors")


@pytest.fixture
def sign(hosts, ask, model):
    """Makes signed URLs of the model."""
    return lambda: ask(model.file_url, hosts.civitai_key).headers["Location"]


def exchange(url, part=None, seconds=30.0):
    """The head and the body that arrive, and whether "fin", "rst" or "silence" follows."""
    parts, got = urlsplit(url), b""
    asked = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n"
    asked += f"Range: bytes={part}\r\n\r\n" if part else "\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as sock:
        sock.sendall(asked.encode())
        end = "fin"
        try:
            while block := sock.recv(65536):
                got += block
        except ConnectionResetError:
            end = "rst"
        except TimeoutError:
            end = "silence"
    head, _, body = got.partition(b"\r\n\r\n")
    return head, body, end


def test_a_key_leads_to_a_signed_url_and_the_bytes(hosts, ask, model):
    answer = ask(model.file_url, hosts.civitai_key)
    location = answer.headers["Location"]
    assert (answer.status, location.startswith(hosts.storage)) == (307, True)
    for name in ("X-Amz-Signature=", "X-Amz-Expires=86400", "response-content-disposition="):
        assert name in location
    file = ask(location)
    assert (file.status, file.data) == (200, DATA)
    assert file.headers["Content-Disposition"] == 'attachment; filename="dream.safetensors"'
    assert [ask(model.file_url, key).status for key in (None, "expired")] == [401, 401]
    assert ask(model.file_url, hosts.civitai_key, "HEAD").status == 405


def test_a_file_is_chosen_by_its_id(hosts, ask):
    hosts.add_model(version_id=5, data=b"first", require_auth=False)
    second = hosts.add_model(version_id=5, data=b"second", require_auth=False)
    by_version = second.file_url.partition("?")[0]
    for url, data in ((by_version, b"first"), (second.file_url, b"second")):
        assert ask(ask(url).headers["Location"]).data == data
    assert ask(f"{by_version}?fileId=99").status == 404


@pytest.mark.parametrize(
    ("part", "start", "stop"),
    [("0-0", 0, 1), ("5-9", 5, 10), ("100-", 100, SIZE), (f"10-{10**9}", 10, SIZE)],
)
def test_ranges_are_exact(ask, sign, part, start, stop):
    answer = ask(sign(), part=part)
    assert (answer.status, answer.data) == (206, DATA[start:stop])
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.headers["Content-Length"] == str(stop - start)


def test_a_range_may_be_impossible_or_for_another_etag(ask, sign):
    url = sign()
    after = ask(url, part=f"{SIZE}-")
    assert (after.status, after.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    etag = ask(url, part="0-0").headers["ETag"]
    assert ask(url, part="5-9", **{"If-Range": etag}).status == 206
    assert ask(url, part="5-9", **{"If-Range": '"other"'}).data == DATA


def test_a_storage_refuses_a_key_a_head_and_a_changed_url(hosts, ask, sign):
    answer = ask(sign(), hosts.civitai_key)
    assert (answer.status, b"<Code>InvalidRequest</Code>" in answer.data) == (400, True)
    assert ask(sign(), method="HEAD").status == 403
    for change in (("Signature=", "Signature=0"), ("%3B%20", "%3b+")):
        head, body, _ = exchange(sign().replace(*change, 1), seconds=0.5)
        assert head.startswith(b"HTTP/1.1 403")
        assert b"SignatureDoesNotMatch" in body


def test_each_storage_has_its_own_etag_and_answer_to_an_expired_url(hosts, ask, sign):
    hosts.fault("tiering", skip=1)
    urls = [sign(), sign()]
    assert urls[1].startswith(f"{hosts.storage_b}/file/civitai-modelfiles/model/")
    r2, b2 = map(ask, urls)
    assert r2.data == b2.data == DATA
    assert r2.headers["ETag"] != b2.headers["ETag"]
    hosts.expire_urls()
    r2, b2 = map(ask, urls)
    assert (r2.status, b"<Code>ExpiredRequest</Code>" in r2.data) == (400, True)
    assert (b2.status, b2.json()["code"]) == (401, "expired_auth_token")
    hosts.fault("url_limits", uses=2)
    url = sign()
    assert [ask(url, part="0-0").status for _ in range(3)] == [206, 206, 401]
    held = [{one for one in hosts.planted_secrets if one in url} for url in (*urls, url)]
    assert [len(one) for one in held] == [1, 1, 1]
    assert len(set.union(*held)) == 3
    assert {hosts.civitai_key, hosts.hf_token} <= hosts.planted_secrets


def test_a_fault_has_a_place_and_a_number_of_times(hosts, ask, sign):
    url = sign()
    hosts.fault("server_error", role="storage", status=503, skip=1, times=1)
    assert [ask(url, part="0-0").status for _ in range(3)] == [206, 503, 206]
    hosts.fault("rate_limited", role="storage", retry_after="Wed, 21", times=1)
    assert ask(url).headers["Retry-After"] == "Wed, 21"
    hosts.fault("status", path="/api/v1/model-versions/128713", status=418)
    assert ask(f"{hosts.civitai}/api/v1/model-versions/128713").status == 418
    hosts.fault("drop", when=lambda request: request.range == (7, None))
    assert ask(url, part="8-").status == 206
    with pytest.raises(BROKEN):
        ask(url, part="7-")
    for name, role in (("nonsense", None), ("cut", "moon")):
        with pytest.raises(ValueError, match="no fault"):
            hosts.fault(name, role=role)


@pytest.mark.parametrize(("reset", "end"), [(False, "fin"), (True, "rst")])
def test_the_connection_is_cut(hosts, ask, sign, reset, end):
    fault = hosts.fault("cut", reset=reset)
    assert ask(sign(), part="0-0").status == 206
    assert fault.hits == 0  # there is nothing after the first byte
    hosts.no_faults()
    hosts.fault("cut", after=1000, reset=reset)
    assert exchange(sign())[1:] == (DATA[:1000], end)
    hosts.fault("drop", reset=reset)
    assert exchange(sign()) == (b"", b"", end)


@pytest.mark.parametrize(
    ("fault", "status", "shown", "data"),
    [
        ({"name": "wrong_range_start"}, 206, f"bytes 11-20/{SIZE}", DATA[10:20]),
        ({"name": "wrong_range_start", "by": -10}, 206, f"bytes 0-9/{SIZE}", DATA[10:20]),
        ({"name": "wrong_range_total", "by": 5}, 206, f"bytes 10-19/{SIZE + 5}", DATA[10:20]),
        ({"name": "whole"}, 200, None, DATA),
        ({"name": "short_range", "by": 3}, 206, f"bytes 10-19/{SIZE}", DATA[10:17]),
        ({"name": "long_range", "by": 3}, 206, f"bytes 10-19/{SIZE}", DATA[10:20] + bytes(3)),
        ({"name": "trickle", "rate": 10_000}, 206, f"bytes 10-19/{SIZE}", DATA[10:20]),
        ({"name": "chunked"}, 206, f"bytes 10-19/{SIZE}", DATA[10:20]),
        (
            {"name": "corrupt", "offset": 11},
            *(206, f"bytes 10-19/{SIZE}"),
            DATA[10:11] + bytes([DATA[11] ^ 1]) + DATA[12:20],
        ),
        ({"name": "corrupt", "offset": 20}, 206, f"bytes 10-19/{SIZE}", DATA[10:20]),
    ],
)
def test_a_range_is_wrong(hosts, ask, sign, fault, status, shown, data):
    hosts.fault(**fault)
    answer = ask(sign(), part="10-19")
    assert (answer.status, answer.headers.get("Content-Range"), answer.data) == (
        *(status, shown),
        data,
    )
    assert ("Transfer-Encoding" in answer.headers) is (fault["name"] == "chunked")


def test_the_content_length_or_the_etag_is_wrong_or_the_body_stalls(hosts, ask, sign):
    url = sign()
    for by in (3, -3):
        hosts.fault("wrong_length", by=by, times=1)
        head, *rest = exchange(url, part="10-19")
        assert b"Content-Length: %d" % (10 + by) in head
        assert rest == [DATA[10:20], "fin"]
    hosts.fault("etag_changes")
    first, second = (ask(url, part="0-0").headers["ETag"] for _ in range(2))
    assert first != second
    assert ask(url, part="5-9", **{"If-Range": second}).data == DATA
    hosts.fault("stall", after=500)
    assert exchange(url, seconds=0.5)[1:] == (DATA[:500], "silence")
    hosts.settle()  # the client's leaving ended it


def test_a_page_garbage_or_no_connection_instead_of_data(hosts, ask, sign):
    url = sign()
    hosts.fault("html", times=1)
    answer = ask(url, part="0-9")
    assert (answer.status, answer.headers["Content-Type"][:9]) == (200, "text/html")
    hosts.fault("garbage", times=1)
    with pytest.raises(BROKEN):
        ask(url)
    for _ in range(2):
        hosts.refuse("storage")
    with pytest.raises((BROKEN, ConnectionError)):
        ask(url, part="0-0")
    for _ in range(2):
        hosts.accept("storage")
    assert ask(url, part="0-0").status == 206


def test_a_bug_in_the_fake_is_not_taken_for_a_fault(ask, monkeypatch):
    hosts = ModelHosts().__enter__()
    monkeypatch.setattr(hosts._sites, "answer", lambda _: {}["bug"])
    with pytest.raises(BROKEN):
        ask(hosts.web)
    with pytest.raises(KeyError, match="bug"):
        hosts.__exit__(None, None, None)


def test_it_stops_in_the_middle_of_everything(ask):
    with ModelHosts() as hosts, ThreadPoolExecutor(3) as clients:
        urls = [hosts.add_web(f"/{name}", DATA) for name in ("stall", "slow", "trickle")]
        hosts.fault("stall", path="/stall", role="web")
        hosts.fault("slow", seconds=60, path="/slow")
        hosts.fault("trickle", rate=10, path="/trickle")
        waiting = [clients.submit(ask, url) for url in urls]
        wait_until(lambda: hosts.count("web") == 3, "the requests")
        hosts.refuse("web")
        assert all(isinstance(one.exception(timeout=30), BROKEN) for one in waiting)


def test_the_rate_is_the_connections_and_every_answer_begins_late(hosts, ask):
    """A machine can only be slower than the throttle, so only the least times are checked."""
    url = hosts.add_web("/x", DATA)

    def seconds_of(*parts):
        start = time.monotonic()
        for part in parts:
            ask(url, part=part)
        return time.monotonic() - start

    hosts.throttle(10**6, ttfb=0)
    assert seconds_of(*[f"{n}-{n + 49_999}" for n in range(0, 200_000, 50_000)]) >= 0.19
    time.sleep(0.15)  # idling earns nothing
    assert seconds_of("0-99999") >= 0.095
    assert len({one.connection for one in hosts.requests}) == 1
    hosts.throttle(None, ttfb=0.1)
    assert seconds_of("0-0", "0-0") >= 0.2
    hosts.no_throttle()
    hosts.fault("slow", seconds=0.1, role="web")
    assert seconds_of("0-0") >= 0.1


@pytest.mark.parametrize("tls", [False, True])
def test_files_on_disk_come_over_http_and_https_with_the_same_faults(tmp_path, tls):
    (tmp_path / "big").write_bytes(DATA * 5)
    with ModelHosts(tls=tls) as hosts:
        ask = asker(**({"ca_certs": str(hosts.ca_file)} if tls else {}))
        url = hosts.add_web("/big", tmp_path / "big")
        assert url.startswith("https://127.0.0.1:" if tls else "http://127.0.0.1:")
        assert ask(url).data == DATA * 5
        part = ask(url.replace("127.0.0.1", "localhost"), part=f"{SIZE}-{SIZE + 99}")
        assert part.data == DATA[:100]
        if tls:
            with pytest.raises(urllib3.exceptions.SSLError):
                asker(cert_reqs="REQUIRED")(url)
        for reset in (False, True):
            hosts.fault("cut", after=1000, reset=reset, times=1)
            with pytest.raises(BROKEN):
                ask(url)
        hosts.fault("corrupt", offset=3)
        assert ask(url).data[:5] == DATA[:3] + bytes([DATA[3] ^ 1]) + DATA[4:5]
        ask.manager.clear()
