"""Load a checkpoint offline: a single file (SD1.x, SDXL) or a diffusers folder."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
import transformers
from safetensors import safe_open

from engine.errors import Unsupported
from engine.models import architecture, placement
from engine.models.checkpoints import FOLDER_MARK
from engine.prompt import tokenizer

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")

# their warnings are about weights, which the engine checks itself
diffusers.utils.logging.set_verbosity(logging.CRITICAL)
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def read_pipeline(path: Path) -> Any:  # noqa: ANN401 - diffusers
    """A StableDiffusion(XL)Pipeline on its device, ready for pictures.

    Raises Unsupported for models that need more than a prompt, and the exceptions of safetensors
    and diffusers for files that are not valid.
    """
    gpu_memory = placement.measure()
    read = _read_folder if path.is_dir() else read_file
    pipe = read(path, placement.precision(gpu_memory))
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            # before the first picture: with gradients torch uses other kernels, and the picture
            # after a LoRA was removed would differ in its last bits
            component.requires_grad_(False).eval()
    weights, needs_exact_vae = placement.weights_of(pipe), pipe.vae.config.force_upcast
    placement.apply(placement.decide(weights, needs_exact_vae, gpu_memory), pipe)
    return pipe


def read_architecture(path: Path) -> architecture.Architecture:
    """A single file's architecture. Raises as `architecture.infer`, and SafetensorError."""
    with safe_open(path, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return architecture.infer(shapes, file.metadata() or {})


def read_file(path: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - diffusers
    """Read a file as CivitAI has them: original key names, no configuration."""
    found = read_architecture(path)
    tokenizers = {"tokenizer": tokenizer.build()}
    if found.is_xl:
        tokenizers["tokenizer_2"] = tokenizer.build(padding="!")
    kind = getattr(diffusers, PIPELINES[found.is_xl])
    with TemporaryDirectory() as folder:
        found.write(Path(folder))
        return kind.from_single_file(
            path, config=folder, local_files_only=True, torch_dtype=dtype, **tokenizers
        )


def _read_folder(path: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - diffusers
    """Read a folder written by `save_pretrained`; the fp16 variant if there is one."""
    kind = json.loads((path / FOLDER_MARK).read_text(encoding="utf-8"))["_class_name"]
    if kind not in PIPELINES:
        raise Unsupported(f"checkpoints of the kind {kind}")
    variant = "fp16" if any(path.rglob("*.fp16.safetensors")) else None
    pipe = getattr(diffusers, kind).from_pretrained(
        path,
        local_files_only=True,
        use_safetensors=True,
        variant=variant,
        dtype=dtype,
        # SD1's check for nudity; SDXL's pipeline does not accept these arguments
        **({"safety_checker": None, "feature_extractor": None} if kind == PIPELINES[0] else {}),
    )
    architecture.check_channels(pipe.unet.config)
    return pipe
