"""A checkpoint in memory: loading it, the LoRAs on it, and one picture."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from engine.errors import NansException
from engine.models.checkpoints import Checkpoint
from engine.models.loading import read_pipeline
from engine.models.lora_file import Misfit
from engine.models.lora_layers import UNET, Addition, Layers
from engine.models.loras import Lora, LoraUse
from engine.prompt import prompt
from engine.prompt.prompt import Conditioning
from engine.sampling import samplers

log = logging.getLogger(__name__)

LONGEST_CAUSE = 200
# what safetensors, our reading of shapes and diffusers raise for a file that is not right
LOAD_ERRORS = (SafetensorError, OSError, LookupError, StopIteration, ValueError, RuntimeError)


@dataclass(frozen=True)
class Shot:
    """What one picture is made from, beside its text."""

    seed: int
    width: int
    height: int
    steps: int
    cfg_scale: float
    sampler: samplers.Sampler
    scheduler: samplers.Scheduler | None


def _shorten(error: BaseException) -> str:
    """The beginning, on one line, of a message that may list thousands of tensors."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_CAUSE]


class Model:
    """A loaded checkpoint. One thread uses it at a time."""

    def __init__(self, checkpoint: Checkpoint, sha256: str, pipe: Any) -> None:  # noqa: ANN401 - diffusers
        self.checkpoint = checkpoint
        self.sha256 = sha256
        self.pipe = pipe

    @classmethod
    def load(cls, checkpoint: Checkpoint, sha256: str) -> "Model":
        """Read a checkpoint, offline.

        Raises RuntimeError with a short text where the file is gone, damaged or no such
        checkpoint, Unsupported where it is one that takes more than a prompt.
        """
        try:
            pipe = read_pipeline(checkpoint.path)
        except LOAD_ERRORS as error:
            text = f"cannot load checkpoint {checkpoint.name!r}: {_shorten(error)}"
            raise RuntimeError(text) from error
        return cls(checkpoint, sha256, pipe)

    def encode(self, text: str, negative: str, clip_skip: int, calls: int) -> Conditioning:
        """Both prompts (without tags) for pictures of `calls` calls of the model."""
        return prompt.encode(self.pipe, text, negative, clip_skip, calls)

    @contextmanager
    def with_loras(self, uses: Sequence[LoraUse]) -> Iterator[None]:
        """Apply the LoRAs; afterwards the model is as before, bit for bit.

        Raises RuntimeError for a file that is damaged or does not fit this checkpoint.
        """
        device = self.pipe._execution_device  # noqa: SLF001 - where an offloaded part will work
        with ExitStack() as added:
            for use in uses:
                for addition, weight in self._additions(use):
                    added.enter_context(addition.add(weight, device))
            yield

    def _additions(self, use: LoraUse) -> list[tuple[Addition, float]]:
        """What one LoRA adds, and its weight there; without any weight it is not even read."""
        if not (use.te or use.unet):
            return []
        try:
            additions = self._layers.additions(load_file(use.lora.path), use.lora.metadata)
        except Misfit as error:
            raise self._unfit(use.lora, str(error)) from None
        except LOAD_ERRORS as error:
            raise self._unfit(use.lora, _shorten(error)) from None
        weighed = [(a, use.unet if a.layer.component == UNET else use.te) for a in additions]
        return [(addition, weight) for addition, weight in weighed if weight]

    @cached_property
    def _layers(self) -> Layers:
        return Layers(self.pipe)

    def _unfit(self, lora: Lora, cause: str) -> RuntimeError:
        return RuntimeError(
            f"LoRA {lora.name!r} does not fit checkpoint {self.checkpoint.stem!r}: {cause}"
        )

    def picture(
        self, conditioning: Conditioning, shot: Shot, on_step: Callable[[int, int], bool]
    ) -> Image.Image:
        """One RGB picture, its sides rounded down to multiples of 8.

        `on_step(done, steps)` is called after each step; true ends the picture there, which is
        then decoded as far as it came. Raises NansException.
        """

        def after_call(pipe: Any, index: int, _time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
            # samplers of second order call the model twice in a step
            done = (index + 1) * shot.steps // pipe.num_timesteps
            if on_step(done, shot.steps):
                pipe._interrupt = True  # noqa: SLF001 - the way diffusers documents
            return kwargs | self._guided(conditioning.at(index + 1))

        prediction = self.pipe.scheduler.config.prediction_type
        self.pipe.scheduler = samplers.build(shot.sampler, shot.scheduler, prediction, shot.seed)
        latents = self.pipe(
            **conditioning.at(0),
            width=shot.width // 8 * 8,
            height=shot.height // 8 * 8,
            num_inference_steps=shot.steps,
            guidance_scale=shot.cfg_scale,
            generator=torch.Generator().manual_seed(shot.seed),
            callback_on_step_end=after_call,
            output_type="latent",
        ).images
        return _to_image(self._decode(latents))

    def _guided(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`given` by the names of the pipeline's own variables, the negative prompt first."""
        own = {"prompt_embeds": "prompt_embeds", "pooled_prompt_embeds": "add_text_embeds"}
        both = self.pipe.do_classifier_free_guidance
        return {
            own[name]: torch.cat([given[f"negative_{name}"], given[name]]) if both else given[name]
            for name in own
            if name in given
        }

    @torch.no_grad()
    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(1, 4, height / 8, width / 8) -> (height, width, 3) in -1..1.

        A VAE that overflows in half precision is used in single precision from then on, as
        A1111 does, instead of black pictures.
        """
        if not latents.isfinite().all():
            raise NansException("A tensor with NaNs was produced in Unet.")
        vae = self.pipe.vae
        scaled = latents / vae.config.scaling_factor
        pixels = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
        if vae.dtype == torch.float16 and not pixels.isfinite().all():
            log.warning("the VAE of %s overflows in half precision", self.checkpoint.name)
            vae.to(torch.float32)
            pixels = vae.decode(scaled.float(), return_dict=False)[0]
        self.pipe.maybe_free_model_hooks()
        picture: torch.Tensor = pixels[0].permute(1, 2, 0).float().cpu()
        return picture


def _to_image(pixels: torch.Tensor) -> Image.Image:
    """(height, width, 3) in -1..1 -> a picture."""
    if not pixels.isfinite().all():
        raise NansException("A tensor with NaNs was produced in VAE.")
    levels = (pixels / 2 + 0.5).clamp(0, 1).numpy() * 255
    return Image.fromarray(levels.round().astype(np.uint8))
