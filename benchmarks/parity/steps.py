"""Counts what A1111 asks of the GPU in one step of a sampler, with and without the speed parts.

    cd WEBUI_DIR && A1111_SPEEDUPS=false A1111_PYTHON .../benchmarks/parity/steps.py CHECKPOINT ...

It needs no GPU: tensors that would be in the GPU's memory are followed on the CPU. One step is the
difference between pictures with 8 and with 4 steps, divided by 4. These are counts, not times.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

FLAGS = ["--nowebui", "--use-cpu", "all", "--no-half", "--precision", "full"]
FLAGS += ["--skip-torch-cuda-test", "--opt-sdp-attention", "--no-download-sd-model"]
SAMPLERS = ("Euler a", "DPM++ 2M", "DPM++ SDE", "DDIM")
CHECKPOINTS = sys.argv[1:]
sys.path.insert(0, ".")
sys.argv = ["webui.py", *FLAGS]

from modules import initialize  # noqa: E402

initialize.imports()
initialize.initialize()

import torch  # noqa: E402
from modules import devices, processing, sd_models, shared  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.weak import WeakTensorKeyDictionary  # noqa: E402

counts: Counter[str] = Counter()
on_gpu = WeakTensorKeyDictionary()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that a view shows a part of."""
    return tensor if tensor._base is None else tensor._base


class Follow(TorchDispatchMode):
    """Counts the operations on tensors of the GPU; their results are on the GPU as well."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = func(*args, **(kwargs or {}))
        if not any(whole(x) in on_gpu for x in given):
            return made
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero"}:
            counts["values read from the GPU"] += 1
            return made
        for x in given:
            # A single number is passed with the operation, and what is written to was made there.
            if x.ndim and whole(x) not in on_gpu:
                counts["arrays copied to the GPU"] += not (name.endswith("_") and x is given[0])
                on_gpu[whole(x)] = True
        counts["operations"] += 1
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor):
                on_gpu[x] = True
        return made


def to_cpu(original: Any) -> Any:
    """Tensor.cpu and Tensor.to of A1111: a copy leaves the GPU."""

    def copy(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        leaves = original is torch_cpu or devices.cpu in args
        if not (leaves and whole(self) in on_gpu):
            return original(self, *args, **options)
        counts["arrays copied from the GPU"] += 1
        counts["operations"] -= 1  # the copy itself
        left = self.clone()
        on_gpu.pop(left, None)
        return left

    return copy


torch_cpu, torch_to = torch.Tensor.cpu, torch.Tensor.to
torch.Tensor.cpu, torch.Tensor.to = to_cpu(torch_cpu), to_cpu(torch_to)


def count_calls(owner: Any, name: str, what: str) -> None:
    """Count the calls of a function of a module or class."""
    original = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        counts[what] += 1
        return original(*args, **options)

    setattr(owner, name, counted)


def tag(original: Any) -> Any:
    """Make the results of a function tensors of the GPU."""

    def tagged(*args: Any, **options: Any) -> Any:
        made = original(*args, **options)
        on_gpu[made] = True
        return made

    return tagged


def load(checkpoint: str) -> None:
    """Load a checkpoint; its weights are on the GPU then."""
    _ = shared.sd_model  # waits for the thread that loads the first one
    info = sd_models.get_closet_checkpoint_match(checkpoint)
    sd_models.reload_model_weights(info=info)
    model = shared.sd_model
    tensors = (*model.parameters(), *model.buffers(), *vars(model).values())
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            on_gpu[tensor] = True


def draw(sampler: str, steps: int) -> Counter[str]:
    """The counts of one picture."""
    counts.clear()
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model, prompt="a fox", steps=steps, width=64, height=64, seed=1,
        sampler_name=sampler, do_not_save_samples=True, do_not_save_grid=True,
        override_settings={"live_previews_enable": False},
    )  # fmt: skip
    with Follow():
        processing.process_images(p)
    return Counter(counts)


def main() -> None:
    """Print the counts as JSON."""
    from ldm.modules.diffusionmodules import util as ldm_util
    from modules import rng, sd_schedulers
    from sgm.modules.diffusionmodules import util as sgm_util

    for util in (ldm_util, sgm_util):
        count_calls(util.CheckpointFunction, "apply", "blocks with gradient checkpointing")
    count_calls(torch.nn.Module, "state_dict", "calls of state_dict() of one module")
    for scheduler in sd_schedulers.schedulers:
        scheduler.function = scheduler.function and tag(scheduler.function)
    rng.ImageRNG.first, rng.ImageRNG.next = tag(rng.ImageRNG.first), tag(rng.ImageRNG.next)
    report = {}
    for checkpoint in CHECKPOINTS:
        load(checkpoint)
        report[checkpoint, "first picture, 4 steps"] = draw("Euler", 4)
        for sampler in SAMPLERS:
            short, long = draw(sampler, 4), draw(sampler, 8)
            report[checkpoint, f"{sampler}, a step"] = {
                what: (long[what] - short[what]) / 4 for what in long
            }
    print(json.dumps({", ".join(case): one for case, one in report.items()}, indent=1))


main()
