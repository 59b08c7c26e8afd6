"""The handler program of workers under test: handler.py, with short waits for the engine."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as a program

import handler
from worker.webui.timing import EngineTiming

QUICK = EngineTiming(
    quiet=0.2,
    ready_poll=0.05,
    route_patience=1.0,
    watch_every=0.1,
    progress_every=0.2,
    stop_patience=4.0,  # an interrupted job of the fake engine ends at once, also on a busy machine
    stop_poll=0.1,
    route_wait=0.1,
    route_recheck=0.5,
)

if __name__ == "__main__":
    sys.exit(handler.main(timing=QUICK))
