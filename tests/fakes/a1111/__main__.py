"""A stand-in for AUTOMATIC1111 WebUI v1.9.3 with --nowebui, faults included, as a process.

    python tests/fakes/a1111 --port 3000 --server-name 127.0.0.1 --data-dir DIR

It reads real model files below DIR, answers what v1.9.3 answers (tests/fakes/recorded), and does
wrong what v1.9.3 does wrong. More faults come from FAKE_A1111_FAULTS at start, a JSON list such as
`[{"fault": "slow_boot", "seconds": 2}]`, or later from `POST /_fake/faults`.
"""

import argparse
import os
import shlex
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
from fakes.a1111.server import Gate, build_app
from fakes.a1111.state import say
from fakes.recorded import recorded

SWITCHES = {"disable_tls_verify"}  # the recorded value of this switch is null
LISTS = {"use_cpu": {"nargs": "+"}}


def read_flags(argv: list[str]) -> argparse.Namespace:
    """The given flags; an unknown one ends the process with status 2, as A1111's parser does."""
    parser = argparse.ArgumentParser(prog="webui.py", add_help=False)
    for name, value in recorded("get_cmd-flags").items():
        flag = "-f" if name == "f" else f"--{name.replace('_', '-')}"
        if isinstance(value, bool) or name in SWITCHES:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, **LISTS.get(name, {}))
    return parser.parse_args([*argv, *shlex.split(os.environ.get("COMMANDLINE_ARGS", ""))])


def _load_model(engine: Engine) -> None:
    slow = engine.faults.take("model_slow")
    delay = slow.seconds(1) if slow else 0.0
    loading = threading.Thread(target=engine.model.load_first, args=(delay,), daemon=True)
    loading.start()
    if not slow:
        loading.join()


def _announce(started: float) -> None:
    say(f"Startup time: {time.monotonic() - started:.1f}s (fake).")


def _serve(app: Gate, flags: argparse.Namespace) -> None:
    config = uvicorn.Config(
        app,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=int(flags.timeout_keep_alive or 30),
    )
    port = int(flags.port or (7861 if flags.nowebui else 7860))
    # Bound here, because a busy port ends A1111 with 1, and today's uvicorn with 3.
    listening = socket.create_server((flags.server_name or "127.0.0.1", port), backlog=2048)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def main(argv: list[str] | None = None) -> None:
    """Start as webui.py does and serve until a signal."""
    started = time.monotonic()
    flags = read_flags(sys.argv[1:] if argv is None else argv)
    data_dir = Path(flags.data_dir or Path.cwd()).resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    faults = Faults(os.environ.get("FAKE_A1111_FAULTS", ""))
    if fault := faults.take("boot_crash"):
        sys.exit(fault.params.get("status", 1))
    if fault := faults.take("slow_boot"):
        time.sleep(fault.seconds(1))
    engine = Engine(flags, data_dir, faults)
    if not flags.skip_load_model_at_start:
        _load_model(engine)
    ui_mode = faults.take("ui_mode")
    if ui_mode:  # its API comes after the port
        threading.Timer(ui_mode.seconds(1), _announce, [started]).start()
    else:
        _announce(started)
    _serve(build_app(engine, flags, ui_mode), flags)


if __name__ == "__main__":
    main()
