"""Fewer waits for the GPU, with the same values and errors."""

import pytest
import torch
from a1111_worker import sampling
from a1111_worker.expect import NotAsExpected

from .conftest import NansException, OnGpu, timestep_embedding

NAN = torch.full((1, 4, 2, 2), float("nan"))
GOOD = torch.zeros(1, 4, 2, 2)


def test_samplers_get_the_same_sigmas_in_the_memory_of_the_processor(a1111):
    on_gpu = []

    def place(sigmas, device):
        assert device == "cuda"
        on_gpu.append(OnGpu(sigmas))
        return on_gpu[0]

    sampling.keep_sigmas_on_cpu(a1111.samplers, a1111.sampling)
    sigmas = a1111.samplers.KDiffusionSampler().get_sigmas(place, 5)
    assert torch.equal(sigmas, torch.linspace(10, 0, 5))
    assert on_gpu[0].copies == 1


@pytest.mark.parametrize("sigma", [torch.tensor(3.3), torch.tensor([3.3]), torch.tensor([3.3, 7])])
def test_the_derivative_stays_the_same(a1111, sigma):
    x, denoised = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = a1111.sampling.to_d(x, sigma, denoised)
    sampling.keep_sigmas_on_cpu(a1111.samplers, a1111.sampling)
    assert torch.equal(a1111.sampling.to_d(x, sigma, denoised), expected)


def test_one_sigma_is_used_as_a_number(a1111):
    sampling.keep_sigmas_on_cpu(a1111.samplers, a1111.sampling)
    x = torch.empty(1, 4, 2, 2, device="meta")  # a device that takes no tensor of another one
    assert a1111.sampling.to_d(x, torch.tensor(2.0), x).device.type == "meta"


def draw(a1111, latents, check=True):
    """A picture as A1111 makes it: steps, then the decoding with its checks."""
    for latent in latents:
        x = a1111.denoiser.CFGDenoiser().forward(latent)
    decode = a1111.processing.decode_latent_batch
    return decode(lambda latent: latent + 1, x, target_device="cpu", check_for_nans=check)


def test_the_latents_are_checked_once_and_the_pictures_as_before(a1111):
    expected = draw(a1111, [GOOD] * 3)
    assert a1111.devices.checks == ["unet", "unet", "unet", "vae"]
    a1111.devices.checks.clear()
    sampling.check_for_nans_once(a1111.devices, a1111.denoiser, a1111.processing)
    assert torch.equal(draw(a1111, [GOOD] * 3)[0], expected[0])
    assert a1111.devices.checks == ["unet", "vae"]


def test_nan_is_found_with_the_same_error(a1111):
    with pytest.raises(NansException) as before:
        draw(a1111, [GOOD, NAN])
    sampling.check_for_nans_once(a1111.devices, a1111.denoiser, a1111.processing)
    with pytest.raises(NansException) as after:
        draw(a1111, [GOOD, NAN])
    assert str(after.value) == str(before.value)


def test_a_decoding_without_checks_stays_one(a1111):
    sampling.check_for_nans_once(a1111.devices, a1111.denoiser, a1111.processing)
    a1111.processing.decode_latent_batch(lambda latent: latent, NAN)
    assert a1111.devices.checks == []


def steps_without_check(a1111):
    a1111.denoiser.CFGDenoiser.forward = lambda self, x: x


def check_after_the_steps(a1111):
    a1111.processing.decode_latent_batch = lambda batch, check_for_nans: (
        check_for_nans and a1111.devices.test_for_nans(batch, "unet")
    )


@pytest.mark.parametrize("newer", [steps_without_check, check_after_the_steps])
def test_another_place_of_the_check_is_left_alone(a1111, newer):
    newer(a1111)
    test = a1111.devices.test_for_nans
    with pytest.raises(NotAsExpected):
        sampling.check_for_nans_once(a1111.devices, a1111.denoiser, a1111.processing)
    assert a1111.devices.test_for_nans is test


def test_sigmas_that_are_already_on_the_cpu_are_left_alone(a1111):
    own = a1111.samplers.KDiffusionSampler.get_sigmas = timestep_embedding
    with pytest.raises(NotAsExpected, match="get_sigmas"):
        sampling.keep_sigmas_on_cpu(a1111.samplers, a1111.sampling)
    assert a1111.samplers.KDiffusionSampler.get_sigmas is own
