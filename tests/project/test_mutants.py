"""`make mutants`: without each defence of docs/security.md, its test fails."""

import re
import shutil
import subprocess
import sys

import pytest

from docs.defences import DEFENCES
from worker.config.settings import PROJECT

EVERY = [defence for some in DEFENCES.values() for defence in some]
FAILED = 1  # the exit status of pytest when a test has failed


def name_of(defence):
    return f"{defence.module}-{EVERY.index(defence)}"


@pytest.mark.parametrize("defence", EVERY, ids=name_of)
def test_a_defence_names_its_code_and_its_test(defence):
    assert (PROJECT / defence.module).read_text().count(defence.old) == 1
    file, _, test = defence.test.partition("::")
    assert f"def {test}(" in (PROJECT / file).read_text()


AT_THE_TOP = {".git", ".venv", "models", "outputs", "webui-data"}  # large, and no code
ANYWHERE = {"__pycache__", "node_modules", ".hypothesis"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, without its environment and models."""

    def left_out(folder, names):
        return {*names} & (ANYWHERE | (AT_THE_TOP if folder == str(PROJECT) else set()))

    copy = tmp_path_factory.mktemp("mutants") / "project"
    shutil.copytree(PROJECT, copy, ignore=left_out, symlinks=True)
    return copy


@pytest.mark.long
@pytest.mark.parametrize("defence", EVERY, ids=name_of)
def test_without_a_defence_its_test_fails(project, tmp_path, defence):
    module = project / defence.module
    whole = module.read_text()
    module.write_text(whole.replace(defence.old, defence.new))
    program = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    limits = ["--timeout", "90", "--basetemp", str(tmp_path / "base")]
    try:
        done = subprocess.run(
            [*program, *limits, defence.test],
            cwd=project,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    finally:
        module.write_text(whole)
    assert done.returncode == FAILED, f"{defence.text}: {done.stdout[-2000:]}{done.stderr[-500:]}"
    assert re.search(r"^FAILED |Timeout", done.stdout, re.MULTILINE), done.stdout[-2000:]
