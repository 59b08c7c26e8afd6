"""A stand-in for AUTOMATIC1111 WebUI v1.9.3 with --nowebui, faults included, as a process.

    python tests/fakes/a1111 --port 3000 --server-name 127.0.0.1 --data-dir DIR

It reads real model files below DIR, answers what v1.9.3 answers (tests/fakes/recorded), and does
wrong what v1.9.3 does wrong. More faults come from FAKE_A1111_FAULTS at start, a JSON list such as
`[{"fault": "slow_boot", "seconds": 2}]`, or later from `POST /_fake/faults`. It reports a GPU if
FAKE_A1111_CUDA is set.
"""

import argparse
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import uvicorn

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from fakes.a1111.engine import Engine
from fakes.a1111.faults import Faults
from fakes.a1111.server import build_app
from fakes.a1111.state import say
from fakes.recorded import recorded


def read_flags() -> argparse.Namespace:
    """The given flags; an unknown one ends the process with status 2, as A1111's parser does."""
    parser = argparse.ArgumentParser(prog="webui.py", add_help=False)
    for name, value in recorded("get_cmd-flags").items():
        if isinstance(value, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true")
        else:
            parser.add_argument(f"--{name.replace('_', '-')}")
    return parser.parse_args()


def main() -> None:
    """Start as webui.py does and serve until a signal."""
    started = time.monotonic()
    flags = read_flags()
    faults = Faults(os.environ.get("FAKE_A1111_FAULTS", ""))
    if fault := faults.take("boot_crash"):
        sys.exit(fault["status"])
    if fault := faults.take("slow_boot"):
        time.sleep(fault["seconds"])
    engine = Engine(Path(flags.data_dir or Path.cwd()).resolve(), flags.ckpt_dir, faults)
    slow = faults.take("model_slow")
    delay = slow["seconds"] if slow else 0.0
    loading = threading.Thread(target=engine.model.load_first, args=(delay,), daemon=True)
    loading.start()
    if not slow:
        loading.join()
    say(f"Startup time: {time.monotonic() - started:.1f}s (fake).")
    config = uvicorn.Config(build_app(engine), access_log=False, lifespan="off")
    # Bound here, because a busy port ends A1111 with 1, and today's uvicorn with 3.
    address = (flags.server_name or "127.0.0.1", int(flags.port))
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[socket.create_server(address, backlog=2048)])


if __name__ == "__main__":
    main()
