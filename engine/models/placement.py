"""Where and how precisely a checkpoint is computed: decided here, once, from the memory there is.

Half precision on a GPU, single on the CPU. SDXL's VAE overflows in half precision (black
pictures) and is kept in single; any other VAE is, once it has produced something that is no
number (see `engine.models.model`).
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch

log = logging.getLogger(__name__)

GB = 10**9
# Beside the weights, at 1024x1024: the UNet's activations, and the VAE's in single precision.
ACTIVATIONS = 3 * GB
WHOLE_VAE = 9 * GB  # decoding the picture in one piece
LEAST_ACTIVATIONS = 1 * GB


@dataclass(frozen=True)
class Placement:
    """What is done to a pipeline; see `apply`."""

    device: str
    dtype: torch.dtype
    vae_dtype: torch.dtype
    tiled_vae: bool = False  # large pictures are decoded in overlapping tiles
    offloaded: bool = False  # each part is on the GPU only while it works
    sliced_attention: bool = False  # heads one after the other: slow, and the last resort

    def __str__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        vae = str(self.vae_dtype).removeprefix("torch.")
        savings = {
            "VAE tiling": self.tiled_vae,
            "CPU offload": self.offloaded,
            "attention slicing": self.sliced_attention,
        }
        used = ", ".join(name for name, is_used in savings.items() if is_used)
        return f"{self.device}, {precision}, VAE {vae}, {used or 'no memory savings'}"


def decide(weights: int, needs_exact_vae: bool, gpu_memory: int | None) -> Placement:
    """The placement of a checkpoint of `weights` bytes in half precision.

    `gpu_memory` is the GPU's total in bytes, None without one. Nothing is saved where there is
    room: every saving costs time.
    """
    dtype = precision(gpu_memory)
    if gpu_memory is None:
        return Placement("cpu", dtype, dtype)
    left = gpu_memory - weights
    return Placement(
        "cuda",
        dtype,
        torch.float32 if needs_exact_vae else dtype,
        tiled_vae=left < WHOLE_VAE,
        offloaded=left < ACTIVATIONS,
        sliced_attention=gpu_memory - weights // 2 < LEAST_ACTIVATIONS,
    )


def measure() -> int | None:
    """The first GPU's memory in bytes, None without one."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def precision(gpu_memory: int | None) -> torch.dtype:
    """How precisely the text encoders and the UNet compute."""
    return torch.float32 if gpu_memory is None else torch.float16


def weights_of(pipe: Any) -> int:  # noqa: ANN401 - diffusers
    """What the pipeline's networks take in half precision, in bytes."""
    networks = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    return sum(2 * parameter.numel() for part in networks for parameter in part.parameters())


def apply(placement: Placement, pipe: Any) -> None:  # noqa: ANN401 - diffusers
    """Move a pipeline that was just read; it has the placement's `dtype` already."""
    pipe.vae.to(placement.vae_dtype)
    if placement.tiled_vae:
        pipe.vae.enable_tiling()
    if placement.sliced_attention:
        pipe.enable_attention_slicing()
    if placement.offloaded:
        pipe.enable_model_cpu_offload()
    else:
        pipe.to(placement.device)
    log.info("computing on %s", placement)
