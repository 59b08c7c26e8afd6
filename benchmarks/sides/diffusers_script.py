"""diffusers' pipeline as a script without any server, as its documentation shows it.

    python diffusers_script.py CHECKPOINT CONFIGURATION
    python diffusers_script.py --write-configuration CHECKPOINT CONFIGURATION

Standard input: a line of JSON for each request. Standard output: the line `done` when its pictures
are PNGs. Nothing of the engine is imported here, except to write the configuration.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path


def serve(checkpoint: str, configuration: str) -> None:
    """Load the checkpoint, then draw each request."""
    import torch
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_single_file(
        checkpoint, config=configuration, local_files_only=True
    )
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace"
    )
    pipe.set_progress_bar_config(disable=True)
    for line in sys.stdin:
        request = json.loads(line)
        pictures = pipe(
            request["prompt"],
            width=request["size"],
            height=request["size"],
            num_inference_steps=request["steps"],
            guidance_scale=request["cfg"],
            num_images_per_prompt=request["pictures"],
            generator=torch.Generator().manual_seed(request["seed"]),
        ).images
        for picture in pictures:
            picture.save(io.BytesIO(), format="PNG")
        print("done", flush=True)


def write_configuration(checkpoint: Path, folder: Path) -> None:
    """The engine derives the configuration from the file; here it is kept, without weights."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from engine.models.loading import read_pipeline

    read_pipeline(checkpoint).save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()


if __name__ == "__main__":
    if sys.argv[1] == "--write-configuration":
        write_configuration(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        serve(sys.argv[1], sys.argv[2])
