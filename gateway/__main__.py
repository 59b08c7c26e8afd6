"""`python -m gateway bridge ...`: see docs/bridge.md."""

from __future__ import annotations

import os
import sys

USAGE = """\
usage: python -m gateway bridge --endpoint ID [--port 7860]
       python -m gateway bridge --diagnose [FILE]
       python -m gateway bridge --help
The worker's own HTTP server is started by ./start.sh --rp_serve_api, or make serve.
"""


def main() -> int:
    """Run the command; returns the exit status."""
    if sys.argv[1:2] != ["bridge"]:
        sys.stderr.write(USAGE)
        return 0 if {"-h", "--help"} & set(sys.argv[1:]) else 2
    if sys.argv[2:3] == ["--diagnose"]:  # without the packages, which may be the fault
        from worker.diagnosis import report  # noqa: PLC0415

        return report.write("".join(sys.argv[3:4]), os.environ)
    try:
        from gateway.bridge.program import main as run  # noqa: PLC0415 - may lack a package
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"The bridge needs the package {error.name}: run\n"
            "  python -m pip install -r requirements-bridge.txt\n"
        )
        return 2
    return run(sys.argv[2:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
