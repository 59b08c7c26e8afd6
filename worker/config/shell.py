"""Settings as shell assignments, so that defaults and checks exist only in Python.

    eval "$(python -m worker.config.shell MODELS_DIR OUTPUT_DIR)"

image/entrypoint.sh runs it like this. start.sh gets its values from `worker.config.preflight`,
which checks the machine as well.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from worker.config.credentials import hidden_from_engine
from worker.config.settings import EXIT_BAD_CONFIGURATION, Settings
from worker.errors import ConfigError

if TYPE_CHECKING:  # image/entrypoint.sh needs only the settings, and soon
    from worker.config.gpu import Compute

_FOR_START_SH = (
    # Its assignment also changes the variable of the environment, which A1111's extension reads.
    "a1111_speedups",
    "engine",
    "engine_restart_window",
    "max_engine_restarts",
    "models_dir",
    "read_only_models_dir",
    "run_dir",
    "served_port",
    "shutdown_grace",
    "webui_dir",
    "webui_url",
)


def assignments(values: Mapping[str, object]) -> str:
    """One line of quoted shell assignment per value; a list becomes an array, None is empty."""
    return "".join(f"{name.upper()}={_quoted(value)}\n" for name, value in values.items())


def _quoted(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"({shlex.join(map(str, value))})"
    return shlex.quote("" if value is None else str(value))


def for_start_sh(settings: Settings, compute: Compute, environ: Mapping[str, str]) -> str:
    """All values that start.sh needs."""
    host, port = settings.engine_address
    values = {name: getattr(settings, name) for name in _FOR_START_SH} | {
        # Not WEBUI_ARGS: bash exports no array, and the handler reads that variable, too.
        "engine_flags": settings.webui_args,
        "webui_host": host,
        "webui_port": port,
        "webui_python": settings.webui_interpreter,
        "engine_device": compute.device,
        "engine_gpu": compute.gpu,
        "engine_driver": compute.driver,
        "engine_attention": compute.attention,
        "engine_environment": compute.environment,
        "hidden_from_engine": hidden_from_engine(environ, settings.engine_variables),
    }
    # bash has no fractions
    for duration in ("shutdown_grace", "engine_restart_window"):
        values[f"{duration}_ms"] = round(values[duration] * 1000)
    return assignments(values)


def main(names: Sequence[str]) -> int:
    """Print the named settings; returns the exit status."""
    try:
        settings = Settings.from_environ(os.environ)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_CONFIGURATION
    sys.stdout.write(assignments({name: getattr(settings, name.lower()) for name in names}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
