"""The body of an edit: OpenAI's clients send it as a form with files."""

from __future__ import annotations

import base64
import sys
from typing import Any, TypeGuard

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from gateway.http.body import json_object, parse, refuse_many_values
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
    form = await _form_of(request)
    try:
        items = form.multi_items()
        # Many fields take as long to parse as one large field.
        refuse_many_values(*(value for _, value in items if _may_be_json(value)))
        body: dict[str, Any] = {}
        for name, value in items:
            _add(body, name, await _read(value))
        return body
    finally:
        await form.close()


class _InMemory(MultiPartParser):
    """Writes no file to the disk, which may be full, or have no folder for temporary files.

    The body has a limit, and its pictures become base64 in memory at once.
    """

    spool_max_size = sys.maxsize


async def _form_of(request: Request) -> FormData:
    parser = _InMemory(
        request.headers,
        request.stream(),
        max_files=_MOST_FILES,
        max_fields=_MOST_FIELDS,
        max_part_size=_LONGEST_FIELD,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise BadRequest(f"The form cannot be read: {error.message[:200]}") from None


def _add(body: dict[str, Any], name: str, value: object) -> None:
    """A name that ends with [], or that comes again, is a list."""
    key = name.removesuffix("[]")
    if key in body:
        earlier = body[key] if isinstance(body[key], list) else [body[key]]
        body[key] = [*earlier, value]
    else:
        body[key] = [value] if key != name else value


def _may_be_json(value: UploadFile | str) -> TypeGuard[str]:
    return isinstance(value, str) and value.startswith(_IS_JSON)


async def _read(value: UploadFile | str) -> object:
    if isinstance(value, UploadFile):
        return base64.b64encode(await value.read()).decode()
    if value in {"true", "false"}:
        return value == "true"
    if _may_be_json(value):
        try:
            return parse(value)
        except (ValueError, RecursionError):
            return value  # a prompt such as "[red|blue] fox"
    return value
