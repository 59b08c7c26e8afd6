"""Pictures in the endpoint's bucket for a client that has asked for base64."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.bucket import fetched
from worker.errors import WorkerError
from worker.http.client import SafeHttpClient

logger = logging.getLogger(__name__)


async def with_base64(http: SafeHttpClient, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer with `b64_json` for each `url`; with a warning if one cannot be fetched."""
    data = answer["data"]
    try:
        pictures = iter(await fetched(http, [one["url"] for one in data if "url" in one]))
    except WorkerError as error:
        logger.warning("a picture in the bucket cannot be fetched: %s", error)
        text = f"The pictures are in the bucket, and cannot be fetched: {error.message}"
        known = answer.get("warnings")
        return {**answer, "warnings": [*(known if isinstance(known, list) else []), text]}
    return {**answer, "data": [_in_base64(one, pictures) for one in data]}


def _in_base64(one: Mapping[str, Any], pictures: Iterator[str]) -> dict[str, Any]:
    if "url" not in one:
        return dict(one)
    rest = {key: value for key, value in one.items() if key != "url"}
    return {"b64_json": next(pictures), **rest}
