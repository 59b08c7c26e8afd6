"""An NVIDIA GPU as start.sh's check sees it: nvidia-smi, and a Python with a torch for CUDA."""

import json
import shlex
import sys
import sysconfig
from pathlib import Path

RTX_4090 = "NVIDIA GeForce RTX 4090, 8.9, 550.54.15, 24564, 24217"
CUDA_128 = {  # what image/torch_build.py prints in the image of A1111: torch 2.10.0 of PyPI
    "cuda": "12.8",
    "architectures": ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
    "xformers": "0.0.34",
}
CUDA_121 = {  # what image/torch_build.py prints for PyPI's torch 2.1.2
    "cuda": "12.1",
    "architectures": ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"],
}


def write_program(path: Path, script: str) -> None:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def write_nvidia_smi(folder: Path, *gpus: str, status: int = 0, report: str = "") -> None:
    """Write an nvidia-smi that prints these lines, and this report for `-q -x`."""
    lines = " ".join(map(shlex.quote, gpus))
    reporting = f'if [ "$1" = -q ]; then printf %s {shlex.quote(report)}; exit; fi'
    program = f"{reporting}\nprintf '%s\\n' {lines}\nexit {status}"
    write_program(folder / "nvidia-smi", program)


def report_of(*gpus: str, cuda: str = "12.4") -> str:
    """The report of `nvidia-smi -q -x`, of which each GPU has only these elements."""
    entries = "".join(f"<gpu>{elements}</gpu>" for elements in gpus)
    version = f"<cuda_version>{cuda}</cuda_version>"
    doctype = '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">'
    return f'<?xml version="1.0" ?>{doctype}<nvidia_smi_log>{version}{entries}</nvidia_smi_log>'


def write_webui_python(environment: Path, torch: object = CUDA_128) -> Path:
    """Make this Python an A1111 environment with the image's file about torch; returns its path."""
    python = environment / "bin" / "python"
    write_program(python, f'exec {shlex.quote(sys.executable)} "$@"')
    (environment / "torch_build.json").write_text(json.dumps(torch))
    return python


def write_worker_python(environment: Path, torch: object = CUDA_128) -> Path:
    """Make an environment with this Python's packages and the embedded image's file about torch.

    Not a program that starts this Python: `sys.executable` would be this Python's path.
    """
    packages = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    python, base = environment / "bin" / "python", Path(sys.base_exec_prefix) / "bin" / "python3"
    (environment / packages).mkdir(parents=True, exist_ok=True)
    (environment / packages / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (environment / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    python.parent.mkdir(exist_ok=True)
    python.unlink(missing_ok=True)
    python.symlink_to(base)
    (environment / "torch_build.json").write_text(json.dumps(torch))
    return python
