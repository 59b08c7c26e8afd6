"""The scenes: pictures, captions, and the split between training and measuring."""

import random
from itertools import product

import numpy as np
import pytest
from PIL import Image

from training import adherence, scenes
from training.adherence import Score, Seen
from training.scenes import COLORS, POSITIONS, SHAPES, SIZES, Scene, Thing

SIDE = 128


def draw(scene, seed=0, **options):
    return scenes.draw(scene, SIDE, random.Random(seed), **options)


@pytest.mark.parametrize("position", POSITIONS)
def test_attributes_of_a_drawn_scene_are_recognized(position):
    for number, (shape, color) in enumerate(product(SHAPES, COLORS)):
        background = list(COLORS)[number % len(COLORS) - 1]
        size = list(SIZES)[number % (1 if position else 3)]
        picture = draw(Scene(background, (Thing(shape, color, position, size),)), seed=number)
        assert adherence.look(picture) == Seen(background, color, shape, position)


@pytest.mark.parametrize("side", [64, 128, 256])
def test_pictures_of_every_size_are_recognized(side):
    rng = random.Random(1)
    asked = [scenes.held_out_scene(rng) for _ in range(50)]
    score = Score.of((scene, adherence.look(scenes.draw(scene, side, rng))) for scene in asked)
    assert score.all == 1


def test_mistakes_are_recognized():
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


def test_noise_and_empty_pictures_are_not_recognized():
    rng = random.Random(2)
    asked = [scenes.held_out_scene(rng) for _ in range(50)]
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for picture in (Image.fromarray(noise), Image.new("RGB", (SIDE, SIDE), "black")):
        assert Score.of((scene, adherence.look(picture)) for scene in asked).all < 0.1


def test_same_seed_gives_same_picture():
    scene = Scene("blue", (Thing("star", "red"),))
    assert draw(scene, 1).tobytes() == draw(scene, 1).tobytes()
    assert draw(scene, 1).tobytes() != draw(scene, 2).tobytes()


def test_stripes_are_inside_the_shape():
    scene = Scene("blue", (Thing("square", "red"),))
    plain, striped = (np.asarray(draw(scene, striped=s), dtype=int) for s in (False, True))
    changed = np.abs(plain - striped).sum(-1) > 0
    inside = np.asarray(scenes.mask("square", (0, 0), 0.6, SIDE)) > 0
    assert 0.2 < changed[inside].mean() < 0.8
    assert not changed[~inside].any()


def test_measured_scenes_are_never_trained_on():
    rng = random.Random(3)
    trained = {scenes.training_scene(rng) for _ in range(3000)}
    measured = {scene for scene, _ in adherence.prompts(200)}
    assert not trained & measured
    assert len(measured) > 190


def test_measured_prompts_contain_all_attributes():
    for scene, text in adherence.prompts(200):
        (thing,) = scene.things
        assert {scene.background, thing.color, thing.shape} <= set(text.replace(",", "").split())
        assert all(word in text for word in thing.position.split())


def test_captions_name_colours_and_shapes():
    rng = random.Random(4)
    for _ in range(500):
        scene = scenes.random_scene(rng)
        text = scenes.caption(scene, rng)
        for thing in scene.things:
            assert f"{thing.color} {thing.shape}" in text
        colors = {scene.background, *(thing.color for thing in scene.things)}
        assert len(colors) == 1 + len(scene.things)


def test_articles():
    words = {text for _, text in adherence.prompts(300)}
    assert not any("a orange" in text or "an red" in text for text in words)
