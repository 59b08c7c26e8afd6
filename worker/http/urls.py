"""Which URLs and addresses are allowed, and which parts of a URL may be shown."""

from __future__ import annotations

import ipaddress
from urllib.parse import urljoin

import urllib3
from urllib3.util import Url, parse_url

from worker.errors import ModelUrlRefused

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # no other IPv6 address is on the internet
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # holds an IPv4 address in its last 32 bits


def is_public(address: str) -> bool:
    """Whether an IP address is on the internet; an embedded IPv4 address must be, too."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner and not is_public(str(inner)):
            return False
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


def is_public_host(host: str) -> bool:
    """Whether a URL's host is a name other than `localhost`, or a public IP address."""
    try:
        return is_public(host.strip("[]"))
    except ValueError:  # it is a name, which is not looked up here
        return host.rstrip(".").rpartition(".")[2] != "localhost"


def parsed(url: str) -> Url:
    r"""Parse the URL with urllib3, because urllib3 opens the connection.

    Other parsers take b for the host of `https://a\@b/`.

    Raises:
        ModelUrlRefused: it is not a URL.
    """
    try:
        return parse_url(url)
    except urllib3.exceptions.LocationParseError:
        raise ModelUrlRefused("the text given as a URL is not a URL.") from None


def shown(url: str) -> str:
    """The URL for people and logs: without query, fragment and credentials."""
    return f"{origin(url)}{parsed(url).path or ''}"


def origin(url: str) -> str:
    """`https://host[:port]` in lower case; a token is sent to one origin only."""
    parts = parsed(url)
    return f"{parts.scheme or ''}://{parts.netloc or ''}".lower()


def joined(url: str, target: str) -> str:
    """The target of a redirect as an absolute URL."""
    try:
        return urljoin(url, target)
    except ValueError:
        raise ModelUrlRefused(f"{origin(url)} redirects to a malformed URL.") from None
