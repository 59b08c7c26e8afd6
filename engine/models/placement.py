"""The device and the precision of a checkpoint, decided once from the memory of the machine.

Half precision on a GPU, single precision on the CPU. SDXL's VAE overflows in half precision (black
pictures) and always uses single precision; any other VAE does after its first overflow (see
`engine.models.loaded_model`).
"""

import logging
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from engine.models.architecture import LATENT_CHANNELS

log = logging.getLogger(__name__)

Device = Literal["auto", "cuda", "cpu"]

GB = 10**9
# Needed in addition to the weights, at 1024x1024.
ACTIVATIONS = 3 * GB  # of the UNet
WHOLE_VAE = 9 * GB  # decoding the picture in one piece, in single precision
LEAST_ACTIVATIONS = 1 * GB


class NoGpu(RuntimeError):
    """The GPU must be used and cannot be; on the CPU a picture would take minutes."""


_device: Device = "auto"  # of the process, see `use`


def use(device: Device) -> None:
    """Decide for the whole process where it computes, before anything else uses CUDA.

    Raises:
        NoGpu: `cuda` is not possible.
    """
    global _device  # noqa: PLW0603 - torch has one state of CUDA for the process, too
    _device = device
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also for the libraries, and for GET /memory
    measure()


@dataclass(frozen=True)
class Placement:
    """The settings that `apply` makes on a pipeline."""

    device: str
    dtype: torch.dtype
    vae_dtype: torch.dtype
    tiled_vae: bool = False  # large pictures are decoded in overlapping tiles
    offloaded: bool = False  # each part is on the GPU only while it is used
    sliced_attention: bool = False  # one head after another: slow, the last resort

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

    `gpu_memory` is the GPU's total in bytes, None without a GPU. Memory is saved only if necessary:
    every saving costs time.
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
    """The first GPU's memory in bytes, None without a GPU.

    Raises:
        NoGpu: this process must use one, and cannot, or not any more.
    """
    if not torch.cuda.is_available():
        if _device == "cuda":
            raise NoGpu(f"this engine must use the GPU, but CUDA is not available: {_why()}")
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def _why() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:  # torch for the CPU; driver or GPU
        return " ".join(str(error).split())
    return "torch finds no GPU"


def precision(gpu_memory: int | None) -> torch.dtype:
    """The precision of the text encoders and the UNet."""
    return torch.float32 if gpu_memory is None else torch.float16


def weights_of(pipe: Any) -> int:  # noqa: ANN401 - diffusers
    """The size of the pipeline's networks in half precision, in bytes."""
    networks = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    return sum(2 * parameter.numel() for part in networks for parameter in part.parameters())


def to_memory(pipe: Any) -> None:  # noqa: ANN401 - diffusers
    """Move a placed pipeline from the GPU to the machine's memory; each part keeps its dtype."""
    pipe.maybe_free_model_hooks()  # of an offloaded one, whose parts move by themselves
    _move(pipe, "cpu")


def to_device(pipe: Any) -> None:  # noqa: ANN401 - diffusers
    """Move it back to where it computes."""
    if measure() is not None:
        _move(pipe, "cuda")


def _move(pipe: Any, device: str) -> None:  # noqa: ANN401 - diffusers
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    if any(hasattr(part, "_hf_hook") for part in parts):  # offloaded
        return
    for part in parts:  # `pipe.to` warns of half precision on the CPU
        part.to(device)


def apply(placement: Placement, pipe: Any) -> None:  # noqa: ANN401 - diffusers
    """Place a pipeline that was just read and already has the placement's `dtype`."""
    pipe.vae.to(placement.vae_dtype)
    if placement.device == "cpu" and pipe.unet.config.in_channels == LATENT_CHANNELS:
        # oneDNN would otherwise reorder the weights and the inputs of each convolution, each time.
        # Not for inpainting models: with other roundings, their pictures differ from A1111's.
        for network in (pipe.unet, pipe.vae):
            network.to(memory_format=torch.channels_last)
    if placement.tiled_vae:
        pipe.vae.enable_tiling()
    if placement.sliced_attention:
        pipe.enable_attention_slicing()
    if placement.offloaded:
        pipe.enable_model_cpu_offload()
    else:
        pipe.to(placement.device)
    log.info("computing on %s", placement)
