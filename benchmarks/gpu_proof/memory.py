"""The memory of the worker, its engine and the GPU while a step runs: the largest values."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress

import psutil

from benchmarks.gpu_proof.worker_process import WorkerProcess

SAMPLE_SECONDS = 0.5  # looking for the processes takes some milliseconds
# nvidia-smi prints a line of MiB for the GPU, again and again. It disturbs no engine.
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms")
STOP_SECONDS = 5.0


class Memory:
    """Samples memory while the `with` block lasts; set `worker` to the one that runs."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.worker: WorkerProcess | None = None
        self._environ = environ
        self._largest: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._sample_processes, daemon=True)]
        self._nvidia_smi: subprocess.Popen[str] | None = None

    def __enter__(self) -> Memory:
        with suppress(OSError):  # no nvidia-smi, no GPU
            self._nvidia_smi = subprocess.Popen(
                [*NVIDIA_SMI, str(round(1000 * SAMPLE_SECONDS)), *self._which_gpu()],
                env=dict(self._environ),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            reader = threading.Thread(
                target=self._read_gpu, args=(self._nvidia_smi.stdout,), daemon=True
            )
            self._threads.append(reader)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._nvidia_smi is not None:
            self._nvidia_smi.kill()
            self._nvidia_smi.wait(STOP_SECONDS)
        for thread in self._threads:
            thread.join(STOP_SECONDS)
        if self._nvidia_smi is not None and self._nvidia_smi.stdout is not None:
            self._nvidia_smi.stdout.close()

    def take_largest(self) -> dict[str, float]:
        """The largest values since the last call, in GB: `worker`, `engine` and `GPU`."""
        with self._lock:
            largest, self._largest = self._largest, {}
        return {name: round(size / 1e9, 2) for name, size in sorted(largest.items())}

    def _which_gpu(self) -> list[str]:
        visible = self._environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        return ["-i", visible] if visible else []

    def _note(self, name: str, size: float) -> None:
        with self._lock:
            self._largest[name] = max(size, self._largest.get(name, 0.0))

    def _sample_processes(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            for name, process in (self.worker.processes() if self.worker else {}).items():
                with suppress(psutil.Error):  # it has just ended
                    self._note(name, process.memory_info().rss)

    def _read_gpu(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line.strip().isdecimal():  # "[N/A]" for a slice of a GPU
                self._note("GPU", float(line) * 2**20)
