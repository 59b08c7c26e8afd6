"""Generation parameters, as A1111 v1.9.3 answered POST /png-info for the same files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images.samples import INFOTEXT, SIZE, comment, file_of, picture, png_texts

from worker.images.decoder import decode
from worker.images.input_image import InputImage
from worker.images.limits import IMAGE_LIMITS
from worker.images.parameters import DEFAULTS, parameters_of
from worker.images.png_info import describe


def described(data):
    return describe(decode(data, IMAGE_LIMITS))


LETTERS = INFOTEXT.replace("fox", "füchs 狐")
FILES = {
    "PNG": png_texts(parameters=LETTERS),
    "JPEG": file_of(format_="JPEG", exif=comment(LETTERS)),
    "WebP": file_of(format_="WEBP", exif=comment(LETTERS)),
    "AVIF": file_of(format_="AVIF", exif=comment(LETTERS)),
    "comment of a JPEG": file_of(format_="JPEG", comment=LETTERS.encode()),
    "comment of a GIF": file_of(picture("P"), "GIF", comment=LETTERS.encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_the_infotext_is_found_where_each_format_has_it(name):
    found = described(FILES[name])
    assert found.info == LETTERS
    assert found.parameters["Seed"] == "1"


@pytest.mark.parametrize("encoding", ["ascii", "unicode"])
def test_encodings_of_exif(encoding):
    assert described(file_of(format_="JPEG", exif=comment(INFOTEXT, encoding))).info == INFOTEXT


def test_utf_16_with_the_low_byte_first_is_read_too():
    high, low = (INFOTEXT.encode(f"utf-16-{order}") for order in ("be", "le"))
    exif = comment(INFOTEXT).replace(high, low)
    assert exif != comment(INFOTEXT)
    assert described(file_of(format_="JPEG", exif=exif)).info == INFOTEXT


def test_texts_of_other_programs_are_items():
    comfy = {"prompt": '{"3": {"class_type": "KSampler"}}', "workflow": '{"nodes": []}'}
    assert described(png_texts(**comfy)).items == comfy
    assert described(file_of(dpi=(72, 72), transparency=(0, 0, 0))).items == {}
    assert described(file_of()).parameters == {}


NOVELAI = {
    "Software": "NovelAI",
    "Description": "a fox",
    "Comment": '{"steps":28,"sampler":"k_euler","seed":5,"scale":11.0,"uc":"lowres"}',
}


def test_novelais_json_becomes_an_infotext():
    found = described(png_texts(**NOVELAI))
    assert found.info == (
        "a fox\nNegative prompt: lowres\nSteps: 28, Sampler: Euler, CFG scale: 11.0, Seed: 5,"
        f" Size: {SIZE[0]}x{SIZE[1]}, Clip skip: 2, ENSD: 31337"
    )
    for broken in ("", "[]", "{}", "[" * 100_000, '{"sampler": []}'):
        assert described(png_texts(**NOVELAI | {"Comment": broken})).info == ""


# The answers of A1111 v1.9.3 for these infotexts, without its defaults.
RECORDED = [
    (
        INFOTEXT,
        {
            "Prompt": "a (fox)",
            "Negative prompt": "blurry",
            "Emphasis": "Original",
            "Steps": "8",
            "Sampler": "Euler a",
            "CFG scale": "4",
            "Seed": "1",
            "Size-1": "128",
            "Size-2": "192",
            "Model": "demo",
            "Version": "v1.9.3",
            "Lora hashes": "a: 12, b: 34",
        },
    ),
    ("Steps", {"Prompt": "Steps", "Negative prompt": ""}),
    (
        'a\n\nb\nNegative prompt: c\n d \nSteps: 1,Sampler: x , A: , -B/c: "q\\"", Seed: 2:3',
        {
            "Prompt": "a\n\nb",
            "Negative prompt": "c\nd",
            "Steps": "1",
            "Sampler": "x ",
            "B/c": 'q"',
            "Seed": "2:3",
        },
    ),
    ("Steps: 1, Seed: 2", {"Prompt": "Steps: 1, Seed: 2", "Negative prompt": ""}),
    (
        'Steps: 1, Seed: 2, Clip skip: 2, Size: 1x2x3, TI hashes: "a", b',
        {
            "Prompt": "",
            "Negative prompt": "",
            "Steps": "1",
            "Seed": "2",
            "Clip skip": "2",
            "Size": "1x2x3",
            "TI hashes": "a",
        },
    ),
    (r"a \(b\) \[c\]", {"Prompt": r"a \(b\) \[c\]", "Negative prompt": ""}),
]


@pytest.mark.parametrize(("infotext", "values"), RECORDED)
def test_parameters_have_a1111s_names_and_values(infotext, values):
    assert parameters_of(infotext) == {**DEFAULTS, **values}


@given(st.text(st.sampled_from(' ,:"\\abSteps\n-/(1x'), max_size=200))
def test_any_infotext_is_read(infotext):
    found = parameters_of(infotext)
    assert found == {} if not infotext.strip() else {"Prompt", "Negative prompt"} <= found.keys()


@given(st.dictionaries(st.sampled_from(list(NOVELAI)), st.text(max_size=80)), st.text(max_size=80))
def test_any_texts_are_described(items, infotext):
    image = InputImage(b"", "png", 1, 1, infotext, items)
    assert describe(image).info in {infotext, ""} or "Software" in items


HOSTILE = ["a" * 10**6, "aa:" * 300_000, " " * 10**6, 'aa:"' * 250_000, 'aa:"\\' * 200_000]
HOSTILE += [":" * 10**6, '"' * 10**6, "(" * 10**6, "\\" * 10**6, "\n" * 10**6, "a\n" * 500_000]


@pytest.mark.parametrize("infotext", HOSTILE, ids=lambda text: repr(text[:4]))
@pytest.mark.timeout(60)
def test_a_long_infotext_takes_one_pass(infotext):
    """With a pattern that starts anew at each character it would take hours."""
    assert parameters_of(infotext).keys() <= {*DEFAULTS, *parameters_of("a (b)"), "aa"}
