"""Names of model files as they can stand in LoRA tags, titles and folders. Pure."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

SAFETENSORS = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")  # loading one can run any code

# What a name in a `<lora:name:1>` tag, in its hash list or before a ` [hash]` cannot carry; `#`
# begins a comment. The last ones forge lines of a log or turn its direction.
_UNSAFE = re.compile(r"[:=<>,#\[\]/\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")
_EDGES = re.compile(r"\A[\s.]+|[\s.]+\Z")
_LONGEST_STEM = 180  # bytes; with a hash and a suffix it still is a file name


def clean_stem(stem: str) -> str:
    """The stem as it can stand in a LoRA tag and in A1111's titles: `a: b ` becomes `a_ b`."""
    plain = _UNSAFE.sub("_", stem).encode(errors="replace").decode()
    return _EDGES.sub("", _cut(plain, _LONGEST_STEM)) or "model"


def marked_stem(stem: str, mark: str) -> str:
    """A clean stem with a piece of a hash behind it, and still clean: `detail-0123456789`."""
    return f"{_cut(clean_stem(stem), _LONGEST_STEM - len(mark) - 1)}-{mark}"


def _cut(text: str, size: int) -> str:
    """The text in at most so many bytes, and no half character."""
    return text.encode()[:size].decode(errors="ignore")


def without_suffix(name: str) -> str:
    """`detail.safetensors` -> `detail`; what follows a dot and is no model suffix stays."""
    for suffix in (SAFETENSORS, *PICKLES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def stem_of(filename: str) -> str:
    """A clean stem from a file name that a stranger has chosen."""
    return clean_stem(without_suffix(PurePosixPath(filename.replace("\\", "/")).name))


Kind = Literal["checkpoint", "lora", "vae", "embedding"]
