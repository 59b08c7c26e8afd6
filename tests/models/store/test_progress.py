"""The progress of a download on a terminal, in the log and for the job."""

import io
import logging
from types import SimpleNamespace

import pytest

from worker.models.store import progress
from worker.models.store.progress import Lines, Terminal, report_for

MB = 10**6


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, logger="worker")
    return lambda: caplog.messages


def test_the_log_gets_a_line_every_ten_seconds(clock, logged):
    lines = Lines("Fox", clock=clock)
    lines(0, 100 * MB)
    for second in range(1, 26):
        clock.now += 1
        lines(second * 2 * MB, 100 * MB)
    lines.close()
    assert logged() == [
        "downloading Fox: 20 % of 100 MB, 20 MB, 2 MB/s, 40 s left",
        "downloading Fox: 40 % of 100 MB, 40 MB, 2 MB/s, 30 s left",
    ]


def test_the_job_gets_an_update_every_second_without_the_bytes_of_an_earlier_run(clock, logged):
    updates = []
    lines = Lines("Fox", updates.append, clock=clock)
    for step in range(10):
        lines((80 + step) * MB, 100 * MB)
        clock.now += 0.5
    assert len(updates) == 5
    message = "downloading Fox: 80 % of 100 MB, 80 MB, 0 MB/s"
    assert updates[0] == {"phase": "download", "message": message, "percent": 80.0}
    message = "downloading Fox: 82 % of 100 MB, 82 MB, 2 MB/s, 9 s left"
    expected = {"phase": "download", "message": message, "percent": 82.0, "eta_seconds": 9.0}
    assert updates[1] == expected
    assert logged() == []


@pytest.mark.parametrize("size", [None, 0])
def test_an_unknown_size_gives_no_percentage(clock, logged, size):
    updates = []
    lines = Lines("Fox", updates.append, clock=clock)
    lines(0, size)
    clock.now += 10
    lines(20 * MB, size)
    assert logged() == ["downloading Fox: 20 MB, 2 MB/s"]
    assert "percent" not in updates[-1]


@pytest.mark.parametrize(
    ("steps", "end"),
    [((0, 50, 100), ": 100%"), ((80, 90, 0, 100), ": 100%"), ((5,), ":   5%"), ((), ": 0.00B")],
)
def test_a_terminal_gets_a_bar_that_can_resume_and_go_back(monkeypatch, steps, end):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    report = report_for("x" * 99)
    for fetched in steps:
        report(fetched * MB, 100 * MB)
    report.close()
    assert stream.getvalue().rpartition("\r")[2].startswith("x" * 40 + end)
    assert report._bar.initial == MB * (steps or (0,))[0], "not counted for the speed"


def test_a_bar_without_a_size_and_lines_without_a_terminal(monkeypatch):
    stream = io.StringIO()
    report = Terminal("Fox", stream)
    report(5 * MB, None)
    report.close()
    assert "5.00MB" in stream.getvalue()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    assert isinstance(report_for("Fox"), Lines)
