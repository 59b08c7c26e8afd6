"""The summary of a campaign, as JSON for programs and as Markdown for people."""

import json
from pathlib import Path
from typing import Any

from campaign.run import Report


def write(reports: list[Report], folder: Path) -> None:
    """Write summary.json, summary.md and the violations into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = [as_json(report) for report in reports]
    (folder / "summary.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    (folder / "summary.md").write_text(as_markdown(facts))
    texts = [text for report in reports for text in report.violations]
    (folder / "violations.txt").write_text("\n\n\n".join(texts))


def as_json(report: Report) -> dict[str, Any]:
    """The facts of one run."""
    counts = report.counts
    codes = {key.removeprefix("code "): n for key, n in counts.items() if key.startswith("code ")}
    kinds = {k: n for k, n in counts.items() if not k.startswith("code ") and k != "pictures"}
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
        "jobs_by_kind_and_end": dict(sorted(kinds.items())),
        "failures_by_code": dict(sorted(codes.items())),
        "workers_by_exit_status": dict(sorted(report.ends.items())),
        "left_out": report.left_out,
        "violations": [text.partition("\n")[0] for text in report.violations],
    }


def as_markdown(facts: list[dict[str, Any]]) -> str:
    """The tables of the page docs/internals/hard-to-kill.md."""
    columns = ("engine", "seed", "minutes", "jobs", "pictures", "faults", "kinds")
    lines = [_row(*columns, "violations"), _row(*["---"] * (len(columns) + 1))]
    lines += [_row(*(one[name] for name in columns), len(one["violations"])) for one in facts]
    lines += ["", *_counted("fault", "faults_by_kind", facts)]
    lines += ["", *_counted("job and its end", "jobs_by_kind_and_end", facts)]
    lines += ["", *_counted("code of failed jobs", "failures_by_code", facts)]
    lines += ["", *_counted("exit status of a worker", "workers_by_exit_status", facts)]
    return "\n".join(lines) + "\n"


def _counted(title: str, name: str, facts: list[dict[str, Any]]) -> list[str]:
    keys = sorted({key for one in facts for key in one[name]})
    rows = [_row(key, *(one[name].get(key, 0) for one in facts)) for key in keys]
    engines = [one["engine"] for one in facts]
    return [_row(title, *engines), _row(*["---"] * (1 + len(engines))), *rows]


def _row(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
