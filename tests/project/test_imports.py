"""The direction of imports: down only, and never across the engine's boundary."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRONT_DOORS = {"handler", "model_manager", "runpod_sdk"}

# What each part may not import.
FORBIDDEN = {
    "worker": FRONT_DOORS | {"runpod", "engine", "torch", "diffusers"},
    "engine": FRONT_DOORS | {"runpod", "worker"},
    "model_manager.py": {"handler", "runpod", "runpod_sdk", "engine"},
    "runpod_sdk.py": {"handler", "model_manager", "engine"},
    "handler.py": {"engine"},
}

# The pure core does no IO and knows no library that does.
PURE = [
    "config.bucket_address",
    "errors",
    "formats.architecture",
    "formats.names",
    "formats.safetensors_header",
    "hosts.civitai",
    "hosts.civitai_api",
    "hosts.host",
    "hosts.huggingface",
    "hosts.ref",
    "hosts.registry",
    "hosts.web",
    "http.document",
    "job.model_fields",
    "job.output_fields",
    "job.prompt",
    "job.reference",
    "job.request",
    "job.template",
    "models.download.schedule",
    "service.result",
    "webui.catalog",
    "webui.payload",
    "webui.proof",
    "webui.recovery",
]
IO = {"requests", "urllib3", "socket", "subprocess", "os", "tempfile", "threading"}


def imported(file: Path) -> set[str]:
    tree = ast.walk(ast.parse(file.read_text()))
    names = set()
    for node in tree:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def files(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_point_down(part):
    for file in files(part):
        assert not imported(file) & FORBIDDEN[part], file


@pytest.mark.parametrize("module", PURE)
def test_the_pure_core_does_no_io(module):
    assert not imported(ROOT / "worker" / f"{module.replace('.', '/')}.py") & IO


def test_importing_the_front_doors_does_nothing():
    """No SDK, no file, no output: who imports them wants to read or to test them."""
    code = "import sys, handler, model_manager, runpod_sdk; assert 'runpod' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
