"""How near the engine is to the end of its request, from its answer to GET /progress. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.generation import answers
from worker.generation.answers import reading


@dataclass(frozen=True)
class Seen:
    """What the engine does.

    Attributes:
        is_running: whether it computes a request.
        is_nearly_done: whether the last step of the last picture runs, or its decoding.
        seconds_left: the engine's estimate for the steps; infinite before the first one.
    """

    is_running: bool
    is_nearly_done: bool
    seconds_left: float


def seen(answer: Mapping[str, Any]) -> Seen:
    """Read the answer of A1111 v1.9.3.

    There, `sampling_step` is the number of finished steps and is at most `sampling_steps - 1`; both
    `job_count` and `sampling_steps` are of the request before until the first step, but
    `sampling_step` and `job_no` begin at 0. After the last picture `job_no` is `job_count`.

    Raises:
        EngineFault: the answer has another shape.
    """
    with reading("progress"):
        state = answers.an_object(answer["state"], "state")
        step, steps, index, count = (
            answers.number(state, key)
            for key in ("sampling_step", "sampling_steps", "job_no", "job_count")
        )
        eta = answers.number(answer, "eta_relative")
    in_last = 0 < count <= index + 1
    is_decoding = 0 < count <= index
    has_begun = step > 0 or index > 0
    return Seen(
        is_running=bool(state.get("job")),
        is_nearly_done=is_decoding or (in_last and 0 < steps - 1 <= step),
        seconds_left=max(0.0, eta) if has_begun else math.inf,
    )
