"""docs/cold-start.md explains each line of a start, and no line that does not exist any more.

The page is parsed: in the first column of its tables, `...` stands for what differs.
"""

import ast
import json
import re
from pathlib import Path

import pytest
from fakes.hosts.model_hosts import ModelHosts
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import SMALL, completed, running_worker

from worker.config.settings import PROJECT

PAGE = (PROJECT / "docs/cold-start.md").read_text()
RECORDED = Path(__file__).parents[1] / "fakes/recorded/a1111_start.log"
OF_A1111 = "A1111's lines"
OF_THE_SDK = "--- Starting Serverless Worker"
BOOT = 180.0
# The beginning of a line: start.sh's, the worker's, the embedded engine's.
PREFIX = re.compile(
    r"\d{4}-\d\d-\d\d(T[\d:]+Z (start\.sh: |[A-Z]+ +\[\S+ \S+\] )| [\d:,]+ engine\S* )"
)


def rows():
    """Section and quoted line of each row of the page."""
    section = ""
    for text in PAGE.splitlines():
        if text.startswith("#"):
            section = text.lstrip("# ")
        elif text.startswith("| `"):
            cell = re.split(r"(?<!\\) \| ", text[2:])[0].replace("\\|", "|")
            yield from ((section, line) for line in re.findall(r"`([^`]+)`", cell))


def pattern(line):
    parts = (r"\s+".join(map(re.escape, part.split(" "))) for part in line.split("..."))
    return re.compile(".*".join(parts), re.DOTALL)


ROWS = [(section, line, pattern(line)) for section, line in rows()]


def unexplained(log, wanted=lambda _section: True):
    patterns = [row for section, _, row in ROWS if wanted(section)]
    messages = [PREFIX.sub("", line, count=1).strip() for line in log.splitlines()]
    return [one for one in messages if not any(row.fullmatch(one) for row in patterns)]


def texts():
    """Each text of our programs, with `%s` for what differs."""
    globs = ("*.py", "worker/**/*.py", "engine/**/*.py")
    trees = [ast.parse(file.read_text()) for glob in globs for file in PROJECT.glob(glob)]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.JoinedStr):
            parts = (getattr(part, "value", None) for part in node.values)
            yield "".join(part if isinstance(part, str) else "%s" for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    for script in ("start.sh", "image/entrypoint.sh"):
        yield from (PROJECT / script).read_text().replace("\\\n", "").split('"')


def test_each_line_that_the_page_explains_is_written_by_our_programs():
    """A row whose text is put together from several ones has them divided by `; `."""
    known = set(texts())

    def exists(line):
        return any(pattern(line).fullmatch(text) for text in known)

    of_ours = [line for section, line, _ in ROWS if section != OF_A1111]
    of_ours = [line for line in of_ours if not line.startswith(OF_THE_SDK)]
    assert len(of_ours) > 35
    stale = [line for line in of_ours if not (exists(line) or all(map(exists, line.split("; "))))]
    assert stale == []


def test_a_recorded_start_of_a1111_is_explained_and_nothing_else():
    """Recorded of v1.9.3 on a CPU, with one job that failed; without the traceback."""
    log = RECORDED.read_text()
    assert unexplained(log, lambda section: section == OF_A1111) == []
    lines = [line.strip() for line in log.splitlines()]
    of_a1111 = [(line, row) for section, line, row in ROWS if section == OF_A1111]
    assert [line for line, row in of_a1111 if not any(map(row.fullmatch, lines))] == []


def test_each_line_of_a_real_start_is_explained(tmp_path):
    """start.sh with the embedded engine: a default template to download, two jobs, SIGTERM."""
    tiny_models = pytest.importorskip("fakes.tiny_models")
    file = tmp_path / "tiny.safetensors"
    tiny_models.write(tiny_models.make_checkpoint(), file)
    checkpoint = {"name": "Tiny", "url": "https://civitai.com/api/download/models/1"}
    template = {"name": "Tiny", "description": "Small ones", "checkpoint": checkpoint}
    templates = tmp_path / "templates.json"
    templates.write_text(json.dumps({"templates": {"t": template}, "default_template": "t"}))
    environ = {
        "ENGINE": "embedded",
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "READY_TIMEOUT": str(BOOT),
        "TEMPLATES_FILE": str(templates),
        "DEFAULT_TEMPLATE": "t",
    }
    own = {"checkpoints": (), "loras": (), "wait": False}
    with ModelHosts() as hosts, RunPodPlane(hold=1.0) as plane:
        hosts.add_model(version_id=1, data=file.read_bytes(), name=file.name)
        with running_worker(tmp_path, plane, hosts=hosts, **own, **environ) as worker:
            plane.wait_for("take", BOOT)
            completed(worker.run(SMALL, BOOT))
            assert worker.run(SMALL | {"steps": 0}, BOOT)["status"] == "FAILED"
            assert worker.stop() == 0
            log = worker.log()
    assert unexplained(log, lambda section: section != OF_A1111) == []
    assert "fetched Model" in log
    assert "received: stopping" in log
