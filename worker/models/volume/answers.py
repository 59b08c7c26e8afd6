"""What the S3 API of a network volume answers, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from worker.config.bucket_address import BucketAddress
from worker.errors import StoreFull, VolumeFailed, WorkerError
from worker.http.backoff import retry_after

FAILURES = (ClientError, BotoCoreError, HTTPError, OSError)
# What boto3 raises for an answer that is not of S3: other XML, or fields of another type.
UNREADABLE = (ResponseParserError, LookupError, TypeError, ValueError, RecursionError)

GONE = "NoSuchUpload"  # an upload in parts that was completed, or aborted, by another run

# 524 comes from the proxy in front of RunPod's S3 API, after a request that took too long.
_PASSING = {408, 429, 500, 502, 503, 504, 524}
_PASSING_CODES = {"BadDigest", "InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown"}
_FULL = 507
_FORBIDDEN, _MISSING = (401, 403), 404
_OLDEST = 3600.0  # seconds by which RunPod lets a clock differ

_KEY_HINT = (
    "Create a key in RunPod's console (Settings, S3 API Keys), and set RUNPOD_S3_ACCESS_KEY and"
    " RUNPOD_S3_SECRET_KEY."
)


def code_of(error: BaseException) -> str:
    """S3's code, such as NoSuchUpload; empty if there was no answer."""
    response = error.response if isinstance(error, ClientError) else {}
    return str(response.get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int | None:
    """The HTTP status; None if there was no answer."""
    status = _metadata(error).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def passes(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, ClientError):
        return status_of(error) in _PASSING or code_of(error) in _PASSING_CODES
    return isinstance(error, HTTPClientError | HTTPError | OSError)


def asked_to_wait(error: BaseException) -> float | None:
    """Seconds of a Retry-After."""
    headers = _metadata(error).get("HTTPHeaders", {})
    wait = headers.get("retry-after")
    return retry_after({"Retry-After": wait}) if wait else None


def problem(
    error: BaseException, address: BucketAddress, clock: Callable[[], float] = time.time
) -> WorkerError:
    """The error for the operator; it contains no key and no signed URL."""
    host, name = address.endpoint.partition("//")[2], address.name
    code, status = code_of(error), status_of(error)
    if not isinstance(error, ClientError):
        return VolumeFailed(
            f"{host} cannot be reached ({type(error).__name__}).",
            hint="Check the network and the data center: docs/network-volume.md lists those with"
            " an S3 API. The next push continues where this one stopped.",
        )
    if status == _FULL or code in {"InsufficientStorage", "QuotaExceeded"}:
        return StoreFull(
            f"the network volume {name} is full.",
            hint="Enlarge it in RunPod's console, or remove models; then push again.",
        )
    if code == "RequestTimeTooSkewed" or abs(_ahead(error, clock())) > _OLDEST:
        return VolumeFailed(
            f"{host} refuses the request, because the clock of this machine is wrong.",
            hint="Set the clock, and push again.",
        )
    if status in _FORBIDDEN:
        return VolumeFailed(f"{host} refuses the key ({code}).", hint=_KEY_HINT)
    if code == "NoSuchBucket" or (status == _MISSING and code in {"404", ""}):
        return VolumeFailed(
            f"{host} has no network volume {name!r}.",
            hint="Check the volume's id and its data center: RunPod's console, Storage.",
        )
    return VolumeFailed(f"{host} answered {status} ({code}) for the volume {name}.", s3=code)


def _ahead(error: BaseException, now: float) -> float:
    """Seconds by which the host's clock is ahead of ours; 0 if it does not tell its time."""
    date = _metadata(error).get("HTTPHeaders", {}).get("date", "")
    try:
        return parsedate_to_datetime(date).timestamp() - now
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _metadata(error: BaseException) -> Mapping[str, Any]:
    response = error.response if isinstance(error, ClientError) else {}
    metadata: Mapping[str, Any] = response.get("ResponseMetadata", {})
    return metadata
