"""The row of a warm job: finding, checking and linking models that are in the store already."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fakes.hub_cache import add_cached
from fakes.model_files import LORA, entries, framed, safetensors
from fakes.model_store import about

from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Figure, Goal, in_turns
from benchmarks.suite.lora_shapes import lora_shapes
from model_manager import ModelManager
from worker.config.settings import Settings
from worker.formats import stable_diffusion
from worker.hosts.host import RemoteFile
from worker.job.reference import CivitAIVersion
from worker.job.txt2img import Txt2ImgRequest, parse
from worker.models.store.blobs import Blobs

TITLE = "Models that are there already"
ABOUT = """\
A job names a checkpoint of SDXL and two LoRAs of rank 64 (files with the headers of real ones and
without data) that are in the store: by CivitAI URL, by file name, by tags in the prompt, or by
references to a Hugging Face cache. `prepare_models_for_request` finds them, checks that each file
is unchanged, whole and of the checkpoint's family, and that the engine has its links. A1111's
config.json is there, with 400 settings.

**A folder scan a job** is what A1111's refresh routes and most published workers do before a job:
`os.scandir` of the folders of checkpoints and LoRAs and one `stat` for each file, to know names,
sizes and times. The headers of the files, which ours has checked, are not read by it.

Both are in memory (`/dev/shm`), so the figures are work of the processor and system calls, not a
disk's. On a network volume each system call is a round trip: the row counts nothing for that.
"""
FEW, MANY = 10, 10_000
SIZES = (FEW, 100, 1000, MANY)
REPOSITORIES = (1, 5, 50)
CALLS = 100  # of ours in a round; the round's value is their median
LIMIT_MS, GROWTH = 0.5, 1.1
OPTIONS = 400  # in A1111's config.json

WHY_MISSED = """\
Under a profiler, by URL: some 1,700 calls of Python functions; 38 % of the time finds and checks
the models, 26 % their links, 16 % the engine's own checkpoint, 8 % the operator's folders. The
44 calls of `stat`, for each folder and file that could have changed, are a tenth of the time. A
file in a Hugging Face cache is reached through two more links, and `main` of each repository is
looked at."""

WHY_GROWN = """\
A warm job makes the same system calls with 30 models more (a test counts them). The rounds differ
by more than the two stores do."""

URL = "https://civitai.com/api/download/models/{}"
REPO = "Org/Name{}"
HUB = REPO.format(0) + "/{}.safetensors"
JOBS: dict[str, dict[str, object]] = {
    "by CivitAI URL": {
        "checkpoint": {"name": "Base", "url": URL.format(1)},
        "loras": [{"url": URL.format(2), "scale": 0.5}, URL.format(3)],
    },
    "by file name": {"checkpoint": "m1", "loras": ["m2.safetensors", "m3"]},
    "by tags in the prompt": {"checkpoint": "m1", "prompt": "a fox <lora:m2:0.5> <lora:m3:1>"},
    "by Hugging Face reference": {
        "checkpoint": HUB.format("base"),
        "loras": [HUB.format("fox"), HUB.format("owl")],
    },
}


@dataclass(frozen=True)
class Stored:
    """A worker's model manager and its folders."""

    manager: ModelManager
    folders: tuple[Path, ...]  # that a scan looks at

    def prepare(self, request: Txt2ImgRequest) -> float:
        """Prepare the models and release them; returns the seconds of the first."""
        begun = time.perf_counter()
        models, _ = self.manager.prepare_models_for_request(request)
        seconds = time.perf_counter() - begun
        self.manager.release(models)
        return seconds

    def scan(self) -> None:
        """The rival."""
        for folder in self.folders:
            with os.scandir(folder) as found:
                for entry in found:
                    entry.stat()


def measure(bench: Bench) -> Iterator[Figure | Curve]:
    """Each way to name the models, beside a scan; then the curves."""
    sizes = (FEW, 50) if bench.quick else SIZES
    with bench.in_memory() as folder, _quietly():
        stores = {size: fill(folder / str(size), size) for size in sizes}
        points: dict[str, list[tuple[float, float]]] = {}
        for way in JOBS:
            yield from _way(way, stores, bench, points)
        yield _scan_curve(stores, points)
        yield from _lists(stores[sizes[-1]], sizes[-1], bench)
        repositories = REPOSITORIES[:2] if bench.quick else REPOSITORIES
        yield _cached_curve(folder, repositories)


# Stores -------------------------------------------------------------------------------------------


def fill(folder: Path, count: int, repositories: int = 1) -> Stored:
    """A store with one checkpoint and `count - 1` LoRAs, and a Hugging Face cache."""
    hub = folder / "hub"
    settings = Settings(
        webui_dir=folder / "webui",
        models_dir=folder / "models",
        baked_models_dir=folder / "baked",
        hub_cache_dir=hub,
    )
    manager = ModelManager(settings)
    headers = {1: checkpoint_header(), 2: lora_header(2), 3: lora_header(3)}
    for number in range(1, count + 1):
        kind = "checkpoint" if number == 1 else "lora"
        data = headers.get(number) or (safetensors(number=number), 0)
        _publish(manager.store.fetched, data, f"m{number}", kind)
        remote = RemoteFile(URL.format(number), "x.safetensors", "civitai", sha256=_name(number))
        manager.fetcher.references.note(CivitAIVersion(number), remote, _name(number))
    for number in range(repositories):
        _add_repository(hub, REPO.format(number), headers)
    _write_config(settings.webui_dir / "config.json")
    store = Stored(ModelManager(settings), _folders(folder))  # nothing is in its memory yet
    for job in JOBS.values():
        store.prepare(request(job))
    _settle(folder)
    for job in JOBS.values():
        store.prepare(request(job))
    return store


def request(job: dict[str, object]) -> Txt2ImgRequest:
    """The job's request."""
    return parse({"prompt": "a fox"} | job)


def checkpoint_header() -> tuple[bytes, int]:
    """The header of an SDXL checkpoint in half precision, and the bytes of its data."""
    return _header(stable_diffusion.checkpoint("SDXL"), 0)


def lora_header(number: int) -> tuple[bytes, int]:
    """The header of an SDXL LoRA of rank 64, and the bytes of its data."""
    return _header(lora_shapes(dict(stable_diffusion.checkpoint("SDXL")), 64), number)


def _header(shapes: stable_diffusion.Shapes, number: int) -> tuple[bytes, int]:
    document = {"__metadata__": {"number": str(number)}} | entries(shapes)
    return framed(document), 2 * sum(math.prod(shape) for shape in shapes.values())


def _publish(blobs: Blobs, data: tuple[bytes, int], stem: str, kind: str) -> None:
    """Add a file as a finished download does; its name stands for its hash."""
    name = _name(int(stem[1:]))
    partial = blobs.partial(name)
    _write(partial, data)
    blobs.add(partial, name, about(stem, kind, partial.stat().st_size), lambda _: False)


def _name(number: int) -> str:
    return f"{number:064x}"


def _write(path: Path, data: tuple[bytes, int]) -> None:
    with path.open("wb") as file:
        file.write(data[0])
        file.truncate(len(data[0]) + data[1])


def _add_repository(hub: Path, repo: str, headers: dict[int, tuple[bytes, int]]) -> None:
    names = ("base.safetensors", "fox.safetensors", "owl.safetensors", "unet/part.safetensors")
    made = add_cached(hub, repo, {name: (repo + name).encode() for name in names})
    for number, name in enumerate(names, 1):
        data = headers.get(number) or (safetensors(LORA, number), 0)
        _write(made[name].resolve(), data)


def _folders(folder: Path) -> tuple[Path, ...]:
    models = folder / "models/fetched"
    return models / "Stable-diffusion", models / "Lora"


def _write_config(path: Path) -> None:
    """A1111's settings: it saves hundreds of them, and the name of its last checkpoint."""
    options = {f"option_{number}": number for number in range(OPTIONS)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(options | {"sd_model_checkpoint": "m1.safetensors"}, indent=4))
    os.utime(path, (_an_hour_ago(),) * 2)


def _an_hour_ago() -> float:
    return time.time() - 3600


def _settle(folder: Path) -> None:
    """Set the folders' times back, as if the models had been added an hour ago."""
    then = _an_hour_ago()
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            os.utime(path, (then, then))


# Figures ------------------------------------------------------------------------------------------


def _way(
    way: str,
    stores: dict[int, Stored],
    bench: Bench,
    points: dict[str, list[tuple[float, float]]],
) -> Iterator[Figure]:
    job, few, many = request(JOBS[way]), min(stores), max(stores)
    rounds = bench.rounds(7)
    ours, scans = in_turns(rounds, _ms(stores[many], job), lambda: _median_ms(stores[many].scan, 3))
    yield Figure(
        f"warm job, models named {way}, {many:,} in the store",
        "ms",
        ours,
        scans,
        "folder scan a job",
        Goal(LIMIT_MS, "value"),
        WHY_MISSED,
    )
    ours, others = in_turns(rounds, _ms(stores[many], job), _ms(stores[few], job))
    yield Figure(
        f"the same, {way}, growth from {few} models to {many:,}",
        "ms",
        ours,
        others,
        f"ours with {few} models",
        Goal(GROWTH),
        WHY_GROWN,
    )
    points[way] = [(size, _ms(store, job)()) for size, store in stores.items()]


def _ms(store: Stored, job: Txt2ImgRequest) -> Callable[[], float]:
    def median() -> float:
        return statistics.median(store.prepare(job) for _ in range(CALLS)) * 1000

    return median


def _median_ms(do: Callable[[], object], calls: int) -> float:
    return statistics.median(_seconds(do) for _ in range(calls)) * 1000


def _seconds(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def _scan_curve(stores: dict[int, Stored], points: dict[str, list[tuple[float, float]]]) -> Curve:
    scan = [(size, _median_ms(store.scan, 3)) for size, store in stores.items()]
    lines = {way: tuple(found) for way, found in points.items()} | {"folder scan": tuple(scan)}
    return Curve("A warm job by number of models", "models", "ms", lines, log_x=True)


def _lists(store: Stored, count: int, bench: Bench) -> Iterator[Figure]:
    calls = bench.rounds(3)
    rounds: Sequence[tuple[str, str, Callable[[], object]]] = (
        ("numbers for `health`", "ms", store.manager.get_cache_stats),
        ("list of all LoRAs", "ms", lambda: store.manager.list_files("lora")),
        ("links for a start of the engine, made before", "ms", store.manager.link_everything),
    )
    for name, unit, do in rounds:
        yield Figure(f"{name}, {count:,} models", unit, _each(do, calls))


def _each(do: Callable[[], object], calls: int) -> tuple[float, ...]:
    return tuple(_median_ms(do, 1) for _ in range(calls))


def _cached_curve(folder: Path, repositories: Iterable[int]) -> Curve:
    lines: dict[str, list[tuple[float, float]]] = {way: [] for way in JOBS}
    for number in repositories:
        store = fill(folder / f"hub{number}", FEW, number)
        for way, job in JOBS.items():
            lines[way].append((number, _ms(store, request(job))()))
    found = {way: tuple(points) for way, points in lines.items()}
    return Curve("A warm job by number of cached repositories", "repositories", "ms", found)


@contextmanager
def _quietly() -> Iterator[None]:
    logging.disable(logging.INFO)
    gc.collect()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
