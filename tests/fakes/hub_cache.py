"""A Hugging Face cache as the library huggingface_hub and RunPod's cached models lay it out."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes.model_files import sha256

COMMIT, OTHER_COMMIT = "c0ffee" + "0" * 34, "beef" + "1" * 36


def folder_of(root: Path, repo: str) -> Path:
    return root / f"models--{repo.replace('/', '--')}"


def add_cached(
    root: Path,
    repo: str,
    files: dict[str, bytes],
    *,
    commit: str = COMMIT,
    ref: str | None = "main",
    blobs: str = "sha256",
) -> dict[str, Path]:
    """Add a snapshot; returns path -> the path in it.

    `blobs` is how blobs are named: `sha256` as of LFS and Xet, `git` as of small files; `none`:
    the snapshot has the files themselves.
    """
    folder, made = folder_of(root, repo), {}
    for path, data in files.items():
        made[path] = place = folder / "snapshots" / commit / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if blobs == "none":
            place.write_bytes(data)
            continue
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        blob = folder / "blobs" / (sha256(data) if blobs == "sha256" else git.hexdigest())
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(data)
        place.unlink(missing_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    if ref:
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return made


def state(root: Path) -> list[tuple[str, int, int]]:
    """Everything in the tree with its size and time of change: equal before and after reading."""
    found = [root, *root.rglob("*")]
    return sorted((str(p), p.lstat().st_size, p.lstat().st_ctime_ns) for p in found)


@contextmanager
def read_only(root: Path) -> Iterator[bool]:
    """Let the folder be read-only; false where root may not mount it on itself."""
    commands = (["--bind", root, root], ["-o", "remount,bind,ro", root])
    done = [subprocess.run(["mount", *one], check=False, capture_output=True) for one in commands]
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    if done[1].returncode:  # a user's rights do not limit root
        for folder in folders:
            folder.chmod(0o555)
    try:
        yield not os.access(root, os.W_OK)
    finally:
        if done[0].returncode == 0:
            subprocess.run(["umount", root], check=True)
        for folder in folders:
            folder.chmod(0o755)
