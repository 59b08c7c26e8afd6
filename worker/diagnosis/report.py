"""Writes the diagnosis: one Markdown file that can be read, and attached to a bug report."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from worker import VERSION
from worker.diagnosis import engine, folders, kept_lines, machine, processes
from worker.diagnosis.masking import HARMLESS, Mask
from worker.diagnosis.place import MORE_SECRETS, PROJECT, Place, find
from worker.diagnosis.sections import Outcome, Section, gather

_INTRODUCTION = """\
# Diagnosis of the worker

Made by `handler.py --diagnose` on {now}, version {version}, in {seconds:.1f} s. Attach this file to
a bug report. Secrets are replaced by `***`; **read it before you publish it**: it has names of
folders, jobs and models, and the log's lines can have words of prompts.
"""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_SHOWN_ALSO = sorted(HARMLESS - {"_", "PWD", "OLDPWD", "SHLVL", "LOGNAME", "USER", "PATH"})


def write(given: str, environ: Mapping[str, str]) -> int:
    """Make the diagnosis and write it; returns the exit status.

    Args:
        given: file or folder for it, `-` for standard output, empty for RUN_DIR.
        environ: the environment of this process.
    """
    place, text = make(environ)
    if given == "-":
        return _print(text)
    # In a process of its own, as all that asks a disk.
    (written,) = gather([Section("", partial(_write, given, place.run_dir, text))])
    if written.problem:
        sys.stderr.write(
            f"the diagnosis cannot be written ({written.problem}), so it follows on standard"
            " output: `--diagnose FILE` writes it elsewhere\n"
        )
        return _print(text)
    path = written.text.strip()
    sys.stderr.write(f"the diagnosis is in {path}: read it, then attach it to the bug report\n")
    return 0


def _print(text: str) -> int:
    sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
    sys.stdout.flush()
    return 0


def _write(given: str, run_dir: Path, text: str) -> Iterator[str]:
    """Write a new file for this user only, and yield its path; in a folder it gets a name."""
    target = Path(given).expanduser() if given else run_dir
    if not (given or target.is_dir()):  # it is start.sh that makes it, as the worker's user
        target = Path(tempfile.gettempdir())
    if target.is_dir():
        target /= f"diagnosis-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.md"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    file = os.open(target, flags, 0o600)
    try:
        with os.fdopen(file, "wb") as opened:
            opened.write(text.encode(errors="backslashreplace"))
    except OSError:
        with suppress(OSError):
            target.unlink()
        raise
    yield str(target.absolute())


def make(environ: Mapping[str, str]) -> tuple[Place, str]:
    """The worker that was diagnosed, and the text; it ends within about half a minute."""
    began = time.monotonic()
    place = find(environ, processes.of_workers())
    mask = Mask(place.needles)
    sections = _sections(place, mask)
    outcomes = gather(sections)
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    seconds = time.monotonic() - began
    parts = [_INTRODUCTION.format(now=now, version=VERSION, seconds=seconds)]
    parts += [
        _part(section, outcome, mask) for section, outcome in zip(sections, outcomes, strict=True)
    ]
    return place, "\n".join(parts)


def _part(section: Section, outcome: Outcome, mask: Mask) -> str:
    """A part in a fence, so that text of jobs is no Markdown and mentions nobody on GitHub."""
    text = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], mask(outcome.text)).rstrip()
    longest = max(map(len, re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    problem = _CONTROL.sub(" ", mask(outcome.problem))
    note = f"\nThis part is not complete: {problem}" if problem else ""
    return f"## {section.title}\n\n{fence}text\n{text}{note}\n{fence}\n"


def _sections(place: Place, mask: Mask) -> list[Section]:
    """What is asked, in the order of the file."""
    kept = {of: place.run_dir / name for of, name in kept_lines.FILES.items()}
    return [
        Section("Settings", partial(_settings, place)),
        Section("Jobs", partial(kept_lines.jobs, kept["the handler"], mask)),
        Section("State and health", partial(engine.state, place)),
        Section("The engine's answers", partial(engine.answers, place), seconds=20),
        Section("Processes", processes.lines),
        Section("Checks of the start", partial(machine.start_checks, place), seconds=20),
        Section("GPUs", machine.gpus, seconds=20),
        Section("Limits", machine.limits),
        Section("Versions", partial(machine.versions, place)),
        *(
            Section(f"Folder {name}", partial(folders.describe, Path(path)), seconds=8)
            for name, path in {**place.folders, **_more_folders(place)}.items()
        ),
        *(
            Section(f"Last lines of {of}", partial(kept_lines.last_lines, path, mask))
            for of, path in kept.items()
        ),
    ]


def _more_folders(place: Place) -> dict[str, str]:
    webui = place.folders.get("WEBUI_DIR")
    more = {"WEBUI_DIR/models": f"{webui}/models"} if webui else {}
    return {**more, "of RunPod's volume": "/runpod-volume", "of the worker": str(PROJECT)}


def _settings(place: Place) -> Iterator[str]:
    """Problems, then each setting; of secrets only whether they are set."""
    yield f"the settings of {place.source}"
    yield from (f"WRONG: {problem}" for problem in place.problems)
    if place.problems:
        yield "(below, wrong settings have their defaults)"
    for name, value in place.settings.items():
        origin = "" if name in place.chosen else "  (default)"
        yield f"{name}: {value or '-'}{origin}"
    yield ""
    secrets = place.secrets or {name: bool(place.environ.get(name)) for name in MORE_SECRETS}
    for word, is_set in (("set", True), ("not set", False)):
        names = [name for name, found in secrets.items() if found is is_set]
        yield f"secrets that are {word}: {', '.join(names) or 'none'}"
    for name in _SHOWN_ALSO:
        if name in place.environ:
            yield f"{name}: {place.environ[name]}"
    known = {*place.settings, *secrets, *HARMLESS}
    unknown = sum(name not in known for name in place.environ)
    yield f"variables of other names, which are not shown: {unknown}"
