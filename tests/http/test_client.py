"""Where requests may go and what they may carry; the hosts are fakes on loopback."""

import gc
import logging
import socket
import threading
import time
import traceback
from contextlib import suppress

import pytest
from fakes.hosts.model_hosts import ModelHosts
from fakes.hosts.tls import make_certificates
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import FetchStopped, ModelHostFailed, ModelUrlRefused, WorkerError
from worker.http import client as http
from worker.http.backoff import LONGEST_WAIT
from worker.http.client import (
    ATTEMPTS,
    MAX_REDIRECTS,
    USER_AGENT,
    Document,
    SafeHttpClient,
    is_public,
    origin,
    shown,
)

DATA = bytes(range(256)) * 400
KEY = "planted-key-of-civitai"
CIVITAI = "https://civitai.com"


@pytest.fixture(scope="module")
def no_ca(tmp_path_factory):
    """Of nobody's certificates."""
    return make_certificates(tmp_path_factory.mktemp("ca"))[0]


@pytest.fixture(autouse=True)
def _quick(monkeypatch, no_ca):
    """Reading all the world's authorities takes 0.1 s for each client."""
    monkeypatch.setenv("SSL_CERT_FILE", str(no_ca))
    monkeypatch.setattr(http.certifi, "where", lambda: str(no_ca))


@pytest.fixture(scope="module")
def running_hosts():
    with ModelHosts() as hosts:
        yield hosts


@pytest.fixture
def hosts(running_hosts):
    running_hosts.no_faults()
    running_hosts.forget_requests()
    return running_hosts


@pytest.fixture
def tls_hosts():
    with ModelHosts(tls=True) as hosts:
        yield hosts


def netloc(url):
    return url.partition("//")[2]


def client(hosts, *roles, tokens=None):
    """Trusts the roles; all of them if none is named."""
    urls = [hosts.url(role) for role in roles] or list(hosts._world.urls.values())
    return SafeHttpClient([netloc(url) for url in urls], tokens)


class Patience(threading.Event):
    """Notes how long somebody would wait, and lets them go on at once."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def wait(self, timeout=None):
        self.waited.append(timeout)
        return self.is_set()


# Addresses.


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "104.16.0.1",
        "172.15.255.255",
        "172.32.0.1",
        "2606:4700::1111",
        "2a00:1450:4001::200e",
        "2002:808:808::1",  # 6to4 of 8.8.8.8
        "64:ff9b::808:808",  # NAT64 of 8.8.8.8
    ],
)
def test_an_address_of_the_open_internet(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",  # the metadata of a cloud
        "100.64.0.1",  # carrier-grade NAT
        "100.127.255.255",
        "0.0.0.0",
        "0.1.2.3",
        "192.0.2.1",  # documentation
        "198.18.0.1",  # benchmarks
        "224.0.0.1",  # multicast
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12:3456::1",
        "fec0::1",  # site-local, long gone, still routed at places
        "ff02::1",
        "ff0e::1",
        "2001:db8::1",
        "100::1",  # discards
        "::127.0.0.1",  # IPv4-compatible
        "::ffff:127.0.0.1",  # IPv4-mapped
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",  # Teredo of 127.0.0.1
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",  # NAT64 of a local network
    ],
)
def test_an_address_of_somebody_elses_own_network(address):
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_no_dress_makes_a_private_address_public(ip):
    number = int(ip)
    dressed = [
        f"::ffff:{ip}",
        f"64:ff9b::{number >> 16:x}:{number & 0xFFFF:x}",
        f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1",
    ]
    assert is_public(str(ip)) or not any(map(is_public, dressed))


# URLs.


@pytest.mark.parametrize(
    ("url", "is_shown"),
    [
        ("https://a.b/c?sig=secret", "https://a.b/c"),
        ("https://a.b/c#secret", "https://a.b/c"),
        ("https://user:secret@a.b:8443/c", "https://a.b:8443/c"),
        ("https://A.B?secret", "https://a.b"),
    ],
)
def test_what_is_shown_of_a_url_holds_no_secret(url, is_shown):
    assert shown(url) == is_shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://CivitAI.com/x", CIVITAI),
        ("HTTPS://civitai.com", CIVITAI),
        ("https://user@civitai.com/x", CIVITAI),
        ("https://civitai.com:8443/x", f"{CIVITAI}:8443"),
        ("https://[2001:DB8::1]:1/x", "https://[2001:db8::1]:1"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url, expected):
    assert origin(url) == expected


LOOK_ALIKES = [
    "http://civitai.com/x",
    "https://civitai.com:8443/x",
    "https://civitai.com./x",
    "https://civitai.com.evil.org/x",
    "https://evil.org/civitai.com",
    "https://evil.org#@civitai.com/",
    "https://evil.org?@civitai.com/",
    "https://evil.org\\@civitai.com/",
    "https://evil.org/\\@civitai.com/",
    "https://civitai.com@evil.org/",
    "https://civitai.com%2eevil.org/",
    "https://xn--civitai-.com/",
]


@pytest.mark.parametrize("url", LOOK_ALIKES)
def test_no_look_alike_gets_the_token(url):
    assert not SafeHttpClient(tokens={CIVITAI: KEY}).has_token(url)
    assert SafeHttpClient(tokens={CIVITAI: KEY}).has_token(f"{CIVITAI}/x")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x",
        "ftp://example.com/x",
        "file:///etc/passwd",
        "//example.com/x",
        "/x",
        "",
        "https://",
        "https:///x",
        "https://[::1",
        "https://example.com:99999/",
        "https://example.com:port/",
        "https://exa mple.com/",
        "https://exam\nple.com/",
    ],
)
def test_what_is_no_https_url_is_refused_before_anything_is_sent(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with pytest.raises(ModelUrlRefused):
        SafeHttpClient().open(url)


# Which hosts.


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "localhost", "2130706433", "0x7f000001", "127.1", "0", "[::]"]
)
def test_a_host_of_this_machine_is_refused(tls_hosts, host):
    url = tls_hosts.web.replace("127.0.0.1", host)
    with pytest.raises((ModelUrlRefused, ModelHostFailed)) as refused:
        SafeHttpClient().open(url)
    assert isinstance(refused.value, ModelUrlRefused) or "NameResolution" in str(refused.value)
    assert tls_hosts.connections("web") == 0


def resolve_to(monkeypatch, *answers):
    """Names have these addresses: one list for each time that somebody asks."""
    asked, real = [], socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **named):
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        found = []
        for address in addresses:
            found += real(address, port, *rest, **named)
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.1.2.3"], ["169.254.169.254"], ["::1"], ["8.8.8.8", "192.168.0.1"]],
)
def test_a_name_with_a_private_address_is_refused(monkeypatch, addresses):
    resolve_to(monkeypatch, addresses)
    monkeypatch.setattr(socket.socket, "connect", None)  # it must not even try
    with pytest.raises(ModelUrlRefused, match=r"'models\.example' has no public address"):
        SafeHttpClient().open("https://models.example/x")


def test_a_name_that_changes_its_address_meanwhile_is_refused(tls_hosts, monkeypatch):
    """DNS rebinding: the check saw a public address, the connection ended elsewhere."""
    asked = resolve_to(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    url = tls_hosts.add_web("/x", DATA).replace("127.0.0.1", "models.example")
    with pytest.raises(ModelUrlRefused):
        SafeHttpClient().open(url)
    assert asked == ["models.example"] * 2
    assert tls_hosts.requests == []
    gc.collect()  # the connection was closed, or this warns


def test_an_unknown_name_is_the_hosts_failure(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ModelHostFailed, match="models"):
        SafeHttpClient().open("https://models.example/x?sig=secret")


def test_a_trusted_host_may_be_private_and_plain(hosts):
    url = hosts.add_web("/x", DATA)
    with client(hosts, "web").open(url) as reply:
        assert (reply.status, reply.read(1 << 20)) == (200, DATA)
        assert (reply.url, reply.hops) == (url, 0)


def test_trust_is_for_one_port(hosts):
    with pytest.raises(ModelUrlRefused):
        client(hosts, "civitai").open(hosts.add_web("/x", DATA))
    assert hosts.requests == []


def test_trust_cannot_be_borrowed(hosts):
    """Some parsers see the host behind the backslash, some before it."""
    hosts.add_web("/x", DATA)
    url = f"{hosts.web}\\@{netloc(hosts.civitai)}/x"
    with pytest.raises(ModelUrlRefused):
        client(hosts, "civitai").open(url)
    assert hosts.requests == []


# Redirects.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(hosts, status):
    target = hosts.add_web("/target", DATA)
    url = hosts.add_redirect("/go", target, status)
    with client(hosts).open(url, headers={"Range": "bytes=1-2"}) as reply:
        assert (reply.status, reply.url, reply.hops) == (206, target, 1)
        assert reply.read(10) == DATA[1:3]


def test_a_relative_redirect_stays_at_its_host(hosts):
    hosts.add_web("/a/target", DATA)
    url = hosts.add_redirect("/a/go", "target?x=1")
    with client(hosts).open(url) as reply:
        assert reply.url == f"{hosts.web}/a/target?x=1"


def test_a_redirect_without_a_target_is_an_answer(hosts):
    url = hosts.add_redirect("/go", "")
    with client(hosts).open(url) as reply:
        assert reply.status == 302


@pytest.mark.parametrize(
    "target",
    [
        "http://example.com/x",
        "http://169.254.169.254/latest/meta-data",
        "https://127.0.0.1/x",
        "https://10.0.0.1/x",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "https://[::1",
        "https://example.com:99999/",
    ],
)
def test_each_hop_is_checked(hosts, target):
    url = hosts.add_redirect("/go", target)
    with pytest.raises(ModelUrlRefused):
        client(hosts, "web").open(url)


def test_a_trusted_host_cannot_lend_its_trust(hosts):
    """Not even to another port of the same machine."""
    url = hosts.add_redirect("/go", f"{hosts.storage}/x")
    with pytest.raises(ModelUrlRefused):
        client(hosts, "web").open(url)
    assert hosts.count("storage") == 0


@pytest.mark.parametrize("too_many", [False, True])
def test_redirects_are_counted(hosts, too_many):
    url = hosts.add_web("/end", DATA)
    for number in range(MAX_REDIRECTS + too_many):
        url = hosts.add_redirect(f"/go/{number}", url)
    if too_many:
        with pytest.raises(ModelUrlRefused, match="more than 5 times"):
            client(hosts).open(url)
        assert hosts.count("web", "/end") == 0
    else:
        with client(hosts).open(url) as reply:
            assert (reply.status, reply.hops) == (200, MAX_REDIRECTS)


def test_a_redirect_to_another_host_may_be_the_answer(hosts):
    there = hosts.add_redirect("/a", "/b")
    hosts.add_redirect("/b", f"{hosts.storage}/signed")
    with client(hosts).open(there, same_host=True) as reply:
        assert (reply.status, reply.hops) == (302, 1)
        assert reply.headers["Location"] == f"{hosts.storage}/signed"
    assert hosts.count("storage") == 0


# What is sent.


def test_the_token_goes_to_its_own_origin_and_not_to_the_storage(hosts):
    model = hosts.add_model(version_id=1, data=DATA)
    way_out = client(hosts, tokens={hosts.civitai: hosts.civitai_key})
    with way_out.open(model.file_url) as reply:
        assert reply.read(1 << 20) == DATA
        signed = reply.url
    with way_out.open(signed) as reply:  # once more, straight to it
        assert reply.status == 200
    assert [(one.role, one.authorized) for one in hosts.requests] == [
        ("civitai", True),
        ("storage", False),
        ("storage", False),
    ]


def test_the_token_is_sent_when_a_redirect_comes_back_to_its_origin(hosts):
    hosts.add_web("/end", DATA)
    hosts.fault("redirect_to", url=f"{hosts.web}/end", role="storage", path="/x")
    url = hosts.add_redirect("/go", f"{hosts.storage}/x")
    with client(hosts, tokens={hosts.web: KEY}).open(url) as reply:
        assert reply.status == 200
    assert [(one.role, one.headers.get("authorization")) for one in hosts.requests] == [
        ("web", f"Bearer {KEY}"),
        ("storage", None),
        ("web", f"Bearer {KEY}"),
    ]


@pytest.mark.parametrize("tail", ["\\@{}/x", "/\\@{}/x", "#@{}/", "?@{}/"])
@pytest.mark.parametrize("by_redirect", [False, True])
def test_a_url_with_two_hosts_in_it_gets_no_token(hosts, tail, by_redirect):
    url = hosts.storage + tail.format(netloc(hosts.civitai))
    if by_redirect:
        url = hosts.add_redirect("/go", url)
    client(hosts, tokens={hosts.civitai: KEY}).open(url).close()
    assert hosts.count("storage") == 1
    assert hosts.count("civitai") == 0
    assert not any(one.authorized for one in hosts.requests)


def test_the_rest_of_the_head_says_who_we_are(hosts):
    url = hosts.add_web("/x", DATA)
    client(hosts).open(url, headers={"Range": "bytes=0-1"}).close()
    headers = hosts.requests[-1].headers
    assert headers["user-agent"] == USER_AGENT
    assert headers["accept-encoding"] == "identity"
    assert headers["range"] == "bytes=0-1"
    assert set(headers) <= {"host", "user-agent", "accept-encoding", "range"}


@pytest.mark.parametrize("browser", ["mozilla", "chrome", "safari", "firefox", "opera", "edge"])
def test_we_are_no_browser(browser):
    assert browser not in USER_AGENT.lower()


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
    with client(hosts).open(hosts.add_web("/x", DATA)) as reply:
        assert reply.status == 200
    assert not hosts.requests[-1].authorized


def test_a_url_is_passed_on_as_it_is(hosts):
    """A signature is for exactly these characters."""
    hosts.add_web("/a b", DATA)
    query = "sig=a%2Bb%2Fc%3D&name=%22x%22%3B%20y&n=a+b~_.-"
    url = hosts.add_redirect("/go", f"{hosts.web}/a%20b?{query}")
    client(hosts).open(url).close()
    assert hosts.requests[-1].target == f"/a%20b?{query}"


# TLS.


@pytest.fixture
def loopback_is_public(monkeypatch):
    monkeypatch.setattr(http, "is_public", lambda _: True)


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize("trusted", [False, True])
def test_the_operators_ca_is_accepted(tls_hosts, monkeypatch, trusted):
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_hosts.ca_file))
    url = tls_hosts.add_web("/x", DATA)
    way_out = client(tls_hosts, "web") if trusted else SafeHttpClient()
    for _ in range(2):
        with way_out.open(url) as reply:
            assert reply.read(len(DATA)) == DATA
    assert tls_hosts.connections("web") == 1  # kept


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize("trusted", [False, True])
def test_a_certificate_of_an_unknown_ca_is_refused(tls_hosts, trusted):
    url = tls_hosts.add_web("/x?sig=secret", DATA)
    way_out = client(tls_hosts, "web") if trusted else SafeHttpClient()
    with pytest.raises(ModelHostFailed, match="SSLError") as failed:
        way_out.open(url)
    assert "secret" not in str(failed.value)
    assert tls_hosts.requests == []


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
def test_an_answer_is_broken_off_from_another_thread(tls, monkeypatch):
    with ModelHosts(tls=tls) as hosts:
        if tls:
            monkeypatch.setenv("SSL_CERT_FILE", str(hosts.ca_file))
        url = hosts.add_web("/x", DATA)
        hosts.fault("stall", after=100)
        with client(hosts).open(url) as reply:
            threading.Timer(0.1, reply.shutdown).start()
            with pytest.raises(ModelHostFailed):
                reply.read(len(DATA))
            reply.shutdown()  # once more does no harm
        with pytest.raises(ModelHostFailed):
            reply.read(1)


def test_an_answer_that_was_broken_off_gives_no_bytes_at_all(hosts):
    with client(hosts).open(hosts.add_web("/x", DATA)) as reply:
        assert reply.read(10) == DATA[:10]
        reply.shutdown()
        with pytest.raises(ModelHostFailed):
            reply.read(10)


# Failures.


@pytest.mark.parametrize(
    ("fault", "params"),
    [
        ("drop", {}),
        ("drop", {"reset": True}),
        ("garbage", {}),
        ("garbage", {"data": b"HTTP/1.1 twohundred OK\r\n\r\n"}),
        ("garbage", {"data": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"}),
        ("garbage", {"data": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"}),
    ],
)
def test_no_answer_is_the_hosts_failure(hosts, fault, params):
    hosts.fault(fault, role="web", **params)
    with pytest.raises(ModelHostFailed, match=r"127\.0\.0\.1: the connection failed") as failed:
        client(hosts).open(f"{hosts.web}/x?sig=secret")
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("params", [{}, {"reset": True}])
def test_a_connection_that_breaks_is_the_hosts_failure(hosts, params):
    hosts.fault("cut", after=1000, **params)
    with client(hosts).open(hosts.add_web("/x", DATA)) as reply:
        with suppress(ModelHostFailed):
            assert reply.read(len(DATA)) == DATA[:1000]  # these are good
        with pytest.raises(ModelHostFailed):
            reply.read(len(DATA))


def test_a_host_that_says_nothing_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(http, "READ_TIMEOUT", 0.1)
    with ModelHosts() as hosts:
        url = hosts.add_web("/x", DATA)
        hosts.fault("slow", seconds=60, path="/x")
        with pytest.raises(ModelHostFailed, match="ReadTimeout"):
            client(hosts).open(url)


# Small answers.


@pytest.mark.parametrize(
    ("fault", "params"),
    [
        ("rate_limited", {}),
        ("rate_limited", {"html": True}),
        ("cloudflare_challenge", {}),
        *[("server_error", {"status": status}) for status in (500, 502, 503, 504)],
        ("status", {"status": 408}),
        ("status", {"status": 425}),
        ("drop", {}),
        ("drop", {"reset": True}),
        ("garbage", {}),
        ("cut", {}),
    ],
)
@pytest.mark.parametrize("times", [1, ATTEMPTS - 1, ATTEMPTS])
def test_a_busy_host_is_asked_again(hosts, fault, params, times):
    url, stop = hosts.add_web("/x", DATA), Patience()
    hosts.fault(fault, role="web", times=times, **params)
    if times < ATTEMPTS:
        document, final = client(hosts).ask(url, stop=stop)
        assert (document.status, document.body, final) == (200, DATA, url)
    else:
        try:
            document, _ = client(hosts).ask(url, stop=stop)
            assert document.status >= 400
        except ModelHostFailed:
            assert fault in {"drop", "garbage", "cut"}
    assert stop.waited == [0.5, 1.0, 2.0][:times]
    assert hosts.count("web") == min(ATTEMPTS, times + 1)


def test_refused_connections_are_tried_again(hosts):
    url, stop = hosts.add_web("/x", DATA), Patience()
    hosts.refuse("web")
    try:
        with pytest.raises(ModelHostFailed, match="NewConnectionError"):
            client(hosts).ask(url, stop=stop)
    finally:
        hosts.accept("web")
    assert stop.waited == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("status", "body"), [(400, ""), (401, ""), (403, "no"), (404, ""), (410, ""), (451, "")]
)
def test_a_clear_answer_is_taken_at_once(hosts, status, body):
    hosts.fault("status", status=status, body=body, role="web")
    document, _ = client(hosts).ask(f"{hosts.web}/x", stop=Patience())
    assert (document.status, document.body.decode()) == (status, body)
    assert hosts.count("web") == 1


def test_what_is_refused_is_not_tried_again(hosts):
    url, stop = hosts.add_redirect("/go", "http://10.0.0.1/"), Patience()
    with pytest.raises(ModelUrlRefused):
        client(hosts).ask(url, stop=stop)
    assert (hosts.count("web"), stop.waited) == (1, [])


@pytest.mark.parametrize("asked", ["7", "0", "9999"])
@pytest.mark.parametrize("fault", ["rate_limited", "server_error"])
def test_the_host_says_how_long_to_wait(hosts, fault, asked):
    url, stop = hosts.add_web("/x", DATA), Patience()
    hosts.fault(fault, role="web", times=2, retry_after=asked)
    assert client(hosts).ask(url, stop=stop)[0].status == 200
    assert stop.waited == [min(LONGEST_WAIT, float(asked))] * 2


def test_a_stop_ends_the_waiting(hosts):
    stop, fault = threading.Event(), hosts.fault("rate_limited", role="web", retry_after=25)
    threading.Timer(0.1, stop.set).start()
    start = time.monotonic()
    with pytest.raises(FetchStopped):
        client(hosts).ask(f"{hosts.web}/x", stop=stop)
    assert time.monotonic() - start < 10
    assert fault.hits == 1


def test_a_stop_before_the_first_answer_counts_too(hosts):
    stop = threading.Event()
    stop.set()
    hosts.fault("drop", role="web")
    with pytest.raises(FetchStopped):
        client(hosts).ask(f"{hosts.web}/x", stop=stop)
    assert hosts.count("web") == 1


def test_a_small_answer_is_small(hosts, monkeypatch):
    monkeypatch.setattr(http, "MAX_DOCUMENT", 1000)
    document, _ = client(hosts).ask(hosts.add_web("/x", DATA))
    assert document.body == DATA[:1000]


@pytest.mark.parametrize(
    ("body", "parsed"),
    [(b'{"a": 1}', {"a": 1}), (b"<html>", None), (b"", None), (b"\xff", None), (b"[" * 9999, None)],
)
def test_a_body_is_json_or_nothing(body, parsed):
    assert Document(200, {}, body).json() == parsed


# Secrets.


ODD_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nthis is no header\r\n\r\nok"


@pytest.mark.parametrize(
    "fault",
    [
        None,
        {"name": "drop"},
        {"name": "garbage"},
        {"name": "garbage", "data": ODD_HEAD},
        {"name": "cut"},
        {"name": "redirect_to", "url": "http://10.0.0.1/?sig=planted-signature"},
        {"name": "redirect_to", "url": "https://x:99999/?sig=planted-signature"},
        {"name": "redirect_to", "url": "https://[::1/?sig=planted-signature"},
        {"name": "redirect_to", "url": "https://x y/?sig=planted-signature"},
        {"name": "redirect_to", "url": "https://127.0.0.1/?sig=planted-signature"},
        {"name": "redirect_loop"},
    ],
)
def test_no_log_and_no_error_holds_a_secret(hosts, caplog, fault):
    """At the lowest level of all loggers, urllib3's too, and down to the causes of errors."""
    caplog.set_level(logging.DEBUG)
    url = hosts.add_web("/x", DATA) + "?sig=planted-signature"
    if fault:
        hosts.fault(**fault, role="web")
    told = ""
    try:
        with client(hosts, tokens={hosts.web: KEY}).open(url) as reply:
            reply.read(len(DATA))
    except WorkerError as error:
        told = "".join(traceback.format_exception(error)) + repr(error.details)
    assert hosts.requests[0].authorized
    for secret in (KEY, "planted-signature"):
        assert secret not in caplog.text
        assert secret not in told
