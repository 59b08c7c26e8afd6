"""Measure every row, and write docs/benchmarks.json, docs/benchmarks.md and its plots.

    python -m benchmarks.suite                 # everything
    python -m benchmarks.suite --only download # one row; prints it and writes nothing
    python -m benchmarks.suite --list

Exit status: 0, also when goals are missed; 1 if a row failed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.suite import machine, page, plots
from benchmarks.suite.bench import Bench
from benchmarks.suite.figures import Curve, Found
from benchmarks.suite.results import Results

DOCS = machine.PROJECT / "docs"
# The modules of benchmarks/rows, in the order of the page.
ROWS = (
    *("job", "gap", "overlap", "busy", "start", "checkpoints", "volume", "download", "workers"),
    *("prepare", "merge", "embedded", "pictures"),
)


def measure(name: str, *, quick: bool, folder: Path | None = None) -> Found:
    """Measure one row."""
    module = importlib.import_module(f"benchmarks.rows.{name}")
    busy = machine.busy_cores() if quick else machine.settled_cores()
    found = Found(name, module.TITLE, module.ABOUT, busy_cores=round(busy, 2))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as scratch:
        for result in module.measure(Bench(Path(scratch), quick=quick)):
            (found.curves if isinstance(result, Curve) else found.figures).append(result)
    found.seconds = round(time.monotonic() - began, 1)
    return found


def write(results: Results, docs: Path = DOCS) -> None:
    """Write the results, the page and its plots."""
    results.write(docs / "benchmarks.json")
    (docs / "benchmarks.md").write_text(page.page(results))
    for old in (docs / "images").glob("bench-*.svg"):
        old.unlink()
    for curve in (curve for row in results.rows for curve in row.curves):
        (docs / "images" / page.plot_file(curve)).write_text(plots.draw(curve))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; returns the exit status."""
    options = _arguments(arguments)
    if options.list:
        print("\n".join(ROWS))
        return 0
    found, failed = [], []
    for name in options.only or ROWS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            found.append(measure(name, quick=options.quick, folder=options.folder))
        except Exception:  # noqa: BLE001 - the other rows are still worth measuring
            traceback.print_exc()
            failed.append(name)
    results = Results(machine.describe(), found, quick=options.quick)
    print(page.page(results))
    if not (failed or options.only or options.quick):
        write(results)
    if failed:
        print(f"Failed: {', '.join(failed)}. Nothing was written.", file=sys.stderr)
    return 1 if failed else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", action="append", choices=ROWS, help="measure this row only")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--folder", type=Path, help="scratch space; default: the system's")
    parser.add_argument("--list", action="store_true", help="list the rows")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
