"""RunPod's fields beside a job's `input`, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.jobs import BadRequest

_WEEK = 7 * 86_400_000
# Field of `policy` -> least and most milliseconds, as RunPod documents them.
_DURATIONS = {"executionTimeout": (5_000, _WEEK), "ttl": (10_000, _WEEK)}


@dataclass(frozen=True)
class Policy:
    """How long a job may take, in seconds; None: no limit.

    Attributes:
        execution: from its start to its end.
        ttl: from its arrival to its end; then the job is deleted.
    """

    execution: float | None = None
    ttl: float | None = None


def read_policy(request: Mapping[str, Any]) -> Policy:
    """The policy of a job. `lowPriority` has no effect: there are no workers to start.

    Raises:
        BadRequest: names the wrong field, its value and what it must be.
    """
    policy = request.get("policy")
    if policy is None:
        return Policy()
    if not isinstance(policy, Mapping):
        raise BadRequest('policy must be an object such as {"executionTimeout": 600000}.')
    unknown = sorted(map(str, policy.keys() - {*_DURATIONS, "lowPriority"}))
    if unknown:
        raise BadRequest(
            f"policy.{unknown[0][:80]} is not known: policy has executionTimeout, ttl and"
            " lowPriority."
        )
    if not isinstance(policy.get("lowPriority", False), bool):
        raise BadRequest("policy.lowPriority must be true or false.")
    return Policy(_seconds(policy, "executionTimeout"), _seconds(policy, "ttl"))


def _seconds(policy: Mapping[str, Any], name: str) -> float | None:
    value = policy.get(name)
    if value is None:
        return None
    least, most = _DURATIONS[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and least <= value <= most):
        raise BadRequest(
            f"policy.{name} = {str(value)[:40]} must be milliseconds from {least} to {most}."
        )
    return float(value) / 1000
