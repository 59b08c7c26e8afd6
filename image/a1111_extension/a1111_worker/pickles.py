"""Pickle files that a current torch or numpy has written; only ALLOW_PICKLES lets them in.

A1111 reads such a file twice: first with its own unpickler, which allows few classes, then with
torch.load. What is allowed here is not unpickled, or it is a new name of what A1111 allows.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

from a1111_worker.expect import expect, uses

# What torch 2.1 and newer add to the archive: a few bytes of text each.
_MEMBERS = r"byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
# numpy 2 has renamed a module; numpy 1.26 knows both names.
_RENAMED = {"numpy._core.multiarray": "numpy.core.multiarray"}


def allow_new_members(safe: ModuleType) -> None:
    """Accept the members that torch 2.1 and newer write into each file.

    Effect of https://github.com/AUTOMATIC1111/stable-diffusion-webui/commit/07cf95c7, which lacks
    the two members that torch 2.7 has added.

    Raises:
        NotAsExpected: A1111 does not check the members by a pattern.
    """
    allowed = safe.allowed_zip_names_re
    expect(
        isinstance(allowed, re.Pattern) and uses(safe.check_zip_filenames, "allowed_zip_names_re"),
        "check_zip_filenames reads allowed_zip_names_re",
    )
    pattern = rf"(?:{allowed.pattern})|^[^/]+/(?:{_MEMBERS})\Z"
    safe.allowed_zip_names_re = re.compile(pattern)  # type: ignore[attr-defined]


def allow_new_names(safe: ModuleType) -> None:
    """Know functions that A1111 allows under the names that numpy 2 gives them.

    Raises:
        NotAsExpected: A1111 does not allow numpy's functions by name.
    """
    unpickler = safe.RestrictedUnpickler
    find_class = unpickler.find_class
    expect(
        uses(find_class, "numpy.core.multiarray"), "RestrictedUnpickler allows numpy by its names"
    )

    def find_class_by_old_name(self: Any, module: str, name: str) -> Any:
        return find_class(self, _RENAMED.get(module, module), name)

    unpickler.find_class = find_class_by_old_name
