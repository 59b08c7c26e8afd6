"""Convert a single-file checkpoint into a diffusers folder in half precision.

    python -m engine.models.convert SOURCE TARGET

SOURCE is a .safetensors checkpoint of SD1.x or SDXL; TARGET becomes a folder whose weights are in
half precision in the files too (diffusers' "fp16 variant"), from which the engine draws what it
draws from the file. Offline, on the CPU. On stdout one line of JSON:

    {"folder", "files": [{"path", "size", "sha256"}], "size"}

Exit status: 1 with a sentence on stderr where that cannot be; 2 for wrong arguments.
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
# what makes a folder whole, beside its mark
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
    """One sentence for who asked."""


@dataclass(frozen=True)
class File:
    """A file of the folder: its path in it, its size in bytes, its SHA-256 as 64 hex digits."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Folder:
    """A whole diffusers folder, its files sorted by path; `size` is their sum in bytes."""

    folder: str
    files: tuple[File, ...]
    size: int


def convert(source: Path, target: Path) -> Folder:
    """Make the diffusers folder `target` of the checkpoint `source`: whole, or not at all.

    A whole folder that is there already stays as it is, whatever it was made from. Raises
    NotConverted, OSError where `target` cannot be written, ImportError without the engine's
    packages.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent):
        # whoever works here holds the lock, so these are killed conversions'
        for path in _unfinished(target):
            shutil.rmtree(path)
        if not os.path.lexists(target):
            _make(source, target)
        elif problem := _what_is_wrong(target):
            raise NotConverted(
                f"{target} is there and is no converted checkpoint ({problem}): "
                "remove it, or name another folder"
            )
    return _describe(target)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Wait for, and hold, the folder's lock; the system lifts a killed process's."""
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
        if problem := _what_is_wrong(folder):
            raise NotConverted(f"{source} did not become a whole folder: {problem}")


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder beside its place, which it takes at the end, on the disk; after an error it goes."""
    unfinished = target.with_name(f".{target.name}.{uuid4().hex}.new")
    try:
        yield unfinished
        for path in (*unfinished.rglob("*"), unfinished):
            _sync(path)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # renamed, it is not there
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(source: Path) -> Any:  # noqa: ANN401 - diffusers
    """The checkpoint's pipeline, in half precision, on the CPU."""
    # not at the top: a target that is there needs none of these, and they may not be installed
    import torch  # noqa: PLC0415

    from engine.models.loading import read_file  # noqa: PLC0415

    _check_family(source)
    try:
        pipe = read_file(source, torch.float16)
    except (LookupError, OSError, RuntimeError, ValueError) as error:
        text = f"{source} lacks tensors of its architecture, or they have other shapes"
        raise NotConverted(text) from error
    if problem := _what_is_missing(pipe):
        raise NotConverted(f"{source} {problem}")
    return pipe


def _check_family(source: Path) -> None:
    """Raise NotConverted where the file's header is not that of an SD1.x or SDXL checkpoint."""
    from safetensors import SafetensorError  # noqa: PLC0415

    from engine.errors import Unsupported  # noqa: PLC0415
    from engine.models.loading import read_architecture  # noqa: PLC0415

    if not source.is_file():
        raise NotConverted(f"there is no file {source}")
    try:
        read_architecture(source)
    except (SafetensorError, OSError) as error:
        raise NotConverted(f"{source} is damaged or no safetensors file: {error}") from error
    except Unsupported as error:
        raise NotConverted(f"{source}: {error}") from error
    except (LookupError, StopIteration, ValueError) as error:
        raise NotConverted(f"{source} is no whole checkpoint of SD1.x or SDXL") from error


def _what_is_missing(pipe: Any) -> str | None:  # noqa: ANN401 - diffusers
    """What diffusers passes over in silence: absent tensors, and numbers above 65504."""
    import torch  # noqa: PLC0415

    for part, network in pipe.components.items():
        tensors = network.state_dict() if isinstance(network, torch.nn.Module) else {}
        for name, tensor in tensors.items():
            if tensor.is_meta:
                return f"lacks a tensor ({part}: {name})"
            if not tensor.isfinite().all():
                return f"holds what is no number in half precision ({part}: {name})"
    return None


def _save(pipe: Any, folder: Path) -> None:  # noqa: ANN401 - diffusers
    """Raises OSError."""
    from safetensors import SafetensorError  # noqa: PLC0415

    try:
        pipe.save_pretrained(folder, variant=VARIANT)
    except SafetensorError as error:  # of a full disk, too
        raise OSError(str(error)) from error
    mode = (folder / FOLDER_MARK).stat().st_mode
    for weights in folder.rglob(WEIGHTS):
        weights.chmod(mode)  # safetensors lets only their owner read them


def _what_is_wrong(folder: Path) -> str | None:
    """Why this is no whole folder in half precision, None where it is one.

    Headers are read and held against the files' sizes; numbers are not.
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
        # the answer alone is on stdout, whatever the libraries say
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
