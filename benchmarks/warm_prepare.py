"""What a warm `prepare_models_for_request` costs with 10 and with 10,000 models in the store.

    python benchmarks/warm_prepare.py [--models 10000] [--rounds 2000]

The two stores are measured in turn, so that a busy machine slows both. Goal: at most 1.2 times as
long with 10,000 models, and under 2 ms.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from fakes import model_files  # noqa: E402
from fakes.model_files import safetensors  # noqa: E402
from fakes.model_store import add  # noqa: E402

from model_manager import ModelManager  # noqa: E402
from worker.config.settings import Settings  # noqa: E402
from worker.hosts.host import RemoteFile  # noqa: E402
from worker.job.reference import CivitAIVersion  # noqa: E402
from worker.job.txt2img import Txt2ImgRequest, parse  # noqa: E402

FEW = 10
URL = "https://civitai.com/api/download/models/{}"
JOBS = {
    "by CivitAI URL": {
        "checkpoint": {"name": "Base", "url": URL.format(1)},
        "loras": [{"url": URL.format(2), "scale": 0.5}, URL.format(3)],
    },
    "by file name": {"checkpoint": "m1", "loras": ["m2.safetensors", "m3"]},
    "by a tag": {"checkpoint": "m1", "prompt": "a fox <lora:m2:0.5> <lora:m3:1>"},
}


def main() -> None:
    """Print a line for each way to name the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2000)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    memory = Path("/dev/shm")  # noqa: S108 - the disk is not what is measured
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        managers = {n: _filled(Path(folder) / str(n), n) for n in (FEW, options.models)}
        for way, job in JOBS.items():
            _compare(way, managers, parse({"prompt": "a fox"} | job), options.rounds)
        for count, manager in managers.items():
            seconds = _time(manager.get_cache_stats, options.rounds // 10)
            print(f"stats with {count} models: {_shown(seconds)}")


def _filled(folder: Path, count: int) -> ModelManager:
    settings = Settings(
        webui_dir=folder / "webui", models_dir=folder / "models", baked_models_dir=folder / "baked"
    )
    manager = ModelManager(settings)
    for number in range(1, count + 1):
        kind, shapes = ("checkpoint", model_files.SD1) if number == 1 else ("lora", None)
        blob = add(manager.store.fetched, safetensors(shapes, number), f"m{number}", kind)
        remote = RemoteFile(URL.format(number), "x.safetensors", "civitai", sha256=blob.sha256)
        manager.fetcher.references.note(CivitAIVersion(number), remote, blob.sha256)
    _settle(folder)
    return ModelManager(settings)  # a new one, without anything cached in memory


def _settle(folder: Path) -> None:
    """Set the folders' times back, as if the models had been added an hour ago."""
    then = time.time() - 3600
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            os.utime(path, (then, then))


def _compare(
    way: str, managers: dict[int, ModelManager], request: Txt2ImgRequest, rounds: int
) -> None:
    seconds: dict[int, list[float]] = {count: [] for count in managers}
    for manager in managers.values():
        manager.prepare_models_for_request(request)
    for path in (m.store.fetched.root.parents[1] / "webui" for m in managers.values()):
        _settle(path)
    for manager in managers.values():
        manager.prepare_models_for_request(request)
    for _ in range(rounds):
        for count, manager in managers.items():
            seconds[count] += _time(lambda m=manager: m.prepare_models_for_request(request), 1)  # type: ignore[misc]
    few, many = (statistics.median(found) for found in seconds.values())
    for count, found in seconds.items():
        print(f"{way} with {count} models: {_shown(found)}")
    print(f"{way}: {many / few:.3f} times")


def _time(do: object, rounds: int) -> list[float]:
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        do()  # type: ignore[operator]
        found.append(time.perf_counter() - start)
    return found


def _shown(seconds: list[float]) -> str:
    p95 = statistics.quantiles(seconds, n=20)[-1]
    return f"median {statistics.median(seconds) * 1000:.3f} ms, p95 {p95 * 1000:.3f} ms"


if __name__ == "__main__":
    main()
