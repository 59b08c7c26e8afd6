"""Names that strangers have chosen become names that a tag, a title and a folder can carry."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.formats.names import clean_stem, marked_stem, stem_of, without_suffix
from worker.job.prompt import lora_tags, rename_lora_tags

STEMS = [
    ("detail", "detail"),
    ("Jib Mix v1.5", "Jib Mix v1.5"),
    ("a: b ", "a_ b"),
    ("x=<y>,z", "x_y_z"),
    ("#1 fox", "_1 fox"),
    ("name [abc]", "name _abc_"),
    ("../../etc", "_.._etc"),
    ("a\\b/c", "a_b_c"),
    ("line\nbreak\x00\x85\u2028", "line_break_"),
    ("\u202eevil", "_evil"),
    (" . ", "model"),
    ("\u3000\xa0", "model"),
    ("", "model"),
    ("ß\udc80", "ß?"),
    ("é" * 200, "é" * 90),
    ("猫" * 100, "猫" * 60),
    ("x" * 179 + " y", "x" * 179),
]


@pytest.mark.parametrize(("stem", "clean"), STEMS)
def test_a_stem_becomes_clean(stem, clean):
    assert clean_stem(stem) == clean


FILES = [
    ("detail.safetensors", "detail"),
    ("detail.SafeTensors", "detail"),
    ("old.ckpt", "old"),
    ("old.pt", "old"),
    ("v1.5", "v1.5"),
    ("v1.5.safetensors", "v1.5"),
    ("../../../etc/passwd", "passwd"),
    ("C:\\models\\fox.safetensors", "fox"),
    ("/", "model"),
    ("..", "model"),
    (".safetensors", "model"),
    ("", "model"),
]


@pytest.mark.parametrize(("name", "stem"), FILES)
def test_a_file_name_becomes_a_stem(name, stem):
    assert stem_of(name) == stem


def test_only_a_models_suffix_is_taken_off():
    assert without_suffix("a.safetensors.safetensors") == "a.safetensors"
    assert without_suffix("a.b.c") == "a.b.c"


any_text = st.text(max_size=300) | st.text("ab .:#<>[]=,/\\\n\u2028\ud800é猫", max_size=200)


@given(any_text)
@example("#")
@example(" " * 300 + "x")
@example("a" * 179 + "é")
def test_any_text_becomes_a_stem_that_lasts(text):
    stem = clean_stem(text)

    assert clean_stem(stem) == stem
    assert stem == stem.strip(" .")
    assert 0 < len(stem.encode()) <= 180
    assert not set("/\\\0\n:") & set(stem)
    assert not {chr(n) for n in (*range(32), *range(127, 160))} & set(stem)


@given(any_text)
@example("a" * 180)
@example("é" * 90)
def test_a_stem_with_a_mark_is_clean_too(text):
    stem = marked_stem(text, "0123456789")

    assert clean_stem(stem) == stem
    assert stem.endswith("-0123456789")
    assert clean_stem(text).startswith(stem[:-11])


@given(any_text, any_text)
def test_any_stem_survives_in_a_tag(text, other):
    stem = clean_stem(text)
    prompt = f"a fox <lora:{stem}:0.5>, red"

    assert [tag.name for tag in lora_tags(prompt)] == [stem]
    assert rename_lora_tags(prompt, {stem: clean_stem(other)}) == (
        f"a fox <lora:{clean_stem(other)}:0.5>, red"
    )


@given(any_text)
def test_any_file_name_becomes_one_that_a_folder_takes(text):
    name = f"{stem_of(text)}-0123456789.safetensors"

    assert len(name.encode()) <= 255
    assert name.rpartition("/")[2] == name
