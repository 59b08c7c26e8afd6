"""The state of the fake A1111: its options, the loaded model, the running job."""

import json
import sqlite3
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fakes.a1111.faults import DEVICE_TEXT, LOWVRAM_TEXT, MISMATCH_TEXT, Faults
from fakes.a1111.models import Checkpoint, Checkpoints
from fakes.a1111.request import ApiError, engine_error
from fakes.a1111.shape import DEFAULT_OPTIONS, refuse_override

# What loading a checkpoint can raise.
LOAD_FAILURES = (ApiError, OSError, SafetensorError, sqlite3.Error)


def say(text: str) -> None:
    """Print a line as the engine does."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Options:
    """The settings: those of config.json and of requests, with defaults for the others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str) -> Any:
        return self.data.get(name, DEFAULT_OPTIONS.get(name))

    def set(self, name: str, value: Any) -> bool:
        """Set one option; returns whether that changed anything."""
        if self.data.get(name) == value:
            return False
        refuse_override(name, value)
        self.data[name] = value
        return True

    def shown(self) -> dict[str, Any]:
        """GET /options: the defaults hide which keys are missing in `data`."""
        return {name: self.get(name) for name in DEFAULT_OPTIONS}

    def changed(self) -> dict[str, Any]:
        """What acts on the next picture, apart from what the picture names itself."""
        named = {"sd_model_checkpoint", "sd_checkpoint_hash", "comma_padding_backtrack"}
        named |= {"sd_checkpoints_limit", "checkpoints_limit_by_worker"}  # of the memory
        given = self.data.items()
        return {k: v for k, v in sorted(given) if v != DEFAULT_OPTIONS.get(k) and k not in named}

    def save(self) -> None:
        self.path.write_text(json.dumps(self.data))


class LoadedModel:
    """The checkpoint in memory, and its state after a failed switch."""

    def __init__(self, checkpoints: Checkpoints, options: Options, faults: Faults) -> None:
        self.checkpoints = checkpoints
        self.options = options
        self._faults = faults
        self.has_half_a_vae = False  # after one that did not load; until another checkpoint
        self.current: Checkpoint | None = None
        self._kept: list[Checkpoint] = []  # with the content that they had; the last used one last
        self.broken = False  # the model object is gone for good
        self._stranded = False  # the old model was unloaded for a new one that could not be read
        self._lock = threading.Lock()

    def _selected(self) -> Checkpoint:
        chosen = self.checkpoints.find(self.options.get("sd_model_checkpoint"))
        if chosen or self.checkpoints.listed:
            return chosen or self.checkpoints.listed[0]
        folders = self.checkpoints.folders
        looked = [f"file {folders[0].parents[1] / 'model.ckpt'}"]
        looked += [f"directory {folder}" for folder in folders]
        raise FileNotFoundError(
            "No checkpoints found. When searching for checkpoints, looked at:"
            + "".join(f"\n - {place}" for place in looked)
            + "Can't run without a checkpoint. Find and place a .ckpt or .safetensors file into any"
            " of those locations."
        )

    def _load(self, checkpoint: Checkpoint) -> None:
        if self._faults.take("checkpoint_load_fails", name=checkpoint.path.stem):
            raise engine_error("RuntimeError", MISMATCH_TEXT)
        self.checkpoints.read(checkpoint)
        self._use(checkpoint)

    def _use(self, checkpoint: Checkpoint) -> None:
        """Have it on the GPU, and keep as many as the option says."""
        others = [one for one in self._kept if one.path != checkpoint.path]
        self._kept = [*others, checkpoint][-self.options.get("sd_checkpoints_limit") :]
        self.has_half_a_vae = False
        self.current, self._stranded = checkpoint, False
        title, sha256 = checkpoint.title, checkpoint.sha256
        self.options.data |= {"sd_model_checkpoint": title, "sd_checkpoint_hash": sha256}

    def load_first(self, delay: float = 0) -> None:
        """Load the selected model unless one is loaded; a failure is reported later."""
        with self._lock:
            if self.current is None:
                time.sleep(delay)
                try:
                    self._load(self._selected())
                except LOAD_FAILURES as error:
                    say(f"{type(error).__name__}: {error}\nStable diffusion model failed to load")

    def reload(self) -> None:
        """Switch to the selected checkpoint; raises A1111's exceptions, and may leave no model."""
        selected = self._selected()
        if self.broken:
            raise engine_error("AttributeError", LOWVRAM_TEXT)
        if self.current is None or self.current.path != selected.path:
            # A1111 compares paths: a file that was replaced is not read again.
            if kept := next((one for one in self._kept if one.path == selected.path), None):
                say(f"Using already loaded model {kept.title}: done in 0.0s")
                self._use(kept)
                return
            self._stranded = self.current is not None
            self._load(selected)

    def load_vae(self) -> None:
        """Load the VAE that the options name; a failure leaves a part of it in the model."""
        if self._faults.take("vae_load_fails"):
            self.has_half_a_vae = True
            raise engine_error("RuntimeError", "Error(s) in loading state_dict for AutoencoderKL:")

    def require(self) -> None:
        """Raise what A1111 raises where it needs a model that it could not load."""
        self.load_first()
        if self.current is None:
            text = "'NoneType' object has no attribute 'cond_stage_model'"
            raise engine_error("AttributeError", text)

    def in_use(self) -> Checkpoint:
        """The model to generate with; raises if none is on the GPU."""
        if self.current is None or self._stranded:
            raise engine_error("RuntimeError", DEVICE_TEXT)
        return self.current


class Progress:
    """The running job as /progress shows it, and requests to stop it."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.begin("", 0, 0)

    def begin(self, job: str, count: int, steps: int) -> None:
        """A job starts; earlier requests to stop are dropped."""
        self.stop.clear()
        self.job_no = self.step = 0
        self.steps = steps
        self.started = time.time()
        self.timestamp = datetime.now(tz=timezone.utc).strftime("%Y%m%d%H%M%S")
        self.job, self.job_count = job, count

    def end(self) -> None:
        """No job runs."""
        self.job, self.job_count = "", 0

    def shown(self, preview: str | None = None) -> dict[str, Any]:
        """The body of /progress."""
        fraction = eta = 0.0
        if count := self.job_count:
            fraction = 0.01 + self.job_no / count + self.step / (self.steps or 1) / count
            passed = time.time() - self.started
            eta = passed / fraction - passed
        state = {
            "skipped": False,
            "interrupted": self.stop.is_set(),
            "stopping_generation": False,
            "job": self.job,
            "job_count": self.job_count,
            "job_timestamp": self.timestamp,
            "job_no": self.job_no,
            "sampling_step": self.step,
            "sampling_steps": self.steps,
        }
        progress = {"progress": min(fraction, 1.0), "eta_relative": eta, "state": state}
        return progress | {"current_image": preview, "textinfo": None}
