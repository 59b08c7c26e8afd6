"""The value that a person meant with a variable, as files and consoles pass it on.

`docker run --env-file` keeps quotes, a file from Windows ends its lines with CR, and a copied value
has spaces around it. A shell would have removed them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

_PAIRS = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
_INVISIBLE = "\ufeff\u200b\u200e\u200f"
# `$HOME/x` and `${HOME}/x`, which only a shell replaces.
_VARIABLE = re.compile(r"\$(?:\{\w+\}|[A-Za-z_]\w*)")
_HOST = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?")

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[\w.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")


def as_meant(value: str) -> str:
    """The value without spaces, line ends and one pair of quotes around it."""
    value = _bare(value)
    closing = _PAIRS.get(value[:1])
    if closing and len(value) > 1 and value.endswith(closing):
        inside = value[1:-1]
        if not {value[0], closing} & set(inside):  # else they are the quotes of two words
            return _bare(inside)
    return value


def _bare(value: str) -> str:
    return value.strip().strip(_INVISIBLE).strip()


def usual_word(word: str, kind: object) -> str:
    """The word of a Literal with the same letters, whatever their case; others pass unchanged.

    `warn` is short for `warning`; a text that is no Literal has the word `none`.
    """
    known = [one for one in get_args(kind) if isinstance(one, str)] or ["none"]
    meant = {one.lower(): one for one in known}
    meant |= {"warn": meant["warning"]} if "warning" in meant else {}
    return meant.get(word.lower(), word)


def as_path(text: str) -> Path:
    """The path, with the home folder in place of `~`.

    Raises:
        ValueError: it has characters that only a shell would have replaced, or that no path needs.
    """
    if text[:1] in _PAIRS or text[-1:] in {*_PAIRS, *_PAIRS.values()}:
        raise ValueError("has a quotation mark at one end only: remove it")
    if found := _VARIABLE.search(text):
        raise ValueError(f"has {found[0]}, which nothing replaces here: write the whole path")
    if not text.isprintable():
        raise ValueError("must be one line of printable characters")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("names the home of a user that this machine does not know") from None


def as_flags(text: str) -> list[str]:
    """The words of A1111's flags.

    Raises:
        ValueError: a quote is not closed, or the worker cannot work with one of the flags.
    """
    words = shlex.split(text)
    if bound := {word.partition("=")[0] for word in words} & {"--port", "--server-name"}:
        raise ValueError(
            f"{min(bound)} is not allowed, because the worker asks at WEBUI_URL, whose host and"
            " port A1111 gets: set WEBUI_URL instead"
        )
    if "--no-hashing" in words:
        raise ValueError(
            "--no-hashing is not allowed, because hashes prove which LoRAs were used: remove it"
        )
    return words


def as_hosts(text: str) -> list[str]:
    """The hosts of a list, in lower case; ValueError if one is no `host[:port]`."""
    hosts = [host.lower() for host in re.split(r"[\s,;]+", text) if host]
    if not all(map(_HOST.fullmatch, hosts)):
        raise ValueError("must be host names such as mirror.example:8080, without https://")
    return hosts


def as_host_names(text: str) -> list[str]:
    """The hosts of a list without their ports, in lower case; ValueError if one is no host."""
    return [re.sub(r":\d+\Z", "", host) for host in as_hosts(text)]


def as_origins(text: str) -> list[str]:
    """The origins of a list, in lower case.

    Raises:
        ValueError: one is no origin, or one that every web site can have.
    """
    origins = [origin.lower().rstrip("/") for origin in re.split(r"[\s,;]+", text) if origin]
    if {"null", "*"} & set(origins):
        raise ValueError("must name origins: any web page can have the origin null, and * is all")
    if not all(map(_ORIGIN.fullmatch, origins)):
        raise ValueError("must be origins such as http://localhost:5173, without a path")
    return origins


def check_login(text: str) -> None:
    """Raise ValueError if this is no `user:password`."""
    user, _, password = text.partition(":")
    if not (user and password):
        raise ValueError("must be user:password")


def as_base_url(url: str) -> str:
    """The URL to which a path is added, without a slash at its end and without A1111's own path.

    Raises:
        ValueError: it is no such URL.
    """
    parts = urlsplit(url)
    try:
        has_port = parts.port is None or parts.port > 0
    except ValueError:  # not a number, or too large
        has_port = False
    is_whole = url.isprintable() and not set(" ?#") & set(url)
    if (
        parts.scheme not in {"http", "https"}
        or not (parts.hostname and has_port and is_whole)
        or parts.netloc.endswith(":")
    ):
        raise ValueError("must look like http://127.0.0.1:3000")
    return url.rstrip("/").removesuffix("/sdapi/v1")
