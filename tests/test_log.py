import json
import logging
import re
import time

import pytest

from engine.__main__ import ShortFormatter
from worker import log

SECRET = "abcdef123456"

logger = logging.getLogger("worker.test")


def test_a_line_has_time_level_job_and_phase_and_the_last_configuration_counts(capsys):
    log.configure("DEBUG", "json", [])
    log.configure("INFO", "text", [])
    before = log.job_id.set("job-7"), log.phase.set("prepare")
    logger.debug("not seen")
    logger.info("hello %s", "you")
    log.job_id.reset(before[0])
    log.phase.reset(before[1])
    assert capsys.readouterr().err.split(" ", 1)[1] == "INFO    [job-7 prepare] hello you\n"


def test_a_json_line_has_the_keys_that_runpod_reads(capsys):
    log.configure("INFO", "json", [])
    logger.warning("hello")
    line = json.loads(capsys.readouterr().err)
    assert line == {"requestId": "-", "phase": "-", "level": "WARNING", "message": "hello"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_secret_is_hidden_in_messages_arguments_and_tracebacks(capsys, form):
    log.configure("INFO", form, [SECRET, SECRET[:8], "1"])
    try:
        raise ValueError(SECRET)  # noqa: TRY301
    except ValueError:
        logger.exception("with %s and %s", SECRET, 1)
    text = capsys.readouterr().err
    assert SECRET[:8] not in text
    assert "ValueError: ***" in text
    assert "and 1" in text  # too short to be hidden


def test_the_secrets_of_jobs_are_hidden_until_the_last_of_them_has_ended(capsys):
    log.configure("INFO", "text", [SECRET])
    theirs = f"{SECRET}-of-a-job"
    with log.hiding([theirs, "short"]):
        with log.hiding([theirs]):
            logger.info("1 %s %s short", theirs, SECRET)
        logger.info("2 %s", theirs)
    logger.info("3 %s", theirs.replace(SECRET, "abc"))
    texts = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert texts == ["1 *** *** short", "2 ***", "3 abc-of-a-job"]
    assert not log._of_jobs


FORGED = "2026-01-01T00:00:00Z INFO    [-] forged"


@pytest.mark.parametrize("end", ["\n", "\r", "\u2028", "\x85", "\x1b[2J"])
def test_text_from_a_job_cannot_forge_a_line(capsys, end):
    log.configure("INFO", "text", [])
    before = log.job_id.set(f"job\n{FORGED}")
    logger.warning("the prompt is a%s", end + FORGED)
    log.job_id.reset(before)
    first, *others = capsys.readouterr().err.splitlines()
    assert "the prompt is a" in first
    assert all(line.startswith("    ") for line in others)


@pytest.mark.parametrize("end", ["\n", "\r", "\u2028", "\x85", "\x1b[2J"])
def test_text_from_a_job_cannot_forge_a_line_of_the_embedded_engine(end):
    record = logging.LogRecord("engine", logging.ERROR, "", 1, "failed: %s", (end + FORGED,), None)
    first, *others = ShortFormatter().format(record).splitlines()
    assert first.startswith("failed: ")
    assert all(line.startswith("    ") for line in others)


def test_lines_of_the_worker_itself_stay_as_they_are(capsys):
    log.configure("INFO", "text", [])
    logger.info("saved\n%s", "prompt   a\nfile     b", extra=log.OWN_LINES)
    assert capsys.readouterr().err.splitlines()[1:] == ["prompt   a", "file     b"]


ENDS = ("begin", "the last line")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("character", ["a", "\n", '"', "\x00", "\U0001f98a"])
@pytest.mark.parametrize("size", [log.LONGEST, 100_000])
def test_a_long_message_keeps_its_ends_and_says_how_much_is_missing(capsys, form, character, size):
    log.configure("INFO", form, [])
    before = log.job_id.set("\u2028" * 9999)
    logger.error("%s", ENDS[0] + character * size + ENDS[1])
    log.job_id.reset(before)
    text = capsys.readouterr().err.removesuffix("\n")
    assert 3000 < len(text) <= log.LONGEST
    assert ENDS[0] in text
    assert ENDS[1] in text[-20:]
    assert " characters left out" in text
    if form == "json":
        assert json.loads(text)["level"] == "ERROR"


def test_the_embedded_engine_cuts_its_messages_too():
    record = logging.LogRecord("engine", logging.ERROR, "", 1, "a%sz", (" " * 9999,), None)
    text = ShortFormatter("%(name)s %(message)s").format(record)
    assert len(text) < log.LONGEST
    assert (text[:8], text[-1]) == ("engine a", "z")
    assert "[... 6008 characters left out ...]" in text
    record.args = (" " * 3000,)
    assert ShortFormatter().format(record) == record.getMessage()


def test_the_number_of_missing_characters_is_exact():
    text = "".join(map(str, range(2000)))
    for longest in (100, 1000, len(text) - 1):
        first, number, last = re.fullmatch(
            r"(\d+) \[\.\.\. (\d+) characters left out \.\.\.\] (\d*)", log.cut(text, longest)
        ).groups()
        assert text == first + text[len(first) : len(first) + int(number)] + last
    assert log.cut(text, len(text)) == text


def test_a_line_of_the_code_that_writes_too_much_is_limited_and_counted(capsys, monkeypatch):
    log.configure("INFO", "text", [])
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9), raising=False)
    for number in range(log.MOST_IN_A_MINUTE + 102):
        if number == log.MOST_IN_A_MINUTE + 100:
            now += 61
        logger.warning("refused %d", number)
        if number == 7:
            logger.warning("another line")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == log.MOST_IN_A_MINUTE + 3
    assert sum("another line" in line for line in lines) == 1
    assert "[100 messages like this were left out before it]" in lines[-2]
    assert "left out" not in lines[-1]


def test_warnings_of_libraries_are_written_once_without_secrets(capsys):
    log.configure("INFO", "text", [])
    log.configure("INFO", "text", [SECRET])
    logging.getLogger("asyncio").error("Task failed: %s", SECRET)
    logging.getLogger("urllib3").info("not seen")
    assert capsys.readouterr().err.count("Task failed: ***") == 1
