"""OFT and BOFT: rotations of a layer's outputs, in blocks, as A1111 v1.9.3 computes them."""

import torch

_TINY = 1e-8


def from_skew(blocks: torch.Tensor, limit: torch.Tensor | None, outputs: int) -> torch.Tensor:
    """The rotations (1 + Q) / (1 - Q) of blocks whose antisymmetric parts are Q / 2.

    With a limit (kohya's alpha), the norm of all blocks together is at most limit x outputs.
    """
    skew = blocks - blocks.mT
    if limit is not None:
        norm = skew.norm()
        # a limit of 0 means none
        largest = torch.where(limit == 0, torch.inf, limit * outputs)
        skew = skew * ((torch.minimum(norm, largest) + _TINY) / (norm + _TINY))
    one = torch.eye(blocks.shape[-1], device=blocks.device)
    rotations: torch.Tensor = (one + skew) @ torch.linalg.inv(one - skew)
    return rotations


def rotate(blocks: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The weight with its outputs rotated, a block of neighbours at a time; from the left."""
    grouped = weight.reshape(*blocks.shape[:2], -1)
    return (blocks.mT @ grouped).reshape(weight.shape)


def butterfly(blocks: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """BOFT: one rotation after another, each of outputs that are further apart than before."""
    turned, half = weight.flatten(1), blocks.shape[-1] // 2
    for level, rotations in enumerate(blocks):
        # (groups, 2, distance) becomes (groups, distance, 2): partners become neighbours
        grouped = turned.reshape(-1, 2, 2**level * half, turned.shape[1])
        paired = grouped.transpose(1, 2).reshape(*rotations.shape[:2], -1)
        turned = (rotations @ paired).reshape(-1, grouped.shape[2], 2, turned.shape[1])
        turned = turned.transpose(1, 2).reshape(weight.shape[0], -1)
    return turned.reshape(weight.shape)
