"""The settings of a worker that serves HTTP, and what RunPod sets."""

from __future__ import annotations

from pydantic import BaseModel, Field


class HttpSettings(BaseModel):
    """A part of `worker.config.settings.Settings`."""

    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port on which jobs are taken over HTTP, on every address of the machine, if"
        " start.sh gets no argument and RunPod gives the worker no queue. The images set 7860.",
    )
    port_health: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Another port, which answers only `/ping`: see"
        " [load-balancing.md](load-balancing.md).",
    )
    runpod_pod_id: str = Field("", description="Set by RunPod: id of this worker.")
    runpod_endpoint_id: str = Field("", description="Set by RunPod: id of the endpoint.")
    runpod_webhook_get_job: str = Field(
        "", description="Set by RunPod: where jobs are taken from the endpoint's queue."
    )

    @property
    def served_port(self) -> int | None:
        """The port on which a worker without arguments serves HTTP; None: it does not."""
        return None if self.runpod_webhook_get_job else self.port

    @property
    def is_load_balanced(self) -> bool:
        """Whether this is a worker of RunPod's load-balancing type, if it serves HTTP."""
        return bool(self.runpod_pod_id and self.runpod_endpoint_id)
