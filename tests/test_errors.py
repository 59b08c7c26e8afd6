import ast
from pathlib import Path

from worker import errors
from worker.errors import WorkerError


def all_kinds(base=WorkerError):
    return [kind for sub in base.__subclasses__() for kind in (sub, *all_kinds(sub))]


CODED = [kind for kind in all_kinds() if "code" in vars(kind)]


def test_codes_are_unique_words_and_the_text_has_code_message_and_hint():
    assert len({kind.code for kind in CODED}) == len(CODED)
    for kind in CODED:
        assert kind.code.isupper()
        assert str(kind("it broke.")) == f"{kind.code}: it broke. {kind.default_hint}".strip()


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    drawn = [word for word in errors.__doc__.split() if word.isidentifier()]
    classes = [kind.__name__ for kind in all_kinds()]

    assert [word for word in drawn if word in classes or word == "WorkerError"] == [
        "WorkerError",
        *classes,
    ]


def test_only_two_places_catch_every_exception():
    """One is the job boundary in handler.py.

    The other passes an error of a download's thread, also of a caller's hook, to the thread that
    waits for the download, which raises it.
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
