"""The JSON body of a request."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.requests import Request

from gateway.jobs import BadRequest, GatewayError
from worker.json_text import check_levels


class NotJson(GatewayError):
    """The body has another type."""

    status = 415


async def json_object(request: Request) -> dict[str, Any]:
    """The body, which must be a JSON object.

    Another content type than JSON is refused: a web page of another site can send the others.

    Raises:
        GatewayError: it is not.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise NotJson(
            f"The content type is {kind[:80]!r}: send the header 'Content-Type: application/json'."
        )
    try:
        text = await request.body()
        body = json.loads(text, parse_constant=_no_number)
        check_levels(text, body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {str(error)[:200]}.") from None
    if not isinstance(body, dict):
        raise BadRequest('The body is not a JSON object: send {"input": {"prompt": "a fox"}}.')
    return body


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
