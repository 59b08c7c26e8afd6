"""The contenders of the benchmark, and one run of one of them."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from hosts import Host, Sample, environment

OURS = "ours: SHA-256, inspection, fsync"
ARIA2C = "aria2c -x16, no hash"
ARIA2C_THEN = {
    "aria2c -x16, then sha256sum": 'sha256sum "$TARGET"',
    "aria2c -x16, then openssl": 'openssl dgst -r -sha256 "$TARGET"',
}
CURL = "curl, no hash"
TRANSFER = "alone: our transfer, no hash"
HASH = "alone: SHA-256"

CLIENTS = Path(__file__).with_name("clients.py")


class Failed(Exception):
    """A contender ended with an error, or its file is wrong."""


@dataclass(frozen=True)
class Contender:
    """A way to fetch the file.

    Attributes:
        command: for bash; `_variables` has the variables that it can use.
        then: commands that read the file afterwards, by the name of both together.
        throttled_rounds: the most rounds where each connection is throttled; contenders with one
            connection all take the same time there.
    """

    name: str
    command: str
    then: dict[str, str] | None = None
    throttled_rounds: int | None = None


@dataclass(frozen=True)
class Run:
    """The costs of one run.

    Attributes:
        cpu: seconds, without the server's.
        peak: bytes of memory, of its largest process.
        others: cores that other processes used during the run, of those available to us.
    """

    seconds: float
    cpu: float
    server_cpu: float
    peak: int
    others: float

    def and_then(self, run: Run) -> Run:
        """Both, one after the other."""
        return Run(
            self.seconds + run.seconds,
            self.cpu + run.cpu,
            self.server_cpu + run.server_cpu,
            max(self.peak, run.peak),
            max(self.others, run.others),
        )


def _client(name: str) -> str:
    return f'"$PYTHON" "$CLIENTS" {name} "$URL" "$TARGET" "$SIZE" "$SHA256"'


# aria2c splits the file into 16 parts at once; with `-k1M` it splits what is left again later.
_ARIA2C = (
    "aria2c --no-conf --quiet --allow-overwrite=true --auto-file-renaming=false"
    " --file-allocation=none -x16 -s16 -k1M ${CA:+--ca-certificate=$CA}"
    ' -d "$(dirname "$TARGET")" -o "$(basename "$TARGET")" "$URL"'
)
_CURL = "curl --silent --show-error --fail ${CA:+--cacert $CA}"

CONTENDERS = (
    Contender(OURS, _client("ours")),
    Contender(ARIA2C, _ARIA2C, then=ARIA2C_THEN),
    Contender(CURL, f'{_CURL} -o "$TARGET" "$URL"', throttled_rounds=1),
    Contender(
        "curl | tee | openssl",
        f'set -o pipefail; {_CURL} "$URL" | tee "$TARGET" | openssl dgst -r -sha256',
        throttled_rounds=0,
    ),
    Contender("requests 1 MiB, SHA-256", _client("requests-1MiB-hash"), throttled_rounds=1),
    Contender("requests 8 KiB, no hash", _client("requests-8KiB"), throttled_rounds=0),
    Contender(TRANSFER, _client("ours-without-hash")),
    Contender(HASH, _client("hash-alone")),
)


def run(
    contender: Contender, host: Host, sample: Sample, target: Path
) -> Iterator[tuple[str, Run]]:
    """Run it once; returns its name and its costs, and the same for each of `then`.

    Raises:
        Failed: the file did not arrive, or not correctly.
    """
    variables = _variables(host, sample, target)
    try:
        first = _measured(contender.command, variables, host)
        yield contender.name, first
        for name, command in (contender.then or {}).items():
            yield name, first.and_then(_measured(command, variables, host))
        if contender.name != HASH and not filecmp.cmp(sample.path, target, shallow=False):
            raise Failed("it has written other bytes than the host's.")
    finally:
        for rest in target.parent.iterdir():
            rest.unlink()


def _variables(host: Host, sample: Sample, target: Path) -> dict[str, str]:
    variables = environment(
        PYTHON=sys.executable,
        CLIENTS=str(CLIENTS),
        URL=host.url,
        TARGET=str(target),
        SIZE=str(sample.size),
        SHA256=sample.sha256,
        NO_PROXY="*",
        no_proxy="*",
    )
    if host.ca_file:
        variables |= {"CA": str(host.ca_file), "SSL_CERT_FILE": str(host.ca_file)}
    return variables


def _measured(command: str, variables: dict[str, str], host: Host) -> Run:
    busy, server, begun = _busy(), host.cpu(), time.monotonic()
    process = subprocess.Popen(["bash", "-c", command], env=variables, stdout=subprocess.PIPE)
    with process.stdout as output:
        printed = output.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall, cpu = time.monotonic() - begun, usage.ru_utime + usage.ru_stime
    server, busy = host.cpu() - server, _busy() - busy
    if process.returncode:
        raise Failed(f"it ended with status {process.returncode}.")
    # Our clients print JSON, the tools print a hash or nothing.
    report = json.loads(printed) if printed.startswith("{") else {"sha256": printed[:64] or None}
    if report["sha256"] not in {None, variables["SHA256"]}:
        raise Failed(f"its file has the SHA-256 {report['sha256']}.")
    return Run(
        report.get("seconds", wall),
        report.get("cpu", cpu),
        server,
        usage.ru_maxrss * 1024,
        max(0.0, busy - cpu - server) / wall,
    )


def _busy() -> float:
    """CPU seconds that all processes have used so far on the cores available to us."""
    every = psutil.cpu_times(percpu=True)
    times = [every[core] for core in os.sched_getaffinity(0)]
    return sum(sum(one) - one.idle - one.iowait - one.guest - one.guest_nice for one in times)
