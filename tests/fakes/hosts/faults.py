"""The faults that a test can switch on in the fake model hosts.

A fault strikes where it does in reality (`SCOPES`), unless `role=` or `path=` name the place.
"""

import inspect
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fakes.hosts.content import CIVITAI_ROLES, DATA_ROLES, ROLES
from fakes.hosts.http import Answer, Request, html_answer, json_answer, redirect, text_answer

Scope = Callable[[Request], bool]


# Answers instead of the host's own.


def login_required(_: Request) -> Answer:
    text = "The creator of this asset requires you to be logged in to download it"
    return json_answer(401, {"error": "Unauthorized", "message": text})


def downloads_disabled(_: Request) -> Answer:
    text = "The creator of this asset has disabled downloads on this file"
    return json_answer(401, {"error": "Unauthorized", "message": text})


def early_access(_: Request, deadline: str | None = "2099-01-01T00:00:00.000Z") -> Answer:
    text = "This asset is in Early Access. You can use Buzz access it now"
    return json_answer(403, {"error": "Early Access", "deadline": deadline, "message": text})


def no_access(_: Request) -> Answer:
    return json_answer(403, {"error": "You do not have access to download this file"})


def forbidden(_: Request) -> Answer:
    return json_answer(403, {"error": "Forbidden"})


def cloudflare_challenge(_: Request) -> Answer:
    return html_answer(403, "Just a moment...", cf_mitigated="challenge", Server="cloudflare")


def not_found(_: Request) -> Answer:
    return json_answer(404, {"error": "File not found"}, Cache_Control="no-store")


def archived(_: Request) -> Answer:
    return json_answer(410, {"error": "Model archived, not available for download"})


def rate_limited(_: Request, retry_after: str | float | None = None, html: bool = False) -> Answer:
    wait = {} if retry_after is None else {"Retry_After": str(retry_after)}
    if html:
        return html_answer(429, "Access denied | civitai.com used Cloudflare", **wait)
    text = "We've noticed an unusual amount of downloading from your account"
    return json_answer(429, {"error": "Too Many Requests", "message": text}, **wait)


def region_blocked(_: Request) -> Answer:
    text = "Access to this service is not available in your region due to legal restrictions."
    return json_answer(451, {"error": text, "code": "REGION_BLOCKED"})


def server_error(_: Request, status: int = 500, retry_after: str | float | None = None) -> Answer:
    wait = {} if retry_after is None else {"Retry_After": str(retry_after)}
    return json_answer(status, {"error": f"fake error {status}"}, **wait)


def status(_: Request, status: int, body: str = "", kind: str = "text/plain") -> Answer:
    return text_answer(status, body, kind)


def login_page(_: Request) -> Answer:
    return html_answer(200, "Login | Civitai")


def html(_: Request) -> Answer:
    return html_answer(200, "Not what you asked for")


def redirect_loop(request: Request, status: int = 307) -> Answer:
    return redirect(status, request.target)


def redirect_to(_: Request, url: str, status: int = 307) -> Answer:
    return redirect(status, url)


def drop(_: Request, reset: bool = False) -> Answer:
    return Answer(0, raw=b"", reset=reset)


def garbage(_: Request, data: bytes = b"\x16\x03\x01\x00 not HTTP at all\r\n\r\n") -> Answer:
    return Answer(0, raw=data)


# Changes of an answer with a model's bytes; false when this answer cannot have the fault. A
# default `after` of 1 spares a request for one byte.


def cut(_: Request, answer: Answer, after: int = 1, reset: bool = False) -> bool:
    answer.cut_after, answer.reset = after, reset
    return answer.size > after


def stall(_: Request, answer: Answer, after: int = 1, seconds: float | None = None) -> bool:
    answer.stall_after, answer.stall_seconds = after, seconds
    return answer.size > after


def trickle(_: Request, answer: Answer, rate: float, min_size: int = 2) -> bool:
    answer.rate = rate
    return answer.size >= min_size


def wrong_range_start(_: Request, answer: Answer, by: int = 1) -> bool:
    shown = f"{answer.start + by}-{answer.stop - 1 + by}/{answer.blob.size}"
    answer.headers["Content-Range"] = f"bytes {shown}"
    return answer.status == 206


def wrong_range_total(_: Request, answer: Answer, by: int = 1) -> bool:
    shown = f"{answer.start}-{answer.stop - 1}/{answer.blob.size + by}"
    answer.headers["Content-Range"] = f"bytes {shown}"
    return answer.status == 206


def whole(_: Request, answer: Answer) -> bool:
    was_part = answer.status == 206
    answer.status, answer.start, answer.stop = 200, 0, answer.blob.size
    answer.headers.pop("Content-Range", None)
    return was_part


def short_range(_: Request, answer: Answer, by: int = 1) -> bool:
    answer.stop -= by
    return answer.status == 206 and answer.size > 0


def long_range(_: Request, answer: Answer, by: int = 1) -> bool:
    answer.surplus = by
    return answer.status == 206


def wrong_length(_: Request, answer: Answer, by: int = 1) -> bool:
    answer.length_error = by
    return answer.size + by >= 0


def corrupt(_: Request, answer: Answer, offset: int = 0, bits: int = 1) -> bool:
    answer.flips = answer.flips | {offset: bits}
    return answer.start <= offset < answer.stop


def chunked(_: Request, answer: Answer) -> bool:
    answer.chunked = True
    return True


def etag_changes(request: Request, answer: Answer) -> bool:
    answer.headers["ETag"] = f'"{secrets.token_hex(16)}"'
    if request.if_range:
        whole(request, answer)
    return True


# Faults that the hosts act out themselves.


def slow(seconds: float) -> None:
    """The answer begins late."""


def tiering() -> None:
    """The redirect goes to the other storage."""


def url_limits(seconds: float = 86400, uses: int | None = None) -> None:
    """The signed URL is valid for a time, or for a number of requests."""


def _download(request: Request) -> bool:
    return request.role in CIVITAI_ROLES and request.path.startswith("/api/download/")


def _api(request: Request) -> bool:
    return request.role in CIVITAI_ROLES and request.path.startswith("/api/")


def _data(request: Request) -> bool:
    return request.role in DATA_ROLES


def _resolve(request: Request) -> bool:
    return _download(request) or request.role == "huggingface"


ANSWERS = (login_required, downloads_disabled, early_access, no_access, forbidden)
ANSWERS += (cloudflare_challenge, not_found, archived, rate_limited, region_blocked, server_error)
ANSWERS += (status, login_page, html, redirect_loop, redirect_to, drop, garbage)
SPOILS = (cut, stall, trickle, wrong_range_start, wrong_range_total, whole, short_range)
SPOILS += (long_range, wrong_length, corrupt, chunked, etag_changes)
CHOICES = (slow, tiering, url_limits)
KNOWN: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (*ANSWERS, *SPOILS, *CHOICES)
}
SCOPES: dict[str, Scope] = {function.__name__: _data for function in SPOILS}
SCOPES |= {"html": _data, "drop": _data, "garbage": _data, "region_blocked": _api}
SCOPES |= {"url_limits": _resolve, "slow": _resolve}


@dataclass(eq=False)
class Fault:
    """One fault that is switched on; `times` below zero means always."""

    name: str
    times: int = -1
    skip: int = 0
    role: str | None = None
    path: str | None = None
    when: Scope | None = None
    params: dict[str, Any] = field(default_factory=dict)
    hits: int = 0

    def __post_init__(self) -> None:
        if self.name not in KNOWN or self.role not in (None, *ROLES):
            raise ValueError(f"no fault {self.name} at {self.role}; there are {sorted(KNOWN)}")
        given = {"ANSWERS": 1, "SPOILS": 2, "CHOICES": 0}[self.sort]
        inspect.signature(KNOWN[self.name]).bind(*[None] * given, **self.params)

    @property
    def sort(self) -> str:
        function = KNOWN[self.name]
        return "ANSWERS" if function in ANSWERS else "SPOILS" if function in SPOILS else "CHOICES"

    def end(self) -> None:
        self.times = 0

    def concerns(self, request: Request) -> bool:
        if self.role is None and self.path is None:
            here = SCOPES.get(self.name, _download)(request)
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

    def choice(self, name: str, request: Request) -> dict[str, Any] | None:
        """The parameters of a fault that the hosts act out themselves."""
        for fault in list(self.switched_on):
            if fault.name == name and fault.concerns(request) and fault.strike():
                return fault.params
        return None

    def answer(self, request: Request) -> Answer | None:
        """The answer of a fault instead of the host's."""
        for fault in list(self.switched_on):
            if fault.sort == "ANSWERS" and fault.concerns(request) and fault.strike():
                answer = KNOWN[fault.name](request, **fault.params)
                assert isinstance(answer, Answer)
                return answer
        return None

    def spoil(self, request: Request, answer: Answer) -> Answer:
        """The answer after all faults."""
        for fault in list(self.switched_on):
            if answer.is_data and fault.sort == "SPOILS" and fault.concerns(request):
                spoilt = replace(answer, headers=dict(answer.headers))
                if KNOWN[fault.name](request, spoilt, **fault.params) and fault.strike():
                    answer = spoilt
        return answer
