"""Errors of ControlNet and ADetailer in the infotext, from which the worker learns of them.

A1111 catches what an extension raises, writes it to its log, and draws without the extension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from a1111_worker.expect import expect, uses

WATCHED = ("controlnet", "adetailer")  # as A1111 names scripts
_METHODS = (
    "before_process",
    "process",
    "before_process_batch",
    "postprocess_batch",
    "postprocess_image",
    "postprocess",
)
_LONGEST = 200  # characters


def note_errors(scripts: ModuleType) -> None:
    """Write an error of a watched script into the infotext of its picture, as `ControlNet error`.

    Raises:
        NotAsExpected: A1111 does not catch the errors of scripts, or makes scripts otherwise.
    """
    runner = scripts.ScriptRunner
    expect(uses(runner.process, "process", "report"), "ScriptRunner.process reports errors")
    expect(uses(runner.create_script_ui, "args_from"), "create_script_ui is called for each script")
    create = runner.create_script_ui

    def create_and_watch(self: Any, script: Any) -> None:
        create(self, script)
        title = script.title()
        if title.lower() in WATCHED:
            for name in _METHODS:
                setattr(script, name, _noting(f"{title} error", getattr(script, name)))

    runner.create_script_ui = create_and_watch


def _noting(key: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(p: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(p, *args, **kwargs)
        except Exception as error:
            p.extra_generation_params[key] = _shown(error)
            raise

    return call


def _shown(error: Exception) -> str:
    """The error's first line; ADetailer's own texts are tables, which begin with an empty line."""
    first = str(error).partition("\n")[0].strip()
    return f"{type(error).__name__}{f': {first}' if first else ''}"[:_LONGEST]
