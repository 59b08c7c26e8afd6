"""--lora and --like: texts from the command line and from the files of pictures."""

import json
import zlib

import pytest
from fakes import input_pictures
from hypothesis import given
from hypothesis import strategies as st

import client as program
from worker.images import parameters

from .conftest import INFOTEXT, picture

names = st.from_regex(r"\A[\w ./@?=&%+-]{1,40}\Z")
values = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1)


@given(reference=names | names.map("https://{}".format), scale=st.floats(-10, 10))
def test_a_lora_with_a_scale_is_read_and_one_without_stays_a_text(reference, scale):
    scale = round(scale, 3)
    wanted = {"name": reference, "scale": scale}
    assert program.lora(f"{reference}:{scale:g}") == wanted or abs(scale) < 1e-4
    assert program.lora(reference) == reference


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com:8080/a.safetensors",
        "https://example.com:8080",
        "civitai:5",
        "civitai:4384@128713",
        "urn:air:sdxl:lora:civitai:122359@135867",
        "sha256:" + "1" * 64,
        "a:99",
        ":0.5",
        "a:",
        "a:1e5",
        "a:0.5:x",
    ],
)
def test_numbers_that_belong_to_a_reference_are_no_scale(text):
    assert program.lora(text) == text


@given(text=st.text())
def test_any_text_of_a_lora_is_read(text):
    found = program.lora(text)
    assert found == text or text.startswith(found["name"] + ":")


lines = st.dictionaries(
    st.sampled_from(sorted({*program.LIKE, "Model hash", "ControlNet 0"} - {"Steps"})),
    st.text("aB9.() ", min_size=1).map(str.strip).filter(bool) | values.map(json.dumps),
)


@given(prompt=st.text("aB9 ,.()\n"), line=lines)
def test_values_of_an_infotext_are_those_that_the_worker_reads(prompt, line):
    last = ", ".join(f"{name}: {value}" for name, value in {"Steps": 20, **line}.items())
    infotext = f"{prompt}\nNegative prompt: bad\nworse\n{last}"
    assert dict(program.entries(last)) == parameters.entries(infotext)
    fields, _ = program.fields_of(infotext)
    assert (fields["prompt"], fields["negative_prompt"]) == (prompt.strip(), "bad\nworse")


def test_the_parameters_of_a_picture_become_fields():
    fields, unknown = program.fields_of(
        "a fox\nNegative prompt: bad\nSteps: 8, Sampler: DPM++ 2M, Schedule type: Karras,"
        " CFG scale: 4.5, Seed: 1, Size: 128x256, Model hash: 0123456789, Model: demo,"
        " Clip skip: 2, Denoising strength: 0.4, Hires upscale: 1.5, Hires upscaler: Latent,"
        ' RNG: CPU, Hires prompt: "a, b", Tiling: True, Version: v1.9.3'
    )
    assert unknown == ["RNG"]
    assert fields == {
        "prompt": "a fox",
        "negative_prompt": "bad",
        "steps": 8,
        "sampler_name": "DPM++ 2M",
        "scheduler": "Karras",
        "cfg_scale": 4.5,
        "seed": 1,
        "width": 128,
        "height": 256,
        "checkpoint": "demo",
        "clip_skip": 2,
        "denoising_strength": 0.4,
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "hr_prompt": "a, b",
        "tiling": True,
    }


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("infotext", [INFOTEXT, "tilki \u015f\U0001f98a\nSteps: 3, Seed: 4"])
def test_the_infotext_is_found_in_every_format_of_the_worker(kind, infotext):
    assert program.infotext_of(picture(kind, infotext)) == infotext


def chunk(kind, body):
    return len(body).to_bytes(4, "big") + kind + body + bytes(4)


def test_compressed_texts_are_read_up_to_a_limit():
    start, text = b"\x89PNG\r\n\x1a\n", zlib.compress(INFOTEXT.encode())
    compressed = [chunk(b"zTXt", b"parameters\0\0" + text)]
    compressed += [chunk(b"iTXt", b"parameters\0\1\0\0\0" + text)]
    assert {program.infotext_of(start + one) for one in compressed} == {INFOTEXT}
    bomb = zlib.compress(bytes(2**26))
    found = program.infotext_of(start + chunk(b"zTXt", b"parameters\0\0" + bomb))
    assert len(found) == program.TEXT_MAX


FILES = [picture(kind) for kind in ("png", "jpeg", "webp")]
starts = st.sampled_from([file[:size] for file in FILES for size in (12, 60, 120)])


@given(data=st.binary() | st.tuples(starts, st.binary()).map(b"".join), text=st.text())
def test_no_file_and_no_text_is_an_error(data, text):
    assert isinstance(program.infotext_of(data), str)
    for one in (text, f"{text}\nSteps: 3, {text}"):
        assert program.fields_of(one)[0].keys() >= {"prompt"}


def test_options_win_over_the_picture_and_over_its_tags(endpoint, client):
    tagged = INFOTEXT.replace("fox", "fox <lora:striped:0.8>") + ", Model: demo, ENSD: 31337"
    (client.folder / "fox.png").write_bytes(picture(infotext=tagged))
    assert client("--like", "fox.png", "--quiet")[0] == 0
    more = ["--like", "fox.png", "--lora", "kohya", "--template", "demo", "--seed", 7]
    status, _, err = client("a dog", *more)
    assert (status, "not taken from fox.png: ENSD" in err) == (0, True)
    like = {"prompt": "a red fox <lora:striped:0.8>", "negative_prompt": "blurry", "steps": 20}
    like |= {"sampler_name": "Euler a", "cfg_scale": 4.0, "seed": 42, "checkpoint": "demo"}
    other = {**like, "prompt": "a dog", "loras": ["kohya"], "template": "demo", "seed": 7}
    del other["checkpoint"]
    assert endpoint.inputs() == [like, other]
    (client.folder / "plain.png").write_bytes(input_pictures.picture("rotated.png"))
    status, _, err = client("--like", "plain.png")
    assert (status, "plain.png has no parameters" in err) == (2, True)
