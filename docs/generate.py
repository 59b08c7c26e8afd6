"""Writes the parts of the documents that come from the code: `make docs`.

A generated part stands between two comments, and the first one names it:

    <!-- begin generated: settings (make docs) -->
    <!-- end generated -->

`PARTS` has a function for each name. The figures in docs/images/*.svg are generated as well.
tests/project/test_docs.py fails when a file is stale.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs import defences, deployments, gpu_tables, hub, metric_tables
from docs.figures import icon
from docs.figures.all import FIGURES
from worker.answer import Answer
from worker.config.settings import PROJECT, Settings
from worker.errors import WorkerError
from worker.job import template
from worker.job.img2img import Img2ImgRequest
from worker.job.model_fields import LoraReference
from worker.job.output_fields import Output
from worker.job.request import TemplateDefaults
from worker.job.txt2img import Txt2ImgRequest
from worker.service.report import PictureChunk, Progress
from worker.tasks import schema
from worker.tasks.lists import LISTS
from worker.tasks.table import TASKS
from worker.webui import engine_state

PART = re.compile(
    r"(<!-- begin generated: ([\w-]+) \(make docs\) -->\n).*?(<!-- end generated -->)", re.DOTALL
)
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]

_HINT_DEPENDS = "The hint depends on the case; the message has it."


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _summary(docstring: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((docstring or "").partition("\n\n")[0].split())


# Tables ------------------------------------------------------------------------------------------


def security(who: str) -> str:
    """The defences against one kind of attacker, a row for each module."""
    modules: dict[str, list[defences.Defence]] = {}
    for one in defences.DEFENCES[who]:
        modules.setdefault(one.module, []).append(one)
    return table(
        ("defence", "module", "tests that fail without it"),
        ((_sentences(some), f"`{module}`", _tests(some)) for module, some in modules.items()),
    )


def _sentences(some: list[defences.Defence]) -> str:
    """Their texts; one that begins with a small letter continues the one before."""
    texts = (one.text for one in some)
    return functools.reduce(lambda a, b: f"{a}, {b}" if b[0].islower() else f"{a}. {b}", texts)


def _tests(some: list[defences.Defence]) -> str:
    return ", ".join(dict.fromkeys(f"`{one.test.rpartition('::')[2]}`" for one in some))


def settings() -> str:
    """Each environment variable."""
    return table(
        ("variable", "default", "meaning"),
        (
            (f"`{name.upper()}`", _default(field), field.description or "")
            for name, field in Settings.model_fields.items()
        ),
    )


def errors() -> str:
    """Each error code."""
    return table(
        ("code", "when", "what to do"),
        (
            (f"`{kind.code}`", _summary(kind.__doc__), kind.default_hint or _HINT_DEPENDS)
            for kind in _subclasses(WorkerError)
            if "code" in vars(kind)
        ),
    )


def operator() -> str:
    """What log and `health` show of each code, as tests/fakes/error_codes.py has recorded it."""
    recorded = json.loads((PROJECT / "docs" / "errors.json").read_text())
    return table(
        ("code", "the log shows", "`health` says"),
        (
            (f"`{kind.code}`", _lines(recorded[kind.code]["log"]), _health_of(recorded[kind.code]))
            for kind in _subclasses(WorkerError)
            if "code" in vars(kind)
        ),
    )


def _lines(found: Iterable[str]) -> str:
    return "<br>".join(f"`{line}`" for line in found) or "nothing"


def _health_of(found: dict[str, list[str]]) -> str:
    parts = []
    for one in found["health"]:
        name, _, value = one.partition(" = ")
        is_count = name.startswith("worker.jobs.failures.")
        parts.append("`failures`" if is_count else f"`{name}`: {value.replace('...', 'why')}")
    return ", ".join(parts) or "nothing"


def job_fields() -> str:
    """The fields of a job that are not A1111's: only these have a description."""
    names = list(Txt2ImgRequest.model_fields)
    return _fields(
        Txt2ImgRequest, sorted(names, key=lambda name: name in TemplateDefaults.model_fields)
    )


def img2img_fields() -> str:
    """The fields of img2img that have a meaning only there."""
    names = [
        name for name in Img2ImgRequest.model_fields if name not in Txt2ImgRequest.model_fields
    ]
    return _fields(Img2ImgRequest, [*names[:3], "denoising_strength", *names[3:]])


def output_fields() -> str:
    """The fields of a job's `output`."""
    return _fields(Output, Output.model_fields)


def model_fields() -> str:
    """The fields of a reference to a model."""
    return _fields(LoraReference, LoraReference.model_fields)


def tasks() -> str:
    """The tasks that a job can name."""
    return table(("task", "what it does"), ((f"`{task.name}`", task.description) for task in TASKS))


def task_input(task: str) -> str:
    """The fields that have a description in a task's input, except `task`."""
    rows = schema.rows(TASKS[task].input, "validation", nested=False)
    shown = [row for row in rows if row.description and row.name != "task"]
    return table(
        ("field", "values", "meaning"),
        ((f"`{row.name}`", row.type.replace(" | ", ", "), row.description) for row in shown),
    )


def answer(task: str) -> str:
    """The keys of a task's answer, except those that every answer can have."""
    rows = schema.rows(TASKS[task].output)
    return _keys(row for row in rows if row.name not in Answer.model_fields)


def health() -> str:
    """The keys of the answer of `health`; a running job's progress report has its own table."""
    return "".join(
        line
        for line in answer("health").splitlines(keepends=True)
        if not line.startswith("| `worker.jobs.running[]")
    )


def progress() -> str:
    """The keys of a progress report."""
    return _keys(schema.rows(Progress))


def _keys(shown: Iterable[schema.Row]) -> str:
    return table(
        ("key", "type", "content"),
        ((f"`{row.name}`", row.type.replace(" | ", ", "), row.description) for row in shown),
    )


def engine_states() -> str:
    """The states of the engine's client, drawn from their tables."""
    return f"```mermaid\n{engine_state.diagram()}```\n"


def exit_statuses() -> str:
    """The exit statuses of start.sh, from the comment at its beginning."""
    rows = re.findall(r"^#   (\d+) +(.+)$", (PROJECT / "start.sh").read_text(), re.MULTILINE)
    return table(("status", "meaning"), [*rows, ("other", "the handler's")])


def comparison(language: str) -> str:
    """Compares this worker with others; docs/comparison.json has each row in both languages."""
    data = json.loads((PROJECT / "docs" / "comparison.json").read_text())
    return table(tuple(data[language]), [tuple(row[language]) for row in data["rows"]])


def clients() -> str:
    """The programs of tests/clients/conversations.json, which the tests replay."""
    found = json.loads((PROJECT / "tests/clients/conversations.json").read_text())
    head = (
        "program",
        "read in",
        "tested",
        "asks when it connects",
        "cancels by",
        "shows of an error",
    )
    return table(head, map(_client, found))


def _client(one: dict[str, Any]) -> tuple[str, ...]:
    asked = ", ".join(f"`{route}`" for route in one["connect"]) or "nothing"
    cancel = one["cancel"].replace("hang up", "closing the connection")
    return (one["client"], one["version"], one["tested"], asked, cancel, one["shows"])


def _fields(model: type[BaseModel], names: Iterable[str]) -> str:
    found = model.model_json_schema(by_alias=False)
    while "properties" not in found:  # a reference to a model may also be a plain text
        found = found["anyOf"][-1] if "anyOf" in found else found["$defs"][model.__name__]
    fields = [(name, found["properties"][name]) for name in names]
    return table(
        ("field", "values", "default", "meaning"),
        (
            (f"`{name}`", _values(field), _default(model.model_fields[name]), field["description"])
            for name, field in fields
            if "description" in field
        ),
    )


def _values(field: dict[str, Any]) -> str:
    """The values that a field may have: words, a range, or a type."""
    if "anyOf" in field:  # this, or null for "not given"
        return _values(field["anyOf"][0])
    if "$ref" in field:
        return "object" if field["$ref"].endswith("/Output") else "reference"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{word}`" for word in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        return f"list of {_values(field['items'])}s"
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        return f"{low:g} to {high}"
    names = {"boolean": "`true`, `false`", "string": "text"}
    return names.get(field["type"], "number")


def _default(field: FieldInfo) -> str:
    default = field.default
    if default in {PydanticUndefined, None, "", ()}:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    text = f"{default:g}" if isinstance(default, float) else str(default)
    return f"`{text.replace(f'{PROJECT}/', './')}`"


def _subclasses(base: type[WorkerError]) -> list[type[WorkerError]]:
    return [kind for sub in base.__subclasses__() for kind in (sub, *_subclasses(sub))]


# Rooms -------------------------------------------------------------------------------------------


def rooms() -> str:
    """The packages of the worker and of the engine, and what each one is for."""
    lines = [line for top in ("worker", "engine") for line in _tree(PROJECT / top)]
    width = max(len(name) for name, _ in lines)
    return "```\n" + "".join(f"{name:{width}}  {text}\n" for name, text in lines) + "```\n"


def _tree(folder: Path, depth: int = 0) -> list[tuple[str, str]]:
    packages = [path.parent for path in sorted(folder.glob("*/__init__.py"))]
    lines = [line for package in packages for line in _tree(package, depth + 1)]
    return [(f"{'  ' * depth}{folder.name}/", _purpose(folder / "__init__.py")), *lines]


def _purpose(module: Path) -> str:
    return _summary(ast.get_docstring(ast.parse(module.read_text())))


def room_arrows() -> str:
    """Which rooms of the worker import which, without the arrows that a longer path implies."""
    arrows = _reduced(_imports_between_rooms())
    lines = [f'    {_node(room)}["{room}"]\n' for room in sorted(arrows)]
    lines += [f"    {_node(a)} --> {_node(b)}\n" for a in sorted(arrows) for b in sorted(arrows[a])]
    return "```mermaid\nflowchart TD\n" + "".join(lines) + "```\n"


def _node(room: str) -> str:
    return room.replace("/", "_")


def _imports_between_rooms() -> dict[str, set[str]]:
    folders = {path.parent for path in (PROJECT / "worker").rglob("__init__.py")}
    arrows: dict[str, set[str]] = {}
    for folder in folders:
        own = folder.relative_to(PROJECT / "worker").as_posix()
        arrows[own] = {
            target
            for file in folder.glob("*.py")
            for name in _imported(file)
            for target in [_room(name, folders)]
        } - {own, "."}
    return {room: targets for room, targets in arrows.items() if room != "."}


def _imported(file: Path) -> list[str]:
    # Below an `if` at the top there are only imports for type checkers.
    parts = [part for part in ast.parse(file.read_text()).body if not isinstance(part, ast.If)]
    nodes = [node for part in parts for node in ast.walk(part)]
    found = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in found for alias in node.names]
    return [name for name in names if name.startswith("worker.")]


def _room(name: str, folders: set[Path]) -> str:
    """The innermost package that has the module: `models/store` of `worker.models.store.blobs`."""
    path = PROJECT / Path(*name.split("."))
    room = next(parent for parent in (path, *path.parents) if parent in folders)
    return room.relative_to(PROJECT / "worker").as_posix()


def _reduced(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that a longer path implies."""

    def reached(room: str) -> set[str]:
        return arrows[room] | {far for near in arrows[room] for far in reached(near)}

    return {
        room: targets - {far for near in targets for far in reached(near)}
        for room, targets in arrows.items()
    }


# Files -------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "errors": errors,
    **{f"security-{who}": functools.partial(security, who) for who in defences.DEFENCES},
    "errors-operator": operator,
    "job-fields": job_fields,
    "output-fields": output_fields,
    "tasks": tasks,
    **{
        f"input-{task.name}": functools.partial(task_input, task.name)
        for task in TASKS
        # `job-fields` has those of txt2img; all lists have the same.
        if task.fields and task.name != "txt2img" and task not in LISTS
    },
    "input-lists": functools.partial(task_input, LISTS[0].name),
    "input-img2img": img2img_fields,
    **{
        f"answer-{task.name}": functools.partial(answer, task.name)
        for task in TASKS
        if task.name != "img2img"  # the same as that of txt2img
    },
    "answer-health": health,
    "progress": progress,
    "picture-chunk": lambda: _keys(schema.rows(PictureChunk)),
    "engine-states": engine_states,
    "model-fields": model_fields,
    "exit-statuses": exit_statuses,
    "comparison": functools.partial(comparison, "en"),
    "comparison-tr": functools.partial(comparison, "tr"),
    "gpu-generations": lambda: table(*gpu_tables.generations("en")),
    "gpu-generations-tr": lambda: table(*gpu_tables.generations("tr")),
    "gpu-pools": lambda: table(*gpu_tables.pools()),
    "gpu-cards": lambda: table(*gpu_tables.other_cards()),
    "metrics": lambda: table(*metric_tables.table()),
    "prices": lambda: table(*gpu_tables.prices()),
    "gpu-memory": lambda: table(*gpu_tables.memory()),
    **{
        f"runpodctl-{name}": functools.partial(deployments.runpodctl_calls, name)
        for name in deployments.SETUPS
    },
    **{
        f"api-{name}": functools.partial(deployments.api_calls, name)
        for name in (*deployments.SETUPS_BY_API, "load-balancing")
    },
    **{
        f"api-{name}": functools.partial(deployments.change_call, name)
        for name in deployments.CHANGES
    },
    "hub-presets": lambda: table(*hub.preset_table()),
    "clients": clients,
    "rooms": rooms,
    "room-arrows": room_arrows,
}


def filled_in(text: str) -> str:
    """The page with its generated parts up to date."""
    return PART.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}{found[3]}", text)


def files() -> dict[Path, str]:
    """Each file that is generated or has generated parts, with its content up to date."""
    found = {page: filled_in(page.read_text()) for page in PAGES if PART.search(page.read_text())}
    for_editors = json.dumps(template.json_schema(), indent=2) + "\n"
    figures = {PROJECT / "docs" / "images" / name: draw() for name, draw in FIGURES.items()}
    return {
        **found,
        **figures,
        **hub.files(),
        PROJECT / "gateway" / "page" / "icon.svg": icon.svg(),
        PROJECT / "templates.schema.json": for_editors,
    }


def main() -> None:
    """Write them."""
    for path, text in files().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
