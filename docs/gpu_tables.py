"""The tables about GPUs, from worker/config/gpus.py; docs/generate.py writes them."""

from __future__ import annotations

import json

from worker.config import gpus
from worker.config.gpus import Capability, Cards
from worker.config.prices import DOLLARS_PER_SECOND
from worker.config.settings import PROJECT

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def generations(language: str) -> Table:
    """Which generations of GPUs the images run on; docs/gpus.json has the words."""
    words = json.loads((PROJECT / "docs" / "gpus.json").read_text())[language]
    rows: list[tuple[str, ...]] = []
    for name, (oldest, _), examples in gpus.GENERATIONS:
        runs = gpus.has_code(oldest)
        needed = words["driver"].format(driver(oldest)) if runs else ""
        rows.append((name, examples, words["yes" if runs else "no"], needed))
    return tuple(words["head"]), rows


def pools() -> Table:
    """RunPod's pools, in the order of hub.json."""
    head = (
        *("pool", "GPUs", "memory, GB", "compute capability", "oldest driver"),
        *("A1111's attention", "SDXL up to"),
    )
    return head, [
        (f"`{pool}`", *_cards(cards), _largest(cards.memory[0]))
        for pool, kinds in gpus.POOLS.items()
        for cards in kinds
    ]


def other_cards() -> Table:
    """Cards that are in no pool."""
    head = ("GPUs", "memory, GB", "compute capability", "oldest driver", "A1111's attention")
    return head, [_cards(cards) for cards in gpus.OTHER_CARDS]


def prices() -> Table:
    """What a second of each pool costs on RunPod, and what follows from it."""
    head = ("pool", "GPUs", "a second", "an hour", "a start of 60 s", "a job of 10 s", "for $1")
    return head, [
        (
            f"`{pool}`",
            ", ".join(kind.names for kind in kinds),
            *_costs(DOLLARS_PER_SECOND.get(pool)),
        )
        for pool, kinds in gpus.POOLS.items()
    ]


def _costs(price: float | None) -> tuple[str, ...]:
    if price is None:
        return ("not in RunPod's table", "", "", "", "")
    hour, start, job = (price * seconds for seconds in (3600, 60, 10))
    for_a_dollar = f"{1 / job:,.0f} jobs of 10 s"
    return f"${price:.5f}", f"${hour:.2f}", f"${start:.3f}", f"${job:.4f}", for_a_dollar


def memory() -> Table:
    """The memory that each picture needs."""
    head = ("picture", "VAE in half precision", "VAE in single precision")
    return head, [
        (picture.name, _needed(picture.memory()), _needed(picture.memory(single=True)))
        for picture in gpus.PICTURES
    ]


def _needed(mebibytes: int) -> str:
    return f"{gpus.size_for(mebibytes)} GB ({mebibytes:,} MiB)"


def _cards(cards: Cards) -> tuple[str, ...]:
    sizes = " to ".join(str(size) for size in sorted({cards.memory[0], cards.memory[-1]}))
    known = (cards.names, sizes, ".".join(map(str, cards.capability)))
    if not gpus.has_code(cards.capability):
        return (*known, "", "torch has no code for them")
    attention = "xformers" if gpus.has_xformers(cards.capability) else "sdp"
    return (*known, driver(cards.capability), attention)


def driver(capability: Capability) -> str:
    """The oldest driver that runs the images' CUDA on such a GPU."""
    return ".".join(map(str, gpus.oldest_driver(gpus.CUDA, capability)))


def _largest(gigabytes: int) -> str:
    """The largest picture of SDXL, one at a time, whatever its VAE."""
    sides = [
        picture.side
        for picture in gpus.PICTURES
        if picture.family == "SDXL" and gpus.size_for(picture.memory(single=True)) <= gigabytes
    ]
    return f"{max(sides)}x{max(sides)}"
