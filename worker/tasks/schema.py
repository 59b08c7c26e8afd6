"""The types of every task's input and output: as one JSON Schema, and as rows of a table.

The task `schema` returns the document, as `python handler.py --schema` prints it.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, Field
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from worker.answer import Answer, Failure
from worker.service.parts import Worker
from worker.service.report import Progress
from worker.service.task import Job, Task, Tasks

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Row(NamedTuple):
    """One field, or a field of a nested object: `cache_info.loras_cached`, `models[].name`."""

    name: str
    type: str
    description: str


def document(tasks: Iterable[Task[Any]]) -> dict[str, Any]:
    """The JSON Schemas of a job's input and answer for each task, of a failure and of progress."""
    table = list(tasks)
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((task.input, "validation") for task in table),
        *((task.output, "serialization") for task in table),
        (Failure, "serialization"),
        (Progress, "serialization"),
    ]
    schemas, shared = models_json_schema(models)
    return {
        "$schema": _DIALECT,
        "tasks": {
            task.name: {
                "description": task.description,
                "input": schemas[task.input, "validation"],
                "output": schemas[task.output, "serialization"],
            }
            for task in table
        },
        "failure": schemas[Failure, "serialization"],
        "progress": schemas[Progress, "serialization"],
        **shared,
    }


def rows(
    model: type[BaseModel], mode: JsonSchemaMode = "serialization", *, nested: bool = True
) -> list[Row]:
    """The fields of a type; after an object come the fields in it, if `nested`."""
    schema = model.model_json_schema(mode=mode)
    return list(_rows(schema, schema.get("$defs", {}), "", nested=nested))


def _rows(
    schema: dict[str, Any], shared: dict[str, Any], prefix: str, *, nested: bool
) -> Iterator[Row]:
    for name, field in schema["properties"].items():
        about = field.get("description")
        if about is None and "$ref" in field:  # the same text as the type's, which pydantic omits
            about = _target(field, shared).get("description")
        yield Row(f"{prefix}{name}", _type(field, shared), about or "")
        suffix, inner = ("[]", field["items"]) if "items" in field else ("", field)
        if isinstance(inner.get("additionalProperties"), dict):
            suffix, inner = ".*", inner["additionalProperties"]
        if nested and "$ref" in inner:
            yield from _rows(
                _target(inner, shared), shared, f"{prefix}{name}{suffix}.", nested=True
            )


def _target(schema: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    target: dict[str, Any] = shared[schema["$ref"].rpartition("/")[2]]
    return target


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _type(schema: dict[str, Any], shared: dict[str, Any]) -> str:
    """The field's type in words: `list of string`, `integer, 1 to 150`, `png | jpeg | webp`."""
    if "$ref" in schema:
        return _type(_target(schema, shared), shared)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one, shared) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " | ".join(map(_word, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'], shared)}"
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = "" if low is None or high is None else f", {low:g} to {high}"
    return f"{schema.get('type', 'JSON')}{bounds}"


# The task -----------------------------------------------------------------------------------------


class SchemaDocument(Answer):
    """The answer of the task `schema`."""

    document: dict[str, Any] = Field(
        description="JSON Schema of the input and the answer of every task, of a failure and of"
        " progress."
    )
    timings: dict[str, float] = Field(description="Seconds: `total`.")


@functools.cache
def _described(tasks: Tasks[Worker]) -> dict[str, Any]:
    """The document, which takes half a second to make and never changes."""
    return document(tasks)


async def run(worker: Worker, job: Job, _checked: object) -> SchemaDocument:
    """The document of this worker's tasks."""
    described = await asyncio.to_thread(_described, worker.tasks)
    return SchemaDocument.model_construct(document=described, timings=job.stopwatch.timings())


TASK = Task(
    name="schema",
    description="Returns the types of every task's input and answer, as JSON Schema.",
    run=run,
    output=SchemaDocument,
    is_quick=True,
)
