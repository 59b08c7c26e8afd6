"""Which requests reach a job, over real sockets: RunPod's half counts the jobs that start."""

import asyncio
import base64

import pytest
from fakes.gateway_server import served_endpoint
from fakes.runpod_endpoint import RunPodEndpoint, completed

from gateway.http.guard import Access
from gateway.http.head import Refused
from gateway.http.login import Logins

BODY = b'{"input": {"prompt": "a fox"}}'
JSON = ("Content-Type", "application/json")
TOKEN, LOGIN = "token-0123456789", "ann:pass:word"
ACCESS = Access(
    hosts=["my.example.com"], origins=["http://app.test:5173", "chrome-extension://abc"]
)


@pytest.fixture(scope="module")
def whole_runpod():
    with RunPodEndpoint(lambda _input: [completed(images=["aGk="])]) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def gateway(whole_runpod):
    with served_endpoint(whole_runpod, ACCESS) as running:
        yield running


@pytest.fixture
def runpod(whole_runpod):
    """Has not seen a request yet."""
    whole_runpod.forget_events()
    return whole_runpod


def request(port, *headers, method="POST", target="/run", body=BODY, host="localhost:{port}"):
    """The bytes of a request; `{port}` in a header is the server's port."""
    given = {name.lower() for name, _ in headers}
    rows = [] if host is None else [("Host", host)]
    rows += headers
    if body and not given & {"content-length", "transfer-encoding"}:
        rows.append(("Content-Length", str(len(body))))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in rows)]
    return "\r\n".join(lines).replace("{port}", str(port)).encode() + b"\r\n\r\n" + body


def status_of(answer):
    return int(answer.split()[1]) if answer else None


ALLOWED = [
    *[
        {"host": name}
        for name in ("127.0.0.1:{port}", "[::1]:{port}", "mybox", "LOCALHOST.:{port}")
    ],
    *[{"host": name} for name in ("host.docker.internal:{port}", "192.168.1.5", "My.Example.Com")],
    {"headers": [("Origin", "http://localhost:{port}"), ("Sec-Fetch-Site", "same-origin")]},
    {"headers": [("Origin", "http://app.test:5173"), ("Sec-Fetch-Site", "cross-site")]},
    {"headers": [("Origin", "chrome-extension://abc")]},
    {"headers": [("Sec-Fetch-Site", "none")]},
    {"headers": [("Content-Type", "application/json; charset=utf-8")], "json": False},
    {"headers": [("Transfer-Encoding", "chunked")], "body": b"1e\r\n" + BODY + b"\r\n0\r\n\r\n"},
]


@pytest.mark.parametrize("case", ALLOWED, ids=str)
def test_a_request_of_the_user_starts_a_job(gateway, runpod, case):
    headers = [*([JSON] if case.pop("json", True) else []), *case.pop("headers", [])]
    assert status_of(gateway.raw(request(gateway.port, *headers, **case))) == 200
    assert len(runpod.events("run")) == 1


def of_other_page(*headers):
    return {"headers": headers}


REFUSED = [
    # Another site's name that leads to this machine
    *[(421, {"host": name}) for name in ("evil.com", "localhost.evil.com", "127.0.0.1.nip.io")],
    (
        421,  # the page was loaded under this name, so the browser takes it for the same origin
        {
            "host": "evil.com:{port}",
            "headers": [("Origin", "http://evil.com:{port}"), ("Sec-Fetch-Site", "same-origin")],
        },
    ),
    *[(400, {"host": name}) for name in ("", "a@localhost", "localhost/x", "[::1", "localhost:x")],
    (400, {"host": None}),
    (400, {"headers": [("Host", "localhost")]}),
    # Pages of other origins
    *[
        (403, of_other_page(("Origin", origin)))
        for origin in (
            *("http://evil.com", "null", "", "http://localhost", "http://localhost:1"),
            *("http://localhost:{port}.evil.com", "http://evil.com/localhost:{port}", "http://["),
            *("http://app.test", "https://app.test:5173", "chrome-extension://other"),
        )
    ],
    (400, of_other_page(("Origin", "http://localhost:{port}"), ("Origin", "http://evil.com"))),
    *[(403, of_other_page(("Sec-Fetch-Site", site))) for site in ("cross-site", "same-site", "x")],
    (403, of_other_page(("Referer", "http://evil.com/"))),
    # What a page can send without asking
    *[
        (415, {"headers": [("Content-Type", kind)], "json": False})
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; b=x")
    ],
    (415, {"json": False}),
    (400, {"headers": [JSON]}),
    # Lengths
    (413, {"headers": [("Content-Length", "30000001")], "body": b""}),
    *[
        (400, {"headers": [("Content-Length", length)], "body": BODY})
        for length in ("-1", "+5", "0x10", "1e9", "9" * 30, "5, 6")
    ],
    (400, {"headers": [("Content-Length", "5"), ("Content-Length", "6")]}),
    (400, {"headers": [("Content-Length", "5"), ("Transfer-Encoding", "chunked")]}),
    *[
        (400, {"headers": [("Transfer-Encoding", how)], "body": b"0\r\n\r\n"})
        for how in ("gzip, chunked", "identity", "xchunked")
    ],
    (400, {"headers": [("Transfer-Encoding", "chunked")], "body": b"zz\r\nx\r\n0\r\n\r\n"}),
    # Forms of a request that only a proxy takes, or nobody
    *[
        (400, {"target": target, "method": method})
        for method, target in (
            *(("POST", "http://localhost:1/run"), ("POST", "http://127.0.0.1:3000/sdapi/v1/x")),
            *(("OPTIONS", "*"), ("POST", "run"), ("POST", "@localhost/run")),
        )
    ],
    *[(405, {"method": method}) for method in ("TRACE", "CONNECT", "PUT", "DELETE", "PATCH", "X")],
    (405, {"method": "GET", "body": b""}),
    (405, {"method": "OPTIONS", "body": b""}),
    (431, {"headers": [(f"X-{number}", "x") for number in range(200)]}),
    (431, {"headers": [("X-Long", "x" * 40_000)]}),
    (414, {"target": "/run?" + "x" * 9000}),
    *[
        (404, {"target": target})
        for target in ("//run", "/./run", "/%2e%2e/run", "/x/../run", "/run%00")
    ],
    *[(307, {"target": target}) for target in ("/run/", "/run%2f")],
]


@pytest.mark.parametrize(("status", "case"), REFUSED, ids=lambda value: str(value)[:80])
def test_a_request_that_a_user_did_not_send_starts_no_job(gateway, runpod, status, case):
    case = dict(case)
    headers = [*([JSON] if case.pop("json", True) else []), *case.pop("headers", [])]
    answer = gateway.raw(request(gateway.port, *headers, **case))
    assert status_of(answer) == status, answer
    assert b"access-control" not in answer.lower()
    assert runpod.events() == []


def test_two_requests_in_one_are_two_or_none(gateway, runpod):
    """A second request that is hidden in the first one's body is not run."""
    hidden = request(gateway.port, JSON)
    for first in (
        request(gateway.port, JSON, ("Transfer-Encoding", "chunked"), ("Content-Length", "4")),
        request(gateway.port, JSON, ("Transfer-Encoding", "\x0bchunked"), body=b""),
        request(gateway.port, JSON, ("Transfer-Encoding ", "chunked"), body=b""),
        request(gateway.port, JSON, ("Content-Length", "0"), ("Content-Length", "9"), body=b""),
    ):
        answer = gateway.raw(first + b"0\r\n\r\n" + hidden)
        assert status_of(answer) == 400, answer
    assert runpod.events() == []


def test_a_preflight_is_answered_for_allowed_origins_only(gateway):
    asks = ("Access-Control-Request-Method", "POST")
    for origin, status, allowed in [
        ("http://app.test:5173", 200, b"access-control-allow-origin: http://app.test:5173"),
        ("http://evil.com", 403, b""),
        ("null", 403, b""),
    ]:
        headers = [("Origin", origin), asks, ("Access-Control-Request-Headers", "content-type")]
        answer = gateway.raw(request(gateway.port, *headers, method="OPTIONS", body=b"")).lower()
        assert status_of(answer) == status
        assert allowed in answer
        assert (b"access-control" in answer) == bool(allowed)


def test_a_websocket_is_not_opened(gateway):
    headers = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    headers += [("Sec-WebSocket-Key", base64.b64encode(b"x" * 16).decode())]
    answer = gateway.raw(request(gateway.port, *headers, method="GET", body=b""))
    assert status_of(answer) == 405


def test_a_link_of_another_site_opens_only_the_page(gateway):
    link = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")]
    page, frame = [("Sec-Fetch-Dest", "document")], [("Sec-Fetch-Dest", "iframe")]
    for target, headers, is_allowed in [
        ("/", link + page, True),
        ("/", link + frame, False),
        ("/", [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors"), *page], False),
        ("/health", link + page, False),
    ]:
        answer = gateway.raw(request(gateway.port, *headers, method="GET", target=target, body=b""))
        assert (status_of(answer) != 403) == is_allowed


@pytest.mark.parametrize("path", ["etc/passwd", "gateway/app.py", ".env"])
@pytest.mark.parametrize(
    "up", ["/", "//", "/../", "/%2e%2e/", "/..%2f", "/..%5c", "/status/../", "/file="]
)
def test_no_file_of_the_machine_is_readable(gateway, path, up):
    for target in (up + path, up * 8 + path, f"/static{up}{path}", f"/page{up}{path}"):
        answer = gateway.raw(request(gateway.port, method="GET", target=target, body=b""))
        assert status_of(answer) == 404
        assert b"root:" not in answer
        assert b"import" not in answer


def test_a_body_is_cut_at_its_limit_and_after_its_time(runpod):
    chunked = ("Transfer-Encoding", "chunked")
    with served_endpoint(runpod, Access(body_limit=10_000, body_seconds=0.5)) as gateway:
        endless = b"".join(b"400\r\n" + b" " * 1024 + b"\r\n" for _ in range(20))
        assert status_of(gateway.raw(request(gateway.port, JSON, chunked, body=endless))) == 413
        assert status_of(gateway.raw(request(gateway.port, JSON, chunked, body=b"1\r\n{"))) == 408
        assert status_of(gateway.raw(request(gateway.port, JSON, ("Content-Length", "9")))) == 400
        assert (
            gateway.raw(request(gateway.port, JSON, ("Content-Length", "999")), half_close=True)
            == b""
        )
    assert runpod.events() == []


# Logins -------------------------------------------------------------------------------------------


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


RIGHT = [f"Bearer {TOKEN}", f"bearer  {TOKEN} ", basic(LOGIN), basic(f"anybody:{TOKEN}")]
WRONG = [
    *("Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {LOGIN}", TOKEN, "Basic", "Basic !!!"),
    *(basic(""), basic("ann:"), basic("ann:pass"), basic(TOKEN), "Basic /w==", "Digest x"),
    "Bearer " + "x" * 20_000,
]


@pytest.mark.parametrize("value", [None, *RIGHT, *WRONG], ids=lambda value: str(value)[:30])
def test_with_a_login_only_the_right_one_starts_a_job(runpod, value, caplog, monkeypatch):
    monkeypatch.setitem(Logins.__init__.__kwdefaults__, "pause", 0)
    with served_endpoint(runpod, Access(token=TOKEN, login=LOGIN)) as gateway:
        headers = [] if value is None else [("Authorization", value)]
        answer = gateway.raw(request(gateway.port, JSON, *headers))
        ping = gateway.raw(request(gateway.port, method="GET", target="/ping", body=b""))
    is_right = value in RIGHT
    assert status_of(answer) == (200 if is_right else 401)
    assert (b"www-authenticate: Basic" in answer) != is_right
    assert len(runpod.events("run")) == is_right
    assert status_of(ping) != 401
    assert TOKEN not in caplog.text + repr(Access(token=TOKEN, login=LOGIN))


def test_an_empty_login_is_never_right():
    for access in (Access(token=TOKEN), Access(login=LOGIN)):
        logins = Logins(access, sleep=no_wait)
        for value in ("Bearer ", basic(":"), basic(""), basic("ann:")):
            with pytest.raises(Refused):
                asyncio.run(logins.check(value, "a"))


async def no_wait(_seconds):
    pass


def test_wrong_logins_wait_without_blocking_others():
    """More of one address than may wait are refused unread; the right one passes at once."""

    async def story():
        waiting, go = [], asyncio.Event()

        async def sleep(seconds):
            waiting.append(seconds)
            await go.wait()

        logins = Logins(Access(token=TOKEN), pause=1, at_once=3, sleep=sleep)
        wrong = [asyncio.ensure_future(logins.check("Bearer x", "bad")) for _ in range(5)]
        for _ in range(10):
            await asyncio.sleep(0)  # until three of them wait
        await logins.check(f"Bearer {TOKEN}", "good")
        with pytest.raises(Refused, match="Too many"):
            await logins.check(f"Bearer {TOKEN}", "bad")
        go.set()
        ended = await asyncio.gather(*wrong, return_exceptions=True)
        await logins.check(f"Bearer {TOKEN}", "bad")
        return [error.status for error in ended], waiting

    assert asyncio.run(story()) == ([401, 401, 401, 429, 429], [1, 1, 1])
