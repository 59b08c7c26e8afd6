"""Checkpoints with random weights in half precision, written in seconds without torch.

Names and shapes are those of the real models (worker/formats/stable_diffusion.py), so a step costs
what a step of the real model costs. Blocks of random numbers, one for each size of the weights, are
used again and again: making 3.5 billion new numbers would take minutes. The weights of a layer with
n inputs have a deviation of about 1 / sqrt(n), so values keep their size from layer to layer and
half precision does not overflow.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from worker.config.settings import PROJECT
from worker.formats.stable_diffusion import Family, Shape, Shapes, UNet, checkpoint

BLOCK = 4_194_301  # numbers; a prime, so that the rows of a matrix are not repeated
BIAS = -6  # deviations, as powers of two
TOKENS = -6
# A1111 divides by the mean of the text encoding, which is 0 if this bias is 0.
LAST_TEXT_BIAS = -3
LAST_TEXT_NORMS = ("final_layer_norm.bias", "ln_final.bias")
EMBEDDINGS = ("token_embedding.weight", "position_embedding.weight", "positional_embedding")

TINY_VAE = (32, 64, 128, 128)
TINY = {
    "SD1": Family(
        UNet(32, (1, 2, 2, 2), (1, 1, 1, 0), 1, 64, linear=False),
        {"cond_stage_model.transformer.": ("CLIP", 64, 2, 2)},
        TINY_VAE,
    ),
    "SDXL": Family(
        UNet(32, (1, 2, 2), (0, 1, 2), 2, 96, added=64 + 6 * 256),
        {
            "conditioner.embedders.0.transformer.": ("CLIP", 32, 2, 1),
            "conditioner.embedders.1.model.": ("OpenCLIP", 64, 3, 3),
        },
        TINY_VAE,
    ),
}
# The real configuration of SD1 -> the one of the tiny model, for A1111, which cannot infer it.
_TINY_CONFIG = {
    "parameterization: v": "parameterization: eps",
    "model_channels: 320": "model_channels: 32",
    "channel_mult: [1, 2, 4, 4]\n        num_res": "channel_mult: [1, 2, 2, 2]\n        num_res",
    "context_dim: 768": "context_dim: 64",
    "ch: 128": "ch: 32",
}


class RandomWeights:
    """The bytes of a tensor by its name and shape; the same seed gives the same bytes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._blocks: dict[int, memoryview] = {}
        self._begin = 0

    @cached_property
    def _normal(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.random.default_rng(self._seed).standard_normal(BLOCK, dtype=np.float32)

    def _block(self, exponent: int) -> memoryview:
        """Random numbers whose deviation is this power of two."""
        if exponent not in self._blocks:
            scaled = (self._normal * np.float32(2.0**exponent)).astype("<f2")
            self._blocks[exponent] = memoryview(scaled.tobytes())
        return self._blocks[exponent]

    def write(self, name: str, shape: Shape, write: Callable[[memoryview], object]) -> None:
        """Pass the bytes of a tensor to `write`, in pieces."""
        numbers = math.prod(shape)
        if is_norm_weight(name, shape):
            write(memoryview(np.ones(numbers, "<f2").tobytes()))
            return
        block = self._block(deviation(name, shape))
        while numbers:
            count = min(numbers, BLOCK - self._begin)
            write(block[2 * self._begin : 2 * (self._begin + count)])
            self._begin = (self._begin + count) % BLOCK
            numbers -= count


def is_norm_weight(name: str, shape: Shape) -> bool:
    """Whether this is the weight of a norm, which is 1: the only weights with one dimension."""
    return len(shape) == 1 and name.endswith(".weight")


def deviation(name: str, shape: Shape) -> int:
    """The deviation of a tensor's numbers, as a power of two."""
    if name.endswith(LAST_TEXT_NORMS):
        return LAST_TEXT_BIAS
    if len(shape) == 1:
        return BIAS
    if name.endswith(EMBEDDINGS):
        return TOKENS
    return -round(math.log2(math.sqrt(math.prod(shape[1:]))))


def size(tensors: Shapes) -> int:
    """Bytes of a checkpoint in half precision."""
    return sum(2 * math.prod(shape) for shape in tensors.values())


def write_checkpoint(
    path: Path, tensors: Shapes, seed: int, check_time: Callable[[], object] = lambda: None
) -> int:
    """Write a safetensors file; returns its size. `check_time` may raise between two tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    weights = RandomWeights(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".incomplete")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            check_time()
            weights.write(name, shape, file.write)
    unfinished.replace(path)
    return path.stat().st_size


def tensors_of(family: str, *, tiny: bool) -> Shapes:
    """The tensors of SD1 or SDXL in full size, or of a tiny model with the same kinds of layers."""
    return checkpoint(TINY[family] if tiny else family)


def write_tiny_config(path: Path) -> None:
    """Write the .yaml file with which A1111 loads the tiny SD1."""
    config = (PROJECT / "worker/models/store/configs/sd1_v.yaml").read_text()
    for real, tiny in _TINY_CONFIG.items():
        config = config.replace(real, tiny)
    path.write_text(config)
