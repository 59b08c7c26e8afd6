"""The body of an edit: OpenAI's clients send it as a form with files."""

from __future__ import annotations

import base64
import json
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from gateway.http.body import json_object
from gateway.jobs import BadRequest

_MOST_FILES, _MOST_FIELDS = 17, 200  # OpenAI's 16 pictures and a mask
_LONGEST_FIELD = 20_000_000  # bytes; a picture may be in a field as base64
_IS_JSON = ("{", "[")  # objects and lists among our own fields


async def body_of(request: Request) -> dict[str, Any]:
    """The parameters, from a form or from JSON; files become base64.

    Raises:
        GatewayError: the body is neither.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        return await json_object(request)
    try:
        async with request.form(
            max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=_LONGEST_FIELD
        ) as form:
            body: dict[str, Any] = {}
            for name, value in form.multi_items():
                _add(body, name, await _read(value))
            return body
    except HTTPException as error:
        raise BadRequest(f"The form cannot be read: {str(error.detail)[:200]}") from None


def _add(body: dict[str, Any], name: str, value: object) -> None:
    """A name that ends with [], or that comes again, is a list."""
    key = name.removesuffix("[]")
    if key in body:
        earlier = body[key] if isinstance(body[key], list) else [body[key]]
        body[key] = [*earlier, value]
    else:
        body[key] = [value] if key != name else value


async def _read(value: UploadFile | str) -> object:
    if isinstance(value, UploadFile):
        return base64.b64encode(await value.read()).decode()
    if value in {"true", "false"}:
        return value == "true"
    if value.startswith(_IS_JSON):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value  # a prompt such as "[red|blue] fox"
    return value
