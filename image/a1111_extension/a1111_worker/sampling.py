"""Fewer waits for the GPU in each step of a sampler.

Whenever the processor reads a value from the GPU, it waits until the GPU has done all its work,
and then the GPU waits until the processor has sent new work.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from a1111_worker.expect import expect, uses


def keep_sigmas_on_cpu(samplers: ModuleType, sampling: ModuleType) -> None:
    """Give the samplers their noise levels (sigmas) in the memory of the processor.

    The samplers of k-diffusion compare sigmas and compute with them. On the GPU each comparison is
    a wait, and each small sum is a GPU operation; a single number of the processor can be an
    operand of GPU operations as it is. A1111 still computes the sigmas where it did before, so
    their values stay equal.

    Effect of https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/15823

    Raises:
        NotAsExpected: the sigmas are not on the GPU.
    """
    sampler = samplers.KDiffusionSampler
    get_sigmas, to_d = sampler.get_sigmas, sampling.to_d
    expect(
        uses(get_sigmas, "shared", "device"),
        "KDiffusionSampler.get_sigmas puts sigmas on shared.device",
    )
    expect(uses(to_d, "append_dims"), "k_diffusion's to_d gives sigma the dimensions of x")

    def get_sigmas_on_cpu(self: Any, p: Any, steps: int) -> torch.Tensor:
        sigmas: torch.Tensor = get_sigmas(self, p, steps)
        return sigmas.cpu()

    def to_d_with_one_sigma(x: Any, sigma: Any, denoised: Any) -> Any:
        # With four dimensions it would be a tensor, which must be on the device of x.
        return (x - denoised) / sigma if sigma.ndim == 0 else to_d(x, sigma, denoised)

    sampler.get_sigmas = get_sigmas_on_cpu
    sampling.to_d = to_d_with_one_sigma  # type: ignore[attr-defined]


def check_for_nans_once(devices: ModuleType, denoiser: ModuleType, processing: ModuleType) -> None:
    """Check the UNet's result for NaN once, after the last step, instead of in each step.

    The check waits for the GPU. A latent that is NaN in one step is NaN in all later ones, so the
    job fails with the same error as before. The check of the VAE's pictures stays as it is: A1111
    repeats a decoding that failed in half precision.

    Effect of https://github.com/AUTOMATIC1111/stable-diffusion-webui/commit/6214aa7d

    Raises:
        NotAsExpected: A1111 does not check in each step, or it also checks after the last one.
    """
    test, decode = devices.test_for_nans, processing.decode_latent_batch
    forward = denoiser.CFGDenoiser.forward
    expect(uses(forward, "test_for_nans", "unet"), "CFGDenoiser.forward checks for NaN")
    expect(uses(decode, "test_for_nans", "check_for_nans"), "decode_latent_batch checks for NaN")
    expect(not uses(decode, "unet"), "decode_latent_batch checks only the VAE's pictures")

    def test_unless_of_unet(x: torch.Tensor, where: str) -> None:
        if where != "unet":
            test(x, where)

    def check_and_decode(
        model: Any, batch: Any, target_device: Any = None, check_for_nans: bool = False
    ) -> Any:
        if check_for_nans:
            test(batch, "unet")
        return decode(model, batch, target_device, check_for_nans)

    devices.test_for_nans = test_unless_of_unet  # type: ignore[attr-defined]
    processing.decode_latent_batch = check_and_decode  # type: ignore[attr-defined]
