"""Less work for the processor in each step, with the same values."""

import pytest
import torch
from a1111_worker import unet
from a1111_worker.expect import NotAsExpected

from .conftest import Autograd, UNet


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def engine(a1111, channels):
    torch.manual_seed(0)
    return a1111.diffusion.DiffusionEngine(UNet(channels))


def step(model):
    x, mask = torch.ones(2, 4, 3, 3), torch.full((2, 5, 3, 3), 0.5)
    return model.apply_model(x, torch.ones(2, 1), {"c_concat": [mask]})


def test_checkpointing_is_switched_off_without_a_change_of_the_result(a1111, monkeypatch):
    model = engine(a1111, 4)
    monkeypatch.setattr(Autograd, "calls", 0)
    before, calls = step(model), Autograd.calls
    assert unet.remove_checkpointing(model) == 3
    assert torch.equal(step(model), before)
    assert (calls, Autograd.calls) == (2, 2)
    assert unet.remove_checkpointing(model) == 0


def test_a_unet_without_the_flags_is_not_as_expected(a1111):
    model = engine(a1111, 4)
    model.model.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(NotAsExpected, match="checkpoint"):
        unet.remove_checkpointing(model)


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting_is_found_without_collecting_the_weights(a1111, channels, monkeypatch):
    model = engine(a1111, channels)
    before = step(model)
    unet.find_inpainting_by_attribute(a1111.diffusion)
    monkeypatch.setattr(model.model, "state_dict", None)
    assert torch.equal(step(model), before)


def test_a_wrapped_unet_counts_as_an_ordinary_one(a1111):
    model = engine(a1111, 4)
    model.model.diffusion_model.input_blocks = None
    model.model.diffusion_model.forward = lambda x, t, cond: x.sum() + t
    before = step(model)
    unet.find_inpainting_by_attribute(a1111.diffusion)
    assert torch.equal(step(model), before)


def test_an_apply_model_that_is_already_cheap_is_left_alone(a1111):
    own = a1111.diffusion.DiffusionEngine.apply_model = lambda self, x, t, cond: None
    with pytest.raises(NotAsExpected, match="state_dict"):
        unet.find_inpainting_by_attribute(a1111.diffusion)
    assert a1111.diffusion.DiffusionEngine.apply_model is own


EMBEDDED = [
    (torch.tensor([0.0, 0.25, 999.0]), {"dim": 320}),
    (torch.tensor([7, 999]), {"dim": 320}),
    (torch.tensor([3.0]).half(), {"dim": 64, "max_period": 100}),
    (torch.tensor([3.0]), {"dim": 33}),
    (torch.tensor([3.0]), {"dim": 32, "repeat_only": True}),
]


@pytest.mark.parametrize(("timesteps", "options"), EMBEDDED)
def test_kept_frequencies_give_the_same_embedding(a1111, timesteps, options):
    expected = a1111.ldm.timestep_embedding(timesteps, **options)
    unet.keep_frequencies(a1111.devices, a1111.ldm, a1111.sgm)
    for module in (a1111.ldm, a1111.sgm, a1111.sgm):  # the last one has the frequencies already
        assert torch.equal(module.timestep_embedding(timesteps, **options), expected)


def test_frequencies_are_computed_once(a1111, monkeypatch):
    unet.keep_frequencies(a1111.devices, a1111.ldm)
    monkeypatch.setattr(torch, "arange", None)
    assert a1111.ldm.timestep_embedding(torch.tensor([5.0]), 320).shape == (1, 320)


def test_with_upcast_sampling_a1111_makes_the_embedding(a1111):
    unet.keep_frequencies(a1111.devices, a1111.ldm)
    a1111.devices.unet_needs_upcast = True
    assert a1111.ldm.timestep_embedding(torch.tensor([5.0]), 320).dtype == torch.float16


def test_another_embedding_is_left_alone_in_both_modules(a1111):
    ours, other = a1111.ldm.timestep_embedding, lambda timesteps, dim: timesteps
    a1111.sgm.timestep_embedding = other
    with pytest.raises(NotAsExpected, match=r"sgm.*values of v1\.9\.3"):
        unet.keep_frequencies(a1111.devices, a1111.ldm, a1111.sgm)
    assert (a1111.ldm.timestep_embedding, a1111.sgm.timestep_embedding) == (ours, other)
