"""The command line, run in the test's own process."""

import pytest

from model_manager import main


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
