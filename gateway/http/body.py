"""The JSON body of a request."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.requests import Request

from gateway.jobs import BadRequest, GatewayError
from worker.json_text import check_levels

# The 100,000 values that a job may have need at most half of these marks: a comma and a bracket
# each. The others are for the commas of texts, which count, too, because to leave them out would
# take as long as to parse; prompts have hundreds, and base64 has none.
MOST_MARKS = 400_000
_MARKS = ",[{"

Json = Any


class NotJson(GatewayError):
    """The body has another type."""

    status = 415


class TooManyValues(GatewayError):
    """The body has so many values that reading it would keep all other requests waiting."""

    status = 413


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
        body = parse(await request.body())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {str(error)[:200]}.") from None
    if not isinstance(body, dict):
        raise BadRequest('The body is not a JSON object: send {"input": {"prompt": "a fox"}}.')
    return body


def parse(text: str | bytes) -> Json:
    """Parse JSON that a client has sent. All JSON of a request is parsed here.

    Raises:
        TooManyValues: see `refuse_many_values`.
        ValueError, RecursionError: it is not JSON, or is nested too deep.
    """
    refuse_many_values(text)
    value = json.loads(text, parse_constant=_no_number)
    check_levels(text, value)
    return value


def refuse_many_values(*texts: str | bytes) -> None:
    """Refuse JSON that has too many values in all of these texts together.

    Python takes seconds and a gigabyte for the values that fit into 30 MB, and answers nobody in
    this time, not even if another thread parses them. To count the marks takes milliseconds: each
    value but the first is behind one of them.

    Raises:
        TooManyValues: there are more than `MOST_MARKS`.
    """
    marks = sum(_count(text, mark) for text in texts for mark in _MARKS)
    if marks > MOST_MARKS:
        raise TooManyValues(
            f"The request's JSON has {marks:,} commas and opening brackets, and at most"
            f" {MOST_MARKS:,} are allowed, those in texts included: send fewer values, or shorter"
            " texts."
        )


def _count(text: str | bytes, mark: str) -> int:
    return text.count(mark) if isinstance(text, str) else text.count(mark.encode())


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
