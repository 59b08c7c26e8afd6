"""The drawn world: pictures, captions, and the split between training and measuring."""

import random

import numpy as np
import pytest
from PIL import Image

from training import adherence, scenes
from training.adherence import Score, Seen
from training.scenes import COLORS, POSITIONS, SHAPES, SIZES, Scene, Thing

SIDE = 128


def draw(scene, seed=0, **options):
    return scenes.draw(scene, SIDE, random.Random(seed), **options)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("position", POSITIONS)
def test_a_drawn_scene_is_seen_as_what_it_is(shape, position):
    for number, color in enumerate(COLORS):
        background = list(COLORS)[number - 1]
        size = list(SIZES)[number % (1 if position else 3)]
        picture = draw(Scene(background, (Thing(shape, color, position, size),)), seed=number)
        assert adherence.look(picture) == Seen(background, color, shape, position)


@pytest.mark.parametrize("side", [64, 128, 256])
def test_the_judge_reads_every_size_of_picture(side):
    rng = random.Random(1)
    asked = [scenes.held_out_scene(rng) for _ in range(100)]
    score = Score.of((scene, adherence.look(scenes.draw(scene, side, rng))) for scene in asked)
    assert score.all == 1


def test_the_judge_sees_mistakes():
    right = Scene("blue", (Thing("circle", "red", "left"),))
    wrong = [
        Scene("green", right.things),
        Scene("blue", (Thing("circle", "pink", "left"),)),
        Scene("blue", (Thing("circle", "red", "right"),)),
        Scene("blue", (Thing("heart", "red", "left"),)),
    ]
    score = Score.of((right, adherence.look(draw(scene))) for scene in wrong)
    assert (score.background, score.color, score.position, score.shape) == (0.75,) * 4
    assert score.all == 0


def test_the_judge_sees_nothing_in_noise_and_emptiness():
    rng = random.Random(2)
    asked = [scenes.held_out_scene(rng) for _ in range(50)]
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for picture in (Image.fromarray(noise), Image.new("RGB", (SIDE, SIDE), "black")):
        assert Score.of((scene, adherence.look(picture)) for scene in asked).all < 0.1


def test_pictures_vary_and_repeat_with_their_seed():
    scene = Scene("blue", (Thing("star", "red"),))
    assert draw(scene, 1).tobytes() == draw(scene, 1).tobytes()
    assert draw(scene, 1).tobytes() != draw(scene, 2).tobytes()


def test_stripes_stay_inside_the_shape():
    scene = Scene("blue", (Thing("square", "red"),))
    plain, striped = (np.asarray(draw(scene, striped=s), dtype=int) for s in (False, True))
    changed = np.abs(plain - striped).sum(-1) > 0
    inside = np.asarray(scenes.mask("square", (0, 0), 0.6, SIDE)) > 0
    assert 0.2 < changed[inside].mean() < 0.8
    assert not changed[~inside].any()


def test_what_is_measured_was_never_trained_on():
    rng = random.Random(3)
    trained = {scenes.training_scene(rng) for _ in range(3000)}
    measured = {scene for scene, _ in adherence.prompts(200)}
    assert not trained & measured
    assert len(measured) > 190


def test_measured_prompts_say_all_that_is_measured():
    for scene, text in adherence.prompts(200):
        (thing,) = scene.things
        assert {scene.background, thing.color, thing.shape} <= set(text.replace(",", "").split())
        assert all(word in text for word in thing.position.split())


def test_captions_name_what_is_drawn():
    rng = random.Random(4)
    for _ in range(500):
        scene = scenes.random_scene(rng)
        text = scenes.caption(scene, rng)
        for thing in scene.things:
            assert f"{thing.color} {thing.shape}" in text
        assert len({thing.color for thing in scene.things} | {scene.background}) == 1 + len(
            scene.things
        )


def test_articles():
    words = {text for _, text in adherence.prompts(300)}
    assert not any("a orange" in text or "an red" in text for text in words)
