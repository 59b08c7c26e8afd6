"""The structure of the code: rooms in one order of imports, a pure core, small modules."""

import ast
import graphlib
import itertools
import json
import re
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "client.py"  # people copy it alone, so it is one file and may be long
FRONT_DOORS = ("handler", "model_manager", "runpod_sdk")

# The rooms from top to bottom: a room may import only the rooms below it. A module can be named
# as a room of its own; the longest name that matches counts. The last entry is the root: a few
# definitions that every room uses.
ROOMS = {
    "worker": [
        "worker.diagnosis",
        *("worker.runpod", "worker.tasks", "worker.service", "worker.delivery"),
        *("worker.models", "worker.models.volume", "worker.models.convert", "worker.models.merge"),
        *("worker.models.store", "worker.models.download"),
        *("worker.webui", "worker.generation", "worker.images", "worker.extensions"),
        *("worker.translation", "worker.job", "worker.clients", "worker.hosts", "worker.formats"),
        *("worker.http", "worker.config", "worker"),
    ],
    "gateway": [
        *("gateway.__main__", "gateway.bridge", "gateway.server", "gateway.app", "gateway.openai"),
        *("gateway.page", "gateway.a1111", "gateway.runpod_api", "gateway.catalog"),
        *("gateway.local", "gateway.endpoint", "gateway.call", "gateway.http", "gateway"),
    ],
    "engine": [
        *("engine.__main__", "engine.api", "engine.images", "engine.models", "engine.models.lora"),
        *("engine.prompt", "engine.sampling", "engine"),
    ],
}

# What each part may not import at all.
FORBIDDEN = {
    "worker": {*FRONT_DOORS, "client", "gateway", "runpod", "engine", "torch", "diffusers"},
    "gateway": {*FRONT_DOORS, "client", "runpod", "engine", "torch", "diffusers"},
    "engine": {*FRONT_DOORS, "client", "gateway", "runpod", "worker"},
    "model_manager.py": {"handler", "gateway", "runpod", "runpod_sdk", "engine"},
    "runpod_sdk.py": {"handler", "gateway", "model_manager", "engine"},
    "handler.py": {"engine"},
}

# Rooms and modules that do no IO and load no library that does, directly or through others.
PURE = [
    *("worker.answer", "worker.errors", "worker.spelling", "worker.stopwatch"),
    *("worker.json_text", "worker.large_json"),
    *("worker.config.bucket_address", "worker.config.credentials", "worker.http.document"),
    *(
        "worker.clients",
        "worker.translation",
        "worker.formats",
        "worker.hosts",
        "worker.job",
        "worker.service.report",
    ),
    *("worker.extensions", "worker.generation", "worker.tasks.picture_result"),
    *("worker.images.base64_text", "worker.images.input_image", "worker.images.limits"),
    *("worker.images.png_info", "worker.images.signatures"),
    *("worker.models.download.schedule", "worker.models.merge.checkpoint_layers"),
    *("worker.webui.engine_state", "worker.webui.recovery"),
]
# These read files, but load no IO library either.
READS_FILES = {"worker.job.template_file"}
# pydantic itself loads some of these, so the imports of a pure module are also checked by name.
IO = {
    *("aiohttp", "asyncio", "boto3", "botocore", "http.client", "os", "requests", "runpod"),
    *("shutil", "socket", "ssl", "subprocess", "tempfile", "threading", "urllib.request"),
    *("urllib3",),
}
LOADED = """
import importlib, json, sys
import pydantic
pydantic.create_model("Any", field=(int, 1)).model_json_schema()
before, loads = set(sys.modules), {}
for name in json.load(sys.stdin):
    importlib.import_module(name)
    loads[name] = sorted(set(sys.modules) - before)
    before |= set(sys.modules)
print(json.dumps(loads))
"""


def files(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(file: Path) -> set[str]:
    """The modules that a file imports; of `from a import b` it is `a.b` where b is a module."""
    names = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            folder = ROOT.joinpath(*node.module.split("."))
            inner = {alias.name for alias in node.names if is_module(folder / alias.name)}
            names |= {f"{node.module}.{name}" for name in inner}
            names |= {node.module} if len(inner) < len(node.names) else set()
    return names


def is_module(path: Path) -> bool:
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def room_number(module: str, part: str) -> int:
    rooms = [room for room in ROOMS[part] if is_within(module, room)]
    return ROOMS[part].index(max(rooms, key=len))


@pytest.mark.parametrize("part", ROOMS)
def test_every_room_of_the_table_exists_and_every_package_is_in_it(part):
    packages = {module_name(file) for file in files(part) if file.name == "__init__.py"}
    assert packages <= set(ROOMS[part])
    assert all(is_module(ROOT.joinpath(*room.split("."))) for room in ROOMS[part])


@pytest.mark.parametrize("part", ROOMS)
def test_imports_between_rooms_point_down_and_none_make_a_circle(part):
    upwards = [
        f"{module_name(file)} imports {name}"
        for file in files(part)
        for name in imports(file)
        if is_within(name, part) and room_number(name, part) < room_number(module_name(file), part)
    ]
    assert upwards == []
    graph = {module_name(file): imports(file) - {module_name(file)} for file in files(part)}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("part", FORBIDDEN)
def test_what_a_part_must_not_know_is_not_imported(part):
    for file in files(part):
        assert not {name.split(".")[0] for name in imports(file)} & FORBIDDEN[part], file


def python(code: str, given: str = "") -> str:
    """What this code prints in a fresh interpreter; a warning or other output is an error."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, input=given, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_pure_modules_import_no_io_library_by_name_or_through_others():
    """Beyond what pydantic loads; an entry names the first loader only."""
    every = {module_name(file): file for file in files("worker")}
    pure = {name for name in every if any(is_within(name, room) for room in PURE)}
    assert {name for name in pure if imports(every[name]) & IO} == READS_FILES
    loads = json.loads(python(LOADED, json.dumps(sorted(pure))))
    assert {name: io for name, loaded in loads.items() if (io := IO.intersection(loaded))} == {}


def test_importing_the_front_doors_does_nothing():
    """No SDK, no file, no output: whatever imports them wants to read or to test them."""
    code = "import sys, handler, model_manager, runpod_sdk; assert 'runpod' not in sys.modules"
    assert python(code) == ""


def test_the_client_is_one_file_that_needs_only_python():
    names = {name.split(".")[0] for name in imports(CLIENT)}
    assert names <= sys.stdlib_module_names


# Size ---------------------------------------------------------------------------------------------

CODE = [*itertools.chain(*map(files, ROOMS)), *(ROOT / f"{name}.py" for name in FRONT_DOORS)]


def code_lines(file: Path) -> set[int]:
    """The numbers of the lines that are neither blank, nor a comment, nor a docstring."""
    lines = enumerate(file.read_text().splitlines(), 1)
    code = {number for number, line in lines if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            code -= set(range(node.lineno, node.end_lineno + 1))
    return code


def test_modules_and_functions_are_short():
    assert [file for file in CODE if len(code_lines(file)) > 300] == []
    lengths = {}
    for file in (*CODE, CLIENT):
        code = code_lines(file)
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inside = code.intersection(range(node.lineno, node.end_lineno + 1))
                lengths[f"{module_name(file)}.{node.name}:{node.lineno}"] = len(inside)
    assert statistics.median(lengths.values()) <= 9
    assert statistics.quantiles(lengths.values(), n=20)[-1] <= 40
    assert [name for name, length in lengths.items() if length > 60] == []


@pytest.mark.parametrize("part", ROOMS)
def test_a_package_has_at_most_15_modules_and_says_what_it_is_for(part):
    for file in files(part):
        if file.name == "__init__.py":
            purpose = (ast.get_docstring(parsed(file)) or "").split("\n\n")[0]
            assert re.fullmatch(r"[^.]+(\.\w[^.]*)*\.( Pure\.)?", purpose), file
            assert len(list(file.parent.glob("*.py"))) - 1 <= 15, file.parent
