"""POST /png-info: texts of files, and generation parameters read back."""

import io
import json

import piexif
import piexif.helper
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from engine.images import generation_text, png_info
from engine.images.decode import open_picture
from engine.prompt.styles import Styles

TEXT = "a cat\nSteps: 2, Sampler: Euler, Seed: 1"


def reread(kind="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, **options)
    return png_info.texts_of(open_picture(file.getvalue()), {"k_euler": "Euler"})


def png_texts(**texts):
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return {"pnginfo": info}


def test_texts_of_a_png():
    assert reread(**png_texts(parameters=TEXT, Title="x"), dpi=(9, 9)) == (TEXT, {"Title": "x"})
    assert reread() == ("", {})


@pytest.mark.parametrize("encoding", ["unicode", "ascii"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_texts_in_exif(kind, encoding):
    comment = piexif.helper.UserComment.dump(TEXT, encoding=encoding)
    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})
    info, items = reread(kind, exif=exif)
    assert (info, "exif" in items) == (TEXT, False)


def test_comment_of_a_gif():
    assert reread("GIF", comment=TEXT.encode())[0] == TEXT


def test_pictures_of_novel_ai():
    made = json.dumps({"sampler": "k_euler", "steps": 28, "scale": 11.0, "seed": 5, "uc": "low"})
    texts = {"Software": "NovelAI", "Description": "a fox", "Comment": made}
    info, _ = reread(**png_texts(**texts))
    assert info.startswith(
        "a fox\nNegative prompt: low\nSteps: 28, Sampler: Euler, CFG scale: 11.0"
    )
    assert reread(**png_texts(**(texts | {"Comment": "{"})))[0] == ""


READ = {
    "a cat": {"Prompt": "a cat", "Negative prompt": "", "Clip skip": "1", "RNG": "GPU"},
    "a\nb\nNegative prompt: c\nd\nSteps: 1, Seed: 2, Size: 3x4": {
        "Prompt": "a\nb",
        "Negative prompt": "c\nd",
        "Steps": "1",
        "Seed": "2",
        "Size-1": "3",
        "Size-2": "4",
    },
    'x\nSteps: 1, Seed: 2, Model: "a, b: c", Version: v1.9.3': {"Model": "a, b: c", "Seed": "2"},
    "x\nSteps: 1, Seed: 2": {"Prompt": "x\nSteps: 1, Seed: 2"},  # too few to be parameters
    "(x:1.2)\nSteps: 1, Seed: 2, Sampler: DDIM, Version: 1.5.2": {
        "Emphasis": "Original",
        "Pad conds v0": True,
        "Downcast alphas_cumprod": True,
    },
    "x\nSteps: 1, Seed: 2, Hires resize: 5x6, Hires prompt: y": {
        "Hires resize-1": "5",
        "Hires resize-2": "6",
        "Hires prompt": "y",
    },
}


@pytest.mark.parametrize("text", READ)
def test_generation_parameters(text):
    found = generation_text.read(text, Styles())
    assert {name: found.get(name) for name in READ[text]} == READ[text]


def test_styles_are_found_in_the_prompts(tmp_path):
    file = tmp_path / "styles.csv"
    file.write_text(
        "name,prompt,negative_prompt\noil,oil painting,\nold,old {prompt} photo,blurry\n"
    )
    styles = Styles(file)
    texts = styles.apply("a cat", "bad", ["oil", "old"])
    assert styles.extract(*texts) == (["oil", "old"], "a cat", "bad")
    found = generation_text.read(f"{texts[0]}\nNegative prompt: {texts[1]}", styles)
    assert (found["Prompt"], found["Styles array"]) == ("a cat", ["oil", "old"])


@given(st.text(max_size=200), st.text('a:," x\\1\n', max_size=200))
def test_any_text_can_be_read(text, other):
    for one in (text, f"{text}\n{other}"):
        json.dumps(generation_text.read(png_info.writable(one), Styles()))


# A pattern that is tried from each place needs minutes for these.
@pytest.mark.parametrize("part", ["a", "a:", '"', 'a: "', " ", "a,"])
def test_long_texts_are_read_in_one_pass(part):
    found = generation_text.read("x\n" + part * 200_000, Styles())
    assert found["Clip skip"] == "1"
