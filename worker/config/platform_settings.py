"""What RunPod, the image and start.sh set in a worker's environment, and what follows from it.

RunPod's values are not the operator's: a wrong one never ends the worker.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_INIT_TIMEOUT = 420.0  # seconds: RunPod regards a worker as unhealthy after 7 minutes
EXIT_MARGIN = 30.0  # seconds of it for the last lines of the log and the worker's exit
_SHORTEST_READY_TIMEOUT = 60.0  # a shorter one would end workers that only start slowly
_LONGEST_READY_TIMEOUT = 86_400.0
_LONGEST_SHOWN = 100  # characters


class PlatformSettings(BaseModel):
    """A part of `worker.config.settings.Settings`."""

    # Built once, for the whole of them, and not for each part.
    model_config = ConfigDict(defer_build=True)

    runpod_pod_id: str = Field("", description="Set by RunPod: id of this worker.")
    runpod_endpoint_id: str = Field("", description="Set by RunPod: id of the endpoint.")
    runpod_dc_id: str = Field("", description="Set by RunPod: the data center.")
    runpod_volume_id: str = Field("", description="Set by RunPod: id of the network volume.")
    runpod_gpu_count: str = Field("", description="Set by RunPod: number of GPUs of this worker.")
    runpod_init_timeout: str = Field(
        "",
        description="For RunPod: seconds within which a worker must be ready, 420 if it is not set."
        " `READY_TIMEOUT` follows it.",
    )
    runpod_webhook_get_job: str = Field(
        "", description="Set by RunPod: where jobs are taken from the endpoint's queue."
    )
    supervisor_pid: int | None = Field(
        None, description="Set by start.sh: its process, which restarts the engine on request."
    )
    engine_device: Literal["cuda", "cpu"] | None = Field(
        None, description="Set by start.sh: where the engine computes."
    )
    engine_gpu: str | None = Field(None, description="Set by start.sh: name of the engine's GPU.")
    engine_driver: str | None = Field(
        None, description="Set by start.sh: version of that GPU's driver."
    )
    engine_attention: str | None = Field(
        None, description="Set by start.sh: the engine's implementation of attention."
    )
    revision: str = Field("", description="Set by the image: the commit from which it was built.")

    @property
    def is_serverless(self) -> bool:
        """Whether this is a worker of a RunPod endpoint; a caller of one sets only its id."""
        return bool(self.runpod_pod_id and self.runpod_endpoint_id)

    @property
    def place(self) -> dict[str, str | None]:
        """Where the worker runs: `pod`, `endpoint`, `data_center`, `volume`; None if unknown."""
        return {
            "pod": one_line(self.runpod_pod_id),
            "endpoint": one_line(self.runpod_endpoint_id),
            "data_center": one_line(self.runpod_dc_id),
            "volume": one_line(self.runpod_volume_id),
        }


def one_line(text: str | None) -> str | None:
    """A text of the environment as it is shown: short, and on one line; None if it is empty."""
    shown = (text or "")[:_LONGEST_SHOWN]
    return (shown if shown.isprintable() else ascii(shown)[1:-1]) or None


def init_seconds(text: str) -> float | None:
    """The seconds of RUNPOD_INIT_TIMEOUT; None if it is no number above 0."""
    number = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text)
    return float(number[0]) if number and float(number[0]) > 0 else None


def ready_timeout_of(init_timeout: str) -> float:
    """The default of READY_TIMEOUT: so the worker ends by itself, and its log has the reason.

    Args:
        init_timeout: RUNPOD_INIT_TIMEOUT; one that is no number counts as not set.
    """
    seconds = (init_seconds(init_timeout) or DEFAULT_INIT_TIMEOUT) - EXIT_MARGIN
    return min(max(seconds, _SHORTEST_READY_TIMEOUT), _LONGEST_READY_TIMEOUT)
