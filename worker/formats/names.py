"""Names of model files that are valid in LoRA tags, in A1111's titles and as file names. Pure."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

SAFETENSORS = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")  # loading one can run any code

# Characters that would break a `<lora:name:1>` tag, a list of hashes or a title with ` [hash]`; `#`
# begins a comment. The last ranges could forge lines of a log or reverse the text direction.
_UNSAFE = re.compile(r"[:=<>,#\[\]/\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")
_EDGES = re.compile(r"\A[\s.]+|[\s.]+\Z")
_LONGEST_STEM = 180  # bytes; leaves room for a hash and a suffix


def clean_stem(stem: str) -> str:
    """The stem without characters that tags or titles cannot contain: `a: b ` -> `a_ b`."""
    plain = _UNSAFE.sub("_", stem).encode(errors="replace").decode()
    return _EDGES.sub("", _cut(plain, _LONGEST_STEM)) or "model"


def marked_stem(stem: str, mark: str) -> str:
    """The clean stem followed by part of a hash: `detail-0123456789`. The result is clean too."""
    return f"{_cut(clean_stem(stem), _LONGEST_STEM - len(mark) - 1)}-{mark}"


def _cut(text: str, size: int) -> str:
    """The text, cut to at most `size` bytes without splitting a character."""
    return text.encode()[:size].decode(errors="ignore")


def without_suffix(name: str) -> str:
    """`detail.safetensors` -> `detail`; other suffixes stay: `v1.5` -> `v1.5`."""
    for suffix in (SAFETENSORS, *PICKLES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def stem_of(filename: str) -> str:
    """A clean stem from an untrusted file name or path."""
    return clean_stem(without_suffix(PurePosixPath(filename.replace("\\", "/")).name))


Kind = Literal["checkpoint", "lora", "vae", "embedding", "controlnet"]
