"""How busy the engine is when every job names a new LoRA, with JOB_CONCURRENCY 1 and 2.

    python benchmarks/concurrency.py [--jobs 15] [--seconds 2]

The real SDK, start.sh, handler and downloads; RunPod, CivitAI and A1111 are the tests' fakes. The
download of a LoRA takes about as long as a picture. All jobs are queued at the beginning. The
busy share is the time that the pictures take in an otherwise idle engine, divided by the time from
the first job's start in the engine to the last job's end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import requests

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from fakes.hosts.model_hosts import ModelHosts  # noqa: E402
from fakes.model_files import safetensors  # noqa: E402
from fakes.runpod_plane import RunPodPlane  # noqa: E402
from fakes.worker_process import HANDLER, WorkerProcess, running_worker  # noqa: E402

STEPS = 20
JOB = {"prompt": "a fox", "steps": STEPS, "width": 64, "height": 64, "seed": 1}


def main() -> None:
    """Print the busy share with each, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0, help="for a picture and a LoRA")
    options = parser.parse_args()
    shares = {}
    for concurrency in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            share, fetch, make = busy(Path(folder), concurrency, options.jobs, options.seconds)
        shares[concurrency] = share
        print(
            f"JOB_CONCURRENCY={concurrency}: the engine is busy {share:.1%}"
            f" (a LoRA takes {fetch:.2f} s, a picture alone {make:.2f} s)"
        )
    print(f"ratio {shares[2] / shares[1]:.2f}")


def busy(folder: Path, concurrency: int, jobs: int, seconds: float) -> tuple[float, float, float]:
    """The busy share of the engine; the seconds of a LoRA and of a picture."""
    more = {"JOB_CONCURRENCY": str(concurrency)}
    with (
        ModelHosts() as hosts,
        RunPodPlane() as plane,
        running_worker(folder, plane, handler=HANDLER, hosts=hosts, **more) as worker,
    ):
        hosts.throttle(None, ttfb=seconds)
        worker.fault("slow_steps", seconds=seconds / STEPS, times=-1)
        alone = one_picture(worker)
        names = [f"lora{number}.safetensors" for number in range(jobs)]
        models = [
            hosts.add_model(version_id=100 + n, data=safetensors(number=n), name=name, kind="LORA")
            for n, name in enumerate(names)
        ]
        before = len(worker.requests())
        queued = [plane.submit(JOB | {"loras": [model.download_url]}) for model in models]
        fetching = []
        for job in queued:
            done = plane.wait(job, 20 * seconds * jobs)
            if done["status"] != "COMPLETED":
                raise SystemExit(f"a job failed: {done}")
            fetching.append(done["output"]["timings"]["prepare"])
        begun = [request["time"] for request in worker.requests()[before:]]
        if len(begun) != jobs:
            raise SystemExit("an attempt was repeated")
        share = jobs * alone / (begun[-1] + alone - begun[0])
        return share, statistics.median(fetching), alone


def one_picture(worker: WorkerProcess) -> float:
    """Seconds that the engine needs for a picture, without the worker."""
    began = time.perf_counter()
    requests.post(f"{worker.engine_url}/sdapi/v1/txt2img", json=JOB, timeout=60).raise_for_status()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
