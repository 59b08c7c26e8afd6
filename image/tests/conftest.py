"""Builds the images with buildah, without Docker, and starts containers of them.

    make image-test [SOURCES=/srv/git] [BASES=registry]

SOURCES is a folder of git repositories, OWNER/NAME, that stands in for GitHub; without it A1111's
image is built as far as its Python environments. BASES=registry takes the base images that the
Dockerfile names; otherwise they are made here, by debootstrap and of this machine's own Pythons.
It needs root, buildah, debootstrap and 50 GB of disk.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from containers import ISOLATION, Container, buildah, run
from fakes.a1111.process import free_port

from worker.config.ports import why_not_free
from worker.config.settings import PROJECT

DEBIAN = "http://deb.debian.org/debian"
SHARED_LIBRARIES = (  # of a CPython
    "libbz2-1.0 libexpat1 libffi8 liblzma5 libncursesw6 libreadline8 libsqlite3-0 libssl3 libuuid1"
    " zlib1g"
)
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
BEFORE_TORCH_210 = "45baf75"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture
def new_container(tmp_path: Path) -> Iterator[Any]:
    """Make containers; they are removed after the test."""
    made: list[Container] = []

    def new(image: str) -> Container:
        made.append(Container(image, tmp_path / f"container{len(made)}.log"))
        return made[-1]

    yield new
    for container in made:
        container.remove()


@pytest.fixture(scope="session")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker of the images with torch 2.1 and 2.13, before the ones with torch 2.10."""
    folder = tmp_path_factory.mktemp("old")
    git = ["git", "-C", str(PROJECT)]
    if subprocess.run([*git, "cat-file", "-e", BEFORE_TORCH_210], check=False).returncode:
        pytest.skip(f"this checkout does not have the commit {BEFORE_TORCH_210}")
    paths = ("model_manager.py", "runpod_sdk.py", "templates.json", "worker")
    archive = ["archive", BEFORE_TORCH_210, *paths]
    with subprocess.Popen([*git, *archive], stdout=subprocess.PIPE) as tar:
        run("tar", "x", "-C", folder, stdin=tar.stdout)
    folder.chmod(0o755)
    return folder


# Build arguments of the Dockerfile --------------------------------------------------------------


def _prefix_of_python(version: str) -> Path:
    """Of the first one on PATH that runs: a shim of pyenv is there also without its Python."""
    for folder in os.get_exec_path():
        with suppress(OSError, AssertionError):
            ask = (Path(folder) / f"python{version}", "-c", "import sys; print(sys.base_prefix)")
            return Path(run(*ask))
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*"))
    assert installed, f"python{version} is not installed here: use BASES=registry"
    return installed[-1]


def _stand_in(version: str, folder: Path) -> str:
    """A base image like Docker's python:VERSION-slim-bookworm: Debian, and Python in /usr/local."""
    tag = f"localhost/python:{version}-slim-bookworm"
    if buildah("images", "--quiet", "--filter", f"reference={tag}"):
        return tag
    prefix = _prefix_of_python(version)
    system = folder / "debian"
    if not system.exists():
        packages = ",".join(("ca-certificates", *SHARED_LIBRARIES.split()))
        run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", system, DEBIAN)
    container = buildah("from", "scratch")
    root = Path(buildah("mount", container))
    run("cp", "-a", f"{system}/.", root)
    shutil.copy(
        CERTIFICATES, root / CERTIFICATES.lstrip("/")
    )  # this machine's network may need its own
    packages = root / f"usr/local/lib/python{version}"
    copied = ("bin", "lib")
    left = [
        f"--exclude={name}" for name in ("site-packages", "test", "__pycache__", "*.a", "bin/pip*")
    ]
    with subprocess.Popen(["tar", "c", *left, *copied], cwd=prefix, stdout=subprocess.PIPE) as tar:
        run("tar", "x", "-C", root / "usr/local", stdin=tar.stdout)
    (packages / "site-packages").mkdir(exist_ok=True)
    for command in ("ldconfig", f"python{version} -m ensurepip --default-pip"):
        buildah("run", *ISOLATION, container, "--", *command.split())
    settings = {"PATH": PATH, "SSL_CERT_FILE": CERTIFICATES, "PIP_CERT": CERTIFICATES}
    for name, value in settings.items():
        buildah("config", "--env", f"{name}={value}", container)
    buildah("commit", "--rm", container, tag)
    return tag


@pytest.fixture(scope="session")
def base_arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build arguments for the base images; none if the Dockerfile's own can be downloaded."""
    if os.environ.get("BASES") == "registry":
        return []
    folder = tmp_path_factory.mktemp("bases")
    bases = {"A1111": "3.10", "EMBEDDED": "3.12"}
    return [f"{name}_PYTHON_IMAGE={_stand_in(bases[name], folder)}" for name in bases]


@pytest.fixture(scope="session")
def sources() -> Iterator[list[str]]:
    """Build arguments for a git server over SOURCES."""
    folder = os.environ.get("SOURCES")
    if not folder:
        pytest.skip("SOURCES is not set: no git repositories of A1111 and its dependencies")
    # Git's own port where it is free: with the same build arguments buildah uses its cache.
    port = free_port() if why_not_free("127.0.0.1", 9418) else 9418
    settings = ("uploadpack.allowAnySHA1InWant=true", "uploadpack.allowFilter=true")
    options = [word for setting in (*settings, "safe.directory=*") for word in ("-c", setting)]
    where = ("--listen=127.0.0.1", f"--port={port}", f"--base-path={folder}", folder)
    server = subprocess.Popen(
        ["git", *options, "daemon", "--reuseaddr", "--export-all", *where], start_new_session=True
    )
    yield [f"GIT_URL=git://127.0.0.1:{port}"]
    os.killpg(server.pid, signal.SIGTERM)
    server.wait()


@pytest.fixture(scope="session")
def build(base_arguments: list[str]) -> Any:
    """Build a stage of the Dockerfile; returns its tag."""

    def build(target: str, *arguments: str, secrets: tuple[str, ...] = ()) -> str:
        tag = f"localhost/a1111-worker-test:{target}"
        given = [word for one in (*base_arguments, *arguments) for word in ("--build-arg", one)]
        given += [word for secret in secrets for word in ("--secret", secret)]
        # In Docker's format: OCI's has no HEALTHCHECK.
        command = ["buildah", "bud", *ISOLATION, "--format", "docker", "--layers", *given]
        subprocess.run(
            [*command, "--target", target, "--tag", tag, PROJECT],
            stdout=sys.stderr,
            check=True,
        )
        return tag

    return build


@pytest.fixture(scope="session", params=["a1111", "embedded"])
def each_image(request: pytest.FixtureRequest, build: Any) -> tuple[str, str]:
    """The target and the tag of both images."""
    arguments = request.getfixturevalue("sources") if request.param == "a1111" else ()
    return request.param, build(request.param, *arguments)
