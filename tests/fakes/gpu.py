"""An NVIDIA GPU as start.sh's check sees it: nvidia-smi, and a Python with a torch for CUDA."""

import json
import shlex
import sys
from pathlib import Path

RTX_4090 = "NVIDIA GeForce RTX 4090, 8.9, 550.54.15, 24564, 24217"
CUDA_121 = {  # what image/torch_build.py prints for PyPI's torch 2.1.2
    "cuda": "12.1",
    "architectures": ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"],
}


def write_program(path: Path, script: str) -> None:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def write_nvidia_smi(folder: Path, *gpus: str, status: int = 0) -> None:
    """Write an nvidia-smi that prints these lines for every query."""
    lines = " ".join(map(shlex.quote, gpus))
    write_program(folder / "nvidia-smi", f"printf '%s\\n' {lines}\nexit {status}")


def write_webui_python(environment: Path, torch: object = CUDA_121) -> Path:
    """Make this Python an A1111 environment with the image's file about torch; returns its path."""
    python = environment / "bin" / "python"
    write_program(python, f'exec {shlex.quote(sys.executable)} "$@"')
    (environment / "torch_build.json").write_text(json.dumps(torch))
    return python
