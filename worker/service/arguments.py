"""The arguments of handler.py and start.sh, read before anything is started.

start.sh runs this file first, with its own arguments: it ends with 2 and the usage if an argument
is not understood, and with 71 if the port for HTTP is taken. It prints the arguments for the
handler, quoted for the shell, with a job's file as a whole path.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from worker.config.ports import why_not_free

EXIT_PORT_TAKEN = 71  # EX_OSERR of sysexits.h, as in start.sh

_JOB_FILE_MAX = 64 << 20  # bytes; RunPod takes 10 MB
_LEVELS = ("ERROR", "WARN", "INFO", "DEBUG")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence after the usage."""
        self.exit(2, f"{self.format_usage()}{self.prog}: {message}\n")


@dataclass(frozen=True)
class Arguments:
    """What the command line asks for.

    Attributes:
        schema: print the JSON Schema of every task instead of starting.
        diagnose: make a diagnosis instead: the file for it, or empty; None: start.
        job: the one job to run, `{"input": {...}}`; None: the SDK decides.
        serves_http: wait for jobs over HTTP, at `host` and `port`.
        for_sdk: the arguments that the SDK understands.
        for_handler: the same as given, with the whole path of a job's file.
    """

    schema: bool
    diagnose: str | None
    job: dict[str, Any] | None
    serves_http: bool
    host: str
    port: int
    for_sdk: tuple[str, ...]
    for_handler: tuple[str, ...]

    @property
    def starts_nothing(self) -> bool:
        """Whether something is printed or written instead."""
        return self.schema or self.diagnose is not None


def read(arguments: Sequence[str], *, program: str = "handler.py") -> Arguments:
    """Read and check the arguments.

    Raises:
        SystemExit: with 2, if one is not understood, after the usage and a sentence on standard
            error; with 71, if the port for HTTP is taken; with 0 after `--help`.
    """
    parser = _parser(program)
    given = parser.parse_args(arguments)
    job: dict[str, Any] | None = None
    if given.file is not None and given.test_input is not None:
        parser.error(f"{given.file!r} and --test_input are two jobs: give one of them")
    if given.rp_serve_api and (given.file is not None or given.test_input is not None):
        parser.error("--rp_serve_api waits for jobs over HTTP: leave out the job, or the option")
    if given.file is not None:
        job = _job_of_file(parser, given.file)
    elif given.test_input is not None:
        job = _job_of_text(parser, given.test_input)
    if given.rp_serve_api:
        _check_port(parser, given.rp_api_host, given.rp_api_port)
    without_file = [one for one in arguments if one != given.file]
    path = [str(Path(given.file).absolute())] if given.file is not None else []
    return Arguments(
        schema=given.schema,
        diagnose=given.diagnose,
        job=job,
        serves_http=given.rp_serve_api,
        host=given.rp_api_host,
        port=given.rp_api_port,
        for_sdk=_for_sdk(given, job),
        for_handler=(*without_file, *path),
    )


def _parser(program: str) -> _Parser:
    parser = _Parser(
        prog=program,
        allow_abbrev=False,
        description="Runs one job, or waits for jobs: on RunPod, or with --rp_serve_api over HTTP.",
        epilog="Without arguments the worker takes the jobs of RunPod's queue; outside RunPod it"
        " serves HTTP on PORT if that is set, or runs the job in test_input.json.",
    )
    parser.add_argument(
        "file",
        nargs="?",
        metavar="JOB.json",
        help='file with one job to run: {"input": {...}}, or the input alone',
    )
    parser.add_argument("--test_input", metavar="JSON", help="one job to run, as JSON text")
    parser.add_argument("--rp_serve_api", action="store_true", help="wait for jobs over HTTP")
    parser.add_argument("--rp_api_host", default="localhost", help="its host")
    parser.add_argument("--rp_api_port", type=_number(2**16 - 1), default=8000, help="its port")
    parser.add_argument("--rp_log_level", type=str.upper, choices=_LEVELS, help="of the RunPod SDK")
    parser.add_argument("--rp_debugger", action="store_true", help="the RunPod SDK's debugger")
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of every task, and end"
    )
    parser.add_argument(
        "--diagnose",
        metavar="FILE",
        nargs="?",
        const="",
        help="write what a bug report needs into a file, by default in RUN_DIR, and end;"
        " - is standard output",
    )
    return parser


def _number(most: int) -> Callable[[str], int]:
    def read_number(text: str) -> int:
        is_short = len(text) <= len(str(most))
        if not (is_short and text.isascii() and text.isdecimal() and 0 < int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is no whole number from 1 to {most}")
        return int(text)

    return read_number


def _for_sdk(given: argparse.Namespace, job: dict[str, Any] | None) -> tuple[str, ...]:
    level = ("--rp_log_level", given.rp_log_level) if given.rp_log_level else ()
    debugger = ("--rp_debugger",) if given.rp_debugger else ()
    return (*level, *debugger, *(("--test_input", json.dumps(job)) if job else ()))


# A job ------------------------------------------------------------------------------------------


def _job_of_file(parser: _Parser, name: str) -> dict[str, Any]:
    path = Path(name)
    try:
        if not path.is_file():
            parser.error(_no_file(name))
        if path.stat().st_size > _JOB_FILE_MAX:
            parser.error(f"{name!r} is larger than {_JOB_FILE_MAX >> 20} MiB, so it is no job")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text in UTF-8"
        parser.error(f"{name!r} cannot be read: {reason}")
    return _job(parser, text, repr(name))


def _no_file(name: str) -> str:
    if name.endswith(".json"):
        return f"there is no file {name!r} in {str(Path.cwd())!r}"
    return f"{name!r} is no argument; a job is a file such as job.json, or --test_input with JSON"


def _job_of_text(parser: _Parser, text: str) -> dict[str, Any]:
    if text.endswith(".json"):
        parser.error(f"--test_input takes JSON text; to run a file, give its name alone: {text}")
    return _job(parser, text, "--test_input")


def _job(parser: _Parser, text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        parser.error(f"{place} is nested too deeply")
    except ValueError as error:
        parser.error(f'{place} is not JSON ({error}); a job is {{"input": {{"prompt": "a fox"}}}}')
    if not isinstance(value, dict):
        parser.error(f'{place} is no object; a job is {{"input": {{"prompt": "a fox"}}}}')
    if "input" not in value:
        return {"input": value}
    if value["input"] is None:
        parser.error(f"{place} has an empty `input`")
    return value


# HTTP -----------------------------------------------------------------------------------------


def _check_port(parser: _Parser, host: str, port: int) -> None:
    if problem := why_not_free(host, port):
        parser.exit(
            EXIT_PORT_TAKEN,
            f"{parser.prog}: The worker cannot listen on port {port} of {host} ({problem}): stop"
            " the program that uses it, or choose another port with --rp_api_port or PORT.\n",
        )


def main() -> None:
    """Check the arguments for start.sh."""
    sys.stdout.write(shlex.join(read(sys.argv[1:], program="start.sh").for_handler))


if __name__ == "__main__":
    main()
