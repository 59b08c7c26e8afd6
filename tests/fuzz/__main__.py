"""`python -m tests.fuzz`: fuzz for some minutes and say what was found.

Exit status: 1 if anything was found.
"""

import argparse
import contextlib
import io
import json
import secrets
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

MEASURED = ["worker", "engine", "gateway"]  # packages whose coverage leads atheris


def read_arguments():
    """The arguments; `make fuzz` has variables of the same names."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="of all targets together")
    parser.add_argument("--target", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--engine", choices=("auto", "atheris", "random"), default="auto")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument("--out", type=Path, help="folder for fuzz.json and fuzz.md")
    parser.add_argument("--at-once", type=int, default=2, help="processes")
    return parser.parse_args()


def prepared(engine):
    """The engine that can be used; with atheris, imports are measured from now on."""
    if engine == "random":
        return engine
    try:
        import atheris
    except ImportError:
        if engine == "atheris":
            raise
        return "random"
    atheris.instrument_imports(include=MEASURED).__enter__()
    return "atheris"


def row(result):
    """A row of the table, and a line for each finding."""
    line = f"| {result.target} | {result.executions:,} | {result.rate:,.0f} |"
    findings = [f"{one.place} ({one.times}x): {one.text}" for one in result.findings]
    return f"{line} {len(findings)} |", findings


def main():
    """Run the targets."""
    given = read_arguments()
    engine = prepared(given.engine)
    from tests.fuzz import long_run, target

    with contextlib.redirect_stderr(io.StringIO()):  # atheris names each module
        known = target.load()
    if unknown := set(given.target) - known.keys():
        sys.exit(f"no such target: {', '.join(sorted(unknown))}. Known: {', '.join(sorted(known))}")
    chosen = [known[name] for name in given.target] or list(known.values())
    total = sum(one.share for one in chosen)
    seconds = given.minutes * 60 * given.at_once / total
    print(f"{len(chosen)} targets, {engine}, seed {given.seed}, {seconds:.1f} s each", flush=True)

    def tell(result):
        line, findings = row(result)
        print(line, *(f"    {one}" for one in findings), sep="\n", flush=True)
        for one in result.findings:
            print(f"    kept as {long_run.keep(one).relative_to(ROOT)}", flush=True)

    results = long_run.run(chosen, engine, seconds, given.seed, tell, given.at_once)
    count = sum(one.executions for one in results)
    found = [one for result in results for one in result.findings]
    print(f"{count:,} executions, {len(found)} findings, seed {given.seed}")
    if given.out:
        write(given.out, results, engine, given.seed)
    return bool(found)


def write(folder, results, engine, seed):
    """Write the results as JSON and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    content = [asdict(one) for one in results]
    for one in content:
        for finding in one["findings"]:
            finding["data"] = finding["data"].hex()
    made = {"engine": engine, "seed": seed, "targets": content}
    (folder / "fuzz.json").write_text(json.dumps(made, indent=1) + "\n")
    lines = ["| target | executions | a second | findings |", "| --- | ---: | ---: | ---: |"]
    rows = [row(one) for one in sorted(results, key=lambda one: one.target)]
    lines += [line for line, _ in rows]
    lines += [f"\n- {text}" for _, findings in rows for text in findings]
    (folder / "fuzz.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
