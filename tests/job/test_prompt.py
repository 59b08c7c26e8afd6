import string
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InvalidInput
from worker.job.prompt import (
    LoraTag,
    add_lora_tags,
    add_words,
    hypernetworks,
    lora_tags,
    rewritten,
    without_comments,
)

TAGS = [
    ("a cat", []),
    ("a cat <lora:x>", [LoraTag("x", 1, 1)]),
    ("<lora:x:0.5> a cat <lora:y:1:0>", [LoraTag("x", 0.5, 0.5), LoraTag("y", 1, 0)]),
    ("<lora:x:te=0.2:unet=0.9>", [LoraTag("x", 0.2, 0.9)]),
    ("<lora:x:0.2:unet=0.9>", [LoraTag("x", 0.2, 0.9)]),
    ("<lora:x:0.2:unet=0.9:dyn=4>", [LoraTag("x", 0.2, 0.9)]),
    ("<lora:a b (c) [d],:-1>", [LoraTag("a b (c) [d],", -1, -1)]),
    # A1111 would leave out these; they are sent as it reads them
    *((f"<{word}:x:1>", [LoraTag("x", 1, 1)]) for word in ("LoRA", "LORA", "LyCo", "l\uff4fra")),
    ("<lora: x :1>", [LoraTag("x", 1, 1)]),
    ("<lora:x: 0.5 >", [LoraTag("x", 0.5, 0.5)]),
    ("<lora:x:1e1:+1_0>", [LoraTag("x", 10, 10)]),  # as Python reads numbers
    ("<lora:te=0.5:x>", [LoraTag("x", 0.5, 0.5)]),
    ("<lora:x:0.5:te=0.2>", [LoraTag("x", 0.2, 0.2)]),
    ("<lora:a=b=c:1>", [LoraTag("a=b=c", 1, 1)]),  # two `=`: by position
    ("<lora:x:1\n>", [LoraTag("x", 1, 1)]),
    ("<lora:a<b:1>", [LoraTag("a<b", 1, 1)]),
    ("<lora:x:1> <lora:x:0.5>", [LoraTag("x", 1, 1), LoraTag("x", 0.5, 0.5)]),
    ("<lora:x:1", []),
    ("<loras:x:1>", []),
    ("a # <lora:hidden:1>\n<lora:seen:1>", [LoraTag("seen", 1, 1)]),
    ("<lyco:x:0.5>", [LoraTag("x", 0.5, 0.5)]),  # an alias in A1111
    ("<hypernet:x:1>", []),
    ("<lora:>", []),
]


@pytest.mark.parametrize(("prompt", "tags"), TAGS)
def test_tags_are_read_as_a1111_reads_them(prompt, tags):
    assert lora_tags(prompt) == tags


REFUSED = [
    *((inside, "not a number") for inside in ("x:abc", "x:1:y", "x:nan", "x:inf", "x:te=", "x:")),
    *(
        (inside, "not a number")
        for inside in ("x:1,5", "x:a:te=1", "x:1:1:q", "x:1:1:1.5", "x:<lora:y:1")
    ),
    *(
        (inside, "has no name")
        for inside in (" ", "\n#c:1\n", "te=1", ":1", " :1", "equal=x:1", "equal=x")
    ),
    *((f"x:1:{named}", "would ignore") for named in ("lbw=OUTALL", "start=5", "TE=1", " te=1")),
    ("x:1:1:4:5", "has 4 weights"),
    *((f"x:1:dyn={rank}", f"dyn = {rank}") for rank in (0, -1)),
]


@pytest.mark.parametrize(("inside", "message"), REFUSED)
def test_a_tag_that_a1111_would_ignore_or_misread_is_refused(inside, message):
    with pytest.raises(InvalidInput, match=message):
        lora_tags(f"a <lora:{inside}> b")


@pytest.mark.parametrize("inside", ["x:abc", ":1", "x:1:2"])
def test_a_wrong_hypernetwork_tag_is_refused(inside):
    assert hypernetworks("a <HyperNet:x:1>") == ["x"]
    with pytest.raises(InvalidInput, match="<hypernet:name:weight>"):
        hypernetworks(f"a <hypernet:{inside}>")


def test_a_message_shows_a_tag_on_one_line():
    with pytest.raises(InvalidInput) as raised:
        lora_tags("<lora:x\n2026-01-01T00:00:00Z INFO forged:y>")
    assert "\n" not in str(raised.value)


ADDED = [
    ("a cat", [LoraTag("x", 1.5)], "a cat <lora:x:1.5>"),
    ("a cat", [LoraTag("x", 1, 0)], "a cat <lora:x:1:0>"),
    ("a cat", [LoraTag("x", 1, 1)], "a cat <lora:x:1>"),
    ("", [LoraTag("x"), LoraTag("y", 0.25)], "<lora:x:1> <lora:y:0.25>"),
    ("a <lora:x:0.3>", [LoraTag("x", 1)], "a <lora:x:0.3>"),  # the caller's own tag wins
    ("a # <lora:x:1>", [LoraTag("x", 1)], "a # <lora:x:1>\n<lora:x:1>"),  # that one was a comment
]


@pytest.mark.parametrize(("prompt", "tags", "result"), ADDED)
def test_tags_are_added_once_and_where_they_count(prompt, tags, result):
    assert add_lora_tags(prompt, tags) == result


def test_names_in_tags_are_replaced_and_nothing_else():
    assert rewritten("x <lora:x:1> <lora:xy>", {"x": "z"}) == "x <lora:z:1> <lora:xy>"
    assert rewritten("<LyCO: x :1>", {"x": "z"}) == "<lora:z:1>"
    assert rewritten("<lora:te=1:x>", {"x": "z"}) == "<lora:te=1:z>"
    assert rewritten("<HYPERNET:x:1> <other:x:1>", {"x": "z"}) == "<hypernet:x:1> <other:x:1>"
    assert rewritten("a # <lora:x:1>\nb", {"x": "z"}) == "a \nb"


names = st.text(string.ascii_letters + string.digits + " _-().", min_size=1).map(str.strip)
weights = st.floats(-10, 10).map(lambda weight: float(f"{weight:g}"))


@given(
    st.text(st.characters(blacklist_characters="<>")),
    st.lists(st.builds(LoraTag, names.filter(bool), weights, weights), unique_by=lambda t: t.name),
)
def test_what_was_added_is_read_back(prompt, tags):
    assert lora_tags(add_lora_tags(prompt, tags)) == tags


@given(st.text())
def test_any_text_is_read_or_refused(prompt):
    with suppress(InvalidInput):
        assert all(tag.name in prompt for tag in lora_tags(prompt))


WORDS = [
    ("a fox", [], "a fox"),
    ("", ["red fur", "tail"], "red fur, tail"),
    ("a Fox, Red Fur", ["fox, red fur, tail"], "a Fox, Red Fur, tail"),
    ("foxes", ["fox"], "foxes, fox"),
    ("a (fox:1.2)", ["fox"], "a (fox:1.2)"),
    ("a fox", ["fox", "FOX", "tail", "tail"], "a fox, tail"),
    ("a cat # fox", ["fox"], "a cat # fox\nfox"),
    ("a cat", [" , ,"], "a cat"),
    ("(a+b)", ["a+b", "[x]"], "(a+b), [x]"),
    ("a fox", ["<lora:other_v1:0.8>, tail", "<lora:fox:0.3>"], "a fox, tail"),
    ("a fox", ["fur <lyco:y:0.5-0.8>", "a #1 tail"], "a fox, fur, a 1 tail"),
    ("a fox", ["<LoRA:y:1> fur", "<lora:y:1", ">"], "a fox, fur, lora:y:1, >"),
    ("foxes of a fox", ["a fox"], "foxes of a fox"),
]


@pytest.mark.parametrize(("prompt", "words", "result"), WORDS)
def test_words_are_added_once(prompt, words, result):
    assert add_words(prompt, words) == add_words(result, words) == result


COMMENTS = [
    ("a cat", "a cat"),
    ("a # b", "a \n"),
    ("# a\nb", "\nb"),
    ("a\n# b\nc", "a\nc"),
    ("a\n#b\n#c\nd", "a\n\nd"),
    ("a#b\n#c\nd", "a\nd"),
    ("#", "\n"),
    ("a ##b\r\nc", "a \nc"),
]


@pytest.mark.parametrize(("prompt", "text"), COMMENTS)
def test_comments_are_removed_as_a1111_removes_them(prompt, text):
    """Recorded from A1111 v1.9.3."""
    assert without_comments(prompt) == text


@given(st.text("#\n a<lora:x1>"))
def test_a_text_without_comments_is_not_changed_by_a1111(prompt):
    once = without_comments(prompt)
    assert "#" not in once
    assert without_comments(once) == once
