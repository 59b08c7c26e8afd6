"""The rows of docs/benchmarks.md: what is measured, and beside what.

Each module has a `TITLE`, an `ABOUT` (what its rivals are, for a reader of the page) and a function
`measure(bench)` that returns its `Figure`s and `Curve`s. The rows use the fakes of the tests.
"""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
# A second `tests` on the path would do no harm, but a row's own process imports this anew.
sys.path[:0] = [str(path) for path in (PROJECT / "tests", PROJECT) if str(path) not in sys.path]
