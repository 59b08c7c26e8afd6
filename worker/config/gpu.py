"""With what the engine computes: the GPU, or the CPU where no GPU is promised or DEVICE=cpu.

A machine promises a GPU if nvidia-smi answers as it does only where there is one, if the driver's
device file exists, or if RunPod counts one. There the engine must use it: a picture on the CPU
takes minutes, on a machine that is paid for its GPU. Only certain problems are fatal.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worker.config import nvidia_smi
from worker.config.gpus import (
    SMALLEST_GPU,
    WEIGHTS_OF_SD1,
    XFORMERS,
    has_xformers,
    oldest_driver,
)
from worker.config.nvidia_smi import Gpu
from worker.config.platform_settings import one_line
from worker.config.settings import PROJECT, Settings

DEVICE_FILE = Path("/dev/nvidiactl")  # the driver's; it exists in each container with a GPU

SMALL_MEMORY_FLAGS = {"--lowvram", "--medvram", "--medvram-sdxl"}

_OPERATORS_ATTENTION = re.compile(r"--(force-enable-)?xformers|--opt-[a-z0-9-]*attention[a-z0-9-]*")

ON_THE_CPU = "set DEVICE=cpu to compute on the CPU, which takes minutes for each picture"
_NAMES = {"a1111": "A1111", "embedded": "the embedded engine"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """A problem and its remedy, for the operator; `fatal` if not one picture can be made."""

    sentence: str
    fatal: bool = True


@dataclass(frozen=True)
class Compute:
    """With what start.sh lets the engine compute.

    Attributes:
        device: empty for an engine that start.sh does not start.
        attention: the implementation, or the flag by which the operator has chosen one.
        gpu: name of the GPU; empty if unknown.
        driver: version of its driver; empty if unknown.
        environment: `NAME=value` for the engine, so that it uses that GPU.
    """

    device: Literal["cuda", "cpu", ""]
    attention: str = ""
    gpu: str = ""
    driver: str = ""
    environment: tuple[str, ...] = ()


def examine(
    settings: Settings, environ: Mapping[str, str], timeout: float
) -> tuple[list[Finding], Compute]:
    """The GPU's problems, and with what the engine computes if none of them is fatal."""
    if settings.engine == "external":
        return [], Compute("")
    if uses_cpu(settings):
        return [*flag_findings(settings, None)], Compute("cpu", attention(settings, None, {}))
    answer = nvidia_smi.ask(timeout)
    if answer is None or not answer.gpus:
        return _without_gpus(settings, answer)
    choice = choose(answer.gpus, environ, engine_flags(settings))
    if isinstance(choice, Finding):
        return [choice], Compute("cuda")
    torch = torch_build(engine_python(settings), timeout)
    found, gpu, environment = _judge(choice, torch, settings)
    found += flag_findings(settings, gpu)
    if answer.remarks:
        found.append(Finding(f"nvidia-smi reports: {answer.remarks}", fatal=False))
    chosen = attention(settings, gpu.capability, torch or {})
    name, driver = shown_name(gpu), one_line(gpu.driver) or ""
    return found, Compute("cuda", chosen, name, driver, environment)


def shown_name(gpu: Gpu) -> str:
    """The GPU's name on one line, and whether it is, or may be, only a part of that card."""
    name = one_line(gpu.name) or ""
    if gpu.is_mig and "MIG" not in name:
        return f"{name} (MIG slice)"
    return name if gpu.total else f"{name} (memory unknown)"  # as of a slice in some containers


# What the settings say ---------------------------------------------------------------------------


def uses_cpu(settings: Settings) -> bool:
    """Whether the operator has said that the engine computes on the CPU.

    A1111's `--use-cpu` can also name a part of it that makes no pictures, such as `interrogate`.
    """
    parts = map(str.lower, values_of("--use-cpu", engine_flags(settings)))
    return settings.device == "cpu" or bool({"all", "sd"}.intersection(parts))


def counts_gpus(settings: Settings) -> bool:
    """Whether RunPod promises a GPU."""
    return settings.runpod_gpu_count not in {"", "0"}


def must_use_gpu(settings: Settings) -> bool:
    """Whether an engine that does not use CUDA is a fault; for the handler.

    Without start.sh only RunPod's count tells it, and nothing does for an engine elsewhere.
    """
    if settings.engine == "external" or uses_cpu(settings):
        return False
    return settings.engine_device == "cuda" or (
        settings.engine_device is None and counts_gpus(settings)
    )


def engine_flags(settings: Settings) -> Sequence[str]:
    """A1111's flags; the embedded engine has none."""
    return settings.webui_args if settings.engine == "a1111" else ()


def engine_python(settings: Settings) -> Path:
    """The Python that runs the engine; start.sh runs the embedded engine with the worker's own."""
    return settings.webui_interpreter if settings.engine == "a1111" else Path(sys.executable)


# Without a GPU ----------------------------------------------------------------------------------


def _without_gpus(
    settings: Settings, answer: nvidia_smi.Answer | None
) -> tuple[list[Finding], Compute]:
    on_gpu = Compute("cuda", attention(settings, None, {}))
    if answer is None and DEVICE_FILE.exists():
        return [], on_gpu  # without the driver's tools nothing else can be checked
    problem = _why_none(settings, answer)
    promised = counts_gpus(settings) or DEVICE_FILE.exists() or (answer and answer.proves_a_gpu)
    if promised or settings.engine == "a1111":
        return [Finding(f"{problem}; or {ON_THE_CPU}.")], on_gpu
    log.log(
        logging.INFO if answer is None else logging.WARNING,
        "nothing promises an NVIDIA GPU here, so the engine computes on the CPU%s",
        f" (nvidia-smi: {answer.remarks})" if answer else "",
    )
    return [], Compute("cpu", attention(settings, None, {}))


def _why_none(settings: Settings, answer: nvidia_smi.Answer | None) -> str:
    if answer is None:
        problem = "There is no NVIDIA GPU here, and A1111 needs one"
        if counts_gpus(settings):
            count = settings.runpod_gpu_count
            problem = f"RUNPOD_GPU_COUNT={count}, but nvidia-smi and the driver are not here"
        return (
            f"{problem}: start the container with `--gpus all`, and install the NVIDIA Container"
            " Toolkit on the host"
        )
    return (
        f"nvidia-smi finds no usable GPU ({answer.remarks}): install or repair the NVIDIA driver of"
        " the host; a Blackwell GPU needs 570 or newer"
    )


# Which GPU --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The GPUs of which the engine will use one.

    Attributes:
        gpus: usually one; several if CUDA's order of the GPUs is unknown, or the worker may choose.
        environment: `NAME=value` for the engine.
        is_free: the worker may choose one of all GPUs.
    """

    gpus: Sequence[Gpu]
    environment: tuple[str, ...] = ()
    is_free: bool = False


_BY_BUS = "CUDA_DEVICE_ORDER=PCI_BUS_ID"  # nvidia-smi's order; CUDA's own is the fastest first


def choose(
    gpus: Sequence[Gpu], environ: Mapping[str, str], flags: Sequence[str]
) -> Choice | Finding:
    """Which GPU the engine uses: A1111's `--device-id` of those in CUDA_VISIBLE_DEVICES, else 0.

    Numbers mean nvidia-smi's order, because that is where the operator reads them.
    """
    visible, numbers = environ.get("CUDA_VISIBLE_DEVICES"), values_of("--device-id", flags)
    if visible is None and not numbers:
        return Choice(gpus, is_free=len(gpus) > 1)
    seen = list(gpus) if visible is None else _visible(gpus, visible)
    if seen == []:
        return Finding(
            f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU of this machine: remove the"
            f" variable, or {ON_THE_CPU}."
        )
    if seen is None or environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID") != "PCI_BUS_ID":
        return Choice(gpus)
    number = int(numbers[0]) if numbers and numbers[0].isdecimal() else 0
    if number >= len(seen):
        return Finding(
            f"--device-id {number} of WEBUI_ARGS names no GPU: nvidia-smi lists {len(gpus)},"
            f" CUDA_VISIBLE_DEVICES leaves {len(seen)}, and the first one has the number 0."
        )
    return Choice([seen[number]], (_BY_BUS,) if len(gpus) > 1 else ())


def _visible(gpus: Sequence[Gpu], names: str) -> list[Gpu] | None:
    """The GPUs of CUDA_VISIBLE_DEVICES, which ends at the first wrong name; None if unknown."""
    seen = []
    for name in (part.strip() for part in names.split(",")):
        if name.startswith("MIG-") or (name.startswith("GPU-") and not gpus[0].uuid):
            return None  # nvidia-smi's list has no slices, and without its report no UUIDs
        found = [gpu for gpu in gpus if name.startswith("GPU-") and gpu.uuid.startswith(name)]
        if name.isdecimal() and int(name) < len(gpus):
            found = [gpus[int(name)]]
        if not found:
            break
        seen.append(found[0])
    return seen


def values_of(flag: str, flags: Sequence[str]) -> list[str]:
    """The words that follow a flag, up to the next one."""
    words = [part for word in flags for part in word.split("=", 1 if word[:2] == "--" else 0)]
    if flag not in words:
        return []
    following = words[words.index(flag) + 1 :]
    return list(itertools.takewhile(lambda word: not word.startswith("--"), following))


# Its problems -----------------------------------------------------------------------------------


def _judge(
    choice: Choice, torch: Mapping[str, Any] | None, settings: Settings
) -> tuple[list[Finding], Gpu, tuple[str, ...]]:
    """The findings about the GPU that is used, that GPU, and what makes the engine use it.

    Of several GPUs that the worker may choose from, it is the usable one with the most free memory.
    """
    each = [(gpu, list(gpu_findings(gpu, torch, settings))) for gpu in choice.gpus]
    usable = [pair for pair in each if not any(one.fatal for one in pair[1])]
    if not choice.is_free or not usable:
        gpu, found = (usable or each)[0]
        return found, gpu, choice.environment
    gpu, found = max(usable, key=lambda pair: pair[0].free or 0)
    return found, gpu, (_BY_BUS, f"CUDA_VISIBLE_DEVICES={choice.gpus.index(gpu)}")


def gpu_findings(
    gpu: Gpu, torch: Mapping[str, Any] | None, settings: Settings
) -> Iterator[Finding]:
    """The problems of one GPU.

    Args:
        gpu: as nvidia-smi describes it.
        torch: `cuda` and `architectures` of the engine's torch (image/torch_build.py); None if it
            cannot be imported, which the engine itself explains best.
        settings: the engine and its flags.
    """
    if gpu.broken:
        yield Finding(
            f"{gpu.name} has failed ({gpu.broken}): reset it (nvidia-smi -r) or restart its"
            f" host, or use another GPU, or {ON_THE_CPU}."
        )
    for worry in gpu.worries:
        yield Finding(
            f"{gpu.name} {worry}: watch it, and reset or replace it if jobs fail.", fatal=False
        )
    if torch:
        yield from _torch_findings(gpu, torch, settings)
    yield from _memory_findings(gpu, settings)


def _torch_findings(gpu: Gpu, torch: Mapping[str, Any], settings: Settings) -> Iterator[Finding]:
    if torch["cuda"] is None:
        yield Finding(
            f"The torch of {engine_python(settings)} was built for the CPU, and this machine has a"
            f" GPU: install one that was built for CUDA, or {ON_THE_CPU}."
        )
        return
    oldest = oldest_driver(torch["cuda"], gpu.capability)
    # NVIDIA's cuda-compat gives GPUs of data centres a newer CUDA than their driver's own.
    has_cuda = _version(gpu.cuda) >= _version(torch["cuda"])
    if (driver := _version(gpu.driver)) and driver < oldest and not has_cuda:
        yield Finding(
            f"The NVIDIA driver {gpu.driver} is too old for CUDA {torch['cuda']} on {gpu.name}:"
            f" install {'.'.join(map(str, oldest))} or newer on the host (on RunPod: select newer"
            f" CUDA versions for the endpoint), or {ON_THE_CPU}."
        )
    if gpu.capability and not _runs_on(gpu.capability, torch["architectures"]):
        yield Finding(
            f"{gpu.name} has compute capability {_dotted(gpu.capability)}, and the torch of"
            f" {_NAMES[settings.engine]} has code only for {', '.join(torch['architectures'])}: use"
            f" another GPU, or outside the images another build of torch, or {ON_THE_CPU}."
        )


def _memory_findings(gpu: Gpu, settings: Settings) -> Iterator[Finding]:
    if SMALL_MEMORY_FLAGS.intersection(engine_flags(settings)):
        return
    name, is_a1111 = _NAMES[settings.engine], settings.engine == "a1111"
    if gpu.free is not None and gpu.free < WEIGHTS_OF_SD1 <= (gpu.total or 0):
        # Only the embedded engine has a smaller model, the demo model.
        yield Finding(
            f"Only {gpu.free} of {gpu.total} MiB of {gpu.name} are free, and SD1 needs at least"
            f" {WEIGHTS_OF_SD1} MiB: end the other programs on this GPU, or {ON_THE_CPU}.",
            fatal=is_a1111,
        )
    elif gpu.total and gpu.total < SMALLEST_GPU:
        # The embedded engine moves parts of a model to the RAM by itself.
        yield Finding(
            f"{gpu.name} has {gpu.total} MiB of memory, and {name} needs {SMALLEST_GPU} MiB: use a"
            f" larger GPU{', or set WEBUI_ARGS=--lowvram (slow)' * is_a1111}.",
            fatal=is_a1111,
        )
    elif gpu.free is not None and gpu.free < SMALLEST_GPU:
        yield Finding(
            f"Only {gpu.free} of {gpu.total} MiB of {gpu.name} are free, so CUDA may run out of"
            " memory: end the other programs on this GPU.",
            fatal=False,
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _runs_on(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Machine code runs on its major version from its minor version on; PTX on anything newer.

    One with a letter (sm_90a) is for fewer GPUs than that, and then torch's own error tells it.
    """
    for architecture in architectures:
        parts = re.fullmatch("(sm|compute)_([0-9]+)([0-9])[a-z]?", architecture)
        if not parts:
            continue
        major, minor = int(parts[2]), int(parts[3])
        if parts[1] == "compute" and (major, minor) <= capability:
            return True
        if parts[1] == "sm" and major == capability[0] and minor <= capability[1]:
            return True
    return False


# The engine's torch -----------------------------------------------------------------------------


def attention(
    settings: Settings, capability: tuple[int, int] | None, torch: Mapping[str, Any]
) -> str:
    """The implementation of attention: `xformers` where it serves, else `sdp`, torch's own.

    A1111 v1.9.3 would use the operators of xformers for its VAE also on GPUs for which they do not
    exist, and fail at each picture. A flag of the operator is respected.
    """
    if chosen := operators_attention(settings):
        return chosen
    serves = capability and has_xformers(capability)
    return "xformers" if settings.engine == "a1111" and serves and torch.get("xformers") else "sdp"


def operators_attention(settings: Settings) -> str:
    """The flag of WEBUI_ARGS that chooses an implementation; empty if there is none."""
    return next(filter(_OPERATORS_ATTENTION.fullmatch, engine_flags(settings)), "")


def flag_findings(settings: Settings, gpu: Gpu | None) -> Iterator[Finding]:
    """The operator's flag for xformers where A1111's VAE cannot use it; no GPU: on the CPU."""
    flag = operators_attention(settings)
    if "xformers" in flag and (not gpu or (gpu.capability or XFORMERS[1]) > XFORMERS[1]):
        yield Finding(
            f"xformers has no code for A1111's VAE on {gpu.name if gpu else 'the CPU'}, so that"
            f" every picture may fail: remove {flag} from WEBUI_ARGS.",
            fatal=False,
        )


def torch_build(python: Path, timeout: float) -> Any:  # noqa: ANN401 - JSON
    """For which GPUs this Python's torch was built (image/torch_build.py); None if unknown.

    The images have it in a file; elsewhere that Python imports torch, which takes seconds.
    """
    file = python.parents[1] / "torch_build.json"
    if file.exists():
        return json.loads(file.read_text())
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own Python
            [python, PROJECT / "image/torch_build.py"],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )
        # A package that prints something when it is imported does so before.
        return json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        printed = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        log.warning(
            "the torch of %s cannot be asked for which GPUs it was built (%s), so driver and GPU"
            " are not checked",
            python,
            (printed.splitlines() or [str(error)])[-1][:300],
        )
        return None
