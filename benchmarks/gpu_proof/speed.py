"""The steps that measure: speed, the worker's overhead, and memory at checkpoint switches."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.gpu_proof.context import (
    PROMPT,
    SAME_PICTURE,
    Context,
    Outcome,
    mean_difference,
    pixels,
)
from benchmarks.gpu_proof.plane import Job

FEW_STEPS = 4
MOST_STEPS = 44
SECONDS_PER_FIGURE, TINY_SECONDS = 8.0, 0.5
OVERHEAD_STEPS, OVERHEAD_ROUNDS = 10, 3


def measure_speed(context: Context, family: str, batch: int) -> Outcome:
    """Steps per second, from two jobs that differ only in their number of steps.

    What does not depend on the number of steps (text encoder, VAE, PNG, HTTP) cancels out. The
    first job loads the checkpoint and warms up.
    """
    size = context.size(family)
    first = context.run(family, batch_size=batch, steps=FEW_STEPS)
    few = context.run(family, batch_size=batch, steps=FEW_STEPS, seed=2)
    seconds = TINY_SECONDS if context.tiny else SECONDS_PER_FIGURE
    fitting = round(seconds / max(_generated(few) / FEW_STEPS, 1e-3))
    steps = FEW_STEPS + min(max(fitting, FEW_STEPS), MOST_STEPS - FEW_STEPS)
    many = context.run(family, batch_size=batch, steps=steps, seed=2)
    per_step = max(_generated(many) - _generated(few), 1e-6) / (steps - FEW_STEPS)
    return Outcome(
        {
            "attention": context.attention,
            "size": f"{size}x{size}",
            "batch": batch,
            "it/s": round(1 / per_step, 3),
            "pictures x it/s": round(batch / per_step, 3),
            "seconds of the first job": round(first.seconds, 2),
            f"seconds for {FEW_STEPS} steps": round(_generated(few), 3),
            f"seconds for {steps} steps": round(_generated(many), 3),
        },
        {"every job returns its pictures": len(many.output["images"]) == batch},
    )


def _generated(job: Job) -> float:
    return float(job.output["timings"]["generate"])


def measure_overhead(context: Context) -> Outcome:
    """The same picture through the worker, and from the engine directly, by turns."""
    size = context.size("SD1")
    body = {
        "prompt": PROMPT,
        "width": size,
        "height": size,
        "steps": OVERHEAD_STEPS,
        "sampler_name": "Euler",
        "override_settings": {"randn_source": "CPU"},
    }
    whole, alone = [], []
    for seed in range(OVERHEAD_ROUNDS):
        last = context.run(steps=OVERHEAD_STEPS, seed=seed)
        whole.append(last.seconds)
        began = time.monotonic()
        context.running.ask("txt2img", body | {"seed": seed}, context.budget.left())
        alone.append(time.monotonic() - began)
    job, engine = statistics.median(whole), statistics.median(alone)
    return Outcome(
        {
            "seconds of a job": round(job, 3),
            "seconds of the engine alone": round(engine, 3),
            "seconds of overhead": round(job - engine, 3),
            "seconds of the last job's parts": last.output["timings"],
        }
    )


def measure_switches(context: Context) -> Outcome:
    """Seconds and memory when the checkpoint changes to the other family and back."""
    figures: dict[str, Any] = {}
    pictures = []
    for number, family in enumerate(("SD1", "SDXL", "SD1"), 1):
        size = context.size("SD1")
        job = context.run(family, width=size, height=size)
        pictures.append(pixels(job))
        figures[f"{number}. {family}, seconds"] = round(job.seconds, 2)
        figures[f"{number}. {family}, GB"] = memory_in_use(context)
    is_same = mean_difference(pictures[0], pictures[2]) <= SAME_PICTURE
    return Outcome(figures, {"the first checkpoint draws the same picture again": is_same})


def memory_in_use(context: Context) -> dict[str, float]:
    """GB of memory as the engine reports them; the GPU's counts every program on it."""
    memory = context.running.ask("memory")
    used = {
        "RAM": memory["ram"]["used"],
        "GPU": memory.get("cuda", {}).get("system", {}).get("used"),
    }
    return {name: round(value / 1e9, 2) for name, value in used.items() if value is not None}
