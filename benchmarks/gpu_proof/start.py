"""The steps around the worker's process: its models, the machine, its boot and its end."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.gpu_proof import random_models
from benchmarks.gpu_proof.context import Context, Outcome, Skipped
from benchmarks.gpu_proof.speed import memory_in_use
from worker.config.settings import PROJECT, Settings

SPARE_BYTES = 2_000_000_000  # of the disk
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
    figures = {"exit status": done.returncode, "findings": done.stderr.splitlines()} | chosen
    return Outcome(figures, {"preflight lets the worker start": done.returncode == 0})


def boot(context: Context, *flags: str) -> Outcome:
    """Start the worker, and run its first job."""
    began = time.monotonic()
    environ = context.worker_environment(*flags)
    environ["READY_TIMEOUT"] = str(round(context.budget.left(), 1))
    worker = context.start_worker(environ)
    ready = worker.wait_until_ready(context.budget.left())
    job = context.run()
    until_picture = time.monotonic() - began
    health = context.health()
    figures = {
        "seconds to the first job-take": round(ready, 2),
        "seconds of the start": job.output.get("startup"),
        "seconds of the first job": round(job.seconds, 2),
        "seconds to the first picture": round(until_picture, 2),
        "health": {name: it for name, it in health.items() if name != "memory"},
        "GB in use": memory_in_use(context),
        "log": about_the_gpu(worker.log()),
    }
    context.attention = str(health.get("attention"))
    has_cuda = "system" in ((health.get("memory") or {}).get("cuda") or {})
    checks = {"health reports ready": bool(health["ready"])}
    if context.on_cpu:
        return Outcome(figures, checks)
    return Outcome(figures, checks | {"the engine computes on the GPU": has_cuda})


def boot_again(context: Context) -> Outcome:
    """Start A1111 with torch's own attention, and with the VAE in single precision."""
    return boot(context, "--opt-sdp-attention", "--no-half-vae")


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


def remove_links(context: Context) -> None:
    """Remove the links to the random models from A1111's folder."""
    if context.engine == "a1111":
        for path in Path(context.environ["WEBUI_DIR"], "models").rglob("*"):
            if path.is_symlink() and path.readlink().is_relative_to(context.folder):
                path.unlink()
