"""Load a checkpoint offline: a single file (SD1.x, SDXL) or a diffusers folder."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

from engine.errors import Unsupported
from engine.models import architecture, odd_sizes, placement
from engine.models.checkpoints import FOLDER_MARK
from engine.models.files import open_tensors
from engine.models.ldm import CLIP, CLIP_XL, OPENCLIP_XL, UNET, VAE
from engine.models.requirements import today
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
    odd_sizes.follow(pipe.unet)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            # before the first picture: with gradients torch uses other kernels, and the picture
            # after a LoRA was removed would differ in its last bits
            component.requires_grad_(False).eval()
    weights, needs_exact_vae = placement.weights_of(pipe), pipe.vae.config.force_upcast
    placement.apply(placement.decide(weights, needs_exact_vae, gpu_memory), pipe)
    return pipe


def read_architecture(path: Path) -> architecture.Architecture:
    """A single file's architecture. Raises as `architecture.infer`, and Unreadable, OSError."""
    with open_tensors(path) as file:
        return _architecture(file)


def _architecture(file: Any) -> architecture.Architecture:  # noqa: ANN401 - safetensors
    shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return architecture.infer(shapes, file.metadata() or {})


def read_file(path: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - diffusers
    """Read a file as CivitAI has them: original key names, no configuration."""
    with open_tensors(path) as file:
        found = _architecture(file)
        state = _read_state(file, dtype)
    kind = getattr(diffusers, PIPELINES[found.is_xl])
    with TemporaryDirectory() as folder:
        found.write(Path(folder))
        return kind.from_pretrained(
            folder,
            local_files_only=True,
            **_networks(state, folder, dtype, found.is_xl),
            **_tokenizers(found.is_xl),
            # SD1's check for nudity; SDXL's pipeline does not accept these arguments
            **({} if found.is_xl else {"safety_checker": None, "feature_extractor": None}),
        )


def _read_state(file: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:  # noqa: ANN401 - safetensors
    """The networks' tensors under present names, in memory of their own.

    safetensors gives views of the file: the picture of a loaded checkpoint would change, or the
    process would end, if somebody wrote another file over it.
    """
    prefixes = (UNET, VAE, CLIP, CLIP_XL, OPENCLIP_XL)
    keys = [key for key in file.keys() if key.startswith(prefixes)]  # noqa: SIM118
    return {today(key): file.get_tensor(key).to(dtype, copy=True) for key in keys}


def _networks(
    state: dict[str, torch.Tensor], folder: str, dtype: torch.dtype, is_xl: bool
) -> dict[str, Any]:
    """The pipeline's networks, with the configurations in `folder`."""
    texts: dict[str, Any] = {"text_encoder": transformers.CLIPTextModel}
    if is_xl:
        texts["text_encoder_2"] = transformers.CLIPTextModelWithProjection
    others = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    given = {"config": folder, "torch_dtype": dtype, "local_files_only": True}
    return {
        name: create_diffusers_clip_model_from_ldm(  # type: ignore[no-untyped-call]
            kind, state, subfolder=name, **given
        )
        for name, kind in texts.items()
    } | {
        name: kind.from_single_file(state, subfolder=name, **given) for name, kind in others.items()
    }


def _tokenizers(is_xl: bool) -> dict[str, Any]:
    first = {"tokenizer": tokenizer.build()}
    return first | {"tokenizer_2": tokenizer.build(padding="!")} if is_xl else first


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
