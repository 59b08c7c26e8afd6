"""What the owner of a download is asked and told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from worker.http.client import NO_CANCEL


@dataclass(frozen=True)
class Hooks:
    """The callbacks of a download's owner.

    Attributes:
        inspect: gets the first bytes, and the size if it is known; returns how many bytes it
            needs to see, or None to accept the file; raises to refuse the file.
        make_room: gets the number of bytes still to come before most of them are fetched; raises
            if there is no room for them.
        report: gets the bytes fetched and the size, several times a second.
        stop: set it to end the download; what has arrived is kept.
    """

    inspect: Callable[[bytes, int | None], int | None] = lambda _start, _size: None
    make_room: Callable[[int], None] = lambda _bytes: None
    report: Callable[[int, int | None], None] = lambda _fetched, _size: None
    stop: threading.Event = NO_CANCEL
