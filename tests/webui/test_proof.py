import json
from contextlib import nullcontext

import pytest
from fakes.recorded import recorded

from worker.errors import (
    IncompleteAnswer,
    LoraNotApplied,
    ModelMismatch,
    ModelNotListed,
    WrongCheckpoint,
    WrongVae,
)
from worker.webui.payload import Expected
from worker.webui.proof import applied_loras, check, check_embeddings, check_listed

RECORDED = recorded("post_txt2img_lora_checkpoint")
SILENT = recorded("post_txt2img_unknown_checkpoint_and_lora_silent_200")


def facts(**changes):
    return json.loads(RECORDED["info"]) | changes


def test_a_recorded_good_answer_is_proven():
    expected = Expected(images=1, checkpoint="tinyB", loras=frozenset({"loraA"}))

    check(facts(), RECORDED["images"], expected)


def test_the_recorded_silent_wrong_answer_is_not_proven():
    info = json.loads(SILENT["info"])

    with pytest.raises(
        WrongCheckpoint, match="asked for checkpoint 'nope', the engine used 'tinyA'"
    ):
        check(info, SILENT["images"], Expected(images=1, checkpoint="nope"))
    with pytest.raises(LoraNotApplied, match="left out the LoRA 'nope'"):
        check(info, SILENT["images"], Expected(images=1, loras=frozenset({"nope"})))


def test_a_job_without_wishes_is_proven_by_its_pictures():
    check(json.loads(SILENT["info"]), SILENT["images"], Expected(images=1))


def test_another_file_under_the_same_name_is_noticed():
    """A1111 keeps what it has loaded, also when its name has come to mean another file."""
    told = facts()["sd_model_hash"]
    check(facts(), ["x"], Expected(1, "tinyB", checkpoint_sha256=told + "0" * 54))
    check(facts(sd_model_hash=None), ["x"], Expected(1, "tinyB", checkpoint_sha256="1" * 64))

    with pytest.raises(WrongCheckpoint, match=f"another file of that name, {told}"):
        check(facts(), ["x"], Expected(1, "tinyB", checkpoint_sha256="1" * 64))


def test_another_vae_is_noticed():
    with pytest.raises(WrongVae, match="the engine used None"):
        check(facts(), ["x"], Expected(images=1, vae="good.safetensors"))

    check(facts(sd_vae_name="good.safetensors"), ["x"], Expected(images=1, vae="good.safetensors"))


@pytest.mark.parametrize("images", [[], ["x"], ["x"] * 3])
def test_another_number_of_pictures_is_noticed(images):
    with pytest.raises(IncompleteAnswer):
        check(facts(), images, Expected(images=2))


def test_a_script_may_make_any_number_but_none():
    check(facts(index_of_first_image=1), ["grid", "x", "x", "x"], Expected(images=None))

    with pytest.raises(IncompleteAnswer, match="no picture"):
        check(facts(), [], Expected(images=None))


def test_a_grid_in_front_is_no_picture():
    check(facts(index_of_first_image=1), ["grid", "x", "x"], Expected(images=2))


HASHES = [
    (None, {}),
    ("", {}),
    ("a: 0123456789ab", {"a": "0123456789ab"}),
    ("a b (c): 01, d: 02", {"a b (c)": "01", "d": "02"}),
]


@pytest.mark.parametrize(("listed", "names"), HASHES)
def test_the_engines_list_of_loras_is_read(listed, names):
    assert applied_loras({"extra_generation_params": {"Lora hashes": listed}}) == names


def test_an_answer_without_the_list_has_no_loras():
    assert applied_loras({}) == {}


LISTED = [{"filename": "/models/sub/base.safetensors"}], [{"name": "one"}, {"name": "two"}]


def test_what_the_engine_lists_is_enough():
    check_listed(*LISTED, Expected(1, "base", frozenset({"one"})))
    check_listed([], [], Expected(1))


@pytest.mark.parametrize(
    ("expected", "missing"),
    [
        (Expected(1, "other", frozenset({"one"})), ["other"]),
        (Expected(1, "base", frozenset({"three", "one"})), ["three"]),
    ],
)
def test_a_model_that_the_engine_does_not_list_is_noticed(expected, missing):
    with pytest.raises(ModelNotListed) as raised:
        check_listed(*LISTED, expected)

    assert raised.value.details["missing"] == missing


EMBEDDINGS = {"loaded": {"good": {}}, "skipped": {"xl": {}}}


@pytest.mark.parametrize(
    ("used", "error"),
    [({"good"}, None), (set(), None), ({"xl", "good"}, ModelMismatch), ({"nope"}, ModelNotListed)],
)
def test_an_embedding_that_was_not_loaded_is_noticed(used, error):
    with pytest.raises(error) if error else nullcontext():
        check_embeddings(EMBEDDINGS, Expected(1, embeddings=frozenset(used)))
