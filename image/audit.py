"""Looks for known vulnerabilities of the packages in image/*.lock: `make audit`.

    python image/audit.py                    with pip-audit, from PyPI
    python image/audit.py --database DIR     without network, from a clone of pypa/advisory-database

Exit status: 1 if a package has a vulnerability that advisories.json does not explain, or if one was
not looked up. The locks of A1111 keep its own pins, which are years old: there, a new finding is a
warning, until somebody has decided about it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PROGRAM = ["uv", "tool", "run", "--from", "pip-audit==2.10.1", "pip-audit"]
OPTIONS = ["--no-deps", "--disable-pip", "--strict", "--progress-spinner", "off", "-f", "json"]


class Finding(NamedTuple):
    """A vulnerability of a package in a lock file; `ids` are all of its names."""

    lock: str
    package: str
    version: str
    ids: frozenset[str]


def pins(lock: Path) -> dict[str, str]:
    """Package -> version."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def by_pip_audit(lock: Path) -> Iterator[Finding]:
    """Ask PyPI. Raises SystemExit if it does not know a package, which else would look harmless."""
    done = subprocess.run(  # its status is 1 for findings and for failures
        [*PROGRAM, *OPTIONS, "-r", str(lock)], capture_output=True, text=True, check=False
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        sys.exit(f"{lock.name}: pip-audit has failed: {done.stderr.strip()[-500:]}")
    if skipped := [one["name"] for one in packages if "skip_reason" in one]:
        sys.exit(f"{lock.name}: not looked up: {', '.join(skipped)}")
    if len(packages) < len(pins(lock)):
        sys.exit(f"{lock.name}: pip-audit has looked up {len(packages)} of {len(pins(lock))}")
    for one in packages:
        for found in one["vulns"]:
            ids = frozenset({found["id"], *found["aliases"]})
            yield Finding(lock.stem, one["name"], one["version"], ids)


def by_database(lock: Path, database: Path) -> Iterator[Finding]:
    """Look into the files of the advisory database (OSV's format)."""
    import yaml

    folder = database / "vulns"
    if not folder.is_dir():
        sys.exit(f"{database} is no clone of pypa/advisory-database: it has no folder 'vulns'")
    for package, version in pins(lock).items():
        for file in sorted((folder / package).glob("*.yaml")):
            advisory = yaml.safe_load(file.read_text())
            if not advisory.get("withdrawn") and is_affected(advisory, version):
                ids = frozenset({advisory["id"], *(advisory.get("aliases") or ())})
                yield Finding(lock.stem, package, version, ids)


def is_affected(advisory: dict[str, Any], version: str) -> bool:
    """Whether the version is listed, or in a range of versions."""
    from packaging.version import Version

    mine = Version(version)

    def is_in(events: list[dict[str, str]]) -> bool:
        inside = False
        for event in events:
            ((kind, bound),) = event.items()
            if kind == "introduced":
                inside = inside or bound == "0" or mine >= Version(bound)
            elif kind == "fixed":
                inside = inside and mine < Version(bound)
            elif kind == "last_affected":
                inside = inside and mine <= Version(bound)
        return inside

    return any(
        version in affected.get("versions", ())
        or any(is_in(r["events"]) for r in affected.get("ranges", ()) if r["type"] == "ECOSYSTEM")
        for affected in advisory["affected"]
    )


def explained(finding: Finding, exceptions: list[dict[str, str]]) -> bool:
    """Whether somebody has decided about it: for this package, version and lock."""
    return any(
        one["id"] in finding.ids
        and (one["package"], one["version"]) == (finding.package, finding.version)
        and finding.lock in one["locks"]
        for one in exceptions
    )


def main() -> int:
    """Print all findings; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--database", type=Path, help="a clone of pypa/advisory-database")
    given = parser.parse_args()
    known = json.loads((HERE / "advisories.json").read_text())
    status = 0
    for lock in sorted(HERE.glob("*.lock")):
        looked = by_database(lock, given.database) if given.database else by_pip_audit(lock)
        new = [one for one in looked if not explained(one, known["exceptions"])]
        for one in new:
            level = "warning" if one.lock in known["upstreams_own_pins"] else "error"
            status = 1 if level == "error" else status
            names = ", ".join(sorted(one.ids))
            print(f"::{level}::{one.lock}.lock: {one.package} {one.version}: {names}")
        print(f"{lock.name}: {len(pins(lock))} packages, {len(new)} findings without a decision")
    return status


if __name__ == "__main__":
    sys.exit(main())
