"""compose.yaml and docker-bake.hcl fit the Dockerfile, and docker's own check finds mistakes."""

import re
import shutil
import subprocess

import pytest

from worker.config.settings import PROJECT

COMPOSE, BAKE = "compose.yaml", "docker-bake.hcl"
VERSIONS = (("docker", "compose", "version"), ("docker", "buildx", "version"))


def has_docker():
    return bool(shutil.which("docker")) and not any(
        subprocess.run(command, capture_output=True, check=False).returncode for command in VERSIONS
    )


def test_each_target_is_a_stage_of_the_dockerfile():
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
    texts = [(PROJECT / name).read_text() for name in (COMPOSE, BAKE)]
    targets = [re.findall(r'\btarget *[:=] *"?([\w-]+)', text) for text in texts]
    assert all(targets)
    assert {name for found in targets for name in found} <= set(stages)


@pytest.mark.skipif(not has_docker(), reason="docker with compose and buildx is not installed")
@pytest.mark.parametrize(
    ("file", "right", "wrong", "message"),
    [
        (COMPOSE, "", "", ""),
        (COMPOSE, "stop_grace_period", "stop_grace_periode", "stop_grace_periode"),
        (COMPOSE, "<<: *worker", "<<: *workers", "workers"),
        (BAKE, "REVISION = REVISION", "REVISION = upperr(REVISION)", "no function named"),
        (BAKE, 'inherits = ["base"]', 'inherits = ["bases"]', "bases"),
    ],
)
def test_docker_itself_finds_a_mistake(tmp_path, file, right, wrong, message):
    for name in (COMPOSE, BAKE, "Makefile"):
        shutil.copy(PROJECT / name, tmp_path)
    text = (PROJECT / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    command = ["make", "-C", str(tmp_path), "check-docker"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (message == "")
    assert message in done.stderr


def test_ci_checks_them():
    assert "run: make check-docker" in (PROJECT / ".github/workflows/ci.yml").read_text()
