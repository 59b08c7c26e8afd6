"""Schedules, compared with those of A1111 v1.9.3's own parser for ten calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prompt.schedule import schedule

CALLS = 10
# A1111's schedules: text -> {last call: text}; for alternating ones the first three calls
RECORDED = {
    "": {10: ""},
    "test": {10: "test"},
    "a [b:3]": {3: "a ", 10: "a b"},
    "a [b: 3]": {3: "a ", 10: "a b"},
    "x [a:b: 3 ] y": {3: "x a y", 10: "x b y"},
    "a [[[b]]:2]": {2: "a ", 10: "a [[b]]"},
    "[(a:2):3]": {3: "", 10: "(a:2)"},
    "([a:b:3])": {3: "(a)", 10: "(b)"},
    "(a [b:c:.5]:1.3)": {5: "(a b:1.3)", 10: "(a c:1.3)"},
    "a [b : c : 1] d": {1: "a b  d", 10: "a  c  d"},
    "a[b:[c:d:2]:1]e": {1: "abe", 2: "ace", 10: "ade"},
    "a [b:.5] c": {5: "a  c", 10: "a b c"},
    "[a::3]": {3: "a", 10: ""},
    "[::3]": {3: "", 10: ""},
    "[a: :3]": {3: "a", 10: " "},
    # a share has a decimal point; nothing changes before the first or after the last call
    "[a:b:0]": {10: "b"},
    "[a:b:-1]": {10: "b"},
    "[a:b:+3]": {3: "a", 10: "b"},
    "[a:b:12]": {10: "a"},
    "[a:b:1.5]": {10: "a"},
    "[a:b:3.0]": {10: "a"},
    "[a:b:1e1]": {10: "a"},
    # alternating
    "[a|(b:1.1)]": {1: "a", 2: "(b:1.1)", 3: "a"},
    "[fe|]male": {1: "female", 2: "male", 3: "female"},
    "[fe|||]male": {1: "female", 2: "male", 3: "male"},
    "[ a | b ]": {1: " a ", 2: " b ", 3: " a "},
    "[[a|b]:c:3]": {1: "a", 2: "b", 3: "a"},
    "[a|[b:c:3]]": {1: "a", 2: "b", 3: "a"},
    # plain text
    "a [unbalanced": {10: "a [unbalanced"},
    "[a:b]": {10: "[a:b]"},
    "[a:b:3:4]": {10: "[a:b:3:4]"},
    "[(a:b:3)]": {10: "[(a:b:3)]"},
    "[a|b:3]": {10: "[a|b:3]"},
    "[a|(b]": {10: "[a|(b]"},
    "(a|b)": {10: "(a|b)"},
    "a | b [c:d:5]": {10: "a | b [c:d:5]"},
    "a [{b|d{:.5] c": {10: "a [{b|d{:.5] c"},
    "((a][:b:c [d:3]": {3: "((a][:b:c ", 10: "((a][:b:c d"},
    r"\[a:b:3\]": {10: r"\[a:b:3\]"},
    r"[a\:b:3]": {3: "", 10: r"a\:b"},
    "end\\": {10: "end\\"},
}


@pytest.mark.parametrize(("text", "expected"), RECORDED.items())
def test_schedule_equals_that_of_a1111(text, expected):
    found = schedule(text, CALLS)
    assert found[: len(expected)] == list(expected.items())
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


@pytest.mark.parametrize("text", ["[" * 3000, "(" * 3000, "[(" * 1000 + "a" + ")]" * 1000])
def test_deeply_nested_brackets_are_text(text):
    assert schedule(text, CALLS) == [(CALLS, text)]
