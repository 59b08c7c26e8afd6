"""Lets boto3 send its requests to a bucket that a job names through the `SafeHttpClient`.

boto3 itself would connect to any address. It asks its event `before-send` for an answer before it
opens a connection. So boto3 signs the request and decides about another attempt, and the
`SafeHttpClient` decides where a request may go.
"""

from __future__ import annotations

import io
import re
from typing import Any

import urllib3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import HTTPClientError

from worker.errors import ModelHostFailed
from worker.http.client import SafeHttpClient
from worker.http.document import Document, error_code

_LONGEST_ANSWER = 64 << 10  # bytes; the errors of S3 have some 500
_ERRORS = 300  # the first status of redirects and errors
# boto3 converts other headers to numbers and dates, which fails on what is none.
_HEADERS = {
    "ETag": re.compile(r"[!-~]{1,200}"),
    "x-amz-bucket-region": re.compile(r"[A-Za-z0-9-]{1,40}"),
}


class SafeRequests:
    """Sends the requests of one boto3 client. Thread-safe."""

    def __init__(self, http: SafeHttpClient) -> None:
        self._http = http

    def serve(self, client: Any) -> None:  # noqa: ANN401 - boto3 has no types
        """Send all requests of this client from now on."""
        client.meta.events.register("before-send.s3", self._send)

    def _send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        """boto3's event: send a request, once.

        Raises:
            ModelUrlRefused: the URL is not allowed.
            HTTPClientError: no answer; boto3 tries again.
        """
        # No `Expect: 100-continue`: the server would have to answer twice.
        headers = {
            name: value.decode("latin-1") if isinstance(value, bytes) else str(value)
            for name, value in request.headers.items()
            if name.lower() != "expect"
        }
        try:
            answer = self._http.send(
                request.method, request.url, headers, request.body, most=_LONGEST_ANSWER
            )
        except ModelHostFailed as error:
            raise HTTPClientError(error=error) from error
        raw = urllib3.HTTPResponse(io.BytesIO(_body(answer)), preload_content=False)
        return AWSResponse(request.url, answer.status, _headers(answer), raw)


def _headers(answer: Document) -> dict[str, str]:
    found = {name: answer.headers.get(name) or "" for name in _HEADERS}
    return {name: value for name, value in found.items() if _HEADERS[name].fullmatch(value)}


def _body(answer: Document) -> bytes:
    """What boto3 parses: an error's code, because XML from anywhere can be a trap."""
    code = error_code(answer.body) if answer.status >= _ERRORS else None
    return f"<Error><Code>{code}</Code></Error>".encode() if code else b""
