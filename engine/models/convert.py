"""Convert a single-file checkpoint into a diffusers folder in half precision.

    python -m engine.models.convert SOURCE TARGET

SOURCE is a .safetensors checkpoint of SD1.x or SDXL. TARGET becomes a folder with its weights in
half precision (diffusers' "fp16 variant"); pictures made from the folder and from the file are the
same. Uses the CPU and no network. Prints one line of JSON:

    {"folder", "files": [{"path", "size", "sha256"}], "size"}

Exit status: 1 with one sentence on stderr if the conversion fails; 2 for wrong arguments.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from engine.models.checkpoints import FOLDER_MARK, WEIGHTS, file_sha256

VARIANT = "fp16"
HALF = "F16"  # as safetensors calls it
XL_MARK = "text_encoder_2"
FAMILIES = ("SD1", "SDXL")
# a complete folder contains these and FOLDER_MARK
FILES = (
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
)
XL_FILES = (
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
)


class NotConverted(Exception):
    """The checkpoint cannot be converted; the message is one sentence for the user."""


@dataclass(frozen=True)
class File:
    """A file: its path in the folder, its size in bytes, its SHA-256 as 64 hex digits."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Folder:
    """A complete diffusers folder, its files sorted by path; `size` is their sum in bytes."""

    folder: str
    files: tuple[File, ...]
    size: int


def convert(source: Path, target: Path) -> Folder:
    """Convert the checkpoint `source` to the diffusers folder `target`: completely, or not at all.

    A complete folder that already exists is not changed, whatever it was converted from. Raises
    NotConverted, OSError if `target` cannot be written, ImportError if the engine's packages are
    not installed.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent):
        # a running conversion would hold the lock: these folders are from killed ones
        for path in _unfinished(target):
            shutil.rmtree(path)
        if not os.path.lexists(target):
            _make(source, target)
        elif problem := _problem(target):
            raise NotConverted(
                f"{target} already exists and is not a complete converted checkpoint ({problem}): "
                "remove it, or choose another folder"
            )
    return _describe(target)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Wait for the folder's lock and hold it; the system releases that of a killed process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _unfinished(target: Path) -> list[Path]:
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}\.new")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)]


def _make(source: Path, target: Path) -> None:
    pipe = _read(source)
    with _appearing(target) as folder:
        _save(pipe, folder)
        if problem := _problem(folder):
            raise NotConverted(f"converting {source} gave an incomplete folder: {problem}")


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target`; at the end synced and renamed, on an error removed."""
    unfinished = target.with_name(f".{target.name}.{uuid4().hex}.new")
    try:
        yield unfinished
        for path in (*unfinished.rglob("*"), unfinished):
            _sync(path)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # does nothing after the rename
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(source: Path) -> Any:  # noqa: ANN401 - diffusers
    """The checkpoint's pipeline, in half precision, on the CPU."""
    # imported here: not needed for an existing target, and perhaps not installed
    import torch  # noqa: PLC0415

    from engine.models.loading import read_file  # noqa: PLC0415

    _check_family(source)
    try:
        pipe = read_file(source, torch.float16)
    except (LookupError, OSError, RuntimeError, ValueError) as error:
        text = f"{source} is missing tensors of its architecture, or their shapes are wrong"
        raise NotConverted(text) from error
    if problem := _unusable_tensor(pipe):
        raise NotConverted(f"{source} {problem}")
    return pipe


def _check_family(source: Path) -> None:
    """Raise NotConverted unless the file's header is that of an SD1.x or SDXL checkpoint."""
    from engine.errors import Unsupported  # noqa: PLC0415
    from engine.models.files import Unreadable  # noqa: PLC0415
    from engine.models.loading import read_architecture  # noqa: PLC0415

    if not source.is_file():
        raise NotConverted(f"{source} does not exist, or is not a file")
    try:
        family = read_architecture(source).family
    except (Unreadable, OSError) as error:
        raise NotConverted(f"{source} is damaged, or not a safetensors file: {error}") from error
    except Unsupported as error:
        raise NotConverted(f"{source}: {error}") from error
    except ValueError as error:
        text = f"{source} is not a complete SD1.x or SDXL checkpoint: {error}"
        raise NotConverted(text) from error
    if family not in FAMILIES:
        raise NotConverted(f"{source} is an {family} checkpoint; only SD1.x and SDXL are converted")


def _unusable_tensor(pipe: Any) -> str | None:  # noqa: ANN401 - diffusers
    """A number above 65504 or none at all, which diffusers ignores."""
    import torch  # noqa: PLC0415

    for part, network in pipe.components.items():
        tensors = network.state_dict() if isinstance(network, torch.nn.Module) else {}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                return f"has a number that half precision cannot hold ({part}: {name})"
    return None


def _save(pipe: Any, folder: Path) -> None:  # noqa: ANN401 - diffusers
    """Raises OSError."""
    from safetensors import SafetensorError  # noqa: PLC0415

    try:
        pipe.save_pretrained(folder, variant=VARIANT)
    except SafetensorError as error:  # also for a full disk
        raise OSError(str(error)) from error
    mode = (folder / FOLDER_MARK).stat().st_mode
    for weights in folder.rglob(WEIGHTS):
        weights.chmod(mode)  # safetensors makes them readable for their owner only


def _problem(folder: Path) -> str | None:
    """Why this is not a complete folder in half precision; None if it is.

    Reads each file's header and compares it with the file's size; the numbers are not read.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        index = json.loads((folder / FOLDER_MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{FOLDER_MARK} is missing or damaged"
    for name in FILES + (XL_FILES if XL_MARK in index else ()):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(folder / name, framework="np") as file:
                dtypes = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        except SafetensorError:
            return f"{name} is damaged"
        if dtypes != {HALF}:
            return f"{name} is not in half precision"
    return None


def _describe(folder: Path) -> Folder:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = tuple(
        File(path.relative_to(folder).as_posix(), path.stat().st_size, file_sha256(path))
        for path in paths
    )
    return Folder(str(folder), files, sum(file.size for file in files))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.models.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="a .safetensors checkpoint")
    parser.add_argument("target", type=Path, help="the folder to make")
    arguments = parser.parse_args()
    try:
        # the libraries may print; stdout is for the answer only
        with contextlib.redirect_stdout(sys.stderr):
            made = convert(arguments.source, arguments.target)
    except NotConverted as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"cannot write {arguments.target}: {error}")
    except ImportError as error:
        sys.exit(
            f"{error.name} is missing: pip install -r requirements-engine.txt "
            "(with Python 3.11 or newer)"
        )
    sys.stdout.write(json.dumps(asdict(made)) + "\n")


if __name__ == "__main__":
    main()
