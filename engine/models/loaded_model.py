"""A checkpoint in memory: load it, apply LoRAs to it, and make one picture."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tomesd
import torch
from PIL import Image
from torch.nn import Conv2d

from engine.errors import NansException, Unsupported
from engine.models import architecture, checkpoints, vaes
from engine.models.checkpoints import Checkpoint
from engine.models.embeddings import Embedding, take_bundled
from engine.models.files import Identity, Unreadable
from engine.models.loading import read_pipeline
from engine.models.lora_factors import BUNDLED, Misfit
from engine.models.lora_layers import UNET, Addition, Layers, add_all
from engine.models.loras import LoraUse
from engine.models.requirements import Incomplete
from engine.models.vaes import Vae
from engine.prompt.encoding import TextEncoder, TextOptions
from engine.sampling import denoiser, draw, samplers
from engine.sampling.conditioning import Conditioning
from engine.sampling.denoiser import Guidance
from engine.sampling.draw import Sampling, Watch
from engine.sampling.noise import CHANNELS, FACTOR, SEEDS, Noise, Seeds
from engine.sampling.step_options import StepOptions

log = logging.getLogger(__name__)

LONGEST_CAUSE = 200
EXPLAINED = (Unreadable, Incomplete, Misfit)  # their messages are whole sentences
# raised by safetensors and diffusers for a file that is not valid
LOAD_ERRORS = (OSError, LookupError, StopIteration, TypeError, ValueError, RuntimeError)


@dataclass(frozen=True)
class PictureSettings:
    """The settings of one picture, apart from its text; the sides are cut to multiples of 8."""

    seeds: Seeds
    width: int
    height: int
    sampling: Sampling


def plain_settings(
    sampler_name: str, steps: int, seed: int, size: tuple[int, int], cfg_scale: float
) -> PictureSettings:
    """The settings of a picture with A1111's defaults for everything else."""
    sampler = samplers.find_sampler(sampler_name)
    scheduler = samplers.find_scheduler(sampler, None)
    eta = StepOptions(eta=sampler.default_eta)
    sampling = Sampling(sampler, scheduler, steps, Guidance(cfg_scale), eta)
    return PictureSettings(Seeds(seed), *size, sampling)


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

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet is also given a mask and a masked picture."""
        channels: int = self.pipe.unet.config.in_channels
        return channels == architecture.INPAINTING_CHANNELS

    def text_encoder(
        self, options: TextOptions, embeddings: Sequence[Embedding] = ()
    ) -> TextEncoder:
        """Encodes prompts without tags, which can name these embeddings."""
        return TextEncoder(self.pipe, options, embeddings)

    @property
    def text_width(self) -> int:
        """The width of the vectors of its embeddings: 768 of SD1, 1024 of SD2, 2048 of SDXL."""
        networks = [getattr(self.pipe, f"text_encoder{end}", None) for end in ("", "_2")]
        return sum(one.config.hidden_size for one in networks if one is not None)

    @contextmanager
    def with_vae(self, vae: Vae | None) -> Iterator[None]:
        """Draw with another VAE; afterwards the model is the same as before, bit for bit.

        Raises RuntimeError for a file that is damaged or does not fit this checkpoint.
        """
        if vae is None:
            yield
            return
        needs_exact = self.pipe.vae.config.force_upcast
        dtype = torch.float32 if needs_exact else self.pipe.unet.dtype
        try:
            until = vaes.exchange(self.pipe.vae, vae.path, dtype)
        except LOAD_ERRORS as error:
            raise self._unfit("VAE", vae.name, _shorten(error)) from None
        with until:
            yield

    @contextmanager
    def merging(self, ratio: float) -> Iterator[None]:
        """Merge this share of the tokens in the self-attention of the largest level, as A1111."""
        if not ratio:
            yield
            return
        tomesd.apply_patch(self.pipe.unet, ratio=ratio, use_rand=False)
        try:
            yield
        finally:
            tomesd.remove_patch(self.pipe.unet)

    @contextmanager
    def with_loras(self, uses: Sequence[LoraUse]) -> Iterator[list[Embedding]]:
        """Apply the LoRAs; afterwards the model is the same as before, bit for bit.

        Gives the embeddings in their files that fit the model. Raises RuntimeError for a file that
        is damaged or does not fit this checkpoint.
        """
        read: dict[tuple[Path, bool], tuple[list[Embedding], list[Addition]]] = {}
        additions = []
        for use in uses:  # a name that is written twice is read once
            key = use.lora.path, bool(use.te or use.unet)
            read[key] = read.get(key) or self._read_lora(use)
            additions += [
                (one, weight, use.dyn)
                for one in read[key][1]
                if (weight := use.unet if one.layer.component == UNET else use.te)
            ]
        with add_all(additions, self._device):
            width = self.text_width
            yield [one for found, _ in read.values() for one in found if one.shape == width]

    def _read_lora(self, use: LoraUse) -> tuple[list[Embedding], list[Addition]]:
        """The embeddings in a LoRA's file, and what it adds; nothing if both weights are 0."""
        start = "" if use.te or use.unet else BUNDLED
        try:
            state, metadata = use.lora.read(start)
            bundled, others = take_bundled(state, use.lora.path)
            if not others and (bundled or start):
                return bundled, []
            return bundled, self._layers.additions(others, metadata)
        except LOAD_ERRORS as error:
            raise self._unfit("LoRA", use.lora.name, _shorten(error)) from None

    @cached_property
    def _layers(self) -> Layers:
        return Layers(self.pipe)

    def _unfit(self, kind: str, name: str, cause: str) -> RuntimeError:
        return RuntimeError(
            f"{kind} {name!r} does not fit checkpoint {self.checkpoint.stem!r}: {cause}"
        )

    @contextmanager
    def tiling(self) -> Iterator[None]:
        """Pictures whose opposite borders fit together: convolutions look across the border."""
        networks = (self.pipe.unet, self.pipe.vae)
        layers = [one for net in networks for one in net.modules() if type(one) is Conv2d]
        for layer in layers:
            layer.padding_mode = "circular"
        try:
            yield
        finally:
            for layer in layers:
                layer.padding_mode = "zeros"

    def denoising_model(
        self, conditioning: Conditioning, extra: torch.Tensor | None = None
    ) -> denoiser.Model:
        """The UNet for the samplers; `extra` are the further inputs of an inpainting model."""
        prediction = self.pipe.scheduler.config.prediction_type
        return denoiser.Model(self.pipe.unet, prediction, conditioning, extra)

    def noise(self, seeds: Seeds, width: int, height: int) -> Noise:
        """The noise for a picture of this size in pixels."""
        shape = (CHANNELS, height // FACTOR, width // FACTOR)
        return Noise(seeds, shape, self._device)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.pipe._execution_device  # noqa: SLF001 - also right if offloaded
        return device

    @torch.no_grad()
    def latent(
        self, conditioning: Conditioning, settings: PictureSettings, watch: Watch
    ) -> torch.Tensor:
        """The latent picture; if `watch` stops it, it is unfinished."""
        noise = self.noise(settings.seeds, settings.width, settings.height)
        return draw.from_noise(self.denoising_model(conditioning), settings.sampling, noise, watch)

    def picture(
        self, conditioning: Conditioning, settings: PictureSettings, watch: Watch | None = None
    ) -> Image.Image:
        """One RGB picture. Raises NansException."""
        return to_image(self.decode(self.latent(conditioning, settings, watch or Watch())))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        """(1, 3, height, width) in -1..1 -> the latent picture, with the VAE's noise for `seed`.

        Raises NansException, ValueError for a picture that has no pixel of a latent picture.
        """
        if min(pixels.shape[2:]) < FACTOR:
            raise ValueError(
                f"a picture of {pixels.shape[3]}x{pixels.shape[2]} is too small: each side needs "
                f"{FACTOR} pixels"
            )
        vae = self.pipe.vae
        found = vae.encode(pixels.to(self._device, vae.dtype)).latent_dist
        if vae.dtype == torch.float16 and not found.mean.isfinite().all():
            self._use_exact_vae()
            found = vae.encode(pixels.to(self._device, vae.dtype)).latent_dist
        if not found.mean.isfinite().all():
            raise NansException("A tensor with NaNs was produced in VAE.")
        generator = torch.Generator().manual_seed(seed % SEEDS)
        noise = torch.randn(found.mean.shape, generator=generator).to(found.mean)
        latent: torch.Tensor = (found.mean + found.std * noise) * vae.config.scaling_factor
        return latent.float()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(1, 4, height / 8, width / 8) -> (height, width, 3) in -1..1.

        A VAE that overflows in half precision is used in single precision from then on, the same
        as in A1111; otherwise the pictures would be black. Raises NansException.
        """
        if not latents.isfinite().all():
            raise NansException("A tensor with NaNs was produced in Unet.")
        vae = self.pipe.vae
        scaled = latents / vae.config.scaling_factor
        pixels = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
        if vae.dtype == torch.float16 and not pixels.isfinite().all():
            self._use_exact_vae()
            pixels = vae.decode(scaled.float(), return_dict=False)[0]
        self.pipe.maybe_free_model_hooks()
        if not pixels.isfinite().all():
            raise NansException("A tensor with NaNs was produced in VAE.")
        picture: torch.Tensor = pixels[0].permute(1, 2, 0).float().cpu()
        return picture

    def _use_exact_vae(self) -> None:
        log.warning("the VAE of %s overflows in half precision", self.checkpoint.name)
        self.pipe.vae.to(torch.float32)


def to_pixels(picture: Image.Image) -> torch.Tensor:
    """(1, 3, height, width) in -1..1."""
    levels = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)
    return levels.permute(2, 0, 1)[None] * 2 - 1


def to_image(pixels: torch.Tensor) -> Image.Image:
    """The picture of (height, width, 3) in -1..1."""
    # A1111 cuts off what is behind the point
    levels = ((pixels + 1) / 2).clamp(0, 1).numpy() * np.float32(255)
    return Image.fromarray(levels.astype(np.uint8))
