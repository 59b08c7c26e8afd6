"""What a row gets from the suite: a folder, the number of rounds, and whether to be quick."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108 - a disk is measured only where a row says so


@dataclass(frozen=True)
class Bench:
    """How to measure.

    Attributes:
        folder: scratch space on the disk, empty, removed after the row.
        quick: small sizes and few rounds, to see that every row runs; its figures mean little.
    """

    folder: Path
    quick: bool = False

    def rounds(self, usual: int) -> int:
        """The number of rounds: `usual`, or 1 when quick."""
        return 1 if self.quick else usual

    @contextmanager
    def in_memory(self) -> Iterator[Path]:
        """A folder in memory, so that the disk is not what is measured."""
        parent = MEMORY if MEMORY.is_dir() else self.folder
        with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder:
            yield Path(folder)
