"""An error that A1111 swallows stands in the infotext, and A1111 still swallows it."""

from types import SimpleNamespace

import pytest
from a1111_worker import script_errors
from a1111_worker.expect import NotAsExpected


class Script:
    """Fails in `process`, as its methods of A1111 do nothing."""

    def __init__(self, title, error):
        self._title, self._error = title, error

    def title(self):
        return self._title

    def process(self, p):
        if self._error:
            raise self._error

    before_process = before_process_batch = postprocess = process
    postprocess_batch = postprocess_image = process


TABLE = ValueError("\n+---+\n| a table with the job's prompt |\n+---+")


@pytest.mark.parametrize(
    ("title", "error", "noted"),
    [
        (
            "ControlNet",
            RuntimeError("no model\nline 2"),
            {"ControlNet error": "RuntimeError: no model"},
        ),
        ("ADetailer", TABLE, {"ADetailer error": "ValueError"}),
        ("ADetailer", KeyError("x" * 999), {"ADetailer error": "KeyError: '" + "x" * 189}),
        ("ControlNet", None, {}),
        ("Another", RuntimeError("no model"), {}),
    ],
)
def test_an_error_of_a_watched_script_is_noted(a1111, title, error, noted):
    script_errors.note_errors(a1111.scripts)
    runner, script, reported = a1111.scripts.ScriptRunner(), Script(title, error), []
    runner.create_script_ui(script)
    p = SimpleNamespace(extra_generation_params={})
    runner.process(p, [script], reported.append)
    assert p.extra_generation_params == noted
    assert reported == ([error] if error else [])


def test_another_runner_is_left_alone(a1111):
    a1111.scripts.ScriptRunner.process = lambda self, p: None
    with pytest.raises(NotAsExpected):
        script_errors.note_errors(a1111.scripts)
