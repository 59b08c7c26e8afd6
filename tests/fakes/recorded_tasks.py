"""Requests of A1111's picture routes and what a real v1.9.3 answered (`recorded/tasks.json`).

Recorded offline, on the CPU, with the demo model, whose VAE got an encoder without variance:
A1111 draws a VAE's variance from a generator that the request before has left in some state.
A text "@source.png" in a request stands for the base64 of that picture of `input_pictures`;
"@source.png|uri" for a data URI, and other words after the bar for forms that are odd or wrong.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fakes.input_pictures import picture
from fakes.recorded import recorded

LINE = 76  # characters of a line of MIME's base64

FORMS: dict[str, Callable[[str], str]] = {
    "": lambda text: text,
    "uri": lambda text: f"data:image/png;base64,{text}",
    "jpeguri": lambda text: f"data:image/jpeg;base64,{text}",
    "upper": lambda text: f"DATA:image/png;base64,{text}",
    "octet": lambda text: f"data:application/octet-stream;base64,{text}",
    "charset": lambda text: f"data:image/png;charset=utf-8;base64,{text}",
    "nocomma": lambda text: f"data:image/png;base64{text}",
    "nouri64": lambda text: f"data:image/png,{text}",
    "newlines": lambda text: "\n".join(text[i : i + LINE] for i in range(0, len(text), LINE)),
    "spaces": lambda text: f"  {text}  ",
    "nopad": lambda text: text.rstrip("="),
    "half": lambda text: text[: len(text) // 2],
    "urlsafe": lambda text: text.replace("+", "-").replace("/", "_"),
    "twice": lambda text: base64.b64encode(text.encode()).decode(),
}


@dataclass(frozen=True)
class RecordedTask:
    """One request and the answer's facts: status, and error or pictures and texts."""

    name: str
    path: str  # below /sdapi/v1/
    body: dict[str, Any]
    answer: dict[str, Any]

    @property
    def status(self) -> int:
        return self.answer["status"]

    def sent_body(self) -> dict[str, Any]:
        """The request's body with its pictures."""
        return _with_pictures(self.body)


def _with_pictures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_pictures(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_pictures(item) for item in value]
    if isinstance(value, str) and value.startswith("@"):
        name, _, form = value[1:].partition("|")
        return FORMS[form](base64.b64encode(picture(name)).decode())
    return value


def recorded_tasks() -> list[RecordedTask]:
    """All recorded requests, in the order in which they were sent."""
    table = recorded("tasks")
    found = []
    for name, row in table["rows"].items():
        base = table["base"][row["path"]] | (table["base"]["mask"] if row.get("mask") else {})
        body = base | row["body"]
        body = {key: body[key] for key in body if key not in row.get("without", ())}
        answer = {key: row[key] for key in row if key not in {"path", "mask", "body", "without"}}
        found.append(RecordedTask(name, row["path"], body, answer))
    return found
