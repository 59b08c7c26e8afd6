"""`python -m engine --data-dir DIR`: the embedded engine as a process.

Exit status: 1 if it cannot start (Python too old, port in use, config.json damaged), 71 if
`--device cuda` is not possible, each with one line on stderr that gives the reason; otherwise the
status of the signal that ended it.
"""

import argparse
import logging
import os
import re
import socket
import sys
from pathlib import Path
from types import FrameType

from engine.api.options import Options

log = logging.getLogger("engine")

OLDEST_PYTHON = (3, 11)
SHUTDOWN_SECONDS = 5
KEEP_ALIVE_SECONDS = 30  # the same as A1111
LONGEST_MESSAGE = 4000  # characters
EXIT_UNFIT_MACHINE = 71  # EX_OSERR of sysexits.h, as in start.sh


def read_arguments() -> argparse.Namespace:
    """The command-line arguments."""
    parser = argparse.ArgumentParser(prog="python -m engine", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--data-dir", type=Path, required=True, help="a folder in A1111's layout")
    parser.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="auto: a GPU if torch can use one; cuda: a GPU, and never the CPU; cpu: never a GPU",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1,
        help="threads for torch; default: OMP_NUM_THREADS, otherwise all cores",
    )
    return parser.parse_args()


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that is not listening yet. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


def serve(arguments: argparse.Namespace, options: Options, bound: socket.socket) -> None:
    """Serve until a signal ends the process."""
    # imported here: they take seconds to import, and need a newer Python than this module does
    from engine.models import placement  # noqa: PLC0415

    try:
        placement.use(arguments.device)
    except placement.NoGpu as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_UNFIT_MACHINE)

    import uvicorn  # noqa: PLC0415

    from engine.api.generation import Engine  # noqa: PLC0415
    from engine.api.server import create_app  # noqa: PLC0415

    engine = Engine(arguments.data_dir.resolve(), options, arguments.threads)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            engine.close()  # otherwise uvicorn waits for the running job to finish
            super().handle_exit(sig, frame)

    engine.start()
    config = uvicorn.Config(
        create_app(engine, arguments.host),
        log_config=None,
        log_level=logging.WARNING,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    log.info("listening on http://%s:%d", arguments.host, arguments.port)
    Server(config).run(sockets=[bound])


# Characters that end a line, move the cursor or reverse the direction, without \n and \t.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class ShortFormatter(logging.Formatter):
    """Leaves out the middle of a long message: RunPod cuts messages at 4096 characters.

    Further lines are indented, so that text from a job cannot look like a line of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The message with its time, of at most `LONGEST_MESSAGE` characters and a note."""
        text = CONTROL.sub(lambda found: ascii(found[0])[1:-1], super().format(record))
        text = text.replace("\n", "\n    ")
        left_out = len(text) - LONGEST_MESSAGE
        if left_out <= 0:
            return text
        end = LONGEST_MESSAGE // 3
        begin = text[: LONGEST_MESSAGE - end]
        return f"{begin} [... {left_out} characters left out ...] {text[-end:]}"


def main() -> None:
    """Check the requirements before the slow imports, then serve."""
    if sys.version_info < OLDEST_PYTHON:
        sys.exit("The embedded engine needs Python {}.{} or newer.".format(*OLDEST_PYTHON))
    arguments = read_arguments()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(ShortFormatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        options = Options(arguments.data_dir / "config.json")
    except (OSError, TypeError, ValueError) as error:
        sys.exit(str(error))
    try:
        bound = bind(arguments.host, arguments.port)
    except OSError as error:
        sys.exit(f"cannot listen on {arguments.host}:{arguments.port}: {error.strerror}")
    serve(arguments, options, bound)


if __name__ == "__main__":
    main()
