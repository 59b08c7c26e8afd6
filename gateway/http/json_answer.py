"""Answers in JSON, whatever a request or an endpoint has put into them."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse


class JsonAnswer(JSONResponse):
    """As Starlette's, which fails at half a surrogate pair (a cut emoji) and at NaN."""

    def render(self, content: Any) -> bytes:  # noqa: ANN401 - any JSON value
        """The content as JSON: half a pair as its escape, NaN and Infinity as null."""
        try:
            return super().render(content)
        except ValueError:
            numbers = json.loads(json.dumps(content), parse_constant=lambda _name: None)
            return json.dumps(numbers).encode()
