"""Which steps the proof has, and how they are run: a failed one is a row, never the end."""

from __future__ import annotations

import functools
import logging
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.gpu_proof import failures, pictures, speed, start
from benchmarks.gpu_proof.budget import OutOfTime, StepTooLong
from benchmarks.gpu_proof.context import Context, JobFailed, Outcome, Skipped
from benchmarks.gpu_proof.worker_process import WorkerFailed
from benchmarks.suite.figures import Curve, Figure

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
NO_TIME = "no time left"
PATIENCE_ON_CPU = 10  # a dry run must not fail because the machine is slow
# What a step may raise because of the machine, the worker or its answers.
FAILURES = (
    *(JobFailed, WorkerFailed, StepTooLong, OSError, ValueError, LookupError, TypeError),
    subprocess.SubprocessError,
)

log = logging.getLogger("benchmarks.gpu_proof")


@dataclass(frozen=True)
class Step:
    """A part of the proof.

    Attributes:
        limit: most seconds that it may take.
        least: with fewer seconds left it is not begun.
    """

    name: str
    run: Callable[[Context], Outcome]
    limit: float = 60.0
    least: float = 5.0


@dataclass
class Row:
    """A step in the report."""

    engine: str
    step: str
    status: str
    seconds: float = 0.0
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    curves: Sequence[Curve] = ()
    memory: dict[str, float] = field(default_factory=dict)  # the largest during the step, in GB

    def as_json(self) -> dict[str, Any]:
        """The row in the report's values."""
        return asdict(self)


def _speed(family: str, batch: int, where: str = "") -> Step:
    measure = functools.partial(speed.measure_speed, family=family, batch=batch)
    return Step(f"speed of {family}, batch {batch}{where}", measure, limit=120.0, least=10.0)


def _model(family: str) -> Step:
    write = functools.partial(start.write_model, family=family)
    return Step(f"random weights of {family}", write, limit=90.0)


BACKLOG = Step("jobs in a backlog", speed.measure_backlog, limit=90.0)

# The most telling steps come first: on a slow machine the last ones are left out.
STEPS: tuple[Step, ...] = (
    _model("SD1"),
    Step("preflight", start.examine_machine, limit=45.0),
    Step("boot and first picture", start.boot, limit=150.0, least=20.0),
    Step("versions", start.read_versions, limit=45.0),
    _speed("SD1", 1),
    _speed("SD1", 4),
    Step("pictures against the CPU's", pictures.compare_with_references),
    Step("VAE in half precision", pictures.draw_in_half_precision),
    BACKLOG,
    Step("jobs of one, two and four pictures", speed.measure_sizes),
    Step("cancelled jobs", failures.cancel_jobs),
    Step("out of memory, and recovery", failures.run_out_of_memory),
    _model("SDXL"),
    _speed("SDXL", 1),
    _speed("SDXL", 4),
    Step("checkpoint switches", speed.measure_switches, limit=120.0),
    Step("end of the worker", start.end, limit=30.0, least=0.0),
)

# In a second start, with JOB_CONCURRENCY=2.
SECOND_START: tuple[Step, ...] = (
    Step("second boot", start.boot_again, 120.0, 30.0),
    BACKLOG,
    Step("end of the second worker", start.end, limit=30.0, least=0.0),
    Step("boot of the engine alone", start.boot_the_engine_alone, 120.0, 20.0),
)

# A1111's second start has torch's attention and a VAE in single precision: with xformers on the
# first one, both are side by side.
SECOND_START_OF_A1111: tuple[Step, ...] = (
    *SECOND_START[:2],
    Step("VAE: half and single precision", pictures.compare_with_single_precision),
    _speed("SD1", 1, ", second boot"),
    _speed("SDXL", 1, ", second boot"),
    *SECOND_START[2:],
)

RECORD: tuple[Step, ...] = (
    _model("SD1"),
    Step("boot and first picture", start.boot, limit=300.0),
    Step("references", pictures.record_references, limit=600.0),
    Step("end of the worker", start.end, limit=30.0, least=0.0),
)


# The starts of each engine's worker.
STARTS = {"a1111": (STEPS, SECOND_START_OF_A1111), "embedded": (STEPS, SECOND_START)}
RECORDING = (RECORD,)


def run_steps(context: Context, steps: Sequence[Step]) -> list[Row]:
    """Run the steps of one engine, and stop its worker whatever happens."""
    rows = []
    try:
        for step in steps:
            rows.append(run_step(context, step))
            log.info("%s: %s: %s %s", context.engine, *_shown(rows[-1]))
    finally:
        if context.worker is not None:
            context.stop_worker()
    return rows


def _shown(row: Row) -> tuple[str, str, str]:
    return row.step, row.status, row.reason


def run_step(context: Context, step: Step) -> Row:
    """Run one step within its time; its failure is its row."""
    row = Row(context.engine, step.name, SKIPPED)
    if context.budget.remaining() < step.least:
        row.reason = NO_TIME
        return row
    began = time.monotonic()
    try:
        with context.budget.step(step.limit * (PATIENCE_ON_CPU if context.on_cpu else 1)):
            outcome = step.run(context)
    except Skipped as reason:
        row.reason = str(reason)
    except OutOfTime:
        row.reason = NO_TIME
    except FAILURES as error:
        row.status, row.reason = FAILED, f"{type(error).__name__}: {_plain(error)}"
        if not context.budget.remaining():  # a wait that the end of the time has cut off
            row.status, row.reason = SKIPPED, NO_TIME
    else:
        row.details, row.checks = outcome.details, outcome.checks
        row.figures, row.curves = outcome.figures, outcome.curves
        wrong = [name for name, passed in outcome.checks.items() if not passed]
        row.status = FAILED if wrong else PASSED
        row.reason = "; ".join(f"not so: {name}" for name in wrong)
    row.seconds = round(time.monotonic() - began, 2)
    row.memory = context.memory.take_largest() if context.memory else {}
    return row


def _plain(error: BaseException) -> str:
    """An error's text on one line, without the terminal's colours."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:1500]
