"""The fake hosts, the command line in the test's own process, and a clock."""

import time

import pytest
from fakes.hosts.fixtures import *  # noqa: F403 - fixtures

from model_manager import main


class Clock:
    """The time of day; `clock.now += 60` lets a minute pass."""

    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Run a command; returns its exit status, standard output and standard error."""

    def run(arguments, environ):
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            status = main(list(arguments))
        return status, *capsys.readouterr()

    return run
