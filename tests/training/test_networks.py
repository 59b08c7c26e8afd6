"""The networks' arithmetic, and the whole recipe in miniature."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from engine.models.loaded_model import PictureSettings
from engine.models.loras import Loras, LoraUse
from engine.sampling import samplers
from training import adherence, autoencoder, diffusion, networks, parallel, scenes
from training.diffusion import Stage

ROOT = Path(__file__).parents[2]
LARGEST = 10.5e6  # bytes: what a repository can hold without pain


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return autoencoder.start_as_patch_means(networks.vae()).eval().requires_grad_(False)


def drawn(count=4):
    rng = random.Random(0)
    return [scenes.draw(scenes.random_scene(rng), 128, rng) for _ in range(count)]


def test_the_untrained_autoencoder_repeats_mean_colours(vae):
    pictures = drawn()
    shown = torch.stack(list(map(autoencoder.to_tensor, pictures)))
    means = torch.nn.functional.avg_pool2d(shown, networks.LATENT_FACTOR)
    decoded = vae.decode(diffusion.encode(vae, pictures)).sample
    again = torch.nn.functional.avg_pool2d(decoded, networks.LATENT_FACTOR)
    assert (again - means).abs().mean() < 0.2  # of 2
    assert np.corrcoef(again.flatten(), means.flatten())[0, 1] > 0.95


def test_standardizing_changes_latents_and_no_picture(vae):
    pictures = drawn(20)
    raw = diffusion.encode(vae, pictures)
    before = vae.decode(raw).sample
    autoencoder.standardize(vae, raw)
    latents = diffusion.encode(vae, pictures)
    assert torch.allclose(vae.decode(latents).sample, before, atol=1e-4)
    scaled = latents * networks.SCALING
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-4)


def test_the_noise_schedule_is_stable_diffusions():
    shares = diffusion.alphas()
    assert shares[0].item() == pytest.approx(0.99915, abs=1e-5)
    assert shares[999].item() == pytest.approx(0.004660, abs=1e-5)  # sigma 14.61


def test_crops_have_the_promised_form():
    for is_large, shape in ((False, (16, 3, 48, 48)), (True, (2, 3, 128, 128))):
        crops = autoencoder.crops(random.Random(0), is_large)
        assert crops.shape == shape
        assert -1 <= crops.min() < crops.max() <= 1


def test_a_scaled_stage_never_has_fewer_scenes_than_a_batch():
    stage = Stage(1000, {256: (500, 16, 1)}, 1e-3, 1e-4).scaled(0.001)
    assert (stage.steps, stage.sides) == (1, {256: (16, 16, 1)})


def test_processes_share_gradients():
    assert parallel.run(gradients, 2) == {"first": 15, "second": 25}


def gradients():
    """In process 0 gradients of 10 and 20, in process 1 of 20 and 30."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    for number, weight in enumerate(weights):
        weight.grad = torch.full((2,), 10.0 * (1 + number + parallel.rank()))
    parallel.share_gradients(weights)
    means = [weight.grad for weight in weights]
    assert all((mean == mean[0]).all() for mean in means)
    return dict(zip(("first", "second"), (int(mean[0]) for mean in means), strict=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The models folder that the recipe fills when it takes a few steps of everything."""
    folder = tmp_path_factory.mktemp("recipe")
    command = [sys.executable, "-m", "training", "--scale", "0.0005", "--processes", "1"]
    where = ["--work", folder / "work", "--models", folder / "models"]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}  # threads that wait for each other are slow
    subprocess.run([*command, *where], cwd=ROOT, env=environ, check=True, timeout=250)
    return folder / "models"


def test_the_recipe_makes_files_that_the_engine_draws_with(made):
    file = made / "Stable-diffusion" / "demo-shapes.safetensors"
    assert file.stat().st_size < LARGEST
    model = adherence.load(file)
    assert model.pipe.scheduler.config.prediction_type == "v_prediction"
    shot = PictureSettings(0, 64, 64, 2, 7.0, samplers.find_sampler("Euler"), None)
    plain = adherence.picture(model, "a red circle", shot)
    (lora,) = Loras(made / "Lora").all
    with model.with_loras([LoraUse(lora, 1, 50)]):
        styled = adherence.picture(model, "a red circle", shot)
    assert isinstance(plain, Image.Image)
    assert plain.tobytes() != styled.tobytes()
    assert adherence.picture(model, "a red circle", shot).tobytes() == plain.tobytes()


def test_the_lora_adapts_convolutions_too(made):
    tensors = load_file(made / "Lora" / "striped.safetensors")
    convolutions = [key for key, value in tensors.items() if value.ndim == 4]
    assert any("up_blocks_3_resnets" in key for key in convolutions)
    assert all(key.startswith("lora_unet_") for key in tensors)
