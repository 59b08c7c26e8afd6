"""Styles as A1111 v1.9.3 reads and applies them."""

import pytest

from engine.api.job import Job
from engine.api.options import DEFAULTS
from engine.api.request import Txt2Img
from engine.errors import Unsupported
from engine.prompt.styles import Styles

FILE = (
    "\ufeffname,prompt,negative_prompt\n"
    '# a comment,x,x\nend," sharp, 4k ",blurry\n'
    'around,"a photo of {prompt}, {prompt}",\nshort\n'
)


@pytest.fixture
def styles(tmp_path):
    (tmp_path / "styles.csv").write_text(FILE, encoding="utf-8")
    return Styles(tmp_path / "styles.csv")


@pytest.mark.parametrize(
    ("names", "prompt", "negative"),
    [
        ([], " a cat ", "red"),
        (["end"], "a cat, sharp, 4k", "red, blurry"),
        (["around"], "a photo of  a cat ,  a cat ", "red"),
        (["end", "around"], "a photo of a cat, sharp, 4k, a cat, sharp, 4k", "red, blurry"),
        (["None"], "a cat", "red"),
        (["nope", "short"], "a cat", "red"),
    ],
)
def test_styles_are_added_to_both_prompts_of_both_passes(styles, names, prompt, negative):
    assert styles.apply(" a cat ", "red", names) == (prompt, negative)
    request = Txt2Img(
        prompt=" a cat ", negative_prompt="red", styles=names,
        enable_hr=True, denoising_strength=0.5, hr_prompt="a dog",
    )  # fmt: skip
    job = Job(request, DEFAULTS, styles)
    assert (job.first.texts.prompt, job.first.texts.negative) == (prompt, negative)
    assert job.second.texts.prompt == styles.apply("a dog", "", names)[0]
    assert job.second.texts.negative == negative


def test_list_has_the_file_s_entries(styles):
    assert [entry["name"] for entry in styles.describe()] == ["end", "around", "short"]
    expected = {"name": "end", "prompt": " sharp, 4k ", "negative_prompt": "blurry"}
    assert styles.describe()[0] == expected


def test_endless_growth_is_refused(styles):
    with pytest.raises(Unsupported, match="1000000 characters"):
        styles.apply("a cat", "", ["around"] * 100)


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", 0), (b"name,text\nold,x\n", 1), (b"a,b\n1,2\n", 0), (b"name,prompt\n\xff,\xfe\n", 0)],
)
def test_a_file_that_cannot_be_read_gives_no_styles(tmp_path, content, found):
    file = tmp_path / "styles.csv"
    file.write_bytes(content)
    assert len(Styles(file).all) == found
    assert Styles(tmp_path).all == Styles().all == {}
