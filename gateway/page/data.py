"""What the page's form needs to know of the back: its lists, the JSON Schema, its health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.catalog.catalog import Catalog
from gateway.jobs import GatewayError, Jobs, last_state

# The lists that fields of the form choose from.
_LISTS = ("models", "loras", "samplers", "schedulers", "upscalers", "templates")
# The tasks whose fields the form has.
_TASKS = ("txt2img", "img2img")


class PageData:
    """Collects it without starting a worker: opening the page must cost nothing.

    Args:
        jobs: the back.
        catalog: its lists.
        asks_health: whether the task `health` is asked: it is where it costs nothing, and does not
            wait for the job that draws.
    """

    def __init__(self, jobs: Jobs, catalog: Catalog, *, asks_health: bool) -> None:
        self._jobs = jobs
        self._catalog = catalog
        self._asks_health = asks_health

    async def get(self) -> dict[str, Any]:
        """The keys `lists`, `is_known` (whether they are the back's own), `schema`, `health`.

        `schema` and `health` (the answer of the task `health`) are null while they are not known.

        Raises:
            GatewayError: the back does not answer.
        """
        is_awake = await self._jobs.is_awake()
        lists = await self._catalog.lists(may_start=is_awake)
        return {
            "lists": {name: list(getattr(lists, name)) for name in _LISTS},
            "is_known": lists.is_known,
            "schema": _of_drawing(lists.schema) if lists.schema else None,
            "health": await self._health() if is_awake and self._asks_health else None,
        }

    async def _health(self) -> Mapping[str, Any] | None:
        try:
            job = await self._jobs.submit({"input": {"task": "health"}})
            ended = await last_state(self._jobs, job.id)
        except GatewayError:  # the worker is shutting down, which GET /health says, too
            return None
        return ended.output if ended.status == "COMPLETED" else None


def _of_drawing(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Only the inputs that the form has, and all shared definitions."""
    return {
        "tasks": {name: schema["tasks"][name] for name in _TASKS},
        "$defs": schema["$defs"],
    }
