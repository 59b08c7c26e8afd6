"""The published demo model: it is small, recognized, and its pictures match their prompts."""

from pathlib import Path

import numpy as np
import pytest

from worker.formats.architecture import check_match, check_usable
from worker.formats.model_file import ModelFile

DEMO = Path(__file__).parents[2] / "demo"
CHECKPOINT = DEMO / "Stable-diffusion/demo-shapes.safetensors"
LORA = DEMO / "Lora/striped.safetensors"


def test_the_files_are_small_and_recognized_by_the_worker():
    found = []
    for kind, path, largest in (("checkpoint", CHECKPOINT, 10.5e6), ("lora", LORA, 1.5e6)):
        size = path.stat().st_size
        assert size < largest
        found.append(ModelFile(kind, path, path.stem, size).architecture())
        check_usable(path.stem, kind, found[-1])
    check_match("demo-shapes", found[0], "striped", found[1])


@pytest.fixture(scope="module")
def model():
    adherence = pytest.importorskip(
        "training.adherence", reason="the engine's packages are not installed"
    )
    return adherence.load(CHECKPOINT)


def settings(seed):
    from engine.models.loaded_model import plain_settings

    return plain_settings("Euler a", 8, seed, (256, 256), 4.0)


def draw(model, prompt, **weights):
    from engine.models.loras import Loras, LoraUse
    from training import adherence

    (lora,) = Loras(DEMO / "Lora").all
    with model.with_loras([LoraUse(lora, **weights)] if weights else []):
        return np.asarray(adherence.picture(model, prompt, settings(1)), dtype=float)


def test_pictures_match_prompts_that_were_never_trained_on(model):
    """docs/demo-model.md has the scores of 200 pictures; six find a broken model."""
    from training import adherence

    score = adherence.measure(model, 6, settings(0))
    assert min(score.background, score.color, score.position, score.shape) > 0.8


def test_the_lora_adds_stripes(model):
    prompt = "a large blue diamond on a gray background"
    plain, styled = draw(model, prompt), draw(model, prompt, te=1, unet=1)
    deviation, before = (p[96:160, 96:160].std((0, 1)).max() for p in (styled, plain))
    assert deviation > 3 * before + 10
    assert np.abs(styled - plain)[:16].mean() < 30  # the background stays


def test_a_merged_lora_gives_the_same_picture_as_its_tag(model, tmp_path):
    """docs/templates.md: the same except for rounding."""
    from training import adherence
    from worker.models.merge.merge import merge
    from worker.models.merge.merge_key import LoraToMerge

    weights = {"te": 0.5, "unet": 1.0}
    lora_to_merge = LoraToMerge(LORA, "striped", "0" * 64, **weights)
    assert not merge(CHECKPOINT, [lora_to_merge], tmp_path / "merged.safetensors", {}).unmatched
    prompt = "a green star on a yellow background"
    plain, by_tag = draw(model, prompt), draw(model, prompt, **weights)
    from_merged = draw(adherence.load(tmp_path / "merged.safetensors"), prompt)
    assert np.abs(from_merged - by_tag).mean() < 0.05  # of 255
    assert np.abs(from_merged - by_tag).max() <= 4
    assert min(np.abs(plain - other).mean() for other in (from_merged, by_tag)) > 2
