import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from worker.answer import Absent, Answer, failure, left_out, plain, to_json
from worker.errors import InvalidInput

TEXT = st.text(st.characters())
SIMPLE = (st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.binary())


def nested(inner):
    objects = st.dictionaries(st.text() | st.integers(), inner)
    return st.lists(inner) | st.tuples(inner) | st.frozensets(st.text()) | objects


@given(st.recursive(st.one_of(*SIMPLE, st.just(Path("/x"))), nested))
def test_anything_becomes_strict_json(value):
    text = json.dumps(plain(value), allow_nan=False, ensure_ascii=False)
    assert json.loads(text.encode()) == plain(value)


def test_good_json_is_unchanged_and_lone_surrogates_are_replaced():
    good = {"a": [1, 2.5, None, True, "täxt 😀"], "b": {"c": ""}}
    assert plain(good | {"d": "a\ud83db"}) == good | {"d": "a?b"}


def test_a_failure_has_a_text_and_facts():
    error = InvalidInput("steps = 0.", hint="Use 1.", field="steps", near=None)
    assert failure(error, retire=True) == {
        "error": "INVALID_INPUT: steps = 0. Use 1.",
        "message": "Failed to process inference request",
        "code": "INVALID_INPUT",
        "detail": "INVALID_INPUT: steps = 0. Use 1.",
        "field": "steps",
        "near": None,
        "refresh_worker": True,
    }


class Numbers(Answer):
    first: float | None
    second: int | Absent = left_out("The second.")


def test_a_field_without_a_value_is_left_out_unless_the_type_requires_it():
    assert to_json(Numbers.model_construct(first=None, second=None)) == {"first": None}
    both = to_json(Numbers.model_construct(first=float("nan"), second=2), retire=True)
    assert both == {"first": None, "second": 2, "refresh_worker": True}
