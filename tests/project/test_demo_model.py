"""The shipped demo model: small, named by what it is, and it draws what the prompt says."""

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


def test_the_worker_takes_them_for_what_they_are():
    checkpoint, lora = model_file("checkpoint", CHECKPOINT), model_file("lora", LORA)
    for file in (checkpoint, lora):
        check_usable(file.stem, file.kind, file.architecture())
    check_match("demo-shapes", checkpoint.architecture(), "striped", lora.architecture())


def test_they_are_small():
    assert CHECKPOINT.stat().st_size < 10.5e6
    assert LORA.stat().st_size < 1.5e6


@pytest.fixture(scope="module")
def model():
    adherence = pytest.importorskip("training.adherence", reason="the engine's packages are absent")
    return adherence.load(CHECKPOINT)


def shot(seed):
    from engine.models.loaded_model import PictureSettings
    from engine.sampling import samplers

    return PictureSettings(seed, 256, 256, 12, 4.0, samplers.find_sampler("Euler a"), None)


def test_it_follows_prompts_that_it_was_not_trained_on(model):
    """docs/demo-model.md has the figures of 200; these few only tell a model from a broken one."""
    from training import adherence

    score = adherence.measure(model, 20, shot(0))
    assert score.background >= 0.9
    assert score.color >= 0.9
    assert score.position >= 0.9
    assert score.shape >= 0.8


def test_the_lora_draws_stripes(model):
    from engine.models.loras import Loras, LoraUse
    from training import adherence

    prompt = "a large blue diamond on a gray background"
    (lora,) = Loras(DEMO / "Lora").all
    plain = np.asarray(adherence.picture(model, prompt, shot(1)), dtype=float)
    with model.with_loras([LoraUse(lora, 1, 1)]):
        styled = np.asarray(adherence.picture(model, prompt, shot(1)), dtype=float)
    unrest, unrest_before = (p[96:160, 96:160].std((0, 1)).max() for p in (styled, plain))
    assert unrest > 3 * unrest_before + 10
    assert np.abs(styled - plain)[:16].mean() < 30  # the background stays


def test_merged_the_lora_draws_the_same_as_by_its_tag(model, tmp_path):
    """docs/templates.md: the same but for rounding."""
    from engine.models.loras import Loras, LoraUse
    from training import adherence
    from worker.models.merge.merge import LoraToMerge, merge

    weights = {"te": 0.5, "unet": 1.0}
    to_merge = LoraToMerge(LORA, "striped", "0" * 64, **weights)
    assert not merge(CHECKPOINT, [to_merge], tmp_path / "merged.safetensors", {}).unmatched
    merged = adherence.load(tmp_path / "merged.safetensors")
    (lora,) = Loras(DEMO / "Lora").all
    prompt = "a green star on a yellow background"

    plain, from_merged = (
        np.asarray(adherence.picture(one, prompt, shot(1)), dtype=float) for one in (model, merged)
    )
    with model.with_loras([LoraUse(lora, **weights)]):
        by_tag = np.asarray(adherence.picture(model, prompt, shot(1)), dtype=float)

    assert np.abs(from_merged - by_tag).mean() < 0.05  # of 255
    assert np.abs(from_merged - by_tag).max() <= 4
    assert min(np.abs(plain - other).mean() for other in (from_merged, by_tag)) > 2
