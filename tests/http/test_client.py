"""Where requests may go and what they may carry; the hosts are fakes on loopback."""

import gc
import gzip
import logging
import re
import socket
import threading
import traceback
from contextlib import suppress

import pytest
from fakes.hosts.fixtures import client_for
from fakes.hosts.model_hosts import ModelHosts

from worker.errors import FetchStopped, ModelHostFailed, ModelUrlRefused, WorkerError
from worker.http import client as http
from worker.http.backoff import LONGEST_WAIT
from worker.http.client import USER_AGENT, HttpLimits, SafeHttpClient
from worker.http.document import Document

DATA = bytes(range(256)) * 400
KEY = "planted-key-of-civitai"
REAL = {"first_pause": 0.5, "longest_wait": LONGEST_WAIT}


@pytest.fixture(scope="module")
def running_tls_hosts():
    with ModelHosts(tls=True) as hosts:
        yield hosts


@pytest.fixture
def tls_hosts(running_tls_hosts):
    running_tls_hosts.reset()
    return running_tls_hosts


class Pauses(threading.Event):
    """A stop that records the pauses of a client instead of waiting."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def wait(self, timeout=None):
        self.seconds.append(timeout)
        return self.is_set()


def fault(name, **params):
    return {"name": name, "role": "web", "path": "/x", **params}


# URLs and hosts.


BAD_URLS = [
    *("http://example.com/x", "ftp://example.com/x", "file:///etc/passwd", "//example.com/x", "/x"),
    *("", "https://", "https:///x", "https://[::1", "https://example.com:99999/"),
    *("https://example.com:port/", "https://exa mple.com/", "https://exam\nple.com/"),
]
BAD_TARGETS = [
    *("http://example.com/x", "http://169.254.169.254/latest/meta-data", "https://127.0.0.1/x"),
    *("https://10.0.0.1/x", "https://[::1]/x", "https://[::ffff:127.0.0.1]/x"),
    *("file:///etc/passwd", "ftp://example.com/x", "https://[::1", "https://example.com:99999/"),
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_is_not_https_is_refused_before_anything_is_sent(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with pytest.raises(ModelUrlRefused):
        SafeHttpClient().open(url)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "localhost", "2130706433", "0x7f000001", "127.1", "0", "[::]"]
)
def test_a_host_of_this_machine_is_refused(tls_hosts, host):
    url = tls_hosts.web.replace("127.0.0.1", host)
    with pytest.raises((ModelUrlRefused, ModelHostFailed)) as refused:
        SafeHttpClient().open(url)
    assert isinstance(refused.value, ModelUrlRefused) or "NameResolution" in str(refused.value)
    assert tls_hosts.requests == []


def resolve_to(monkeypatch, *answers):
    """Names have these addresses: one list for each look-up, the last one for all others."""
    asked, real = [], socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **named):
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [one for address in addresses for one in real(address, port, *rest, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.1.2.3"], ["169.254.169.254"], ["::1"], ["8.8.8.8", "192.168.0.1"]],
)
def test_a_name_with_a_private_address_is_refused(monkeypatch, addresses):
    resolve_to(monkeypatch, addresses)
    monkeypatch.setattr(socket.socket, "connect", None)  # fails if it is called
    with pytest.raises(ModelUrlRefused, match=r"'models\.example' has no public address"):
        SafeHttpClient().open("https://models.example/x")


def test_a_name_that_changes_its_address_after_the_check_is_refused(tls_hosts, monkeypatch):
    """DNS rebinding: the check saw a public address, the connection ended elsewhere."""
    asked = resolve_to(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    url = tls_hosts.add_web("/x", DATA).replace("127.0.0.1", "models.example")
    with pytest.raises(ModelUrlRefused):
        SafeHttpClient().open(url)
    assert asked == ["models.example"] * 2
    assert tls_hosts.requests == []
    gc.collect()  # warns if the connection was not closed


def test_an_unknown_name_is_the_hosts_failure(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ModelHostFailed, match="models"):
        SafeHttpClient().open("https://models.example/x?sig=secret")


def test_a_trusted_host_may_be_private_and_plain(hosts):
    url = hosts.add_web("/x", DATA)
    with client_for(hosts, "web").open(url) as reply:
        assert (reply.status, reply.read(1 << 20)) == (200, DATA)
        assert (reply.url, reply.hops) == (url, 0)


def test_trust_is_for_one_port_even_behind_a_backslash(hosts):
    """Some parsers see the host behind the backslash, some before it."""
    hosts.add_web("/x", DATA)
    for path in ("/x", f"\\@{hosts.civitai.partition('//')[2]}/x"):
        with pytest.raises(ModelUrlRefused):
            client_for(hosts, "civitai").open(hosts.web + path)
    assert hosts.requests == []


# Redirects.


TARGET = "target%20b?sig=a%2Bb%2Fc%3D&name=%22x%22%3B%20y&n=a+b~_.-"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("folder", ["{}/a/", ""])
def test_redirects_are_followed_and_their_urls_not_changed(hosts, status, folder):
    """A signature is for exactly these characters."""
    hosts.add_web("/a/target b", DATA)
    url = hosts.add_redirect("/a/go", folder.format(hosts.web) + TARGET, status)
    with client_for(hosts).open(url, headers={"Range": "bytes=1-2"}) as reply:
        assert (reply.status, reply.hops, reply.read(10)) == (206, 1, DATA[1:3])
        assert reply.url == f"{hosts.web}/a/{TARGET}"
    assert hosts.requests[-1].target == f"/a/{TARGET}"


@pytest.mark.parametrize("target", [*BAD_TARGETS, "another port"])
def test_each_hop_is_checked(hosts, target):
    """A redirect from a trusted host is not trusted, not even to another port of the machine."""
    target = f"{hosts.storage}/x" if target == "another port" else target
    with pytest.raises(ModelUrlRefused):
        client_for(hosts, "web").open(hosts.add_redirect("/go", target))
    assert hosts.count() == 1


def test_redirects_are_counted(hosts):
    most = HttpLimits.max_redirects
    url = hosts.add_web("/end", DATA)
    for number in range(most):
        url = hosts.add_redirect(f"/go/{number}", url)
    with client_for(hosts).open(url) as reply:
        assert (reply.status, reply.hops) == (200, most)
    with pytest.raises(
        ModelUrlRefused, match=r"more than 5 times\. Name the URL of the file itself"
    ):
        client_for(hosts).open(hosts.add_redirect("/more", url))
    assert hosts.count("web", "/end") == 1


def test_a_redirect_without_a_target_and_with_same_host_to_another_host_is_the_answer(hosts):
    with client_for(hosts).open(hosts.add_redirect("/nowhere", "")) as reply:
        assert reply.status == 302
    there = hosts.add_redirect("/a", "/b")
    hosts.add_redirect("/b", f"{hosts.storage}/signed")
    with client_for(hosts).open(there, same_host=True) as reply:
        assert (reply.status, reply.hops) == (302, 1)
        assert reply.headers["Location"] == f"{hosts.storage}/signed"
    assert hosts.count("storage") == 0


# What is sent.


def test_the_token_goes_to_its_own_origin_and_not_to_the_storage(hosts):
    hosts.add_web("/end", DATA)
    hosts.fault("redirect_to", url=f"{hosts.web}/end", role="storage", path="/x")
    client = client_for(hosts, tokens={hosts.web: KEY})
    client.open(hosts.add_redirect("/go", f"{hosts.storage}/x")).close()
    client.open(f"{hosts.storage}/x", same_host=True).close()  # straight to it
    sent = [(one.role, one.headers.get("authorization")) for one in hosts.requests]
    key = f"Bearer {KEY}"
    assert sent == [("web", key), ("storage", None), ("web", key), ("storage", None)]


@pytest.mark.parametrize("tail", ["\\@{}/x", "/\\@{}/x", "#@{}/", "?@{}/"])
@pytest.mark.parametrize("by_redirect", [False, True])
def test_a_url_with_two_hosts_in_it_gets_no_token(hosts, tail, by_redirect):
    url = hosts.storage + tail.format(hosts.civitai.partition("//")[2])
    if by_redirect:
        url = hosts.add_redirect("/go", url)
    client_for(hosts, tokens={hosts.civitai: KEY}).open(url).close()
    assert hosts.count("storage") == 1
    assert hosts.count("civitai") == 0
    assert not any(one.authorized for one in hosts.requests)


def test_the_request_has_only_the_headers_that_are_meant(hosts):
    url = hosts.add_web("/x", DATA)
    client_for(hosts).open(url, headers={"Range": "bytes=0-1"}).close()
    headers = hosts.requests[-1].headers
    expected = {"user-agent": USER_AGENT, "accept-encoding": "identity", "range": "bytes=0-1"}
    assert headers == {"host": hosts.web.partition("//")[2], **expected}
    assert not re.search("mozilla|chrome|safari|firefox|opera|edge", USER_AGENT, re.IGNORECASE)


def test_the_environment_neither_adds_credentials_nor_a_proxy(hosts, monkeypatch, tmp_path):
    """`requests` would read both; a key of ~/.netrc ends at the storage as a 400."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password planted\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    with client_for(hosts).open(hosts.add_web("/x", DATA)) as reply:
        assert reply.status == 200
    assert not hosts.requests[-1].authorized


# TLS.


@pytest.fixture
def loopback_is_public(monkeypatch):
    monkeypatch.setattr(http, "is_public", lambda _: True)


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize("trusted", [False, True])
def test_only_a_certificate_of_a_known_ca_is_accepted(tls_hosts, monkeypatch, trusted):
    url = tls_hosts.add_web("/x", DATA)
    roles = (tls_hosts, "web") if trusted else ()
    with pytest.raises(ModelHostFailed, match="SSLError") as failed:
        (client_for(*roles) if trusted else SafeHttpClient()).open(f"{url}?sig=secret")
    assert "secret" not in str(failed.value)
    assert tls_hosts.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_hosts.ca_file))  # the operator's
    client = client_for(*roles) if trusted else SafeHttpClient()
    for _ in range(2):
        with client.open(url) as reply:
            assert reply.read(len(DATA)) == DATA
    assert len({one.connection for one in tls_hosts.requests}) == 1  # it was kept


@pytest.mark.usefixtures("loopback_is_public")
def test_a_certificate_of_another_name_is_refused(tls_hosts, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_hosts.ca_file))
    resolve_to(monkeypatch, ["127.0.0.1"])
    url = tls_hosts.add_web("/x", DATA).replace("127.0.0.1", "models.example")
    with pytest.raises(ModelHostFailed, match="SSLError"):
        SafeHttpClient().open(url)
    assert tls_hosts.requests == []


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize("tls", [False, True])
def test_an_answer_is_cut_from_another_thread(tls, hosts, tls_hosts, monkeypatch):
    if tls:
        monkeypatch.setenv("SSL_CERT_FILE", str(tls_hosts.ca_file))
        hosts = tls_hosts
    url = hosts.add_web("/x", DATA)
    client = client_for(hosts)
    with client.open(url) as reply:
        assert reply.read(10) == DATA[:10]
        reply.shutdown()
        with pytest.raises(ModelHostFailed):
            reply.read(10)
    hosts.fault("stall", after=100)
    with client.open(url) as reply:
        threading.Timer(0.1, reply.shutdown).start()
        with pytest.raises(ModelHostFailed):
            reply.read(len(DATA))
        reply.shutdown()  # once more does no harm
    with pytest.raises(ModelHostFailed):
        reply.read(1)


# Failures.


NO_ANSWERS = [
    *(fault("drop"), fault("drop", reset=True), fault("garbage")),
    fault("garbage", data=b"HTTP/1.1 twohundred OK\r\n\r\n"),
    fault("garbage", data=b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
    fault("garbage", data=b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"),
]


@pytest.mark.parametrize("fault", NO_ANSWERS)
def test_a_missing_answer_is_a_failure_of_the_host(hosts, fault):
    hosts.fault(**fault)
    with pytest.raises(ModelHostFailed, match=r"127\.0\.0\.1: the connection failed") as failed:
        client_for(hosts).open(f"{hosts.web}/x?sig=secret")
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("reset", [False, True])
def test_a_broken_connection_is_a_failure_of_the_host(hosts, reset):
    hosts.fault("cut", after=1000, reset=reset)
    with client_for(hosts).open(hosts.add_web("/x", DATA)) as reply:
        with suppress(ModelHostFailed):
            assert reply.read(len(DATA)) == DATA[:1000]
        with pytest.raises(ModelHostFailed):
            reply.read(len(DATA))


def test_a_silent_host_is_given_up_after_the_timeout(hosts):
    url = hosts.add_web("/x", DATA)
    hosts.fault("slow", seconds=60, path="/x")
    with pytest.raises(ModelHostFailed, match="ReadTimeout"):
        client_for(hosts, read_timeout=0.1).open(url)


# Small answers.


NO_HTTP = [fault("drop"), fault("drop", reset=True), fault("garbage"), fault("cut")]
BUSY = [
    *(fault("rate_limited"), fault("rate_limited", html=True), fault("cloudflare_challenge")),
    *(
        fault("status", status=status)
        for status in (408, 425, 500, 502, 503, 504, 520, 522, 524, 530)
    ),
]


@pytest.mark.parametrize("fault", NO_HTTP + BUSY)
@pytest.mark.parametrize("times", [1, 3, 4])
def test_a_busy_host_is_asked_up_to_four_times(hosts, fault, times):
    url = hosts.add_web("/x", DATA)
    hosts.fault(**fault, times=times)
    if times == 4 and fault in NO_HTTP:
        with pytest.raises(ModelHostFailed):
            client_for(hosts).ask(url)
    else:
        document = client_for(hosts).ask(url)
        assert document.body == DATA if times < 4 else document.status >= 400
    assert hosts.count("web", "/x") == min(4, times + 1)


def test_a_refused_connection_is_repeated_after_growing_pauses(hosts):
    url, stop = hosts.add_web("/x", DATA), Pauses()
    hosts.refuse("web")
    with pytest.raises(ModelHostFailed, match="NewConnectionError"):
        client_for(hosts, **REAL).ask(url, stop=stop)
    pauses = zip(stop.seconds, (0.5, 1, 2), strict=True)
    assert all(0.75 * most <= pause <= most for pause, most in pauses)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_clear_refusal_is_not_repeated(hosts, status):
    hosts.fault("status", status=status, body="no", role="web")
    document = client_for(hosts).ask(f"{hosts.web}/x")
    assert (document.status, document.body) == (status, b"no")
    assert hosts.count("web") == 1
    hosts.reset()
    with pytest.raises(ModelUrlRefused):
        client_for(hosts).ask(hosts.add_redirect("/go", "http://10.0.0.1/"))
    assert hosts.count("web") == 1


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "9999"}, LONGEST_WAIT),
        ({"rate_limit": '"resolvers";r=0;t=25'}, 25.0),  # Hugging Face's 429
    ],
)
@pytest.mark.parametrize("fault", ["rate_limited", "server_error"])
def test_the_pause_is_as_long_as_the_host_asks(hosts, fault, asked, seconds):
    url, stop = hosts.add_web("/x", DATA), Pauses()
    hosts.fault(fault, role="web", times=2, **asked)
    assert client_for(hosts, **REAL).ask(url, stop=stop).status == 200
    assert stop.seconds == [seconds] * 2


@pytest.mark.parametrize("fault", ["drop", "rate_limited"])
def test_a_stop_ends_the_pause(hosts, fault, monkeypatch):
    stop = Pauses()
    monkeypatch.setattr(http.Backoff, "pause", lambda *_: stop.set() or 0.0)
    hosts.fault(fault, role="web")
    with pytest.raises(FetchStopped):
        client_for(hosts).ask(f"{hosts.web}/x", stop=stop)
    assert (hosts.count("web"), len(stop.seconds)) == (1, 1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", [{"name": "slow", "seconds": 600}, {"name": "stall", "after": 9}])
@pytest.mark.parametrize("ends_by", ["time", "stop"])
def test_an_answer_that_does_not_come_to_its_end_is_cut_in_time(hosts, fault, ends_by):
    """A socket's own timeout is for one read, and a host can send a byte from time to time."""
    url, stop = hosts.add_web("/x", DATA), threading.Event()
    hosts.fault(**fault, path="/x")
    if ends_by == "stop":
        client = client_for(hosts, read_timeout=600.0)
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(FetchStopped):
            client.ask(url, stop=stop)
        assert hosts.count("web") == 1
    else:
        client = client_for(hosts, read_timeout=600.0, document_seconds=0.2)
        with pytest.raises(ModelHostFailed):
            client.ask(url)
        assert fault["name"] == "stall" or client.etag(url) is None  # needs only the headers


def test_a_document_is_read_up_to_its_limit(hosts):
    url = hosts.add_web("/x", DATA)
    assert client_for(hosts, max_document=1000).ask(url).body == DATA[:1000]


def test_an_answer_is_not_unpacked(hosts):
    """100 MB of zeros are half a MB as gzip; the request asks for none of it."""
    bomb = gzip.compress(bytes(100_000_000), 1)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
    hosts.fault("garbage", role="web", data=head.encode() + bomb)
    assert client_for(hosts).ask(f"{hosts.web}/x").body == bomb


def test_a_body_is_parsed_or_none():
    bodies = (b'{"a": 1}', b"<html>", b"", b"\xff", b"[" * 9999)
    assert [Document(200, {}, body).json() for body in bodies] == [{"a": 1}] + [None] * 4


# Secrets.


ODD_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nthis is no header\r\n\r\nok"


BAD_HOSTS = ["http://10.0.0.1", "https://x:99999", "https://[::1", "https://x y"]
BAD_HOSTS += ["https://127.0.0.1"]
REDIRECTS = [fault("redirect_to", url=f"{host}/?sig=planted-signature") for host in BAD_HOSTS]


@pytest.mark.parametrize(
    "fault",
    [None, *NO_HTTP, fault("garbage", data=ODD_HEAD), *REDIRECTS, fault("redirect_loop")],
)
def test_no_log_and_no_error_holds_a_secret(hosts, caplog, fault):
    """Of any level and any logger, urllib3's too; and no cause of the error."""
    caplog.set_level(logging.DEBUG)
    url = hosts.add_web("/x", DATA) + "?sig=planted-signature"
    if fault:
        hosts.fault(**fault)
    text = ""
    try:
        with client_for(hosts, tokens={hosts.web: KEY}).open(url) as reply:
            reply.read(len(DATA))
    except WorkerError as error:
        text = "".join(traceback.format_exception(error)) + repr(error.details)
    assert hosts.requests[0].authorized
    for secret in (KEY, "planted-signature"):
        assert secret not in caplog.text
        assert secret not in text
