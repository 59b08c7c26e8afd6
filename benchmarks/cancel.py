"""How long the engine stays busy after a job is cancelled at a random moment.

    python benchmarks/cancel.py [--times 30] [--seed 1]

The real SDK, start.sh and handler; RunPod, the model host and A1111 are the tests' fakes. Each job
names a LoRA of its own, whose download takes 1 s, and would generate for 15 s. It is cancelled
within its first 4 s: some are cancelled while the worker takes them or downloads their model, some
between two steps. The next job must then get its own picture, with its own seed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from fakes.hosts.model_hosts import ModelHosts  # noqa: E402
from fakes.model_files import safetensors  # noqa: E402
from fakes.runpod_plane import RunPodPlane  # noqa: E402
from fakes.worker_process import HANDLER, WorkerProcess, running_worker  # noqa: E402

JOB = {"prompt": "a fox", "width": 64, "height": 64}
LATEST = 4.0  # seconds until a job is cancelled


def main() -> None:
    """Cancel jobs, and print the median and the longest time until the engine is idle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    moments = random.Random(options.seed)  # noqa: S311 - no secret
    with (
        tempfile.TemporaryDirectory() as folder,
        ModelHosts() as hosts,
        RunPodPlane() as plane,
        running_worker(Path(folder), plane, handler=HANDLER, hosts=hosts) as worker,
    ):
        hosts.throttle(None, ttfb=1.0)
        worker.fault("slow_steps", seconds=0.1, times=-1)
        busy, cancelled, generating = [], [], 0
        for number in range(options.times):
            model = hosts.add_model(
                version_id=100 + number,
                data=safetensors(number=number),
                name=f"l{number}.safetensors",
                kind="LORA",
            )
            job = plane.submit(JOB | {"steps": 150, "loras": [model.download_url]})
            time.sleep(moments.uniform(0, LATEST))
            generating += not worker.engine_is_idle()
            plane.cancel(job)
            cancelled.append(job)
            busy.append(until_idle(worker))
            check_next(worker, number)
        posted = {event["id"] for event in plane.events("done")} & set(cancelled)
        late = [event for event in plane.events("progress") if event["late"]]
    print(f"{options.times} jobs cancelled, {generating} of them while the engine was busy")
    print(f"results that they posted: {len(posted)}")
    print(f"progress reports after a job's end: {len(late)}")
    print(
        f"engine busy after it: median {statistics.median(busy):.2f} s, longest {max(busy):.2f} s"
    )


def until_idle(worker: WorkerProcess) -> float:
    """Seconds until the engine has been idle for half a second."""
    began = idle_since = time.monotonic()
    while time.monotonic() - idle_since < 0.5:  # noqa: PLR2004 - see above
        if not worker.engine_is_idle():
            idle_since = time.monotonic()
        time.sleep(0.01)
    return idle_since - began


def check_next(worker: WorkerProcess, seed: int) -> None:
    """Check that the next job gets its own picture."""
    done = worker.run(JOB | {"steps": 1, "seed": seed})
    if done["status"] != "COMPLETED" or done["output"]["parameters"]["seed"] != seed:
        raise SystemExit(f"the next job is wrong: {done}")


if __name__ == "__main__":
    main()
