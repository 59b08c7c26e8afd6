"""The faults that a test can switch on in the fake model hosts.

A fault strikes where it does in reality (`_usual_place`), unless `role=` or `path=` name the place.
"""

import gzip
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from fakes.hosts.content import CIVITAI_ROLES, DATA_ROLES, ROLES
from fakes.hosts.http import Answer, Blob, Request, html_answer, json_answer, redirect, text_answer

# Answers instead of the host's own.

LOGIN = "The creator of this asset requires you to be logged in to download it"
DISABLED = "The creator of this asset has disabled downloads on this file"
REGION = "Access to this service is not available in your region due to legal restrictions."


def _refusal(status: int, error: str, **more: str) -> Callable[[Request], Answer]:
    return lambda _: json_answer(status, {"error": error, **more})


def _early_access(_: Request, deadline: str | None = "2099-01-01T00:00:00.000Z") -> Answer:
    text = "This asset is in Early Access. You can use Buzz access it now"
    return json_answer(403, {"error": "Early Access", "deadline": deadline, "message": text})


def _rate_limited(_: Request, html: bool = False, **wait: Any) -> Answer:
    if html:
        return html_answer(429, "Access denied | civitai.com used Cloudflare", **_header(**wait))
    text = "We've noticed an unusual amount of downloading from your account"
    return json_answer(429, {"error": "Too Many Requests", "message": text}, **_header(**wait))


def _header(
    retry_after: str | float | None = None, rate_limit: str | None = None
) -> dict[str, str]:
    found = {"Retry_After": retry_after, "RateLimit": rate_limit}
    return {name: str(value) for name, value in found.items() if value is not None}


def _server_error(_: Request, status: int = 500, **wait: Any) -> Answer:
    return json_answer(status, {"error": f"fake error {status}"}, **_header(**wait))


def _status(_: Request, status: int, body: str = "", kind: str = "text/plain") -> Answer:
    return text_answer(status, body, kind)


def _garbage(_: Request, data: bytes = b"\x16\x03\x01\x00 not HTTP at all\r\n\r\n") -> Answer:
    return Answer(0, raw=data)


@cache
def _packed(size: int = 64 << 20) -> bytes:
    return gzip.compress(bytes(size), 1)


def _bomb() -> Answer:
    """An answer that is a thousand times larger when it is unpacked."""
    return Answer(200, ZEROS | {"Content-Encoding": "gzip"}, Blob(_packed()), stop=len(_packed()))


ZEROS = {"Content-Type": "application/octet-stream"}
ANSWERS: dict[str, Callable[..., Answer]] = {
    "login_required": _refusal(401, "Unauthorized", message=LOGIN),
    "downloads_disabled": _refusal(401, "Unauthorized", message=DISABLED),
    "early_access": _early_access,
    "no_access": _refusal(403, "You do not have access to download this file"),
    "forbidden": _refusal(403, "Forbidden"),
    "cloudflare_challenge": lambda _: html_answer(
        403, "Just a moment...", cf_mitigated="challenge", Server="cloudflare"
    ),
    "not_found": _refusal(404, "File not found"),
    "archived": _refusal(410, "Model archived, not available for download"),
    "rate_limited": _rate_limited,
    "region_blocked": _refusal(451, REGION, code="REGION_BLOCKED"),
    "server_error": _server_error,
    "status": _status,
    "login_page": lambda _: html_answer(200, "Login | Civitai"),
    "html": lambda _: html_answer(200, "Not what you asked for"),
    "redirect_loop": lambda request: redirect(307, request.target),
    "redirect_to": lambda _, url: redirect(307, url),
    "drop": lambda _, reset=False: Answer(0, raw=b"", reset=reset),
    "garbage": _garbage,
    "endless": lambda _: Answer(200, dict(ZEROS), surplus=1 << 40, chunked=True),
    "bomb": lambda _: _bomb(),
}

# Changes of an answer with a model's bytes; false when this answer cannot have the fault. A
# default `after` of 1 spares a request for one byte.


def _wrong_range(answer: Answer, start: int = 0, total: int = 0) -> Any:
    shown = f"{answer.start + start}-{answer.stop - 1 + start}/{answer.blob.size + total}"
    headers = answer.headers | {"Content-Range": f"bytes {shown}"}
    return answer.status == 206 and {"headers": headers}


def _whole(answer: Answer) -> dict[str, Any]:
    headers = {key: value for key, value in answer.headers.items() if key != "Content-Range"}
    return {"status": 200, "start": 0, "stop": answer.blob.size, "headers": headers}


def _etag_changes(request: Request, answer: Answer) -> dict[str, Any]:
    changes = _whole(answer) if request.if_range else {"headers": answer.headers}
    return changes | {"headers": changes["headers"] | {"ETag": f'"{secrets.token_hex(16)}"'}}


SPOILS: dict[str, Callable[..., Any]] = {
    "cut": lambda _, one, after=1, reset=False: (
        one.size > after and {"cut_after": after, "reset": reset}
    ),
    "stall": lambda _, one, after=1: one.size > after and {"stall_after": after},
    "trickle": lambda _, one, rate, min_size=2: one.size >= min_size and {"rate": rate},
    "wrong_range_start": lambda _, one, by=1: _wrong_range(one, start=by),
    "wrong_range_total": lambda _, one, by=1: _wrong_range(one, total=by),
    "whole": lambda _, one: one.status == 206 and _whole(one),
    "short_range": lambda _, one, by=1: (
        one.status == 206 and one.size > by and {"stop": one.stop - by}
    ),
    "long_range": lambda _, one, by=1: one.status == 206 and {"surplus": by},
    "wrong_length": lambda _, one, by=1: one.size + by >= 0 and {"length_error": by},
    "corrupt": lambda _, one, offset=0: one.start <= offset < one.stop and {"flipped": offset},
    "chunked": lambda *_: {"chunked": True},
    "etag_changes": _etag_changes,
}
# Faults that the hosts act out themselves: an answer that begins after `seconds`, a redirect to
# the other storage, a signed URL for `uses` requests.
CHOICES = ("slow", "tiering", "url_limits")


def _usual_place(name: str, request: Request) -> bool:
    if name in SPOILS or name in {"html", "drop", "garbage", "endless", "bomb"}:
        return request.role in DATA_ROLES
    if name in {"url_limits", "slow"} and request.role == "huggingface":
        return True
    folder = "/api/" if name == "region_blocked" else "/api/download/"
    return request.role in CIVITAI_ROLES and request.path.startswith(folder)


@dataclass(eq=False)
class Fault:
    """One fault that is switched on; `times` below zero means always."""

    name: str
    times: int = -1
    skip: int = 0
    role: str | None = None
    path: str | None = None
    when: Callable[[Request], bool] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    hits: int = 0

    def __post_init__(self) -> None:
        if self.name not in {*ANSWERS, *SPOILS, *CHOICES} or self.role not in (None, *ROLES):
            raise ValueError(f"no fault {self.name} at {self.role}")

    def concerns(self, request: Request) -> bool:
        if self.role is None and self.path is None:
            here = _usual_place(self.name, request)
        else:
            here = self.role in (None, request.role)
            here = here and request.path.startswith(self.path or "/")
        return self.times != 0 and here and (self.when is None or self.when(request))

    def strike(self) -> bool:
        """Count a request that it concerns; true when this one is spoilt."""
        if self.skip:
            self.skip -= 1
            return False
        self.times -= self.times > 0
        self.hits += 1
        return True


class Faults:
    """All switched-on faults, asked by the hosts."""

    def __init__(self) -> None:
        self.switched_on: list[Fault] = []

    def _first(self, names: Any, request: Request) -> Fault | None:
        for fault in list(self.switched_on):
            if fault.name in names and fault.concerns(request) and fault.strike():
                return fault
        return None

    def choice(self, name: str, request: Request) -> dict[str, Any] | None:
        """The parameters of a fault that the hosts act out themselves."""
        fault = self._first([name], request)
        return fault and fault.params

    def answer(self, request: Request) -> Answer | None:
        """The answer of a fault instead of the host's."""
        fault = self._first(ANSWERS, request)
        return fault and ANSWERS[fault.name](request, **fault.params)

    def spoil(self, request: Request, answer: Answer) -> Answer:
        """The answer after all faults."""
        for fault in list(self.switched_on):
            if answer.is_data and fault.name in SPOILS and fault.concerns(request):
                changes = SPOILS[fault.name](request, answer, **fault.params)
                if changes and fault.strike():
                    answer = replace(answer, **changes)
        return answer
