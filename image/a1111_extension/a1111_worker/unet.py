"""Less work for the processor in each step of the UNet.

With a fast GPU the processor is the limit: it starts thousands of GPU operations a step, and
whatever else it does in between leaves the GPU idle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import torch

from a1111_worker.expect import expect, uses

Embedding: TypeAlias = Callable[..., torch.Tensor]


def remove_checkpointing(model: Any) -> int:
    """Switch gradient checkpointing off in a loaded model's UNet; returns in how many modules.

    Checkpointing saves memory in training. Without training it changes no value, but it passes
    every parameter of every block to torch.autograd in each step. Training in A1111 does not read
    these flags: it has wrappers of its own (`sd_hijack_checkpoint`).

    Effect of https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/15803

    Raises:
        NotAsExpected: no module of the UNet has such a flag.
    """
    flags = ("checkpoint", "use_checkpoint")
    modules = [vars(module) for module in model.model.diffusion_model.modules()]
    expect(
        any(flag in values for values in modules for flag in flags),
        "modules of the UNet have `checkpoint` or `use_checkpoint`",
    )
    switched = 0
    for values in modules:
        on = [flag for flag in flags if values.get(flag) is True]
        values.update(dict.fromkeys(on, False))
        switched += bool(on)
    return switched


def find_inpainting_by_attribute(diffusion: ModuleType) -> None:
    """Look at the UNet's first layer instead of collecting all of SDXL's weights in each step.

    A1111 calls `state_dict()` (1680 tensors) in every step to learn whether the UNet has the nine
    input channels of inpainting.

    Effect of https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/15806, corrected by 15976

    Raises:
        NotAsExpected: SDXL's apply_model does not call state_dict().
    """
    engine = diffusion.DiffusionEngine
    expect(
        uses(engine.apply_model, "state_dict", "c_concat"),
        "DiffusionEngine.apply_model calls state_dict()",
    )

    def apply_model(self: Any, x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> Any:
        if _input_channels(self.model.diffusion_model) == _INPAINTING_CHANNELS:
            x = torch.cat([x, *cond["c_concat"]], dim=1)
        return self.model(x, t, cond)

    engine.apply_model = apply_model


_INPAINTING_CHANNELS = 9  # the picture's 4, the masked picture's 4 and the mask


def _input_channels(unet: Any) -> int | None:
    # A UNet that an extension has wrapped may lack it; A1111 takes it for an ordinary one as well.
    blocks = getattr(unet, "input_blocks", None)
    weight = getattr(blocks[0][0], "weight", None) if blocks else None
    return None if weight is None else weight.shape[1]


def keep_frequencies(devices: ModuleType, *unets: ModuleType) -> None:
    """Keep the frequencies of the timestep embedding on the device of the UNet.

    A1111 computes them on the processor and copies them to the GPU in each step, and each copy
    waits until the GPU has done all its work. They never change.

    Effect of https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/15824, but computed on
    the processor as before, so that the values stay equal on every GPU.

    Raises:
        NotAsExpected: the embedding's values are not those of v1.9.3.
    """
    replaced = [(unet, _with_kept_frequencies(unet.timestep_embedding, devices)) for unet in unets]
    timesteps = torch.tensor([0.0, 1.0, 500.5, 999.0])
    for unet, embedding in replaced:
        expected = unet.timestep_embedding(timesteps, 320)
        expect(
            torch.equal(embedding(timesteps, 320), expected),
            f"{unet.__name__}.timestep_embedding has the values of v1.9.3",
        )
    for unet, embedding in replaced:
        unet.timestep_embedding = embedding  # type: ignore[attr-defined]


def _with_kept_frequencies(original: Embedding, devices: ModuleType) -> Embedding:
    kept: dict[tuple[int, int, torch.device], torch.Tensor] = {}

    def frequencies(count: int, max_period: int, device: torch.device) -> torch.Tensor:
        key = (count, max_period, device)
        if key not in kept:
            exponents = torch.arange(count, dtype=torch.float32) * -math.log(max_period) / count
            kept[key] = exponents.exp().to(device)
        return kept[key]

    def timestep_embedding(
        timesteps: torch.Tensor, dim: int, max_period: int = 10_000, repeat_only: bool = False
    ) -> torch.Tensor:
        # A1111's own converts the result for --upcast-sampling.
        if repeat_only or dim % 2 or devices.unet_needs_upcast:
            return original(timesteps, dim, max_period, repeat_only=repeat_only)
        kept_here = frequencies(dim // 2, max_period, timesteps.device)
        angles = timesteps.float().unsqueeze(1) * kept_here
        return torch.cat((angles.cos(), angles.sin()), dim=1)

    return timestep_embedding
