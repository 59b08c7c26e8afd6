"""GPU memory that a picture needs, calculated without a GPU: python benchmarks/memory.py.

The networks run in half precision on torch's "meta" device, where a tensor has a size and no
content. The largest sum of the tensors that are alive at once is what a GPU must hold beside the
weights. worker/config/gpus.py has the figures; tests/project/test_gpus.py compares them.

Two things are as in A1111's code, not as in diffusers': attention never makes a matrix of all
pairs (xformers, or torch's own), and the UNet's group norms compute in single precision.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 1 << 20
HALF: dict[str, Any] = {"device": "meta", "dtype": torch.float16}

_DOWN, _UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
UNETS: dict[str, dict[str, Any]] = {
    "SD1": {"cross_attention_dim": 768},
    "SDXL": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (_DOWN[0], _DOWN[1], _DOWN[1]),
        "up_block_types": (_UP[1], _UP[1], _UP[0]),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


class Peak(TorchDispatchMode):
    """Adds up the tensors that are alive; `bytes` is the largest sum. Weights do not count."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.bytes = self._alive = 0
        self._weights = [weight.untyped_storage() for weight in network.parameters()]
        self._sizes = {storage._cdata: 0 for storage in self._weights}  # noqa: SLF001

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        _: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # noqa: SLF001 - two tensors can share one storage
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._alive += storage.nbytes()
            self.bytes = max(self.bytes, self._alive)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._alive -= self._sizes.pop(key)


def _attention(query: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return torch.empty_like(query)


def _group_norm(self: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    weight, bias = self.weight.float(), self.bias.float()
    return functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


@torch.no_grad()
@patch.object(functional, "scaled_dot_product_attention", _attention)
def unet(family: str, side: int, batch: int = 1) -> int:
    """MiB of one step, with the positive and the negative prompt in one pass."""
    with torch.device("meta"):
        network = UNet2DConditionModel(**UNETS[family]).half()
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = types.MethodType(_group_norm, module)
    count, width = 2 * batch, network.config.cross_attention_dim
    noise = torch.empty(count, 4, side // 8, side // 8, **HALF)
    text = torch.empty(count, 77, width, **HALF)
    sizes = torch.empty(count, 6, **HALF)
    added = {"text_embeds": torch.empty(count, 1280, **HALF), "time_ids": sizes}
    with Peak(network) as peak:
        network(noise, torch.empty((), device="meta"), text, added_cond_kwargs=added)
    return round(peak.bytes / MIB)


@torch.no_grad()
@patch.object(functional, "scaled_dot_product_attention", _attention)
def vae(side: int, *, single: bool = False) -> int:
    """MiB of decoding one picture, in half or in single precision."""
    with torch.device("meta"):
        network = AutoencoderKL(**VAE)
        latent = torch.empty(1, 4, side // 8, side // 8)
    if not single:
        network, latent = network.half(), latent.half()
    with Peak(network) as peak:
        network.decode(latent)
    return round(peak.bytes / MIB)


def main() -> None:
    """Print the figures."""
    for family, side in (("SD1", 512), ("SD1", 1024), ("SDXL", 1024), ("SDXL", 2048)):
        print(f"{family} {side}x{side}: UNet {unet(family, side)}, batch of 4", end=" ")
        print(f"{unet(family, side, 4)}, VAE {vae(side)}, in single {vae(side, single=True)} MiB")


if __name__ == "__main__":
    main()
