"""The summary of a campaign, as JSON for programs and as Markdown for people."""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from campaign.run import Report

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs/internals/hard-to-kill.md"
FIGURES = re.compile(r"(<!-- begin figures -->\n).*?(<!-- end figures -->)", re.DOTALL)
COLUMNS = ("engine", "seed", "minutes", "jobs", "pictures", "faults", "kinds")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write(reports: list[Report], folder: Path) -> list[dict[str, Any]]:
    """Write summary.json, summary.md and violations.txt into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = [as_json(report) for report in reports]
    (folder / "summary.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    (folder / "summary.md").write_text(as_markdown(facts))
    texts = [text for report in reports for text in report.violations]
    (folder / "violations.txt").write_text("\n\n\n".join(texts))
    return facts


def as_json(report: Report) -> dict[str, Any]:
    """The facts of one run."""
    counts = report.counts
    codes = {key.removeprefix("code "): n for key, n in counts.items() if key.startswith("code ")}
    ends = {k: n for k, n in counts.items() if not k.startswith("code ") and k != "pictures"}
    return {
        "seed": report.options.seed,
        "engine": report.options.engine,
        "minutes": round(report.seconds / 60, 1),
        "steps": report.steps,
        "jobs": report.jobs,
        "pictures": counts["pictures"],
        "faults": report.struck,
        "kinds": len(report.faults),
        "faults_by_kind": dict(sorted(report.faults.items())),
        "jobs_by_kind_and_end": dict(sorted(ends.items())),
        "failures_by_code": dict(sorted(codes.items())),
        "workers_by_exit_status": dict(sorted(report.ends.items())),
        "left_out": report.left_out,
        "violations": [text.partition("\n")[0] for text in report.violations],
    }


def as_markdown(facts: list[dict[str, Any]]) -> str:
    """The figures of the page docs/internals/hard-to-kill.md."""
    lines = [row(*COLUMNS, "violations"), row(*["---"] * (len(COLUMNS) + 1))]
    lines += [row(*(one[name] for name in COLUMNS), len(one["violations"])) for one in facts]
    lines += ["", *_by_area(facts), "", *_ends(facts)]
    for title, name in (
        ("Codes of the failed jobs, each explained by a fault of its time", "failures_by_code"),
        ("Exit statuses of workers that ended in the campaign", "workers_by_exit_status"),
    ):
        together = _together(facts, name)
        lines += ["", f"{title}: {_listed(together)}."]
    return "\n".join(lines) + "\n"


def _by_area(facts: list[dict[str, Any]]) -> list[str]:
    """The faults, one line for each area."""
    areas: dict[str, dict[str, int]] = defaultdict(dict)
    for name, count in sorted(_together(facts, "faults_by_kind").items()):
        area, _, kind = name.partition(": ")
        areas[area][kind] = count
    rows = [row(area, sum(kinds.values()), _listed(kinds)) for area, kinds in areas.items()]
    return [row("faults of", "number", "kinds"), row("---", "---", "---"), *rows]


def _ends(facts: list[dict[str, Any]]) -> list[str]:
    """How the jobs of each kind ended."""
    kinds: dict[str, dict[str, int]] = defaultdict(dict)
    for name, count in sorted(_together(facts, "jobs_by_kind_and_end").items()):
        kind, _, end = name.rpartition(" ")
        kinds[kind][end] = count
    ends = sorted({end for its in kinds.values() for end in its})
    rows = [row(kind, *(its.get(end, 0) for end in ends)) for kind, its in kinds.items()]
    return [row("jobs", *ends), row(*["---"] * (len(ends) + 1)), *rows]


def _together(facts: list[dict[str, Any]], name: str) -> dict[str, int]:
    keys = {key for one in facts for key in one[name]}
    return {key: sum(one[name].get(key, 0) for one in facts) for key in sorted(keys)}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def fill_in(page: Path, figures: str) -> None:
    """Put figures between the two comments of a page."""
    text = page.read_text()
    page.write_text(FIGURES.sub(lambda found: f"{found[1]}{figures}{found[2]}", text))


def row(*cells: Any) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"
