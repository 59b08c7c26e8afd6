"""The images' build files agree with the project; `make image-test` builds the images."""

import re

import pytest

from worker.config.settings import PROJECT

IMAGE = PROJECT / "image"
LOCKS = {
    "a1111": IMAGE / "a1111.in",
    "build": IMAGE / "build.in",
    "embedded": PROJECT / "requirements-engine.txt",
    "worker": PROJECT / "requirements.txt",
}
REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)", re.MULTILINE)
DOCKERFILE = (PROJECT / "Dockerfile").read_text()


def pins(text):
    found = REQUIREMENT.findall(text)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def asked(file):
    included = re.findall(r"^-r (\S+)", file.read_text(), re.MULTILINE)
    texts = [file.read_text(), *((file.parent / name).read_text() for name in included)]
    return pins("\n".join(texts))


def same(version):
    """0.15 and 0.15.0 are one version."""
    return re.sub(r"(\.0)+$", "", version)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_what_is_asked_for(name):
    locked = pins((IMAGE / f"{name}.lock").read_text())
    wanted = asked(LOCKS[name])

    assert wanted
    assert {p: same(locked.get(p, "-")) for p in wanted} == {p: same(wanted[p]) for p in wanted}


@pytest.mark.parametrize("name", LOCKS)
def test_everything_that_is_installed_has_hashes(name):
    text = (IMAGE / f"{name}.lock").read_text()
    packages = re.split(r"\n(?=[a-z0-9])", text.strip())

    assert len(packages) == len(pins(text))
    assert [one for one in packages if "--hash=sha256:" not in one] == []


def test_the_two_worlds_are_apart():
    a1111, worker = (pins((IMAGE / f"{name}.lock").read_text()) for name in ("a1111", "worker"))

    assert "runpod" not in a1111
    assert "torch" not in worker


@pytest.mark.parametrize("argument", ["A1111_PYTHON_IMAGE", "EMBEDDED_PYTHON_IMAGE"])
def test_base_images_are_pinned_by_digest(argument):
    assert re.search(rf"^ARG {argument}=\S+@sha256:[0-9a-f]{{64}}$", DOCKERFILE, re.MULTILINE)


def test_each_source_is_a_commit_with_a_mirror():
    sources = re.findall(r'fetch-source\.sh \S+ (\S+) \\\n\s+"([^"]+)"', DOCKERFILE)

    assert len(sources) == 6
    for commit, repositories in sources:
        assert re.fullmatch("[0-9a-f]{40}", commit)
        assert len(set(repositories.split())) == 2


def test_nothing_that_the_image_needs_is_ignored():
    kept = {
        line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    names = {name.split("/")[0] for line in copied for name in line.split()}

    assert names <= {*kept, "requirements.txt"}


def test_the_last_stage_is_a1111s_so_that_the_hub_builds_it():
    assert re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)[-1] == "a1111"
