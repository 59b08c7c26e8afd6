"""Fetches pictures from the endpoint's bucket for a client that has asked for base64.

A worker delivers pictures there that are too large for RunPod's result.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
from collections.abc import Mapping
from typing import Any

from worker.errors import WorkerError
from worker.http.client import SafeHttpClient
from worker.images.fetch import fetch_all
from worker.images.limits import IMAGE_LIMITS

logger = logging.getLogger(__name__)


async def with_base64(http: SafeHttpClient, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer with `b64_json` for each `url`; with a warning if one cannot be fetched."""
    data = list(answer["data"])
    urls = {
        f"data.{n}": one["url"] for n, one in enumerate(data) if isinstance(one.get("url"), str)
    }
    if not urls:
        return dict(answer)
    try:
        files = await asyncio.to_thread(fetch_all, http, urls, IMAGE_LIMITS, threading.Event())
    except WorkerError as error:
        logger.warning("a picture in the bucket cannot be fetched: %s", error)
        text = f"The pictures are in the bucket, and cannot be fetched: {error.message}"
        return {**answer, "warnings": [*answer.get("warnings", []), text]}
    for n, one in enumerate(data):
        if file := files.get(f"data.{n}"):
            rest = {key: value for key, value in one.items() if key != "url"}
            data[n] = {"b64_json": base64.b64encode(file).decode(), **rest}
    return {**answer, "data": data}
