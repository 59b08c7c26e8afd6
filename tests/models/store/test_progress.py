"""How far a download is: a bar for a person, lines for a log, words for a job."""

import io
import logging
from types import SimpleNamespace

import pytest

from worker.models.store import progress
from worker.models.store.progress import LOG_EVERY, TELL_EVERY, Lines, Terminal, report_for

MB = 10**6


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, logger="worker")
    return lambda: caplog.messages


def test_the_log_gets_a_line_now_and_then(clock, logged):
    lines = Lines("Fox")
    lines(0, 100 * MB)
    for _ in range(25):
        clock.now += 1
        lines(int(clock.now - 1000) * 2 * MB, 100 * MB)
    lines.close()

    assert logged() == [
        "downloading Fox: 20 % of 100 MB, 20 MB, 2 MB/s, 40 s left",
        "downloading Fox: 40 % of 100 MB, 40 MB, 2 MB/s, 30 s left",
    ]


def test_who_waits_for_the_job_hears_more(clock, logged):
    told = []
    lines = Lines("Fox", told.append)
    for _ in range(9):
        clock.now += 1
        lines(5 * MB, 10 * MB)

    assert len(told) == 9 // TELL_EVERY
    assert told[0]["message"].startswith("downloading Fox: 50 % of 10 MB")
    assert {key: told[0][key] for key in ("phase", "percent")} == {
        "phase": "download",
        "percent": 50.0,
    }
    assert logged() == []


def test_what_an_earlier_run_has_fetched_is_no_speed(clock):
    told = []
    lines = Lines("Fox", told.append)
    lines(80 * MB, 100 * MB)
    clock.now += 10
    lines(90 * MB, 100 * MB)

    assert [report["message"] for report in told] == [
        "downloading Fox: 80 % of 100 MB, 80 MB, 0 MB/s",
        "downloading Fox: 90 % of 100 MB, 90 MB, 1 MB/s, 10 s left",
    ]


@pytest.mark.parametrize("size", [None, 0])
def test_an_unknown_size_gives_no_percentage(clock, logged, size):
    lines = Lines("Fox")
    lines(0, size)
    clock.now += LOG_EVERY
    lines(20 * MB, size)

    assert logged() == ["downloading Fox: 20 MB, 2 MB/s"]


@pytest.fixture
def terminal(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    return stream


def test_a_person_at_a_terminal_sees_a_bar(terminal):
    report = report_for("Fox")
    report(0, 100 * MB)
    report(50 * MB, 100 * MB)
    report(100 * MB, 100 * MB)
    report.close()

    last = terminal.getvalue().rpartition("\r")[2]
    assert last.startswith("Fox: 100%")
    assert "100M/100M" in last


def test_a_bar_goes_on_from_what_is_there_and_may_go_back(terminal):
    report = Terminal("x" * 99)
    for fetched in (80, 90, 0, 100):
        report(fetched * MB, 100 * MB)
    report.close()

    assert terminal.getvalue().rpartition("\r")[2].startswith("x" * 40 + ": 100%")


def test_a_bar_without_a_size(terminal):
    report = Terminal("Fox")
    report(5 * MB, None)
    report.close()

    assert "5.00MB" in terminal.getvalue()


def test_a_download_that_never_began_is_closed(terminal):
    report_for("Fox").close()
    Lines("Fox").close()

    assert "Fox" in terminal.getvalue()


def test_without_a_terminal_there_are_lines(monkeypatch):
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=io.StringIO()))

    assert isinstance(report_for("Fox"), Lines)
