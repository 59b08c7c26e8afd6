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
ASKED = [scenes.held_out_scene(rng) for rng in [random.Random(1)] for _ in range(50)]


def draw(scene, seed=0, **options):
    return scenes.draw(scene, SIDE, random.Random(seed), **options)


@pytest.mark.parametrize("position", POSITIONS)
def test_attributes_of_a_drawn_scene_are_recognized(position):
    for number, (shape, color) in enumerate(product(SHAPES, COLORS)):
        background = list(COLORS)[number % len(COLORS) - 1]
        size = list(SIZES)[number % (1 if position else 3)]
        picture = draw(Scene(background, (Thing(shape, color, position, size),)), seed=number)
        assert adherence.look(picture) == Seen(background, color, shape, position)


def test_pictures_of_every_size_are_recognized_and_noise_and_empty_ones_are_not():
    for side in (64, 128, 256):
        drawn = (scenes.draw(scene, side, random.Random(side)) for scene in ASKED)
        assert Score.of(zip(ASKED, map(adherence.look, drawn), strict=True)).all == 1
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for picture in (Image.fromarray(noise), Image.new("RGB", (SIDE, SIDE), "black")):
        assert Score.of((scene, adherence.look(picture)) for scene in ASKED).all < 0.1


def test_mistakes_are_recognized():
    def scene(background, *thing):
        return Scene(background, (Thing(*thing),))

    wrong = [
        scene("green", "circle", "red", "left"),
        scene("blue", "circle", "pink", "left"),
        scene("blue", "circle", "red", "right"),
        scene("blue", "heart", "red", "left"),
    ]
    right = scene("blue", "circle", "red", "left")
    score = Score.of((right, adherence.look(draw(scene))) for scene in wrong)
    assert (score.background, score.color, score.position, score.shape) == (0.75,) * 4
    assert score.all == 0


def test_same_seed_gives_same_picture_and_stripes_are_inside_the_shape():
    scene = Scene("blue", (Thing("square", "red"),))
    first, again, other = (draw(scene, seed).tobytes() for seed in (1, 1, 2))
    assert first == again != other
    plain, striped = (np.asarray(draw(scene, striped=s), dtype=int) for s in (False, True))
    changed = np.abs(plain - striped).sum(-1) > 0
    inside = np.asarray(scenes.mask("square", (0, 0), 0.6, SIDE)) > 0
    assert 0.2 < changed[inside].mean() < 0.8
    assert not changed[~inside].any()


def test_measured_scenes_are_never_trained_on_and_their_prompts_contain_all_attributes():
    rng, measured = random.Random(3), adherence.prompts(300)
    assert not {scenes.training_scene(rng) for _ in range(3000)} & {s for s, _ in measured}
    assert len({scene for scene, _ in measured[:200]}) > 190
    for scene, text in measured:
        (thing,) = scene.things
        assert {scene.background, thing.color, thing.shape} <= set(text.replace(",", "").split())
        assert all(word in text for word in thing.position.split())
        assert "a orange" not in text
        assert "an red" not in text


def test_captions_name_colours_and_shapes():
    rng = random.Random(4)
    for _ in range(500):
        scene = scenes.random_scene(rng)
        text = scenes.caption(scene, rng)
        assert all(f"{thing.color} {thing.shape}" in text for thing in scene.things)
        colors = {scene.background, *(thing.color for thing in scene.things)}
        assert len(colors) == 1 + len(scene.things)
