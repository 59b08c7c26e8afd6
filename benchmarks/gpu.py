"""Prove on a machine with a GPU that the worker and its engines do what they should.

    python -m benchmarks.gpu --out gpu-report.md

In an image:

    docker run --rm --gpus all -v "$PWD/report:/outputs" --entrypoint /opt/worker/bin/python \
      IMAGE -m benchmarks.gpu --out /outputs/gpu-report.md --image IMAGE

Exit status: 0, or 1 if a check failed. docs/gpu-benchmarks.md explains the figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# `python benchmarks/gpu.py` has only this file's folder there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_proof import machine, proof, start
from benchmarks.gpu_proof.budget import Budget
from benchmarks.gpu_proof.context import Context
from benchmarks.gpu_proof.memory import Memory
from benchmarks.gpu_proof.plane import Plane
from benchmarks.gpu_proof.report import Report

ENGINES = ("a1111", "embedded")
MINUTES = 10.0
LAST_SECONDS = 25.0  # to stop the worker and to write the report
TINY_NOTE = "A dry run with tiny models: it shows that every step runs. No figure means anything."
CPU_NOTE = "On the CPU: no figure says anything about a GPU."


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-report.md"), help="the report")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="limit for all of it")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="default: what is there")
    parser.add_argument("--image", default="", help="name of the image, for the report")
    parser.add_argument("--work", type=Path, help="folder for 9.1 GB of models; default: temporary")
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a dry run")
    parser.add_argument("--record", action="store_true", help="record the CPU's pictures instead")
    return parser.parse_args(arguments)


def engines_here(environ: Mapping[str, str]) -> list[str]:
    """The engines that this machine has: A1111 by WEBUI_DIR, the embedded one by its packages."""
    has_a1111 = Path(environ.get("WEBUI_DIR") or "none", "webui.py").is_file()
    packages = all(importlib.util.find_spec(name) for name in ("torch", "diffusers"))
    return ["a1111"] * has_a1111 + ["embedded"] * packages


def prove(options: argparse.Namespace, folder: Path, environ: Mapping[str, str]) -> Report:
    """Run the steps of every engine within the budget."""
    began = time.monotonic()
    about = machine.describe(options.image, environ)
    engines = options.engine or engines_here(environ)
    budget = Budget(60 * options.minutes - LAST_SECONDS)
    rows = []
    with Plane() as plane, Memory(environ) as memory:
        for number, engine in enumerate(engines):
            share = budget.share(len(engines) - number)
            context = Context(
                engine, folder, plane, share, environ, tiny=options.tiny, memory=memory
            )
            with start.unchanged_webui(engine, folder, environ):
                for steps in proof.RECORDING if options.record else proof.STARTS[engine]:
                    rows += proof.run_steps(context, steps)
    if not engines:
        rows.append(proof.Row("-", "engines", proof.FAILED, reason="no engine is here"))
    on_cpu = environ.get("DEVICE") == "cpu"
    note = " ".join([CPU_NOTE] * on_cpu + [TINY_NOTE] * options.tiny)
    return Report(about, rows, round(time.monotonic() - began, 1), note)


def main() -> int:
    """Run the proof; returns the exit status."""
    options = read_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="gpu-proof-", dir=options.work) as folder:
        report = prove(options, Path(folder), os.environ)
    report.write(options.out)
    sys.stdout.write(report.page())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
