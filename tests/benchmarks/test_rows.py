"""The rows of `make bench`: each one says what it measures, and runs."""

import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import rows
from benchmarks.suite.__main__ import ROWS
from worker.config.settings import PROJECT


def test_the_suite_measures_every_row():
    assert sorted(ROWS) == sorted(module.name for module in pkgutil.iter_modules(rows.__path__))


@pytest.mark.parametrize("name", ROWS)
def test_each_row_says_what_it_measures(name):
    row = importlib.import_module(f"benchmarks.rows.{name}")

    assert re.fullmatch(r"[A-Z].*[^.\s]", row.TITLE)  # a heading
    assert len(row.ABOUT.split()) > 20
    assert not re.search(r"^#", row.ABOUT, re.MULTILINE)  # the page's headings are the titles
    assert callable(row.measure)


NEEDED = {  # row -> programs and files without which it cannot measure
    "download": ("aria2c", "openssl", "nginx"),
    "volume": ("/dev/fuse",),
}


@pytest.mark.long
@pytest.mark.timeout(600)  # ends only a test that would never end
@pytest.mark.parametrize("name", ROWS)
def test_each_row_finds_figures(name, tmp_path):
    for needed in NEEDED.get(name, ()):
        if not (shutil.which(needed) or Path(needed).exists()):
            pytest.skip(f"{needed} is not here")
    command = [sys.executable, "-m", "benchmarks.suite", "--quick", "--only", name]
    done = subprocess.run(
        [*command, "--folder", tmp_path], cwd=PROJECT, capture_output=True, text=True, check=False
    )

    title = importlib.import_module(f"benchmarks.rows.{name}").TITLE
    assert done.returncode == 0, done.stderr
    assert f"\n## {title}\n" in done.stdout
    assert re.search(r"^\| .* \|[^|]*\d", done.stdout.partition("## All figures")[2], re.MULTILINE)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
