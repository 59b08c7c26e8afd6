"""The networks' arithmetic, and the whole recipe with a few steps."""

import random
import sys

import numpy as np
import pytest
import torch
from fakes import tiny_models
from fakes.shared_gradients import gradients
from safetensors.torch import load_file

from engine.models.loras import Loras, LoraUse
from training import autoencoder, diffusion, networks, parallel, recipe, scenes
from training.diffusion import Stage

LARGEST = 10.5e6  # bytes that the repository accepts for a file

torch.set_num_threads(1)


def test_untrained_autoencoder_gives_mean_colours_also_when_its_latents_are_standardized():
    torch.manual_seed(0)
    vae = autoencoder.start_as_patch_means(networks.vae()).eval().requires_grad_(False)
    rng = random.Random(0)
    pictures = [scenes.draw(scenes.random_scene(rng), 128, rng) for _ in range(10)]
    raw = diffusion.encode(vae, pictures)
    before = vae.decode(raw).sample
    shown = torch.stack(list(map(autoencoder.to_tensor, pictures)))
    pool = torch.nn.AvgPool2d(networks.LATENT_FACTOR)
    means, again = pool(shown), pool(before)
    assert (again - means).abs().mean() < 0.2  # of 2
    assert np.corrcoef(again.flatten(), means.flatten())[0, 1] > 0.95
    autoencoder.standardize(vae, raw)
    latents = diffusion.encode(vae, pictures)
    assert torch.allclose(vae.decode(latents).sample, before, atol=1e-4)
    scaled = latents * networks.SCALING
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-4)


def test_noise_schedule_is_that_of_stable_diffusion():
    shares = diffusion.alphas()
    assert shares[0].item() == pytest.approx(0.99915, abs=1e-5)
    assert shares[999].item() == pytest.approx(0.004660, abs=1e-5)  # sigma 14.61


@pytest.mark.parametrize(
    ("is_large", "shape"), [(False, (16, 3, 48, 48)), (True, (2, 3, 128, 128))]
)
def test_shape_and_range_of_crops(is_large, shape):
    crops = autoencoder.crops(random.Random(0), is_large)
    assert crops.shape == shape
    assert -1 <= crops.min() < crops.max() <= 1


def test_scaled_stage_has_at_least_one_batch_of_scenes():
    stage = Stage(1000, {256: (500, 16, 1)}, 1e-3, 1e-4).scaled(0.001)
    assert (stage.steps, stage.sides) == (1, {256: (16, 16, 1)})


def test_processes_share_gradients():
    assert parallel.run(gradients, 2) == {"means": [[15, 15], [25, 25]]}


def test_the_engine_can_use_the_files_of_the_recipe(tmp_path, monkeypatch):
    """Made with a few steps of each part."""
    made = tmp_path / "models"
    where = ["--work", str(tmp_path / "work"), "--models", str(made)]
    given = ["training", "--scale", "0.0005", "--processes", "1", *where]
    monkeypatch.setattr(sys, "argv", given)
    recipe.main()
    file = made / "Stable-diffusion" / "demo-shapes.safetensors"
    assert file.stat().st_size < LARGEST
    model = tiny_models.load(file)
    assert model.pipe.scheduler.config.prediction_type == "v_prediction"
    (lora,) = Loras(made / "Lora").all
    plain, styled = tiny_models.draw(model), tiny_models.draw(model, LoraUse(lora, 1, 50))
    assert not np.array_equal(plain, styled)
    assert np.array_equal(tiny_models.draw(model), plain)
    tensors = load_file(made / "Lora" / "striped.safetensors")
    assert all(key.startswith("lora_unet_") for key in tensors)
    convolutions = [key for key, value in tensors.items() if value.ndim == 4]
    assert any("up_blocks_3_resnets" in key for key in convolutions)
