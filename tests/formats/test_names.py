"""Untrusted names become names that are valid in a tag, a title and a folder."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.formats.names import clean_stem, marked_stem, stem_of, without_suffix
from worker.job.prompt import lora_tags, rewritten


@pytest.mark.parametrize(
    ("stem", "clean"),
    [
        ("detail", "detail"),
        ("Jib Mix v1.5", "Jib Mix v1.5"),
        ("a: b ", "a_ b"),
        ("x=<y>,z", "x_y_z"),
        ("#1 fox", "_1 fox"),
        ("name [abc]", "name _abc_"),
        ("../../etc", "_.._etc"),
        ("../etc", "_etc"),
        ("a\\b/c", "a_b_c"),
        ("line\nbreak\x00\x85\u2028", "line_break_"),
        ("\u202eevil\u2066", "_evil_"),
        (" . ", "model"),
        ("\u3000\xa0", "model"),
        ("", "model"),
        ("ß\udc80", "ß?"),
        ("é" * 200, "é" * 90),
        ("猫" * 100, "猫" * 60),
        ("x" * 179 + " y", "x" * 179),
    ],
)
def test_a_stem_becomes_clean(stem, clean):
    assert clean_stem(stem) == clean


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("detail.safetensors", "detail"),
        ("detail.SafeTensors", "detail"),
        ("old.ckpt", "old"),
        ("v1.5", "v1.5"),
        ("v1.5.safetensors", "v1.5"),
        ("../../../etc/passwd", "passwd"),
        ("C:\\models\\fox.safetensors", "fox"),
        ("/", "model"),
        ("..", "model"),
        (".safetensors", "model"),
        ("", "model"),
    ],
)
def test_a_file_name_becomes_a_stem(name, stem):
    assert stem_of(name) == stem


def test_only_one_suffix_of_a_model_is_removed():
    names = ("a.safetensors.safetensors", "a.b.c")
    assert [without_suffix(name) for name in names] == ["a.safetensors", "a.b.c"]


any_text = st.text(max_size=300) | st.text("ab .:#<>[]=,/\\\n\u2028\ud800é猫", max_size=200)


@given(any_text, any_text)
@example("#", "a" * 180)
@example(" " * 300 + "x", "é" * 90)
@example("a" * 179 + "é", "")
def test_any_text_becomes_a_stem_that_is_valid_everywhere(text, other):
    stem, marked = clean_stem(text), marked_stem(text, "0123456789")
    assert (clean_stem(stem), clean_stem(marked)) == (stem, marked)
    assert stem == stem.strip(" .")
    assert 0 < len(stem.encode()) <= 180
    assert not {*"/\\:", *map(chr, (*range(32), *range(127, 160)))} & set(stem)
    assert marked.endswith("-0123456789")
    assert stem.startswith(marked[:-11])
    assert len(f"{stem_of(text)}-0123456789.safetensors".encode()) <= 255
    assert "/" not in stem_of(text)
    prompt = f"a fox <lora:{stem}:0.5>, red"
    assert [tag.name for tag in lora_tags(prompt)] == [stem]
    renamed = rewritten(prompt, {stem: clean_stem(other)})
    assert renamed == f"a fox <lora:{clean_stem(other)}:0.5>, red"
