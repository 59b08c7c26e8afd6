"""A checkpoint in memory: load it, apply LoRAs to it, and make one picture."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.errors import NansException, Unsupported
from engine.models import checkpoints
from engine.models.architecture import LATENT_CHANNELS
from engine.models.checkpoints import Checkpoint
from engine.models.files import Identity, Unreadable
from engine.models.loading import read_pipeline
from engine.models.lora_factors import Misfit
from engine.models.lora_layers import UNET, Addition, Layers
from engine.models.loras import Lora, LoraUse
from engine.models.requirements import Incomplete
from engine.prompt import encoding
from engine.prompt.encoding import Conditioning
from engine.sampling import samplers

log = logging.getLogger(__name__)

LONGEST_CAUSE = 200
EXPLAINED = (Unreadable, Incomplete, Misfit)  # their messages are whole sentences
# raised by safetensors and diffusers for a file that is not valid
LOAD_ERRORS = (OSError, LookupError, StopIteration, TypeError, ValueError, RuntimeError)


@dataclass(frozen=True)
class PictureSettings:
    """The settings of one picture, apart from its text."""

    seed: int
    width: int
    height: int
    steps: int
    cfg_scale: float
    sampler: samplers.Sampler
    scheduler: samplers.Scheduler | None
    zero_terminal_snr: bool = False  # of the noise schedule


def _shorten(error: BaseException) -> str:
    """The beginning of a message, on one line; some messages list thousands of tensors."""
    text = str(error) if isinstance(error, EXPLAINED) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:LONGEST_CAUSE]


class LoadedModel:
    """A loaded checkpoint. Only one thread may use it at a time."""

    def __init__(self, checkpoint: Checkpoint, sha256: str, pipe: Any, read: Identity) -> None:  # noqa: ANN401 - diffusers
        """`pipe` is the checkpoint's pipeline, `read` the identity of the files it came from."""
        self.checkpoint = checkpoint
        self.sha256 = sha256
        self.pipe = pipe
        self._read = read

    def is_current(self, checkpoint: Checkpoint) -> bool:
        """Whether this is the checkpoint, and its files are still the ones that were read.

        The files may be gone: what is in memory is what the name meant.
        """
        if self.checkpoint.path != checkpoint.path:
            return False
        try:
            return checkpoints.identity(checkpoint) == self._read
        except FileNotFoundError:
            return True

    @classmethod
    def load(cls, checkpoint: Checkpoint, sha256: str) -> "LoadedModel":
        """Read a checkpoint, offline.

        Raises RuntimeError with a short message if the file is missing, damaged or not a
        checkpoint, or changes meanwhile, Unsupported if it is of a kind that the engine lacks.
        """
        before = checkpoints.identity(checkpoint)
        try:
            pipe = read_pipeline(checkpoint.path)
            if checkpoints.identity(checkpoint) != before:
                raise Unreadable("it was replaced while it was being read: try again")
        except Unsupported as error:
            raise Unsupported(f"{error.what}: {checkpoint.name!r}") from error
        except LOAD_ERRORS as error:
            text = f"cannot load checkpoint {checkpoint.name!r}: {_shorten(error)}"
            raise RuntimeError(text) from error
        return cls(checkpoint, sha256, pipe, before)

    def encode(self, text: str, negative: str, clip_skip: int, calls: int) -> Conditioning:
        """Encode both prompts (without tags) for a picture that calls the model `calls` times."""
        return encoding.encode(self.pipe, text, negative, clip_skip, calls)

    @contextmanager
    def with_loras(self, uses: Sequence[LoraUse]) -> Iterator[None]:
        """Apply the LoRAs; afterwards the model is the same as before, bit for bit.

        Raises RuntimeError for a file that is damaged or does not fit this checkpoint.
        """
        device = self.pipe._execution_device  # noqa: SLF001 - also right for an offloaded part
        with ExitStack() as added:
            for use in uses:
                for addition, weight in self._additions(use):
                    added.enter_context(addition.add(weight, device))
            yield

    def _additions(self, use: LoraUse) -> list[tuple[Addition, float]]:
        """The additions of one LoRA with their weights; if both weights are 0, it is not read."""
        if not (use.te or use.unet):
            return []
        try:
            additions = self._layers.additions(*use.lora.read())
        except LOAD_ERRORS as error:
            raise self._unfit(use.lora, _shorten(error)) from None
        weighted = [(a, use.unet if a.layer.component == UNET else use.te) for a in additions]
        return [(addition, weight) for addition, weight in weighted if weight]

    @cached_property
    def _layers(self) -> Layers:
        return Layers(self.pipe)

    def _unfit(self, lora: Lora, cause: str) -> RuntimeError:
        return RuntimeError(
            f"LoRA {lora.name!r} does not fit checkpoint {self.checkpoint.stem!r}: {cause}"
        )

    def picture(
        self,
        conditioning: Conditioning,
        settings: PictureSettings,
        on_step: Callable[[int, int], bool],
    ) -> Image.Image:
        """One RGB picture; its sides are rounded down to multiples of 8.

        `on_step(done, steps)` is called after each step. If it returns true, the picture ends there
        and is decoded unfinished. Raises NansException.
        """

        def after_call(pipe: Any, index: int, _time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
            # samplers of second order call the model twice in a step
            done = (index + 1) * settings.steps // pipe.num_timesteps
            if on_step(done, settings.steps):
                pipe._interrupt = True  # noqa: SLF001 - as diffusers documents
            return kwargs | self._guided(conditioning.at(index + 1))

        prediction = self.pipe.scheduler.config.prediction_type
        self.pipe.scheduler = samplers.build(
            settings.sampler,
            settings.scheduler,
            prediction,
            settings.seed,
            zero_terminal_snr=settings.zero_terminal_snr,
        )
        generator = torch.Generator().manual_seed(settings.seed)
        latents = self.pipe(
            **conditioning.at(0),
            **self._size_hints(settings),
            latents=self._noise(settings, generator),
            num_inference_steps=settings.steps,
            guidance_scale=settings.cfg_scale,
            width=settings.width // 8 * 8,
            height=settings.height // 8 * 8,
            generator=generator,
            callback_on_step_end=after_call,
            output_type="latent",
        ).images
        return _to_image(self._decode(latents))

    def _noise(self, settings: PictureSettings, generator: torch.Generator) -> torch.Tensor:
        """The noise that the picture begins with, drawn in single precision.

        The pipeline would draw it in the UNet's precision: on a GPU the same seed would give other
        numbers than on the CPU and in A1111.
        """
        size = (settings.height // 8, settings.width // 8)
        noise = torch.randn((1, LATENT_CHANNELS, *size), generator=generator)
        return noise.to(self.pipe.unet.dtype)

    def _size_hints(self, settings: PictureSettings) -> dict[str, tuple[int, int]]:
        """SDXL's size conditioning: the requested sides, not the rounded ones, as in A1111."""
        if getattr(self.pipe, "text_encoder_2", None) is None:
            return {}
        size = (settings.height, settings.width)
        return {"original_size": size, "target_size": size}

    def _guided(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`given` under the names of the pipeline's variables, the negative prompt first."""
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

        A VAE that overflows in half precision is used in single precision from then on, the same
        as in A1111; otherwise the pictures would be black.
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
    """The picture of (height, width, 3) in -1..1."""
    if not pixels.isfinite().all():
        raise NansException("A tensor with NaNs was produced in VAE.")
    # A1111 cuts off what is behind the point
    levels = ((pixels + 1) / 2).clamp(0, 1).numpy() * np.float32(255)
    return Image.fromarray(levels.astype(np.uint8))
