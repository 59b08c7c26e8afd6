"""Fetches pictures from an endpoint's bucket, for clients that want base64.

A worker delivers pictures there that are too large for RunPod's result.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Sequence

from worker.http.client import SafeHttpClient
from worker.images.fetch import fetch_all
from worker.images.limits import IMAGE_LIMITS


async def fetched(http: SafeHttpClient, urls: Sequence[str]) -> list[str]:
    """The pictures at these URLs as base64.

    Raises:
        WorkerError: one cannot be fetched.
    """
    if not urls:
        return []
    places = {f"images.{n}": url for n, url in enumerate(urls)}
    files = await asyncio.to_thread(fetch_all, http, places, IMAGE_LIMITS, threading.Event())
    return [base64.b64encode(files[place]).decode() for place in places]
