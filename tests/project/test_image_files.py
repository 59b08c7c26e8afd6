"""The images' build files agree with the project; `make image-test` builds the images."""

import os
import re
import subprocess
import sys

import pytest

from image.split_lock import split
from worker.config.settings import PROJECT

IMAGE = PROJECT / "image"
LOCKS = {
    "a1111": IMAGE / "a1111.in",
    "adetailer": IMAGE / "adetailer.in",
    "controlnet": IMAGE / "controlnet.in",
    "build": IMAGE / "build.in",
    "embedded": PROJECT / "requirements-engine.txt",
    "worker": PROJECT / "requirements.txt",
}
DOCKERFILE = (PROJECT / "Dockerfile").read_text()


def in_dockerfile(pattern):
    return re.findall(pattern, DOCKERFILE, re.MULTILINE)


def pins(*files):
    """{package: version}; 0.15 and 0.15.0 are one version."""
    text = "\n".join(file.read_text() for file in files)
    found = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", n).lower(): re.sub(r"(\.0)+$", "", v) for n, v in found}


def test_a_checkout_on_windows_has_scripts_that_linux_can_run():
    """.gitattributes counts more than core.autocrlf."""
    git = ["git", "-C", str(PROJECT)]
    if subprocess.run([*git, "rev-parse"], capture_output=True, check=False).returncode:
        pytest.skip("this is no checkout of git")
    scripts = ["start.sh", "image/entrypoint.sh", ".ci/run", "Makefile", "handler.py"]
    command = [*git, "-c", "core.autocrlf=true", "check-attr", "eol", "--", *scripts]
    checked = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert checked.splitlines() == [f"{script}: eol: lf" for script in scripts]
    listed = subprocess.run([*git, "ls-files", "--eol"], capture_output=True, text=True, check=True)
    assert [line for line in listed.stdout.splitlines() if "crlf" in line] == []


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_what_is_asked_for_with_hashes(name):
    lock, file = IMAGE / f"{name}.lock", LOCKS[name]
    included = re.findall(r"^-r (\S+)", file.read_text(), re.MULTILINE)
    wanted = pins(file, *(file.parent / other for other in included))
    assert wanted
    assert pins(lock).items() >= wanted.items()
    packages = re.split(r"\n(?=[a-z0-9])", lock.read_text().strip())
    assert len(packages) == len(pins(lock))
    assert [one for one in packages if "--hash=sha256:" not in one] == []


def test_the_parts_of_a_lock_file_are_layers_and_together_the_whole_file():
    for name in ("a1111", "embedded"):
        text = (IMAGE / f"{name}.lock").read_text()
        parts = split(text)
        assert sorted("".join(parts.values())) == sorted(text)
        assert all(parts.values())
        installed = in_dockerfile(rf"^COPY --from={name}-lock /lock/(\w+)\.lock /build/$")
        assert installed == list(parts)


def test_drawing_needs_no_compiler():
    for name in ("a1111", "embedded"):
        assert not {"triton", "cuda-bindings"} & pins(IMAGE / f"{name}.lock").keys()


def test_an_extension_installs_only_what_a1111_lacks():
    """Another version of a package of A1111's would break A1111."""
    base = pins(IMAGE / "a1111.lock")
    for name in ("controlnet", "adetailer"):
        assert pins(IMAGE / f"{name}.lock").keys() & base.keys() == set()


def test_the_two_worlds_are_apart():
    assert "runpod" not in pins(IMAGE / "a1111.lock")
    assert "torch" not in pins(IMAGE / "worker.lock")


def test_base_images_and_sources_are_pinned_and_each_source_has_a_mirror():
    for argument in ("A1111_PYTHON_IMAGE", "EMBEDDED_PYTHON_IMAGE"):
        assert in_dockerfile(rf"^ARG {argument}=\S+@sha256:[0-9a-f]{{64}}$")
    sources = in_dockerfile(r'fetch-source\.sh \S+ (\S+) \\\n\s+"([^"]+)"')
    assert len(sources) == 8
    for commit, repositories in sources:
        assert re.fullmatch("[0-9a-f]{40}", commit)
        assert len(set(repositories.split())) == 2


def test_nothing_that_the_image_needs_is_ignored():
    kept = re.findall("^!(.*)", (PROJECT / ".dockerignore").read_text(), re.MULTILINE)
    copied = in_dockerfile(r"^COPY (?!--from)(.+) \S+$")
    names = {name.split("/")[0] for line in copied for name in line.split()}
    assert names <= {*(name.split("/")[0] for name in kept), "requirements.txt"}


def test_the_last_stage_is_a1111s_so_that_the_hub_builds_it():
    assert in_dockerfile(r"^FROM \S+ AS (\S+)$")[-1] == "a1111"


def test_the_report_of_a_gpu_needs_only_what_the_image_has(tmp_path):
    """Neither a file that .dockerignore leaves out nor the plots' library."""
    kept = re.findall("^!(.*)", (PROJECT / ".dockerignore").read_text(), re.MULTILINE)
    for name in (name for name in kept if name.startswith(("benchmarks/", "worker"))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", PROJECT / name, tmp_path / name], check=True)
    program = "import sys; sys.modules.update(matplotlib=None, torch=None); import benchmarks.gpu"
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
