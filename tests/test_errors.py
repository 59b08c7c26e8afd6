from worker import errors
from worker.errors import WorkerError


def all_kinds(base=WorkerError):
    return [kind for sub in base.__subclasses__() for kind in (sub, *all_kinds(sub))]


def test_codes_are_unique_words_and_the_text_has_code_message_and_hint():
    coded = [kind for kind in all_kinds() if "code" in vars(kind)]
    assert len({kind.code for kind in coded}) == len(coded)
    for kind in coded:
        assert kind.code.isupper()
        assert str(kind("it broke.")) == f"{kind.code}: it broke. {kind.default_hint}".strip()


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    classes = [kind.__name__ for kind in (WorkerError, *all_kinds())]
    assert [word for word in errors.__doc__.split() if word in classes] == classes
