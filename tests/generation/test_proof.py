import base64
import io
import json
from contextlib import nullcontext

import pytest
from fakes.a1111.picture import png
from fakes.recorded import recorded
from PIL import Image

from worker import errors
from worker.generation.payload import Expected
from worker.generation.proof import (
    applied_loras,
    check,
    check_embeddings,
    check_listed,
)
from worker.images.parameters import entries

RECORDED = json.loads(recorded("post_txt2img_lora_checkpoint")["info"])  # tinyB with loraA
IGNORED = json.loads(recorded("post_txt2img_unknown_checkpoint_and_lora_silent_200")["info"])
GRID = RECORDED | {"index_of_first_image": 1}
SHORT = RECORDED["sd_model_hash"]
PIXEL = base64.b64encode(png(8, 16, b"abc", "")).decode()
SQUARE = base64.b64encode(png(8, 8, b"abc", "")).decode()
MASKED = {"extra_generation_params": {"Denoising strength": 0.5, "Mask blur": 4}}
STRONGER = Expected(1, reported={"Denoising strength": 0.75})
ONLY_MASKED = Expected(1, reported={"Inpaint area": "Only masked"})
OTHER = Expected(1, "tinyB", checkpoint_sha256="1" * 64)


@pytest.mark.parametrize(
    ("info", "images", "expected"),
    [
        (RECORDED, 1, Expected(1, "tinyB", frozenset({"loraA"}))),
        (IGNORED, 1, Expected(1)),  # a job that names no model
        (RECORDED, 1, Expected(1, "tinyB", checkpoint_sha256=SHORT + "0" * 54)),
        (RECORDED | {"sd_model_hash": None}, 1, OTHER),
        (RECORDED | {"sd_vae_name": "v.safetensors"}, 1, Expected(1, vae="v.safetensors")),
        (GRID, 3, Expected(2)),  # the grid is not counted
        (GRID, 4, Expected(None)),  # a script makes any number
    ],
)
def test_a_good_answer_is_proven(info, images, expected):
    check(info, ["x"] * images, expected)


@pytest.mark.parametrize(
    ("info", "images", "expected", "message"),
    [
        (IGNORED, 1, Expected(1, "nope"), "WRONG_CHECKPOINT: .*'nope', but the engine .* 'tinyA'"),
        (IGNORED, 1, Expected(1, loras=frozenset({"nope"})), "LORA_NOT_APPLIED: .*LoRA 'nope'"),
        # A1111 keeps a loaded checkpoint when another file gets its name.
        (RECORDED, 1, OTHER, f"WRONG_CHECKPOINT: .* another file of that name, with {SHORT}"),
        (RECORDED, 1, Expected(1, vae="good"), "WRONG_VAE: .* the engine used None"),
        (RECORDED, 0, Expected(2), "INCOMPLETE_ANSWER: expected 2 pictures, but .* returned 0"),
        (RECORDED, 1, Expected(2), "INCOMPLETE_ANSWER: .* returned 1"),
        (RECORDED, 3, Expected(2), "INCOMPLETE_ANSWER: .* returned 3"),
        (RECORDED, 0, Expected(None), "INCOMPLETE_ANSWER: .* returned no picture"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_an_error(info, images, expected, message):
    with pytest.raises(errors.ProofError, match=message):
        check(info, ["x"] * images, expected)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (Expected(1, size=(8, 16), reported={"Denoising strength": 0.5}), None),
        (STRONGER, "WRONG_DRAWING: expected Denoising strength 0.75, but the engine reports 0.5"),
        (ONLY_MASKED, "expected Inpaint area 'Only masked', but the engine reports None"),
        (Expected(1, size=(8, 8)), "expected pictures of 8 x 8 pixels, but .* one of 8 x 16"),
    ],
)
def test_the_size_and_the_way_of_drawing_are_proven(expected, message):
    with pytest.raises(errors.WrongDrawing, match=message) if message else nullcontext():
        check(MASKED, [PIXEL], expected)
    check({"index_of_first_image": 1, **MASKED}, [PIXEL, SQUARE], Expected(1, size=(8, 8)))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_the_size_is_proven_in_every_format_that_the_engine_may_be_set_to(form):
    """A1111's setting `samples_format` is that of its API, too."""
    file = io.BytesIO()
    Image.new("RGB", (16, 8)).save(file, form)
    picture = base64.b64encode(file.getvalue()).decode()
    check({}, [picture], Expected(1, size=(16, 8)))
    with pytest.raises(errors.WrongDrawing, match=r"8 x 8 pixels, but .* one of 16 x 8"):
        check({}, [picture], Expected(1, size=(8, 8)))


@pytest.mark.parametrize("data", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", b"x" * 100])
def test_what_is_no_picture_is_an_incomplete_answer(data):
    text = base64.b64encode(data).decode()
    for image in (text, "not base64!"):
        with pytest.raises(errors.IncompleteAnswer, match="no picture"):
            check({}, [image], Expected(1, size=(8, 8)))


def drawn(model, more=""):
    return (
        f"a fox, Model: fake\nSteps: 2, Sampler: Euler, Model hash: {SHORT}, Model: {model}{more}"
    )


def from_script(*infotexts):
    """The facts of "prompts from file or textbox"."""
    names = dict.fromkeys(("sd_model_name", "sd_model_hash", "sd_vae_name"))
    return {**names, "extra_generation_params": {}, "infotexts": list(infotexts)}


AXIS = (3, "tinyA, sub/tinyC.safetensors [0123456789]", ["tinyD.safetensors"], "10-20")
LINES = ('a dog --sd_model tinyE\n--prompt "x" --sd_model "tiny F" --steps 9', 1)


@pytest.mark.parametrize(
    ("infotexts", "args", "error"),
    [
        ([drawn("tinyB")] * 2, (), None),
        ([drawn("tinyA"), drawn("tinyB")], (), "engine used 'tinyA'"),
        ([drawn("tinyA"), drawn("tinyC"), drawn("tinyD")], AXIS, None),
        ([drawn("tinyE"), drawn("tiny F"), drawn("tinyB")], LINES, None),
        ([drawn("tiny")], AXIS, "engine used 'tiny'"),  # only whole names
        ([drawn("fake")], (), "engine used 'fake'"),
        ([drawn("tinyB"), "a fox"], (), "engine used None"),
        (["a fox, Model: tinyB\nSteps: 2"], (), "engine used None"),  # the prompt proves nothing
        ([], (), "engine used None"),
        ([drawn("tinyB", ", VAE: v.pt")], (), None),
        ([drawn("tinyB")], (5, {"a": [None]}, 0.5), None),
    ],
)
def test_each_picture_of_a_script_must_be_drawn_with_a_model_of_the_job(infotexts, args, error):
    expected = Expected(None, "tinyB", script_args=args)
    with pytest.raises(errors.WrongCheckpoint, match=error) if error else nullcontext():
        check(from_script(*infotexts), ["x"], expected)


def test_the_vae_the_hash_and_the_loras_of_a_script_are_in_its_infotexts():
    lora = frozenset({"one"})
    good = drawn("tinyB", ', VAE: v.pt, Lora hashes: "one: 01, two: 02"')
    check(from_script(good), ["x"], Expected(None, "tinyB", lora, vae="v.pt"))
    for expected, kind in (
        (Expected(None, "tinyB", vae="w.pt"), errors.WrongVae),
        (Expected(None, "tinyB", checkpoint_sha256="1" * 64), errors.WrongCheckpoint),
        (Expected(None, "tinyB", frozenset({"three"})), errors.LoraNotApplied),
    ):
        with pytest.raises(kind):
            check(from_script(good), ["x"], expected)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ('a\nSteps: 2, Model: "a, b: c", VAE: d', {"Steps": "2", "Model": "a, b: c", "VAE": "d"}),
        (
            r'X Values: "say \"Model: y, Model: z\"", Model: a',
            {"X Values": 'say "Model: y, Model: z"', "Model": "a"},
        ),
        ('Model: "a, b', {"Model": '"a'}),
        ("", {}),
        ("Steps", {}),
    ],
)
def test_the_last_line_of_an_infotext_is_read(line, fields):
    assert entries(line) == fields


def test_reading_an_infotext_takes_steps_in_proportion_to_its_length():
    """A pattern that tries again from each quote would take hours."""
    for text in ('"' * 200_001, '\\"' * 100_000, '"\\', ", " * 100_000, 'aa: "' * 50_001):
        entries(text)


def test_the_engines_list_of_loras_is_read():
    several = {"a b (c)": "01", "d": "02"}
    for listed, names in ((None, {}), ("", {}), ("a b (c): 01, d: 02", several)):
        assert applied_loras({"extra_generation_params": {"Lora hashes": listed}}) == names
    assert applied_loras({}) == {}


@pytest.mark.parametrize(
    ("expected", "missing"),
    [
        (Expected(1), None),
        (Expected(1, "base", frozenset({"one"})), None),
        (Expected(1, "other", frozenset({"one"})), ["other"]),
        (Expected(1, "base", frozenset({"three", "one"})), ["three"]),
    ],
)
def test_the_engine_must_list_the_models_of_the_job(expected, missing):
    listed = [{"filename": "/models/sub/base.safetensors"}], [{"name": "one"}, {"name": "two"}]
    with pytest.raises(errors.ModelNotListed) if missing else nullcontext() as raised:
        check_listed(*listed, expected)
    assert (raised.value.details["missing"] if raised else None) == missing


def test_the_engine_must_have_loaded_the_embeddings_of_the_prompts():
    for used, error in (
        ({"good"}, None),
        (set(), None),
        ({"xl", "good"}, errors.ModelMismatch),
        ({"nope"}, errors.ModelNotListed),
    ):
        with pytest.raises(error) if error else nullcontext():
            listed = {"loaded": {"good": {}}, "skipped": {"xl": {}}}
            check_embeddings(listed, Expected(1, embeddings=frozenset(used)))
