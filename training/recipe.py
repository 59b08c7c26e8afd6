"""Make the demo model and its LoRA, from scratch to the published files.

Takes about two hours on two cores. Each finished part is saved in the work folder, so that an
interrupted run continues from there.
"""

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training import autoencoder, diffusion, lora, networks, parallel
from training.diffusion import Stage, State

log = logging.getLogger("training")

NAME, LORA = "demo-shapes", "striped"
SCENES_TO_MEASURE = 400
# small pictures until the shapes are right, then all usual sizes, mostly 256x256
STAGES = (
    Stage(3500, {128: (8000, 32, 1)}, rate=1.5e-3, final_rate=1.5e-3),
    Stage(
        1500,
        {256: (2400, 16, 6), 128: (1200, 32, 2), 512: (150, 4, 1)},
        rate=1.2e-3,
        final_rate=2e-5,
    ),
)


def kept(file: Path, processes: int, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of `file`, made by `make` if it does not exist."""
    if not file.exists():
        unfinished = file.with_suffix(".incomplete")
        torch.save(parallel.run(make, processes), unfinished)
        unfinished.replace(file)
    result: dict[str, Any] = torch.load(file)
    return result


def train_autoencoder(scale: float = 1) -> dict[str, Any]:
    """In each process: the state dict of a standardized autoencoder."""
    set_up_log()
    vae = networks.vae()
    vae.load_state_dict(autoencoder.train(max(1, round(autoencoder.STEPS * scale))))
    scenes = max(2, round(SCENES_TO_MEASURE * scale))
    autoencoder.standardize(vae, diffusion.raw_latents(vae, scenes))
    state: dict[str, Any] = vae.state_dict()
    return state


def train_stage(number: int, work: Path, scale: float = 1) -> dict[str, Any]:
    """In each process: one stage, from the result of the previous one."""
    set_up_log()
    state = load_state(work, number - 1) if number else State.start(seed=0)
    diffusion.train(state, STAGES[number].scaled(scale), number, load_autoencoder(work))
    return state.save()


def train_lora(work: Path, scale: float = 1) -> dict[str, Any]:
    """In each process: the LoRA's tensors."""
    set_up_log()
    state = load_state(work, len(STAGES) - 1)
    vae = load_autoencoder(work)
    return lora.train(state.average_text_encoder, state.average_unet, vae, scale)


def load_state(work: Path, stage: int) -> State:
    """The state at the end of a stage."""
    state = State.start(seed=0)
    state.load(torch.load(work / f"stage-{stage}.pt"))
    return state


def load_autoencoder(work: Path) -> Any:
    """The trained autoencoder; it is not trained further."""
    vae = networks.vae()
    vae.load_state_dict(torch.load(work / "autoencoder.pt"))
    return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def set_up_log() -> None:
    """Log one line per hundred steps, from the first process only."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.disable(logging.NOTSET if parallel.rank() == 0 else logging.CRITICAL)


def write_checkpoint(work: Path, file: Path) -> None:
    """The averaged networks as one checkpoint."""
    state = load_state(work, len(STAGES) - 1)
    tensors = networks.checkpoint(
        state.average_text_encoder, load_autoencoder(work), state.average_unet
    )
    write(tensors, file, networks.METADATA | {"modelspec.title": file.stem})


def write(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
    """A safetensors file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata=metadata)


def main() -> None:
    """Train the parts that do not exist yet, then write the files."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("training-work"))
    parser.add_argument("--models", type=Path, default=Path("demo"))
    parser.add_argument(
        "--scale",
        type=float,
        default=1,
        help="factor for the steps; a small one is for tests",
    )
    parser.add_argument("--processes", type=int, default=2, help="default: one per core of two")
    given = parser.parse_args()
    work, scale, processes = given.work, given.scale, given.processes
    work.mkdir(parents=True, exist_ok=True)
    kept(work / "autoencoder.pt", processes, partial(train_autoencoder, scale))
    for number in range(len(STAGES)):
        kept(work / f"stage-{number}.pt", processes, partial(train_stage, number, work, scale))
    write_checkpoint(work, given.models / "Stable-diffusion" / f"{NAME}.safetensors")
    tensors = kept(work / "lora.pt", processes, partial(train_lora, work, scale))
    write(tensors, given.models / "Lora" / f"{LORA}.safetensors", lora.METADATA)
