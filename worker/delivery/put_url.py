"""A job's own presigned URLs: a picture goes to each. The query of such a URL is a secret."""

from __future__ import annotations

import re
import time

from worker.errors import DeliveryFailed, ModelHostFailed, ModelUrlRefused
from worker.http.backoff import Backoff, retry_after
from worker.http.client import BUSY, SafeHttpClient
from worker.http.document import Document
from worker.http.urls import shown
from worker.webui.picture import Picture

ATTEMPTS = 3
LONGEST_WAIT = 5.0  # seconds; the caller waits for the result meanwhile

_TAKEN = range(200, 300)
_CODE = re.compile(rb"<Code>(\w{1,64})</Code>")  # how S3, and all that speak its language, say why


def put(http: SafeHttpClient, url: str, picture: Picture) -> str:
    """Upload a picture; returns the URL without its query.

    Raises:
        DeliveryFailed: the host did not take it, also when it was asked again.
    """
    where = shown(url)
    backoff = Backoff(min(0.5, LONGEST_WAIT), longest_wait=LONGEST_WAIT)
    for attempt in range(ATTEMPTS):
        try:
            answer = http.put(url, picture.data, picture.content_type)
        except ModelUrlRefused as error:
            raise DeliveryFailed(f"{where} was refused: {error.message}") from None
        except ModelHostFailed as error:
            problem, asked_for = DeliveryFailed(f"{where}: {error.message}"), None
        else:
            if answer.status in _TAKEN:
                return where
            problem, asked_for = _refusal(where, answer), retry_after(answer.headers)
            if answer.status not in BUSY:
                break
        if attempt < ATTEMPTS - 1:
            time.sleep(backoff.pause(asked_for))
    raise problem


def _refusal(where: str, answer: Document) -> DeliveryFailed:
    code = _CODE.search(answer.body)
    told = f" ({code[1].decode()})" if code else ""
    return DeliveryFailed(f"{where} answered {answer.status}{told}.", status=answer.status)
