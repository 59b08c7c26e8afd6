"""How a job is split into one request for each iteration; tests/engine proves the pictures."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.generation import iterations
from worker.generation.payload import Expected, Payload
from worker.generation.picture_answer import PictureAnswer

BUILT_IN = ["Hypertile", "seed", "x/y/z plot", "soft inpainting", "ControlNet", "ADetailer"]


def split(body, images=None, draw_seed=None):
    return iterations.split(Payload(body, Expected(images)), draw_seed)


@given(
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(0, 2**63 - 2**16),
    st.integers(0, 2**32),
    st.sampled_from([0, 0.0, 0.3, 1]),
)
def test_each_picture_has_the_seeds_of_a1111_whatever_request_it_is_in(
    n_iter, size, seed, subseed, strength
):
    names = {"n_iter": n_iter, "batch_size": size, "seed": seed, "subseed": subseed}
    requests = split(names | {"subseed_strength": strength}, n_iter * size)
    made = [
        (one.body["seed"] + (0 if strength else i), one.body["subseed"] + i)
        for one in requests
        for i in range(size)
    ]
    step = 0 if strength else 1  # processing.py: process_images_inner
    assert made == [(seed + i * step, subseed + i) for i in range(n_iter * size)]
    assert {(one.body["n_iter"], one.expected.images) for one in requests} == {(1, size)}


def test_a_random_seed_is_drawn_once_for_the_whole_job():
    drawn = iter([100, 200])
    bodies = [one.body for one in split({"n_iter": 2, "seed": -1}, 2, lambda: next(drawn))]
    assert [(one["seed"], one["subseed"]) for one in bodies] == [(100, 200), (101, 201)]
    assert next(drawn, None) is None


@pytest.mark.parametrize(
    ("body", "scripts", "reason"),
    [
        ({}, BUILT_IN, None),
        ({"mask": "x", "inpainting_fill": 1}, BUILT_IN, None),
        ({"inpainting_fill": 2}, BUILT_IN, None),
        ({"mask": "x", "inpainting_fill": 2}, (), "inpainting_fill = 2"),
        ({"script_name": "x/y/z plot"}, (), "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": []}}}, (), "alwayson_scripts"),
        ({"save_images": True}, (), "a grid"),
        ({}, [*BUILT_IN, "Dynamic Prompts v2.17"], "'dynamic prompts v2.17'"),
    ],
)
def test_a_job_whose_pictures_may_depend_on_each_other_is_not_split(body, scripts, reason):
    why = iterations.why_whole(Payload(body, Expected(4)), scripts)
    assert why is None if reason is None else reason in why


def answer(number, **facts):
    facts = {"all_seeds": [number], "job_timestamp": f"{number}", **facts}
    return PictureAnswer([f"p{number}"], {"seed": number, "n_iter": 1}, json.dumps(facts), facts)


def test_joined_answers_name_the_request_as_it_was_sent_and_all_pictures():
    payload = Payload({"n_iter": 2}, Expected(2))
    parts = [answer(5, extra_generation_params={"a": 1}), answer(6)]
    made = iterations.joined(payload, parts)
    assert (made.images, made.seeds) == (["p5", "p6"], [5, 6])
    assert made.parameters == {"seed": -1, "n_iter": 2}  # A1111 repeats -1
    assert json.loads(made.info) == made.facts
    assert made.facts["job_timestamp"] == "5"
    assert made.facts["extra_generation_params"] == {"a": 1}
    assert iterations.joined(payload, parts[:1]) is parts[0]


@pytest.mark.parametrize("seeds", [None, "1", [1], [1, 2, 3], ["1", 2.5]])
def test_seeds_that_do_not_fit_the_pictures_are_left_out(seeds):
    made = replace(answer(1), images=["x", "y"], facts={"all_seeds": seeds})
    assert made.seeds == [None, None]


def test_a_grid_has_no_seed_but_each_picture_after_it_has_its_own():
    facts = {"index_of_first_image": 1, "all_seeds": [4, 5]}
    assert replace(answer(1), images=["grid", "x", "y"], facts=facts).seeds == [None, 4, 5]


STEP = {"phase": "generate", "step": 5, "steps": 20, "percent": 25.0, "eta_seconds": 3.0}
LOAD = {"phase": "load"}


@pytest.mark.parametrize(
    ("report", "number", "count", "whole"),
    [
        (STEP, 0, 1, STEP),
        (LOAD, 0, 4, LOAD),
        (STEP, 0, 4, (6.2, 150.0, "step 5 of 20, batch 1 of 4")),
        (STEP, 1, 4, (31.2, 22.0, "step 5 of 20, batch 2 of 4")),
        (LOAD, 2, 4, (50.0, 10.0, "batch 3 of 4")),
        (STEP | {"percent": 100.0}, 3, 4, (100.0, 0.0, "step 5 of 20, batch 4 of 4")),
    ],
)
def test_progress_of_an_iteration_is_reported_as_that_of_the_whole_job(
    report, number, count, whole
):
    made = iterations.report_of_whole(report, number, count, elapsed=10.0)
    if isinstance(whole, dict):
        assert made == whole
    else:
        assert (made["percent"], made["eta_seconds"], made["message"]) == whole
        assert made["phase"] == "generate"
