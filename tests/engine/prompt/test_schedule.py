"""Schedules, compared with those of A1111 v1.9.3's own parser for ten calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prompt.schedule import schedule

CALLS = 10
# A1111's schedules: (text, last call of the first text, the texts before and after it)
SWITCHING = [
    *(("a [b:3]", 3, "a ", "a b"), ("a [b: 3]", 3, "a ", "a b"), ("[a::3]", 3, "a", "")),
    *(("x [a:b: 3 ] y", 3, "x a y", "x b y"), ("a [[[b]]:2]", 2, "a ", "a [[b]]")),
    *(("[(a:2):3]", 3, "", "(a:2)"), ("([a:b:3])", 3, "(a)", "(b)"), ("[::3]", 3, "", "")),
    *(("(a [b:c:.5]:1.3)", 5, "(a b:1.3)", "(a c:1.3)"), ("a [b:.5] c", 5, "a  c", "a b c")),
    *(("a [b : c : 1] d", 1, "a b  d", "a  c  d"), ("[a: :3]", 3, "a", " ")),
    *(("[a:b:+3]", 3, "a", "b"), (r"[a\:b:3]", 3, "", r"a\:b")),
    ("((a][:b:c [d:3]", 3, "((a][:b:c ", "((a][:b:c d"),
]
# a share has a decimal point; nothing changes before the first or after the last call
AT_ONCE = {"[a:b:0]": "b", "[a:b:-1]": "b"}
NEVER = ("[a:b:12]", "[a:b:1.5]", "[a:b:3.0]", "[a:b:1e1]")
# in its first three calls
ALTERNATING = {
    "[a|(b:1.1)]": ("a", "(b:1.1)", "a"),
    "[fe|]male": ("female", "male", "female"),
    "[fe|||]male": ("female", "male", "male"),
    "[ a | b ]": (" a ", " b ", " a "),
    "[[a|b]:c:3]": ("a", "b", "a"),
    "[a|[b:c:3]]": ("a", "b", "a"),
}
PLAIN = [
    *("", "test", "a [unbalanced", "[a:b]", "[a:b:3:4]", "[(a:b:3)]", "[a|b:3]", "[a|(b]"),
    *("(a|b)", "a | b [c:d:5]", "a [{b|d{:.5] c", r"\[a:b:3\]", "end\\"),
    *("[" * 3000, "(" * 3000, "[(" * 1000 + "a" + ")]" * 1000),
]
RECORDED = [
    *((text, [(call, before), (CALLS, after)]) for text, call, before, after in SWITCHING),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (CALLS, "ade")]),
    *((text, [(CALLS, expected)]) for text, expected in AT_ONCE.items()),
    *((text, [(CALLS, "a")]) for text in NEVER),
    *((text, [*enumerate(texts, 1)]) for text, texts in ALTERNATING.items()),
    *((text, [(CALLS, text)]) for text in PLAIN),
]


@pytest.mark.parametrize(("text", "expected"), RECORDED)
def test_schedule_equals_that_of_a1111(text, expected):
    found = schedule(text, CALLS)
    assert found[: len(expected)] == expected
    assert found[-1][0] == CALLS


@given(st.text("ab [](){}:|\\.,0123", max_size=30), st.integers(1, 40))
def test_any_text_has_a_schedule(text, calls):
    found = schedule(text, calls)
    ends = [end for end, _ in found]
    assert ends == sorted(set(ends))
    assert ends[-1] == calls
    assert ends[0] >= 1


@given(st.text("ab (){}:,.0123", max_size=30))
def test_text_without_square_brackets_is_not_changed(text):
    assert schedule(text, CALLS) == [(CALLS, text)]


@given(st.text("ab c,", max_size=5), st.text("ab c,", max_size=5), st.integers(1, 9))
def test_switch(before, after, when):
    assert dict(schedule(f"x[{before}:{after}:{when}]y", CALLS)) == {
        when: f"x{before}y",
        CALLS: f"x{after}y",
    }


SECOND_PASS = [
    *(("[a:b:0.5]", [(8, "b")]), ("[a:b:1.5]", [(4, "a"), (8, "b")]), ("[a:b:3]", [(8, "b")])),
    *(("[a:b:12]", [(2, "a"), (8, "b")]), ("[a:b:99]", [(8, "a")])),
]


@pytest.mark.parametrize(("text", "expected"), SECOND_PASS)
def test_the_second_pass_counts_on_from_the_first(text, expected):
    assert schedule(text, 8, before=CALLS) == expected
