"""What the bridge imports: it runs with few packages, on macOS and Windows too."""

import ast
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
ONLY_UNIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}

# Imports the bridge where only some packages exist, and prints the files of the project it loads.
IMPORT = """
import importlib, json, sys
missing, folder = json.load(sys.stdin)

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import gateway.__main__, gateway.bridge.program, uvicorn.protocols.http.h11_impl
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
print(json.dumps([file for file in files if file and file.startswith(folder)]))
"""


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def with_dependencies(names):
    """The distributions that pip installs for these, without extras."""
    found, todo = set(), [canonical(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another system or version of Python
        todo += [canonical(re.match(r"[\w.-]+", one)[0]) for one in needed if "extra ==" not in one]
    return found


def test_the_bridge_needs_only_its_own_packages_and_nothing_of_unix():
    text = (ROOT / "requirements-bridge.txt").read_text()
    available = with_dependencies(re.findall(r"^([\w-]+)==", text, re.MULTILINE))
    missing = [
        module
        for module, distributions in metadata.packages_distributions().items()
        if not available & set(map(canonical, distributions))
    ]
    assert {"requests", "runpod", "boto3", "torch"} <= set(missing)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        input=json.dumps([missing, f"{ROOT}/"]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = [file for file in json.loads(done.stdout) if "/.venv/" not in file]
    assert f"{ROOT}/gateway/endpoint/jobs.py" in files
    assert {file: unix for file in files if (unix := imported(file) & ONLY_UNIX)} == {}


def imported(file):
    names = set()
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names
