"""Load a checkpoint offline: a single file, or a diffusers folder.

diffusers' `from_single_file` for a whole pipeline downloads the configuration unless it is given a
folder with it, and does not check that the file has every tensor. So its functions for single
networks are used, with a configuration that was derived from the file and checked against it.
"""

import json
import logging
from dataclasses import dataclass
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
from engine.models.ldm import CLIP, CLIP_XL, OPENCLIP_SD2, OPENCLIP_XL, UNET, VAE
from engine.models.requirements import TEXTS, Family, today
from engine.prompt import tokenizer

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
# what a folder says that it is -> what it is read as: only its parts count
FOLDERS = {f"StableDiffusion{xl}{task}Pipeline": PIPELINES[bool(xl)]
           for xl in ("", "XL") for task in ("", "Img2Img", "Inpaint")}  # fmt: skip

VAE_FACTOR = 8  # pixels of a side for one of the latent

# their warnings are about weights, which the engine checks itself
diffusers.utils.logging.set_verbosity(logging.CRITICAL)
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Parts:
    """A checkpoint's networks, and what one must know to draw with them.

    The refiner has only SDXL's second text encoder, SD1 and SD2 only the first.
    """

    unet: Any
    vae: Any
    text_encoders: tuple[tuple[Any, Any], ...]  # (tokenizer, network), in the order of the vectors
    prediction_type: str  # epsilon or v_prediction
    zero_terminal_snr: bool  # the file says that it was trained with such a noise schedule
    is_xl: bool
    is_refiner: bool
    is_inpainting: bool

    @classmethod
    def of(cls, pipe: Any) -> "Parts":  # noqa: ANN401 - diffusers
        """The parts of a pipeline from `read_pipeline`."""
        ends = [end for end in ("", "_2") if getattr(pipe, f"text_encoder{end}", None) is not None]
        options = pipe.scheduler.config
        return cls(
            pipe.unet,
            pipe.vae,
            tuple(
                (getattr(pipe, f"tokenizer{e}"), getattr(pipe, f"text_encoder{e}")) for e in ends
            ),
            options.prediction_type,
            bool(options.get("rescale_betas_zero_snr")),
            is_xl="_2" in ends,
            is_refiner=ends == ["_2"],
            is_inpainting=pipe.unet.config.in_channels == architecture.INPAINTING_CHANNELS,
        )


def read_pipeline(path: Path) -> Any:  # noqa: ANN401 - diffusers
    """A StableDiffusion(XL)Pipeline on its device, ready for pictures; see `Parts`.

    Raises Unsupported for models that need more than a prompt and a mask, and the exceptions of
    safetensors and diffusers for files that are not valid.
    """
    gpu_memory = placement.measure()
    read = _read_folder if path.is_dir() else read_file
    pipe = read(path, placement.precision(gpu_memory))
    pipe.set_progress_bar_config(disable=True)
    odd_sizes.follow(pipe.unet)
    if Parts.of(pipe).is_inpainting:
        pipe.unet.register_forward_pre_hook(_WholeMask(pipe.vae), with_kwargs=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            # before the first picture: with gradients torch uses other kernels, and the picture
            # after a LoRA was removed would differ in its last bits
            component.requires_grad_(False).eval()
    weights, needs_exact_vae = placement.weights_of(pipe), pipe.vae.config.force_upcast
    placement.apply(placement.decide(weights, needs_exact_vae, gpu_memory), pipe)
    if pipe.scheduler.config.prediction_type is None:
        pipe.scheduler.register_to_config(prediction_type=_measured_prediction(pipe))
    return pipe


class _WholeMask:
    """A UNet for inpainting that is given only latents paints everything: A1111's txt2img with it.

    Its further inputs are a mask of ones, and a gray picture as the VAE encodes it.
    """

    def __init__(self, vae: Any) -> None:  # noqa: ANN401 - diffusers
        self._vae = vae
        self._last: tuple[tuple[torch.Tensor, str], torch.Tensor] | None = None

    def __call__(self, _unet: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:  # noqa: ANN401
        """Complete the UNet's first argument."""
        sample = given[0] if given else named["sample"]
        if sample.shape[1] != architecture.LATENT_CHANNELS:
            return given, named
        further = self._further(sample).to(sample).expand(len(sample), -1, -1, -1)
        named = {name: value for name, value in named.items() if name != "sample"}
        return (torch.cat([sample, further], 1), *given[1:]), named

    @torch.no_grad()
    def _further(self, sample: torch.Tensor) -> torch.Tensor:
        """(1, 5, height, width); encoded again only for another size, another VAE, or tiling."""
        last_layer = self._vae.encoder.conv_out
        mark, padding = last_layer.weight, last_layer.padding_mode
        if self._last and self._last[1].shape[2:] == sample.shape[2:]:
            before, padding_before = self._last[0]
            is_same = before.dtype == mark.dtype and torch.equal(before.to(mark.device), mark)
            if is_same and padding_before == padding:
                return self._last[1]
        sides = (VAE_FACTOR * side for side in sample.shape[2:])
        gray = torch.zeros(1, 3, *sides, device=sample.device, dtype=mark.dtype)
        latent = self._vae.encode(gray).latent_dist.mean * self._vae.config.scaling_factor
        further = torch.cat([torch.ones_like(latent[:, :1]), latent], 1)
        self._last = (mark.detach().clone(), padding), further
        return further


@torch.no_grad()
def _measured_prediction(pipe: Any) -> str:  # noqa: ANN401 - diffusers
    """What SD2's UNet predicts, by A1111's test: given noise alone, v is near its negative."""
    unet = pipe.unet
    like = {"device": pipe._execution_device, "dtype": unet.dtype}  # noqa: SLF001 - as diffusers
    given = torch.full((1, architecture.LATENT_CHANNELS, 8, 8), 0.5, **like)
    text = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, **like)
    found = unet(given, 999, text, return_dict=False)[0] - given
    pipe.maybe_free_model_hooks()
    return "v_prediction" if float(found.float().mean()) < -1 else "epsilon"


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
    with TemporaryDirectory() as folder:  # start.sh removes what a killed engine leaves there
        found.write(Path(folder))
        return kind.from_pretrained(
            folder,
            local_files_only=True,
            **_networks(state, folder, dtype, found.family),
            **_tokenizers(found.family),
            # SD1's check for nudity; SDXL's pipeline does not accept these arguments
            **({} if found.is_xl else {"safety_checker": None, "feature_extractor": None}),
        )


def _read_state(file: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:  # noqa: ANN401 - safetensors
    """The networks' tensors under present names, in memory of their own.

    safetensors gives views of the file: the picture of a loaded checkpoint would change, or the
    process would end, if somebody wrote another file over it.
    """
    prefixes = (UNET, VAE, CLIP, CLIP_XL, OPENCLIP_XL, OPENCLIP_SD2)
    names = {old: new for old, new in today(file.keys()).items() if new.startswith(prefixes)}
    return {new: file.get_tensor(old).to(dtype, copy=True) for old, new in names.items()}


def _networks(
    state: dict[str, torch.Tensor], folder: str, dtype: torch.dtype, family: Family
) -> dict[str, Any]:
    """The pipeline's networks, with the configurations in `folder`; None for what it lacks."""
    kinds = {
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }
    others = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    given = {"config": folder, "torch_dtype": dtype, "local_files_only": True}
    absent = {"text_encoder": None} if family == "refiner" else {}
    return (
        absent
        | {
            name: create_diffusers_clip_model_from_ldm(  # type: ignore[no-untyped-call]
                kinds[name], state, subfolder=name, **given
            )
            for name in TEXTS[family]
        }
        | {
            name: kind.from_single_file(state, subfolder=name, **given)
            for name, kind in others.items()
        }
    )


def _tokenizers(family: Family) -> dict[str, Any]:
    """OpenCLIP (SD2's text encoder, and SDXL's second one) was trained with `!` as padding."""
    if family == "SD2":
        return {"tokenizer": tokenizer.build(padding="!")}
    first = None if family == "refiner" else tokenizer.build()
    second = {} if family == "SD1" else {"tokenizer_2": tokenizer.build(padding="!")}
    return {"tokenizer": first} | second


def _read_folder(path: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - diffusers
    """Read a folder written by `save_pretrained`; the fp16 variant if there is one."""
    named = json.loads((path / FOLDER_MARK).read_text(encoding="utf-8"))["_class_name"]
    if named not in FOLDERS:
        raise Unsupported(f"checkpoints of the kind {named}")
    kind = FOLDERS[named]
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
