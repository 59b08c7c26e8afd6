"""Answers recorded from A1111 v1.9.3; the files are named after their route."""

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@cache
def recorded(name: str) -> Any:
    """The recorded answer `name`; shared, so callers copy before they change it."""
    return json.loads((FOLDER / f"{name}.json").read_text())
