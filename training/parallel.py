"""Train on several cores: one process per core, each with its own samples; gradients are averaged.

For networks this small, this is faster than torch's threads, which wait for each other in every
operation.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed, multiprocessing


def run(train: Callable[[], dict[str, Any]], processes: int) -> dict[str, Any]:
    """Call `train()` in several connected processes; return the first one's result.

    The result must be something that `torch.save` can write: state dicts, tensors, numbers. For one
    process, `train()` is called in this process.
    """
    if processes == 1:
        return train()
    with TemporaryDirectory() as folder:
        multiprocessing.spawn(_process, (train, folder, processes), processes)  # type: ignore[attr-defined, no-untyped-call]
        result: dict[str, Any] = torch.load(Path(folder) / "result")
    return result


def _process(number: int, train: Callable[[], dict[str, Any]], folder: str, processes: int) -> None:
    os.nice(10)  # training takes hours; leave the machine usable
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=processes)
    result = train()
    if number == 0:
        torch.save(result, Path(folder) / "result")
    distributed.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    if not distributed.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    means = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
