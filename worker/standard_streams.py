"""The standard streams of a process that was started with some of them closed."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def open_closed() -> None:
    """Open the null device in the place of each closed stream; call it before files are opened.

    Python sets `sys.stdout` to None if its descriptor is closed, and libraries write to it without
    a check, such as RunPod's when it is imported.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115 - open until the process ends
            # It has the lowest free descriptor, so that of the stream: programs that this process
            # starts get it as well.
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
