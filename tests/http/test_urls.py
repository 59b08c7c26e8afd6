import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.http.urls import is_public, origin, shown

CIVITAI = "https://civitai.com"
PUBLIC = [
    *("8.8.8.8", "104.16.0.1", "172.15.255.255", "172.32.0.1"),
    *("2606:4700::1111", "2a00:1450:4001::200e"),
    "2002:808:808::1",  # 6to4 of 8.8.8.8
    "64:ff9b::808:808",  # NAT64 of 8.8.8.8
]
NOT_PUBLIC = [
    *("127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    "169.254.169.254",  # the metadata of a cloud
    *("100.64.0.1", "100.127.255.255"),  # carrier-grade NAT
    *("0.0.0.0", "0.1.2.3"),
    "192.0.2.1",  # documentation
    "198.18.0.1",  # benchmarks
    *("224.0.0.1", "239.255.255.255"),  # multicast
    *("240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1"),
    "fec0::1",  # site-local: obsolete, but still routed in some networks
    *("ff02::1", "ff0e::1", "2001:db8::1"),
    "100::1",  # discards
    "::127.0.0.1",  # IPv4-compatible
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),  # IPv4-mapped
    *("2002:7f00:1::", "2002:a00:1::1"),  # 6to4 of 127.0.0.1 and 10.0.0.1
    "2001:0:4136:e378:8000:63bf:80ff:fffe",  # Teredo of 127.0.0.1
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),  # NAT64 of 127.0.0.1 and 169.254.169.254
    "64:ff9b:1::7f00:1",  # NAT64 of a local network
]


@pytest.mark.parametrize(
    ("address", "expected"), [(one, True) for one in PUBLIC] + [(one, False) for one in NOT_PUBLIC]
)
def test_only_addresses_of_the_internet_are_public(address, expected):
    assert is_public(address) is expected


@given(st.ip_addresses(v=4))
def test_a_private_address_inside_another_one_stays_private(ip):
    high, low = divmod(int(ip), 2**16)
    wrapped = [f"::ffff:{ip}", f"64:ff9b::{high:x}:{low:x}", f"2002:{high:x}:{low:x}::1"]
    assert is_public(str(ip)) or not any(map(is_public, wrapped))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        *((f"https://a.b/c{tail}", "https://a.b/c") for tail in ("?sig=secret", "#secret")),
        ("https://user:secret@a.b:8443/c", "https://a.b:8443/c"),
        ("https://A.B?secret", "https://a.b"),
    ],
)
def test_a_shown_url_contains_no_secret(url, expected):
    assert shown(url) == expected


SAME = ["https://CivitAI.com/x", "HTTPS://civitai.com", "https://user@civitai.com/x"]
OTHER = {"https://civitai.com:8443/x": f"{CIVITAI}:8443"}
OTHER |= {"https://[2001:DB8::1]:1/x": "https://[2001:db8::1]:1"}


@pytest.mark.parametrize(("url", "expected"), [*((one, CIVITAI) for one in SAME), *OTHER.items()])
def test_an_origin_is_scheme_host_and_port(url, expected):
    assert origin(url) == expected


LOOK_ALIKES = [
    *("http://civitai.com/x", "https://civitai.com./x", "https://civitai.com.evil.org/x"),
    *("https://evil.org/civitai.com", "https://evil.org#@civitai.com/"),
    *("https://evil.org?@civitai.com/", "https://evil.org\\@civitai.com/"),
    *("https://evil.org/\\@civitai.com/", "https://civitai.com@evil.org/"),
    *("https://civitai.com%2eevil.org/", "https://xn--civitai-.com/"),
]


@pytest.mark.parametrize("url", LOOK_ALIKES)
def test_a_look_alike_has_another_origin(url):
    assert origin(url) != CIVITAI
