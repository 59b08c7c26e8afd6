"""How many checkpoints the engine may keep in memory, from the memory that is there.

A1111 keeps the last `sd_checkpoints_limit` ones; only one is on the GPU, the others are in RAM. A
switch to a kept one does not read its file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker.errors import WorkerError
from worker.webui.client import WebUI

log = logging.getLogger(__name__)

OPTION = "sd_checkpoints_limit"
MOST = 10  # A1111's setting ends there
GB = 10**9
SDXL = 7 * GB  # what an unknown checkpoint is taken for
RESERVE = 3 * GB  # for the worker, its results, the page cache and all other programs
# Parts that an engine can have. Without the first one, a kept checkpoint can get the tiling and the
# embeddings of another one.
KEEPS_APART = "checkpoints kept apart"
NO_COPIES = "no copies of weights"


@dataclass(frozen=True)
class Machine:
    """What the decision depends on.

    Attributes:
        available: bytes of memory that can still be used.
        largest: bytes of the largest checkpoint's file.
        on_cpu: whether the engine computes on the CPU: in single precision, twice the file's size.
        copies: 2 for A1111, which copies the weights that a LoRA changes: nearly all of them.
    """

    available: int
    largest: int
    on_cpu: bool
    copies: int = 2


def fitting(machine: Machine, kept: int) -> int:
    """How many checkpoints fit into memory, of which `kept` are there already: at least 1.

    On a GPU the active one needs memory, too: for a moment, before the next one takes its place.
    On the CPU it is in memory already, but may get a copy.
    """
    weights = machine.largest * (2 if machine.on_cpu else 1)
    left = machine.available - RESERVE
    if machine.on_cpu:
        left -= weights * (machine.copies - 1)
    else:
        kept -= 1
    return max(1, min(MOST, kept + left // (weights * machine.copies)))


@dataclass
class CheckpointMemory:
    """The limit of one engine, and which checkpoints it keeps.

    `before` of the next job may come while a picture is decoded whose checkpoint was there already:
    that one's `after` follows, then the next job's. Otherwise not for concurrent use.

    Attributes:
        wanted: a number that the operator wants; None: as many as fit.
        on_cpu: whether the engine computes on the CPU.
        available: returns the bytes of memory that can still be used.
        largest: returns the bytes of the largest checkpoint in the store; 0 if there is none.
        why_one: why the engine must keep only one; empty if it may keep several.
        limit: how many it may keep now.
        kept: names of those that it keeps, the last used one at the end.
        copies: as of `Machine`.
    """

    wanted: int | None
    on_cpu: bool
    available: Callable[[], int]
    largest: Callable[[], int]
    why_one: str = ""
    limit: int = 1
    kept: list[str] = field(default_factory=list)
    copies: int = 2

    def begin(self, checkpoint: str | None, parts: Collection[str]) -> None:
        """A new process has made its first picture with this checkpoint: decide its limit.

        Args:
            checkpoint: its name; None if the engine has none.
            parts: what the engine can do beyond A1111.
        """
        self.kept = [checkpoint] if checkpoint else []
        self.copies = 1 if NO_COPIES in parts else 2
        if self.why_one:
            self.limit, why = 1, self.why_one
        elif KEEPS_APART not in parts:
            self.limit, why = 1, "the worker's extension for A1111 is not there"
        elif self.wanted is None:
            machine = self._machine()
            self.limit = fitting(machine, len(self.kept))
            why = (
                f"{machine.available / GB:.1f} GB of memory are available, and the largest has"
                f" {machine.largest / GB:.1f} GB"
            )
        else:
            self.limit, why = self.wanted, f"CHECKPOINTS_IN_MEMORY={self.wanted}"
        log.info("checkpoints that the engine keeps in memory: %d (%s)", self.limit, why)

    def before(self, checkpoints: Collection[str]) -> bool:
        """A picture with these comes next; returns whether the limit is lower now.

        It is not raised again: memory that comes and goes would make every switch slow.
        """
        if self.wanted is not None or self.limit == 1 or {*checkpoints} <= {*self.kept}:
            return False
        return self._lower(fitting(self._machine(), len(self.kept)), "less memory is available")

    def ran_out(self) -> bool:
        """Memory ran out, or the process was killed; returns whether the limit is lower now."""
        if not self._lower(1, "the engine ended or ran out of memory"):
            return False
        self.why_one = "it once ended or ran out of memory with more"
        return True

    def after(self, checkpoints: Collection[str]) -> None:
        """A picture was made with these, in this order."""
        others = [name for name in self.kept if name not in checkpoints]
        self.kept = [*others, *checkpoints][-self.limit :]

    def _lower(self, limit: int, why: str) -> bool:
        if limit >= self.limit:
            return False
        log.warning(
            "checkpoints that the engine keeps in memory: %d, not %d (%s)", limit, self.limit, why
        )
        self.limit = limit
        return True

    def _machine(self) -> Machine:
        return Machine(self.available(), self.largest() or SDXL, self.on_cpu, self.copies)


def largest_checkpoint(webui: WebUI) -> int:
    """Bytes of the largest checkpoint file that the engine lists; 0 if it lists none."""
    sizes = [0]
    with suppress(WorkerError):
        for listed in webui.sd_models():
            with suppress(OSError):  # it was removed meanwhile
                sizes.append(Path(str(listed.get("filename"))).stat().st_size)
    return max(sizes)
