"""The faults a test can switch on in the fake A1111."""

import json
import threading
from typing import Any

from fakes.a1111.request import ApiError, engine_error, refusal
from fakes.a1111.shape import OUT_OF_MEMORY_TEXT

LOWVRAM_TEXT = "'NoneType' object has no attribute 'lowvram'"
DEVICE_TEXT = (
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
)
CUDA_TEXT = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
    " asynchronously reported at some other API call, so the stacktrace below might be incorrect."
)
MISMATCH_TEXT = "Error(s) in loading state_dict for LatentDiffusion:\n\tsize mismatch for w"
# The job raises this in the middle of its work; `error` and `errors` may say something else.
ERROR_FAULTS = {
    "out_of_memory": ("OutOfMemoryError", OUT_OF_MEMORY_TEXT),
    "cuda_fault": ("RuntimeError", CUDA_TEXT),
    "device_mismatch": ("RuntimeError", DEVICE_TEXT),
    "sqlite": ("OperationalError", "unable to open database file"),
    "internal_error": ("RuntimeError", "fault"),
}
KNOWN_FAULTS = ERROR_FAULTS.keys() | {
    "slow_boot",  # {seconds}; this and the next two only from FAKE_A1111_FAULTS
    "boot_crash",  # {status}
    "model_slow",  # {seconds}: the model loads behind an open port
    "no_route",  # txt2img is gone
    "poisoned",  # every job fails until the process is started again
    "wrong_checkpoint",  # another model than the job names
    "missing_lora",  # no LoRA is applied
    "mask_ignored",  # the whole picture is drawn anew
    "hang",  # {seconds}: no answer, and no interrupt helps
    "drop",  # the connection closes without an answer, and the job continues
    "slow_steps",  # {seconds}: per step
    "slow_decoding",  # {seconds}: per picture, after its last step
    "slow_encoding",  # {seconds}: per picture; the next job is computed meanwhile
    "encoding_waits",  # {seconds}: at most, before it begins, for the next request of a picture
    "no_images",
    "exit",  # {status}: the process ends in the middle of a job
    "cut_answer",  # the connection closes after half of the answer
    "trickle_answer",  # {seconds}: for the whole answer, in pieces
    "odd_answer",  # {body}: a text instead of the answer, with status 200
    "script_sets",  # {option, value}: a script sets an option for good
    "vae_load_fails",  # halfway: the next pictures are wrong, and no error says so
    "checkpoint_load_fails",  # {name}: the stem of the file; at every load
}

Fault = dict[str, Any]


class Faults:
    """The switched-on faults; `times` below zero means for ever."""

    def __init__(self, from_environment: str) -> None:
        self._lock = threading.Lock()
        self._on: list[Fault] = []
        for fault in json.loads(from_environment or "[]"):
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """Switch a fault on."""
        if fault["fault"] not in KNOWN_FAULTS:
            raise refusal(422, f"no fault {fault['fault']!r}; there are {sorted(KNOWN_FAULTS)}")
        with self._lock:
            self._on.append({"times": 1} | fault)

    def clear(self) -> None:
        """Switch all off."""
        with self._lock:
            self._on = []

    def take(self, fault_name: str, **having: str) -> Fault | None:
        """Use up one occurrence of a fault, if it is on and has these parameters."""
        wanted = {"fault": fault_name, **having}.items()
        with self._lock:
            for fault in self._on:
                if wanted <= fault.items() and fault["times"] != 0:
                    fault["times"] -= fault["times"] > 0
                    return fault
        return None

    def seconds(self, fault_name: str) -> float:
        """How long this fault makes the engine wait; 0 if it is not on."""
        fault = self.take(fault_name)
        return float(fault["seconds"]) if fault else 0.0

    def error(self) -> ApiError | None:
        """The exception the running job meets, if one is on."""
        for name, (error, text) in ERROR_FAULTS.items():
            if fault := self.take(name):
                return engine_error(fault.get("error", error), fault.get("errors", text))
        return None
