"""The device and precision of a checkpoint, and a VAE that overflows in half precision."""

import copy
import logging
import os

import pytest
import torch

from engine.errors import NansException
from engine.models import placement
from engine.models.checkpoints import Checkpoint
from engine.models.loaded_model import LoadedModel
from engine.models.loading import read_pipeline
from engine.models.placement import GB, Placement
from engine.prompt.encoding import TextOptions

SDXL, SD1 = 7 * GB, 2 * GB
TILED = {"tiled_vae": True}
OFFLOADED = TILED | {"offloaded": True}
ALL = OFFLOADED | {"sliced_attention": True}


@pytest.mark.parametrize("needs_exact_vae", [False, True])
def test_memory_is_saved_only_if_necessary(needs_exact_vae):
    vae = torch.float32 if needs_exact_vae else torch.float16
    for weights, memory, savings in (
        *((SDXL, 16, {}), (SDXL, 15, TILED), (SDXL, 10, TILED), (SDXL, 8, OFFLOADED)),
        *((SDXL, 6, OFFLOADED), (SDXL, 4, ALL)),
        *((SD1, 24, {}), (SD1, 8, TILED), (SD1, 4, OFFLOADED), (SD1, 1, ALL)),
    ):
        expected = Placement("cuda", torch.float16, vae, **savings)
        assert placement.decide(weights, needs_exact_vae, memory * GB) == expected


def test_without_a_gpu_and_as_text():
    cpu, gpu = placement.decide(SDXL, True, None), placement.decide(SDXL, True, 8 * GB)
    assert cpu == Placement("cpu", torch.float32, torch.float32)
    assert str(cpu) == "cpu, float32, VAE float32, no memory savings"
    assert str(gpu) == "cuda, float16, VAE float32, VAE tiling, CPU offload"


@pytest.mark.parametrize(
    ("device", "expected"),
    [("auto", (None, True)), ("cpu", (None, False)), ("cuda", ("CUDA is not available: ", True))],
)
def test_an_engine_that_must_use_the_gpu_never_falls_back(monkeypatch, device, expected):
    monkeypatch.setattr(placement, "_device", "auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    problem = None
    try:
        placement.use(device)
        assert placement.measure() is None
    except placement.NoGpu as error:
        problem = str(error)
        with pytest.raises(placement.NoGpu):  # nor later, when the GPU is lost
            placement.measure()
    part, sees_gpus = expected
    assert (problem is None) == (part is None)
    assert (part or "") in (problem or "")
    assert (os.environ["CUDA_VISIBLE_DEVICES"] == "3") is sees_gpus


@pytest.fixture(scope="module")
def pipe(data_dir):
    return read_pipeline(data_dir / "models/Stable-diffusion/alpha.safetensors")


@pytest.fixture
def model(pipe):
    """A model with a copy of the VAE."""
    own = copy.copy(pipe)
    own.vae = copy.deepcopy(pipe.vae)
    return LoadedModel(Checkpoint(None, "alpha.safetensors", ""), "", own, ())


def latents(size=4):
    return torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(1)) * 0.18215


def test_weights_are_counted_in_half_precision(pipe):
    networks = (pipe.unet, pipe.vae, pipe.text_encoder)
    count = sum(parameter.numel() for part in networks for parameter in part.parameters())
    assert placement.weights_of(pipe) == 2 * count


def test_pictures_with_tiles_and_slices(model):
    exact = model.decode(latents(24))
    model.pipe.vae.tile_latent_min_size = 16  # of 24: several tiles for a small picture
    model.pipe.vae.tile_sample_min_size = 128
    before = model.pipe.unet
    model.pipe.unet = copy.deepcopy(before)
    saving = {"tiled_vae": True, "sliced_attention": True}
    placement.apply(Placement("cpu", torch.float32, torch.float32, **saving), model.pipe)
    tiled = model.decode(latents(24))
    assert tiled.shape == exact.shape
    assert not torch.equal(tiled, exact)
    assert (tiled - exact).abs().mean() < 0.2
    text = model.text_encoder(TextOptions()).schedule("a cat", 1).at(0).text
    noise = latents(8)
    networks = (model.pipe.unet, before)
    sliced, whole = (unet(noise, 500, text, return_dict=False)[0] for unet in networks)
    assert torch.allclose(sliced, whole, atol=1e-4)


def overflow(vae):
    """Multiply intermediate numbers beyond half precision's 65504; the result is the same."""
    conv = vae.decoder.up_blocks[3].resnets[2].conv1  # a normalization follows
    conv.weight *= 1e5
    conv.bias *= 1e5
    assert conv.weight.abs().max() < 65504


def test_only_a_vae_that_overflows_uses_single_precision_from_then_on(model, caplog):
    vae = model.pipe.vae
    exact = model.decode(latents())
    vae.to(torch.float16)
    picture = model.decode(latents())
    assert (picture - exact).abs().max() < 0.05  # the weights were rounded
    assert (vae.dtype, picture.dtype, caplog.records) == (torch.float16, torch.float32, [])
    overflow(vae.float())
    assert (model.decode(latents()) - exact).abs().max() < 0.05
    vae.to(torch.float16)
    assert not vae.decode(latents().half() / 0.18215, return_dict=False)[0].isfinite().all()
    with caplog.at_level(logging.WARNING, "engine.models.loaded_model"):
        picture, again = (model.decode(latents()) for _ in range(2))
    assert picture.dtype == vae.dtype == torch.float32
    assert (picture - exact).abs().max() < 0.05
    assert torch.equal(picture, again)
    (record,) = caplog.records
    assert record.getMessage() == "the VAE of alpha.safetensors overflows in half precision"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_not_finite_numbers_are_an_error_of_the_unet_or_the_vae(model, number):
    broken = latents()
    broken[0, 0, 0, 0] = number
    with pytest.raises(NansException, match="Unet"):
        model.decode(broken)
    torch.nn.init.constant_(model.pipe.vae.decoder.conv_out.bias, number)
    for precision in (torch.float32, torch.float16):
        model.pipe.vae.to(precision)
        with pytest.raises(NansException, match="VAE"):
            model.decode(latents())
