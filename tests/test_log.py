import json
import logging

import pytest

from worker import log

SECRET = "abcdef123456"


@pytest.fixture
def logger():
    return logging.getLogger("worker.test")


def test_a_line_has_time_level_job_and_phase(logger, capsys):
    log.configure("INFO", "text", [])
    log.job_id.set("job-7")
    log.phase.set("prepare")
    logger.info("hello %s", "you")
    log.job_id.set("-")
    log.phase.set("-")

    assert capsys.readouterr().err.split(" ", 1)[1] == "INFO    [job-7 prepare] hello you\n"


def test_a_json_line_has_the_keys_that_runpod_reads(logger, capsys):
    log.configure("INFO", "json", [])
    logger.warning("hello")

    line = json.loads(capsys.readouterr().err)
    assert line == {"requestId": "-", "phase": "-", "level": "WARNING", "message": "hello"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_secret_is_hidden_in_messages_arguments_and_tracebacks(logger, capsys, form):
    log.configure("INFO", form, [SECRET, SECRET[:8], "1"])
    try:
        raise ValueError(SECRET)  # noqa: TRY301
    except ValueError:
        logger.exception("with %s and %s", SECRET, 1)

    text = capsys.readouterr().err
    assert SECRET[:8] not in text
    assert "ValueError: ***" in text
    assert "and 1" in text  # too short to be hidden


def test_a_second_call_replaces_the_first(logger, capsys):
    log.configure("INFO", "text", [])
    log.configure("ERROR", "text", [])
    logger.warning("not seen")
    logger.error("seen once")

    assert capsys.readouterr().err.count("seen") == 1
