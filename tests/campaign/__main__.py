"""The command line of `make campaign`."""

import argparse
import random
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from campaign.run import Campaign, Options
from campaign.summary import PAGE, as_markdown, fill_in, say, write

STOPPED = 143
SHARE = {"fake": 0.85, "embedded": 0.15}  # of the jobs and faults, where both engines run


def read() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="make campaign")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--engine", choices=["fake", "embedded", "both"], default="both")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--faults", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--step", type=int, help="run this step only")
    parser.add_argument("--first-step", type=int, default=0, help="begin with this step")
    parser.add_argument("--only", default="", help="only faults with this in their name")
    parser.add_argument("--out", type=Path, default=Path("campaign-report"))
    parser.add_argument("--folder", help="for the workers' files; in memory is fast")
    parser.add_argument("--docs", action="store_true", help=f"write the figures of {PAGE.name}")
    return parser.parse_args()


def main() -> int:
    """Run it; the status is 1 after a violation."""
    given = read()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # its workers and mounts go, too
    options = Options(
        given.seed,
        jobs=given.jobs,
        faults=given.faults,
        minutes=given.minutes,
        first_step=given.first_step,
        only=given.only,
    )
    if given.step is not None:
        options = replace(options, first_step=given.step, jobs=1, faults=0)
    engines = ["fake", "embedded"] if given.engine == "both" else [given.engine]
    reports = []
    for engine in engines:
        share = SHARE[engine] if len(engines) > 1 else 1.0
        numbers = {"jobs": round(options.jobs * share), "faults": round(options.faults * share)}
        its = replace(options, engine=engine, minutes=options.minutes * share, **numbers)
        say(f"seed {its.seed}, engine {engine}")
        with tempfile.TemporaryDirectory(prefix="campaign-", dir=given.folder) as folder:
            campaign = Campaign(Path(folder), its, say)
            reports.append(campaign.run())
        facts = write(reports, given.out)
        if given.docs:
            fill_in(PAGE, as_markdown(facts))
    return int(any(report.violations for report in reports))


if __name__ == "__main__":
    sys.exit(main())
