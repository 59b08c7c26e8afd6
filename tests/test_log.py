import json
import logging

import pytest

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


def test_lines_of_the_worker_itself_stay_as_they_are(capsys):
    log.configure("INFO", "text", [])
    logger.info("saved\n%s", "prompt   a\nfile     b", extra=log.OWN_LINES)
    assert capsys.readouterr().err.splitlines()[1:] == ["prompt   a", "file     b"]
