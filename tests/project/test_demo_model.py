"""The published demo model: it is small, recognized, and its pictures match their prompts."""

from pathlib import Path

import numpy as np
import pytest

from worker.formats.architecture import check_match, check_usable
from worker.formats.model_file import ModelFile

DEMO = Path(__file__).parents[2] / "demo"
CHECKPOINT = DEMO / "Stable-diffusion/demo-shapes.safetensors"
LORA = DEMO / "Lora/striped.safetensors"


def model_file(kind, path):
    return ModelFile(kind, path, path.stem, path.stat().st_size)


def test_the_worker_recognizes_the_files():
    checkpoint, lora = model_file("checkpoint", CHECKPOINT), model_file("lora", LORA)
    for file in (checkpoint, lora):
        check_usable(file.stem, file.kind, file.architecture())
    check_match("demo-shapes", checkpoint.architecture(), "striped", lora.architecture())


def test_the_files_are_small():
    assert CHECKPOINT.stat().st_size < 10.5e6
    assert LORA.stat().st_size < 1.5e6


@pytest.fixture(scope="module")
def model():
    adherence = pytest.importorskip(
        "training.adherence", reason="the engine's packages are not installed"
    )
    return adherence.load(CHECKPOINT)


def settings(seed):
    from engine.models.loaded_model import PictureSettings
    from engine.sampling import samplers

    return PictureSettings(seed, 256, 256, 8, 4.0, samplers.find_sampler("Euler a"), None)


def draw(model, prompt):
    from training import adherence

    return np.asarray(adherence.picture(model, prompt, settings(1)), dtype=float)


@pytest.fixture
def lora():
    from engine.models.loras import Loras

    (lora,) = Loras(DEMO / "Lora").all
    return lora


def test_pictures_match_prompts_that_were_never_trained_on(model):
    """docs/demo-model.md has the scores of 200 pictures; six find a broken model."""
    from training import adherence

    score = adherence.measure(model, 6, settings(0))
    assert min(score.background, score.color, score.position, score.shape) > 0.8


def test_the_lora_adds_stripes(model, lora):
    from engine.models.loras import LoraUse

    prompt = "a large blue diamond on a gray background"
    plain = draw(model, prompt)
    with model.with_loras([LoraUse(lora, 1, 1)]):
        styled = draw(model, prompt)
    deviation, before = (p[96:160, 96:160].std((0, 1)).max() for p in (styled, plain))
    assert deviation > 3 * before + 10
    assert np.abs(styled - plain)[:16].mean() < 30  # the background stays


def test_a_merged_lora_gives_the_same_picture_as_its_tag(model, lora, tmp_path):
    """docs/templates.md: the same except for rounding."""
    from engine.models.loras import LoraUse
    from training import adherence
    from worker.models.merge.merge import LoraToMerge, merge

    weights = {"te": 0.5, "unet": 1.0}
    lora_to_merge = LoraToMerge(LORA, "striped", "0" * 64, **weights)
    assert not merge(CHECKPOINT, [lora_to_merge], tmp_path / "merged.safetensors", {}).unmatched
    prompt = "a green star on a yellow background"

    plain = draw(model, prompt)
    from_merged = draw(adherence.load(tmp_path / "merged.safetensors"), prompt)
    with model.with_loras([LoraUse(lora, **weights)]):
        by_tag = draw(model, prompt)

    assert np.abs(from_merged - by_tag).mean() < 0.05  # of 255
    assert np.abs(from_merged - by_tag).max() <= 4
    assert min(np.abs(plain - other).mean() for other in (from_merged, by_tag)) > 2
