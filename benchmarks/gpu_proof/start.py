"""The steps around the worker's process: its models, the machine, its boot and its end."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gpu_proof import random_models
from benchmarks.gpu_proof.boots import BootWatch, EngineAlone
from benchmarks.gpu_proof.context import Context, Outcome, Skipped
from benchmarks.gpu_proof.speed import ALONE
from benchmarks.suite.figures import Figure, Goal
from worker.config.settings import PROJECT, Settings

SPARE_BYTES = 2_000_000_000  # of the disk
SPARE_SECONDS = 0.5  # of a boot
# What start.sh, the handler and the engine log about the GPU.
ABOUT_THE_GPU = re.compile(r"GPU|CUDA|driver|attention|computing on|xformers|MiB", re.IGNORECASE)
MOST_LINES = 12
CHOSEN = {
    "ENGINE_DEVICE",
    "ENGINE_GPU",
    "ENGINE_DRIVER",
    "ENGINE_ATTENTION",
}  # what preflight tells start.sh
# Printed by the engine's own Python.
TORCH_FACTS = """
import importlib.metadata as m, json, torch
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
facts = {"torch": torch.__version__, "built for CUDA": torch.version.cuda,
         "CUDA is available": torch.cuda.is_available(), "kernels": torch.cuda.get_arch_list()}
facts |= {name: version(name) for name in ("xformers", "diffusers", "transformers", "triton")}
if torch.cuda.is_available():
    facts["GPU"] = torch.cuda.get_device_name(0)
    facts["compute capability"] = ".".join(map(str, torch.cuda.get_device_capability(0)))
    facts["cuDNN"] = torch.backends.cudnn.version()
print(json.dumps(facts))
"""


def write_model(context: Context, family: str) -> Outcome:
    """Write the random checkpoint of this family into the worker's store."""
    # Of tiny models A1111 loads only SD1's kind, by a configuration file.
    kind = "SD1" if context.tiny and context.engine == "a1111" else family
    path = context.folder / f"models/Stable-diffusion/{context.checkpoint(family)}.safetensors"
    tensors = random_models.tensors_of(kind, tiny=context.tiny)
    path.parent.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(path.parent).free, random_models.size(tensors) + SPARE_BYTES
    if free < needed:
        raise Skipped(
            f"{path.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed:"
            " name another folder with --work"
        )
    began = time.monotonic()
    size = random_models.write_checkpoint(path, tensors, len(family), context.budget.left)
    if context.tiny and kind == "SD1":
        random_models.write_tiny_config(path.with_suffix(".yaml"))
    return Outcome({"GB": round(size / 1e9, 3), "seconds": round(time.monotonic() - began, 2)})


def examine_machine(context: Context) -> Outcome:
    """What nvidia-smi and the worker's preflight say, as start.sh runs it before every start."""
    environ = context.worker_environment()
    command = [environ["PYTHON"], "-m", "worker.config.preflight"]
    done = subprocess.run(
        *(command,),
        cwd=PROJECT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=context.budget.left(),
        check=False,
    )
    said = dict(word.split("=", 1) for word in shlex.split(done.stdout) if "=" in word)
    chosen = {name: value for name, value in said.items() if name in CHOSEN}
    details = {"exit status": done.returncode, "findings": done.stderr.splitlines()} | chosen
    return Outcome(details, {"preflight lets the worker start": done.returncode == 0})


def boot(context: Context, *flags: str, **environ: str) -> Outcome:
    """Start the worker, and run its first job; `environ` are more variables for the worker."""
    began = time.monotonic()
    environ = context.worker_environment(*flags) | environ
    environ["READY_TIMEOUT"] = str(round(context.budget.left(), 1))
    worker = context.start_worker(environ)
    with BootWatch(worker) as watch:
        ready = worker.wait_until_ready(context.budget.left())
        job = context.run()
    context.first_picture = time.monotonic() - began
    context.engine_start = worker.engine_start()
    context.concurrency = int(environ.get("JOB_CONCURRENCY", "1"))
    health = context.health()
    context.attention = str(health.get("attention"))
    details = {
        "seconds to the first job-take": round(ready, 2),
        "seconds of the start": job.output.get("startup"),
        "seconds of the first job": round(job.seconds, 2),
        "seconds to the first picture": round(context.first_picture, 2),
        "health": {name: it for name, it in health.items() if name != "memory"},
        "log": about_the_gpu(worker.log()),
    }
    checks = {"health reports ready": bool(health["ready"])}
    if not context.on_cpu:
        cuda = (health.get("memory") or {}).get("cuda") or {}
        checks["the engine computes on the GPU"] = "system" in cuda
    return Outcome(details, checks, watch.figures(context.boots))


def boot_again(context: Context) -> Outcome:
    """Start again, with the files in the page cache, and with two jobs at once.

    A1111 gets torch's own attention, and the VAE in single precision.
    """
    flags = ("--opt-sdp-attention", "--no-half-vae") if context.engine == "a1111" else ()
    return boot(context, *flags, JOB_CONCURRENCY="2")


def boot_the_engine_alone(context: Context) -> Outcome:
    """Start the engine as start.sh has started the last one, and draw the same first picture."""
    start = context.engine_start
    if start is None or context.first_picture is None:
        raise Skipped("the worker has not started an engine before")
    log = context.folder / f"{context.engine}-alone.log"
    began = time.monotonic()
    with log.open("wb") as output, EngineAlone(start, output) as engine:
        body = context.request()
        settings = body["override_settings"] | {"sd_model_checkpoint": context.checkpoint("SD1")}
        engine.draw(body | {"override_settings": settings}, context.budget.left)
        alone = time.monotonic() - began
    limit = Goal(round(1.05 * alone + SPARE_SECONDS, 2), "value")
    reason = "The parts of the worker's start are in the step of its second boot."
    name = f"boot {context.boots}: until the first picture is delivered"
    figure = Figure(name, "s", (context.first_picture,), (alone,), ALONE, limit, reason)
    return Outcome({}, {}, [figure])


def read_versions(context: Context) -> Outcome:
    """Versions in the engine's environment, and what its torch says about the GPU."""
    environ = context.worker_environment()
    python = environ["PYTHON"]
    if context.engine == "a1111":
        python = str(Settings.from_environ(environ).webui_interpreter)
    done = subprocess.run(
        *([python, "-c", TORCH_FACTS],),
        capture_output=True,
        text=True,
        timeout=context.budget.left(),
        check=True,
    )
    facts = json.loads(done.stdout.splitlines()[-1])
    checks = {} if context.on_cpu else {"torch can use CUDA": facts["CUDA is available"]}
    return Outcome(facts, checks)


def about_the_gpu(log: str) -> list[str]:
    """The first lines of a worker's log about the GPU."""
    return [line[:300] for line in log.splitlines() if ABOUT_THE_GPU.search(line)][:MOST_LINES]


def end(context: Context) -> Outcome:
    """Stop the worker as RunPod does."""
    began = time.monotonic()
    status = context.stop_worker()
    seconds = round(time.monotonic() - began, 2)
    return Outcome({"exit status": status, "seconds": seconds}, {"it ends with 0": status == 0})


@contextmanager
def unchanged_webui(engine: str, folder: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """Leave A1111's folder as it was: its config.json, and no links to models below `folder`."""
    if engine != "a1111":
        yield
        return
    webui = Path(environ["WEBUI_DIR"])
    config = webui / "config.json"
    before = config.read_bytes() if config.is_file() else None
    try:
        yield
    finally:
        for path in (webui / "models").rglob("*"):
            if path.is_symlink() and path.readlink().is_relative_to(folder):
                path.unlink()
        if before is None:
            config.unlink(missing_ok=True)
        else:
            config.write_bytes(before)
