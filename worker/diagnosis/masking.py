"""Hides secrets in the text of the diagnosis, which people attach to public bug reports.

Known values are replaced as in the log (worker/log.py). But a secret may be in the environment
under any name, or in a line that the engine has written. So each value of a variable that is not
known to be harmless counts as one, and so does what looks like one: the login and the query of a
URL, the value of a header, a token with a well-known beginning. Rather too much is hidden.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus

HIDDEN = "***"
_SHORTEST = 6  # characters of a value that is hidden, as in worker/log.py

# Their values are no secrets, and masking `/app` or `C.UTF-8` would make other lines unreadable.
HARMLESS = frozenset(
    (
        *("HOME", "PWD", "OLDPWD", "PATH", "USER", "LOGNAME", "SHELL", "TERM", "SHLVL", "LANG"),
        *("LC_ALL", "LC_CTYPE", "LANGUAGE", "TZ", "HOSTNAME", "VIRTUAL_ENV", "TMPDIR", "_"),
        *("PYTHON", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHON_VERSION", "LD_LIBRARY_PATH"),
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
        *("PYTORCH_CUDA_ALLOC_CONF", "MALLOC_TRIM_THRESHOLD_", "END_WITH_PID", "HF_HOME"),
        *("RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL", "RUNPOD_PING_INTERVAL", "RUNPOD_GPU_NAME"),
        *("RUNPOD_CPU_COUNT", "RUNPOD_MEM_GB", "RUNPOD_POD_HOSTNAME", "RUNPOD_URL"),
    )
)

_URL = re.compile(r"(?<![\w+.-])([A-Za-z][A-Za-z0-9+.-]{0,20}:/{2})([^\s\"'<>`|{}\\]+)")
_TO_THE_END = re.compile(
    r"((?:proxy-)?authorization|(?:set-)?cookie)([\"']?\s{0,3}[:=]).*", re.IGNORECASE
)
_LABEL = re.compile(
    r"(?<![A-Za-z0-9_-])"
    r"([A-Za-z0-9_-]{0,60}?"
    r"(?:(?:token|secret|passw|passphrase|api[_-]?key|access[_-]?key|private[_-]?key|signature|"
    r"credential)[A-Za-z0-9_-]{0,40}|(?:pass|pwd|pat|auth|key|sig)(?![A-Za-z0-9_-])))"
    r"([\"']?\s{0,3}[:=]\s{0,3})"
    r"(\"[^\"\n]*\"?|'[^'\n]*'?|[^\s\"',;&]+)",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r"[\"']?([\d.]{1,5}|true|false|null|none)[\"']?", re.IGNORECASE)
_SCHEME = re.compile(r"\b(bearer|basic)(\s{1,3})[\w.~+/=-]{6,}", re.IGNORECASE)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_|rpa_|rps_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abpr]-|AKIA|ASIA|AIza|"
    r"eyJ)[\w.-]{8,}"
)
_WORD = re.compile(r"(?<![\w/+=-])[A-Za-z0-9+/]{32,}={0,2}")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{1,40}-----[^-]*")
_AWS_SECRET = 40  # characters
_SEGMENT = 20  # characters of a URL's part that may be random


class Mask:
    """Replaces secrets by `***`.

    Args:
        secrets: values to hide, wherever they stand and however they are quoted.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        found = {form for secret in secrets for form in _forms(secret)}
        self._secrets = sorted(found, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without secrets. Linear in its length."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        text = _PRIVATE_KEY.sub(HIDDEN, text)
        text = _TO_THE_END.sub(rf"\1\2 {HIDDEN}", text)
        text = _URL.sub(_plain_url, text)
        text = _LABEL.sub(_labelled, text)
        text = _SCHEME.sub(rf"\1\2{HIDDEN}", text)
        text = _TOKEN.sub(HIDDEN, text)
        return _WORD.sub(lambda word: HIDDEN if _is_random(word[0]) else word[0], text)


def _forms(secret: str) -> Iterable[str]:
    """The secret as it is, line by line, in a URL, in JSON and in a header."""
    for part in {secret, *secret.splitlines()}:
        if len(part.strip()) < _SHORTEST:
            continue
        coded = base64.b64encode(part.encode(errors="replace")).decode()
        yield from (part, part.strip(), quote(part, safe="", errors="replace"))
        yield from (quote_plus(part, errors="replace"), json.dumps(part)[1:-1])
        yield from (json.dumps(part, ensure_ascii=False)[1:-1], coded, coded.rstrip("="))


def _plain_url(found: re.Match[str]) -> str:
    """The URL without login, query and fragment, and without random parts of its path."""
    scheme, rest = found[1], found[2]
    end = min((rest.find(mark) for mark in "?#" if mark in rest), default=len(rest))
    if "@" in rest[end:]:  # it may also belong to a password with such a mark
        return scheme + HIDDEN
    login, at, rest_of_url = rest[:end].rpartition("@")
    parts = rest_of_url.split("/")
    host, path = parts[0], [HIDDEN if _is_key(part) else part for part in parts[1:]]
    query = rest[end] + HIDDEN if end < len(rest) else ""
    return f"{scheme}{HIDDEN + at if login or at else ''}{'/'.join([host, *path])}{query}"


def _is_key(part: str) -> bool:
    """Whether a part of a URL's path may be a key; names of files and hashes are none."""
    is_long = len(part) >= _SEGMENT and bool(re.fullmatch(r"[\w=~+%-]+", part))
    has_both = any(map(str.isdigit, part)) and any(map(str.isalpha, part))
    return is_long and has_both and not re.fullmatch("[0-9a-fA-F-]+", part)


def _labelled(found: re.Match[str]) -> str:
    if _NO_SECRET.fullmatch(found[3]):
        return found[0]
    return f"{found[1]}{found[2]}{HIDDEN}"


def _is_random(word: str) -> bool:
    """Whether it is long and mixed as keys are; a hash has small letters only."""
    if "/" in word and len(word.rstrip("=")) != _AWS_SECRET:  # else it is rather a path
        return False
    return all(any(map(kind, word)) for kind in (str.isupper, str.islower, str.isdigit))


def secrets_of(environ: Mapping[str, str], harmless: Iterable[str]) -> list[str]:
    """The values that are hidden: all but those of the harmless variables, and parts of these.

    Args:
        environ: the variables.
        harmless: names of variables whose values may be shown, besides `HARMLESS`.
    """
    names = {*HARMLESS, *harmless}
    found = [value for name, value in environ.items() if name not in names]
    for value in environ.values():
        for url in re.findall(r":/{2}([^\s\"'<>]{1,2000})@", value):
            found += [url, *url.split(":")]
    login = environ.get("GATEWAY_LOGIN", "")
    return [*found, *login.split(":", 1)]
