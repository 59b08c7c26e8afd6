"""The faults a test can switch on in the fake A1111."""

import json
import threading
from dataclasses import dataclass, field
from typing import Any

from fakes.a1111.request import ApiError, engine_error
from fakes.a1111.shape import OUT_OF_MEMORY_TEXT

LOWVRAM_TEXT = "'NoneType' object has no attribute 'lowvram'"
DEVICE_TEXT = (
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
)
CUDA_TEXT = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
    " asynchronously reported at some other API call, so the stacktrace below might be incorrect."
)
# Before the port opens, so they only work from FAKE_A1111_FAULTS.
BOOT_FAULTS = {"slow_boot", "boot_crash", "ui_mode", "model_slow"}
# txt2img answers this and does no work: status, content type, body.
ANSWER_FAULTS = {
    "no_route": (404, "application/json", '{"detail":"Not Found"}'),
    "bad_json": (200, "application/json", '{"images": ["iVBORw0KGgo'),
    "html": (200, "text/html", "<!doctype html><title>Stable Diffusion</title>"),
}
# The job raises this in the middle of its work.
ERROR_FAULTS = {
    "out_of_memory": ("OutOfMemoryError", OUT_OF_MEMORY_TEXT),
    "cuda_fault": ("RuntimeError", CUDA_TEXT),
    "device_mismatch": ("RuntimeError", DEVICE_TEXT),
    "sqlite": ("OperationalError", "unable to open database file"),
}
JOB_FAULTS = {
    "poisoned",  # every job fails until the process is started again
    "wrong_checkpoint",  # another model than the job names
    "missing_lora",  # {name}: this LoRA, or without a name all, is not applied
    "hang",  # {seconds}: no answer, and no interrupt helps
    "drop",  # {running}: the connection closes without an answer; the job continues or not
    "slow_steps",  # {seconds}: per step
    "no_images",
    "internal_error",  # {error, errors}
}
KNOWN_FAULTS = BOOT_FAULTS | ANSWER_FAULTS.keys() | ERROR_FAULTS.keys() | JOB_FAULTS


@dataclass(eq=False)
class Fault:
    """One switched-on fault; `times` below zero means for ever."""

    name: str
    times: int = 1
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, body: dict[str, Any]) -> "Fault":
        params = dict(body)
        name, times = params.pop("fault"), params.pop("times", 1)
        if name not in KNOWN_FAULTS:
            raise ValueError(f"no fault {name!r}; there are {sorted(KNOWN_FAULTS)}")
        return cls(name, times, params)

    def seconds(self, default: float) -> float:
        return float(self.params.get("seconds", default))


class Faults:
    """The switched-on faults."""

    def __init__(self, from_environment: str) -> None:
        self._lock = threading.Lock()
        self._on = [Fault.read(body) for body in json.loads(from_environment or "[]")]

    def add(self, body: dict[str, Any]) -> None:
        """Switch a fault on; ValueError for an unknown one."""
        with self._lock:
            self._on.append(Fault.read(body))

    def clear(self) -> None:
        """Switch all off."""
        with self._lock:
            self._on = []

    def take(self, name: str) -> Fault | None:
        """Use up one occurrence of a fault, if it is on."""
        with self._lock:
            for fault in self._on:
                if fault.name == name and fault.times != 0:
                    fault.times -= fault.times > 0
                    return fault
        return None

    def error(self) -> ApiError | None:
        """The exception the running job meets, if one is on."""
        for name, (error, text) in ERROR_FAULTS.items():
            if self.take(name):
                return engine_error(error, text)
        if fault := self.take("internal_error"):
            texts = fault.params
            return engine_error(texts.get("error", "RuntimeError"), texts.get("errors", "fault"))
        return None
