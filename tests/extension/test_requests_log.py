"""The real uvicorn writes no line for a request, and still those about its start and its errors."""

import copy
import logging
import types

import pytest
import uvicorn
from a1111_worker import requests_log
from a1111_worker.expect import NotAsExpected


@pytest.fixture
def config(monkeypatch):
    fresh = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    monkeypatch.setattr(uvicorn.config, "LOGGING_CONFIG", fresh)
    yield uvicorn.config
    for name in fresh["loggers"]:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.NOTSET)
        logging.getLogger(name).propagate = True


@pytest.mark.parametrize("is_on", [True, False])
def test_only_the_lines_about_requests_are_left_out(config, is_on):
    if is_on:
        requests_log.log_no_requests(config)
    uvicorn.Config(None, log_config=config.LOGGING_CONFIG)
    assert logging.getLogger("uvicorn.access").isEnabledFor(logging.INFO) is not is_on
    assert logging.getLogger("uvicorn.error").isEnabledFor(logging.INFO)


def test_it_is_the_set_up_that_uvicorn_uses_by_default():
    assert uvicorn.Config(None).log_config is uvicorn.config.LOGGING_CONFIG


def test_another_uvicorn_is_left_alone():
    with pytest.raises(NotAsExpected):
        requests_log.log_no_requests(types.ModuleType("config"))
