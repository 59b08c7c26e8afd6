"""Fetches pictures from an endpoint's bucket, for clients that want base64.

A worker delivers pictures there that are too large for RunPod's result.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Sequence

from worker.errors import ImageUrlRefused
from worker.http.client import SafeHttpClient
from worker.images.fetch import fetch_all
from worker.images.limits import IMAGE_LIMITS
from worker.job.image_fields import is_url

_UNSIGNED = "s3://"  # of a service that signs no URLs, such as RunPod's network volumes


def is_in_bucket(image: str) -> bool:
    """Whether a picture of an answer is a URL; otherwise it is base64."""
    return is_url(image) or image.startswith(_UNSIGNED)


async def fetched(http: SafeHttpClient, urls: Sequence[str]) -> list[str]:
    """The pictures at these URLs as base64.

    Raises:
        WorkerError: one cannot be fetched.
    """
    for url in urls:
        if url.startswith(_UNSIGNED):
            raise ImageUrlRefused(
                f"the picture is drawn, and only the keys of its bucket can read {url[:1000]}.",
                hint="Copy it with `aws s3 cp`, or set BUCKET_PUBLIC_URL on the endpoint.",
            )
    if not urls:
        return []
    places = {f"images.{n}": url for n, url in enumerate(urls)}
    files = await asyncio.to_thread(fetch_all, http, places, IMAGE_LIMITS, threading.Event())
    return [base64.b64encode(files[place]).decode() for place in places]
