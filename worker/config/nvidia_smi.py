"""What nvidia-smi reports about the GPUs of this machine.

Two queries: one line for each GPU with what every check needs, and the full report as XML for what
some drivers do not have (errors of the memory, MIG, recovery). A field that nvidia-smi does not
know is missing in the report; in a query by name it ends nvidia-smi with status 2.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from xml.etree import ElementTree

# Names of nvidia-smi's values.
QUERY = ("name", "compute_cap", "driver_version", "memory.total", "memory.free")
LIST = (f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
# nvidia-smi knows compute_cap since 510. "count" stands in its place: no compute capability.
LIST_BEFORE_510 = (LIST[0].replace("compute_cap", "count"), LIST[1])
REPORT = ("-q", "-x")

WSL = "/usr/lib/wsl/lib"  # there it is in WSL 2, and not in PATH after sudo or a login with ssh

NO_STATUS = -1  # it did not end in time, or could not be run
_MAX_OUTPUT = 4 << 20  # bytes; a report has some 20 KB for each GPU
_UNTIL_KILLED = 1.0  # seconds
# Exit statuses that also a machine without a GPU has: no device, no driver, no driver's library.
_NOTHING_HERE = {6, 9, 12}
# What stands in the place of a value, or of the whole line, when a GPU has failed.
_BROKEN = re.compile(r"GPU requires reset|GPU is lost|fallen off the bus", re.IGNORECASE)
# Rare actions, such as "Drain P2P", leave the GPU usable for new programs.
_ACTIONS_BEFORE_USE = re.compile(r"(?!Drain).*(Reset|Reboot)", re.IGNORECASE)


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it; None for an unknown value. Memory in MiB.

    Attributes:
        uuid: its UUID; empty if unknown.
        cuda: the newest CUDA version that programs can use here; empty if unknown.
        is_mig: it is divided into MIG slices, and the free memory is that of all of them.
        broken: why it must be reset before it can compute; empty if it need not.
        worries: sentences about errors with which it can still compute.
    """

    name: str
    capability: tuple[int, int] | None
    driver: str
    total: int | None
    free: int | None
    uuid: str = ""
    cuda: str = ""
    is_mig: bool = False
    broken: str = ""
    worries: tuple[str, ...] = ()

    @classmethod
    def read(cls, line: str) -> Gpu:
        """Parse a line of the answer to `LIST`.

        Raises:
            ValueError: the line is something else, such as a warning.
        """
        name, capability, driver, total, free = (part.strip() for part in line.rsplit(",", 4))
        numbers = re.fullmatch(r"(\d+)\.(\d+)", capability)
        broken = _BROKEN.search(line)
        return cls(
            name,
            (int(numbers[1]), int(numbers[2])) if numbers else None,
            driver,
            _number(total),
            _number(free),
            broken=broken[0] if broken else "",
        )


@dataclass(frozen=True)
class Answer:
    """What nvidia-smi answered.

    Attributes:
        gpus: the GPUs that it lists.
        remarks: its other output, such as warnings; on one line, and not empty without GPUs.
        status: its exit status, or `NO_STATUS`.
    """

    gpus: tuple[Gpu, ...]
    remarks: str
    status: int

    @property
    def proves_a_gpu(self) -> bool:
        """Whether a machine without a GPU cannot give this answer."""
        return bool(self.gpus) or self.status not in _NOTHING_HERE


def ask(timeout: float) -> Answer | None:
    """Ask nvidia-smi; None where it is not installed."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=WSL)
    if program is None:
        return None
    # Both at once: without a daemon that keeps the driver loaded, each loads it for seconds.
    with ThreadPoolExecutor() as threads:
        reporting = threads.submit(_run, (program, *REPORT), timeout)
        listed = _run((program, *LIST), timeout)
        if "not a valid field" in listed.stdout:
            listed = _run((program, *LIST_BEFORE_510), timeout)
    answer = read(listed)
    return replace(answer, gpus=with_report(answer.gpus, reporting.result().stdout))


def read(done: subprocess.CompletedProcess[str]) -> Answer:
    """Parse the answer to `LIST`."""
    gpus, remarks = [], []
    for line in done.stdout.splitlines():
        try:
            gpus.append(Gpu.read(line))
        except ValueError:  # a warning between the GPUs
            remarks.append(line)
    text = " ".join(" ".join(remarks).split())[:300]
    if not gpus:
        text = text or f"status {done.returncode} without a text"
    return Answer(tuple(gpus), text, done.returncode)


def _run(command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run it, for no longer than the timeout and with no more than `_MAX_OUTPUT` of output."""
    limited = ("sh", "-c", f'ulimit -f {_MAX_OUTPUT // 512} && exec "$0" "$@"', *command)
    with os.fdopen(os.memfd_create("nvidia-smi"), "r+b") as output:  # the limit is that of files
        try:
            process = subprocess.Popen(  # noqa: S603 - nvidia-smi
                limited, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            # A failed GPU can hold it in the driver, where no signal ends it.
            with suppress(subprocess.TimeoutExpired):
                process.wait(_UNTIL_KILLED)
            return subprocess.CompletedProcess(command, NO_STATUS, f"no answer in {timeout:g} s")
        except OSError as error:
            return subprocess.CompletedProcess(command, NO_STATUS, str(error))
        output.seek(0)
        return subprocess.CompletedProcess(command, status, output.read().decode(errors="replace"))


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


# The report -------------------------------------------------------------------------------------


def with_report(gpus: Sequence[Gpu], report: str) -> tuple[Gpu, ...]:
    """The GPUs with what the report adds; unchanged if it is not one about these GPUs."""
    # Warnings can stand before and behind it. Without its DOCTYPE it can define no entities.
    element = re.search("<nvidia_smi_log>.*</nvidia_smi_log>", report, re.DOTALL)
    try:
        root = ElementTree.fromstring(element[0] if element else "")  # noqa: S314
    except ElementTree.ParseError:
        return tuple(gpus)
    found, cuda = root.findall("gpu"), _text(root, "cuda_version")
    if len(found) != len(gpus):
        return tuple(gpus)
    return tuple(_with_entry(gpu, entry, cuda) for gpu, entry in zip(gpus, found, strict=True))


def _with_entry(gpu: Gpu, entry: ElementTree.Element, cuda: str) -> Gpu:
    is_mig = _text(entry, "mig_mode/current_mig") == "Enabled"
    return replace(
        gpu,
        uuid=_text(entry, "uuid"),
        cuda=cuda,
        is_mig=is_mig,
        free=None if is_mig else gpu.free,
        broken=gpu.broken or _why_broken(entry),
        worries=tuple(_worries(entry)),
    )


def _text(entry: ElementTree.Element, path: str) -> str:
    return (entry.findtext(path) or "").strip()


def _why_broken(entry: ElementTree.Element) -> str:
    action = _text(entry, "gpu_recovery_action")
    if _ACTIONS_BEFORE_USE.fullmatch(action):
        return f"recovery action: {action}"
    if _text(entry, "gpu_reset_status/reset_required") == "Yes":  # drivers before 570
        return "reset required: Yes"
    broken = next(filter(None, map(_BROKEN.search, entry.itertext())), None)
    return broken[0] if broken else ""


def _worries(entry: ElementTree.Element) -> Iterator[str]:
    counts = [*entry.iterfind("ecc_errors/volatile/double_bit/total")]  # GPUs before Ampere
    counts += [one for one in entry.iterfind("ecc_errors/volatile/*") if "uncorrect" in one.tag]
    errors = sum(_number(one.text or "") or 0 for one in counts)
    if errors:
        yield f"has {errors} uncorrected memory errors (ECC) since its driver was loaded"
    if _text(entry, "retired_pages/pending_retirement") == "Yes":
        yield "has memory pages that are retired at its next reset"
    if _text(entry, "remapped_rows/remapped_row_failure") == "Yes":
        yield "has failed to replace a broken row of its memory"
    action = _text(entry, "gpu_recovery_action")
    if action.startswith("Drain"):
        yield f"asks for its recovery ({action})"
