import ast
from pathlib import Path

import pytest

from worker import errors
from worker.errors import WorkerError


def all_kinds(base=WorkerError):
    return [kind for sub in base.__subclasses__() for kind in (sub, *all_kinds(sub))]


CODED = [kind for kind in all_kinds() if "code" in vars(kind)]


def test_codes_are_unique_words():
    codes = [kind.code for kind in CODED]

    assert len(set(codes)) == len(codes)
    assert all(code.isupper() for code in codes)


@pytest.mark.parametrize("kind", CODED, ids=lambda kind: kind.code)
def test_the_text_starts_with_the_code_and_ends_with_the_hint(kind):
    text = str(kind("it broke."))

    assert text.startswith(f"{kind.code}: it broke.")
    assert text.endswith(kind.default_hint)


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    drawn = [word for word in errors.__doc__.split() if word.isidentifier()]
    classes = [kind.__name__ for kind in all_kinds()]

    assert [word for word in drawn if word in classes or word == "WorkerError"] == [
        "WorkerError",
        *classes,
    ]


def test_nothing_is_swallowed_in_silence():
    """No bare except, and two `except Exception`.

    One is the job boundary in handler.py; the other hands what a download's thread meets, also
    in a caller's hook, to the thread that waits for the download, which raises it.
    """
    root = Path(__file__).parents[1]
    doors = [root / f"{name}.py" for name in ("handler", "model_manager", "runpod_sdk")]
    files = [*doors, *(root / "worker").rglob("*.py")]
    broad = [
        file.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") in {"Exception", "BaseException"})
    ]

    assert broad == ["handler.py", "download.py"]
