import string
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InvalidInput
from worker.job.prompt import LoraTag, add_lora_tags, add_words, lora_tags, rename_lora_tags

TAGS = [
    ("a cat", []),
    ("a cat <lora:x>", [LoraTag("x", 1, 1)]),
    ("<lora:x:0.5> a cat <lora:y:1:0>", [LoraTag("x", 0.5, 0.5), LoraTag("y", 1, 0)]),
    ("<lora:x:te=0.2:unet=0.9>", [LoraTag("x", 0.2, 0.9)]),
    ("<lora:x:0.2:unet=0.9>", [LoraTag("x", 0.2, 0.9)]),
    ("<lora:x:0.2:unet=0.9:dyn=4>", [LoraTag("x", 0.2, 0.9)]),
    ("<lora:a b (c) [d],:-1>", [LoraTag("a b (c) [d],", -1, -1)]),
    ("<LORA:x:1>", []),  # A1111 is case-sensitive
    ("a # <lora:hidden:1>\n<lora:seen:1>", [LoraTag("seen", 1, 1)]),
    ("<lyco:x:0.5>", [LoraTag("x", 0.5, 0.5)]),  # an alias in A1111
    ("<hypernet:x:1>", []),
    ("<lora:>", []),
]


@pytest.mark.parametrize(("prompt", "tags"), TAGS)
def test_tags_are_read_as_a1111_reads_them(prompt, tags):
    assert lora_tags(prompt) == tags


@pytest.mark.parametrize("inside", ["x:abc", "x:1:y", "x:nan", "x:inf", "x:te=", "x:1:1:q", "te=1"])
def test_a_weight_that_would_drop_every_lora_is_refused(inside):
    with pytest.raises(InvalidInput):
        lora_tags(f"a <lora:{inside}> b")


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
    assert rename_lora_tags("x <lora:x:1> <lora:xy>", {"x": "z"}) == "x <lora:z:1> <lora:xy>"
    assert rename_lora_tags("<lyco:x:1>", {"x": "z"}) == "<lora:z:1>"


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
]


@pytest.mark.parametrize(("prompt", "words", "result"), WORDS)
def test_words_are_added_once(prompt, words, result):
    assert add_words(prompt, words) == add_words(result, words) == result
