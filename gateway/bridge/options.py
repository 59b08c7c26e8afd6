"""The arguments and the environment of the bridge."""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

from gateway.endpoint.http import Address
from gateway.http.guard import Access
from gateway.http.head import is_loopback
from worker.config.as_written import (
    as_base_url,
    as_host_names,
    as_meant,
    as_origins,
    check_login,
)
from worker.config.credentials import credential, credentials
from worker.errors import ConfigError

RUNPOD = "https://api.runpod.ai"

_ENDPOINT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ONE_WORD = re.compile(r"[!-~]+")
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Options:
    """What the bridge does.

    Attributes:
        address: the endpoint's URL and key.
        price: dollars for a second of work; None: not known.
    """

    address: Address
    host: str
    port: int
    access: Access
    price: float | None = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence after the usage."""
        self.exit(2, f"{self.format_usage()}{self.prog}: {message}\n")


def read(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    ask: Callable[[str], str] | None = None,
) -> Options:
    """Read and check the arguments and the environment.

    `ask` asks the user for the API key; by default on the terminal, if there is one.

    Raises:
        SystemExit: with 2, after the usage and a sentence on standard error, if something is
            missing or wrong; with 0 after `--help`.
    """
    parser = _parser()
    for name in ("--key", "--api-key", "--api_key", "--token", "--password", "--login"):
        if any(one == name or one.startswith(f"{name}=") for one in arguments):
            parser.error(
                f"{name} is no option, because other programs can read arguments: set the variable"
                " RUNPOD_API_KEY, GATEWAY_TOKEN or GATEWAY_LOGIN, or NAME_FILE with a file's name"
            )
    given = parser.parse_args(arguments)
    try:
        access = _access(given, environ)
        _check_host(given.host, access)
        return Options(_address(given, environ, ask), given.host, given.port, access, given.price)
    except (ConfigError, ValueError) as error:
        parser.error(error.message if isinstance(error, ConfigError) else str(error))


def _parser() -> _Parser:
    parser = _Parser(
        prog="bridge",
        allow_abbrev=False,
        description="Serves A1111's API, OpenAI's images API, RunPod's API and a page on this"
        " machine; the pictures are drawn by a RunPod endpoint.",
        epilog="The variable RUNPOD_API_KEY has the API key. GATEWAY_LOGIN (user:password) and"
        " GATEWAY_TOKEN protect the bridge. docs/bridge.md explains the rest.",
    )
    parser.add_argument(
        "--endpoint", metavar="ID", help="id of the endpoint; default: RUNPOD_ENDPOINT_ID"
    )
    parser.add_argument(
        "--url", help=f"RunPod's API, or make serve; default: RUNPOD_URL, or {RUNPOD}"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: this machine only"
    )
    parser.add_argument("--port", type=_port, default=7860, help="default: 7860, as A1111")
    parser.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[], help="as GATEWAY_HOSTS"
    )
    parser.add_argument(
        "--allow-origin", metavar="ORIGIN", action="append", default=[], help="as GATEWAY_ORIGINS"
    )
    parser.add_argument(
        "--price", type=_price, metavar="USD", help="of a second of your GPU, for the log"
    )
    return parser


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no port from 0 to 65535")
    return int(text)


def _price(text: str) -> float:
    if not re.fullmatch(r"[0-9]{0,6}\.?[0-9]{0,9}", text) or not re.search("[0-9]", text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no price such as 0.00031")
    return float(text)


def _access(given: argparse.Namespace, environ: Mapping[str, str]) -> Access:
    secrets = credentials(environ)
    for name in ("gateway_login", "gateway_token"):
        _check_secret(name.upper(), secrets.get(name, ""))
    login = secrets.get("gateway_login", "")
    if login:
        _named("GATEWAY_LOGIN", check_login, login)
    hosts = [as_meant(environ.get("GATEWAY_HOSTS", "")), *given.allow_host]
    origins = [as_meant(environ.get("GATEWAY_ORIGINS", "")), *given.allow_origin]
    return Access(
        hosts=_named("GATEWAY_HOSTS or --allow-host", as_host_names, ",".join(hosts)),
        origins=_named("GATEWAY_ORIGINS or --allow-origin", as_origins, ",".join(origins)),
        token=secrets.get("gateway_token", ""),
        login=login,
    )


def _check_host(host: str, access: Access) -> None:
    if is_loopback(host) or access.needs_login:
        return
    raise ValueError(
        f"--host {host} would let other machines spend your RunPod money: set"
        " GATEWAY_LOGIN=user:password or GATEWAY_TOKEN, or leave out --host"
    )


def _address(
    given: argparse.Namespace, environ: Mapping[str, str], ask: Callable[[str], str] | None
) -> Address:
    url = given.url or as_meant(environ.get("RUNPOD_URL", "")) or RUNPOD
    base = _named("RUNPOD_URL or --url", as_base_url, url).removesuffix("/v2")
    endpoint = given.endpoint or as_meant(environ.get("RUNPOD_ENDPOINT_ID", ""))
    is_local = is_loopback(urlsplit(base).hostname or "")
    if not endpoint and not is_local:
        raise ValueError("which endpoint? Give --endpoint ID, or set RUNPOD_ENDPOINT_ID")
    if endpoint and not _ENDPOINT_ID.fullmatch(endpoint):
        raise ValueError(f"{endpoint[:80]!r} is no id of an endpoint, such as abc123def456gh")
    key = credential(environ, ["RUNPOD_API_KEY"])
    if not (key or is_local):
        key = _asked(ask)
    _check_secret("RUNPOD_API_KEY", key)
    if key and not is_local and not base.startswith("https://"):
        raise ValueError(
            f"{base} has no https, so the API key could be read on the way: correct it"
        )
    return Address(f"{base}/v2/{endpoint}" if endpoint else base, key)


def _asked(ask: Callable[[str], str] | None) -> str:
    if ask is None and sys.stdin is not None and sys.stdin.isatty():
        ask = getpass.getpass
    key = as_meant(ask("RunPod API key (it is not shown): ")) if ask else ""
    if not key:
        raise ValueError(
            "which API key? Set RUNPOD_API_KEY, or RUNPOD_API_KEY_FILE to a file that has it;"
            " RunPod's console makes one under Settings, API Keys"
        )
    return key


def _check_secret(name: str, secret: str) -> None:
    # Another character in a header would cause an error whose text contains the secret.
    if secret and not _ONE_WORD.fullmatch(secret):
        raise ValueError(f"{name} must be one word of printable ASCII characters")


def _named(name: str, read_it: Callable[[str], _Read], text: str) -> _Read:
    """The value, or an error that names where it comes from."""
    try:
        return read_it(text)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
