"""Uploads pictures to a job's own presigned URLs. The query of such a URL is a secret."""

from __future__ import annotations

import threading

from worker.delivery.limits import UPLOAD_LIMITS, UploadLimits
from worker.errors import DeliveryFailed, ModelHostFailed, ModelUrlRefused
from worker.generation.picture import Picture
from worker.http.backoff import Backoff, retry_after
from worker.http.client import BUSY, NO_CANCEL, SafeHttpClient
from worker.http.document import Document, error_code
from worker.http.interrupt import within
from worker.http.urls import shown

_SUCCESS = range(200, 300)


def put(
    http: SafeHttpClient,
    url: str,
    picture: Picture,
    limits: UploadLimits = UPLOAD_LIMITS,
    stop: threading.Event = NO_CANCEL,
) -> str:
    """Upload a picture; returns the URL without its query.

    Raises:
        DeliveryFailed: every attempt failed, the host refused the file, or `stop` was set.
    """
    with within(limits.seconds, stop):
        return _put(http, url, picture, limits, stop)


def _put(
    http: SafeHttpClient, url: str, picture: Picture, limits: UploadLimits, stop: threading.Event
) -> str:
    target = shown(url)
    backoff = Backoff(min(0.5, limits.longest_wait), longest_wait=limits.longest_wait)
    for attempt in range(limits.attempts):
        try:
            answer = http.put(url, picture.data, picture.content_type)
        except ModelUrlRefused as error:
            raise DeliveryFailed(f"{target} was refused: {error.message}") from None
        except ModelHostFailed as error:
            problem, asked_for = DeliveryFailed(f"{target}: {error.message}"), None
            problem.__context__ = error  # an exhausted machine is recognized by it
        else:
            if answer.status in _SUCCESS:
                return target
            problem, asked_for = _refusal(target, answer), retry_after(answer.headers)
            if answer.status not in BUSY:
                break
        if attempt < limits.attempts - 1 and stop.wait(backoff.pause(asked_for)):
            break
    raise problem from None  # the host's error may contain the URL, which is a secret


def _refusal(target: str, answer: Document) -> DeliveryFailed:
    code = error_code(answer.body)
    reason = f" ({code})" if code else ""
    return DeliveryFailed(f"{target} answered {answer.status}{reason}.", status=answer.status)
