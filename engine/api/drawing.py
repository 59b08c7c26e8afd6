"""The pictures of a job: one by one, each in one or two passes, with up to three checkpoints."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from engine.api import extras, second_pass
from engine.api import options as option
from engine.api.given import Given, Pictures, inpainting_inputs
from engine.api.job import Job, Pass
from engine.api.library import Library
from engine.api.progress import Progress
from engine.api.request import LATENT_FACTOR
from engine.images.resize import Size
from engine.images.upscalers import NONE
from engine.models.checkpoints import HASH_DIGITS, Checkpoint
from engine.models.embeddings import Embedding, merged
from engine.models.loaded_model import LoadedModel, PictureSettings, to_image, to_pixels
from engine.models.loras import LoraUse
from engine.models.vaes import Vae
from engine.sampling import denoiser, draw
from engine.sampling.conditioning import Conditioning
from engine.sampling.draw import Start, Watch
from engine.sampling.noise import Seeds


@dataclass(frozen=True)
class Models:
    """The models of a job; `load` may free the checkpoint that was loaded before."""

    load: Callable[[Checkpoint], LoadedModel]
    first: Checkpoint
    second: Checkpoint | None = None
    refiner: Checkpoint | None = None


class Drawing:
    """Draws the pictures of a job. While it is open, the LoRAs of one pass are applied."""

    def __init__(
        self,
        job: Job,
        models: Models,
        library: Library,
        progress: Progress,
        pictures: Pictures | None = None,
    ) -> None:
        """`pictures` are the given ones of img2img."""
        self._job, self._models, self._progress = job, models, progress
        self._library = library
        self._uses = {id(one): library.loras.resolve(one.texts.tags) for one in self._passes()}
        self._stack = ExitStack()  # of what is changed in the model
        self._model: LoadedModel | None = None
        self._applied: tuple[Path, list[LoraUse], float] | None = None
        self._bundled: list[Embedding] = []  # in the files of the LoRAs
        self.vae: tuple[str, str] | None = None  # name and hash, if not the checkpoint's own
        self.notes: dict[str, str] = {}  # what the first pass's prompts add to the parameters
        self._encoded: dict[tuple[int, Path], Conditioning] = {}
        self.refined = ""  # by this checkpoint, with its hash
        self.given: Given | None = None
        if job.begun is not None and pictures is not None:
            self.given = Given.prepare(job.begun, job.settings, pictures, self._fit)

    def _passes(self) -> list[Pass]:
        return [one for one in (self._job.first, self._job.second) if one is not None]

    @property
    def loras(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """The names in the tags of the first and of the second pass, with the files' hashes."""
        first, *others = (
            [(use.mentioned, use.lora.hash()) for use in self._uses[id(one)]]
            for one in self._passes()
        )
        return first, others[0] if others else []

    @property
    def pads(self) -> bool:
        """Whether the shorter of both prompts was padded."""
        return any(one.pads for one in self._encoded.values())

    @contextmanager
    def open(self) -> Iterator[LoadedModel]:
        """Gives the model of the first pass; afterwards it is the same as before, bit for bit."""
        try:
            model = self._use(self._models.first, self._job.first)
            if vae := self._vae(self._models.first):
                self.vae = vae.name, self._library.vaes.hash(vae)
            yield model
        finally:
            self._stack.close()

    def _use(self, checkpoint: Checkpoint, one: Pass) -> LoadedModel:
        """The loaded checkpoint, with the VAE, the LoRAs and the merging of this pass."""
        uses = self._uses[id(one)]
        wanted = (checkpoint.path, uses, one.merging)
        if self._model is None or self._applied != wanted:
            self._stack.close()
            self._model = self._applied = None
            model = self._models.load(checkpoint)
            enter = self._stack.enter_context
            if self._job.tiling:
                enter(model.tiling())
            enter(model.with_vae(self._vae(checkpoint)))
            enter(model.merging(one.merging))
            self._bundled = enter(model.with_loras(uses))
            self._model, self._applied = model, wanted
        return self._model

    def _vae(self, checkpoint: Checkpoint) -> Vae | None:
        return self._library.vaes.resolve(self._job.settings[option.VAE], checkpoint.path)

    def _conditioning(self, checkpoint: Checkpoint, one: Pass) -> Conditioning:
        """The prompts of a pass, encoded by this checkpoint with the LoRAs of the pass."""
        key = (id(one), checkpoint.path)
        if key not in self._encoded:
            model = self._use(checkpoint, one)
            named = merged(self._library.embeddings.all, self._bundled)
            encoder = model.text_encoder(self._job.text_options(one), named)
            texts = one.texts
            self._encoded[key] = encoder.conditioning(
                texts.text, texts.negative, one.calls, one.base_calls
            )
            if len(self._encoded) == 1:
                self.notes = encoder.notes
        return self._encoded[key]

    def pictures(self) -> list[Image.Image]:
        """All pictures; after an interrupt fewer, and the last one unfinished.

        They are made one by one: in a batch, the same seed gives slightly different pixels.
        """
        made: list[Image.Image] = []
        for number in range(self._job.count):
            self._progress.begin_picture(number * self._job.passes)
            made.append(self._picture(number))
            if self._progress.stopping:
                break
        return made

    def _picture(self, number: int) -> Image.Image:
        seeds, first, second = self._job.noise_of(number), self._job.first, self._job.second
        latent = self._first(first, seeds) if self.given is None else self._begun(number, seeds)
        if second is not None and not self._progress.stops():
            self._progress.begin_picture(number * self._job.passes + 1)
            latent = self._enlarged(second, latent, seeds)
        drawn = to_image(self._last_model().decode(latent))
        return drawn if self.given is None else self.given.finish(number, drawn)

    def _last_model(self) -> LoadedModel:
        """The model that drew last, perhaps a refiner."""
        if self._model is None:
            raise ValueError("nothing is drawn yet")
        return self._model

    def _first(self, one: Pass, seeds: Seeds) -> torch.Tensor:
        """The latent picture of the first pass, from noise."""
        model = self._use(self._models.first, one)
        conditioning = self._conditioning(self._models.first, one)
        settings = PictureSettings(seeds, one.width, one.height, one.sampling)
        return model.latent(conditioning, settings, self._watch(one))

    @torch.no_grad()
    def _begun(self, number: int, seeds: Seeds) -> torch.Tensor:
        """The latent picture that begins with a given one."""
        job, given, one = self._job, self.given, self._job.first
        if given is None or given.request.denoising_strength is None:
            raise ValueError("there is no given picture, or no denoising_strength")
        # the noise for the masked part is the one of the first iteration, as in A1111
        fill = replace(job.noise_of(number % job.batch), strength=0.0, resize_from=(0, 0))
        model = self._use(self._models.first, one)
        beginning = given.begin(model, number, seeds.seed, fill)
        start = Start(
            beginning.latent,
            given.request.denoising_strength,
            fix_steps=job.settings[option.FIX_STEPS],
            noise_multiplier=given.request.noise_multiplier(job.settings),
            extra_noise=job.settings[option.EXTRA_NOISE],
        )
        return draw.from_picture(
            model.denoising_model(self._conditioning(self._models.first, one), beginning.extra),
            one.sampling,
            model.noise(seeds, one.width, one.height),
            start,
            mask=beginning.mask,
            watch=self._watch(one),
        )

    def _fit(self, picture: Image.Image, size: Size, upscaler: str | None = None) -> Image.Image:
        """The picture in this size, by an upscaler; without one by that of the options."""
        name = upscaler or self._job.settings[option.UPSCALER] or NONE
        tiling = extras.tiling(self._job.settings)
        return self._library.upscalers.fit(picture, size, name, tiling, self._progress.stops)

    def _watch(self, one: Pass) -> Watch:
        """A refiner takes part in the second pass if there is one, as with A1111's default."""
        refiner, at = self._models.refiner, self._job.request.refiner_switch_at
        if refiner is None or one is not self._passes()[-1]:
            return Watch(self._progress.step)
        taking_part = refiner
        changed = False

        def switch(model: denoiser.Model, share: float) -> denoiser.Model:
            nonlocal changed
            if changed or (at is not None and share < at):
                return model
            changed = True
            loaded = self._use(taking_part, one)
            self.refined = f"{taking_part.stem} [{loaded.sha256[:HASH_DIGITS]}]"
            return loaded.denoising_model(self._conditioning(taking_part, one))

        return Watch(self._progress.step, switch)

    @torch.no_grad()
    def _enlarged(self, one: Pass, latent: torch.Tensor, seeds: Seeds) -> torch.Tensor:
        """The latent picture of the second pass."""
        job, request = self._job, self._job.highres
        if job.target is None or request is None or request.denoising_strength is None:
            raise ValueError("the second pass has no size or no denoising_strength")
        checkpoint, target = self._models.second or self._models.first, job.target
        if second_pass.is_latent(request.hr_upscaler):
            larger = second_pass.enlarge(latent, target, request.hr_upscaler)
            model, pixels = self._use(checkpoint, one), None
        else:
            picture = to_image(self._last_model().decode(latent))
            picture = self._fit(picture, (target.width, target.height), request.hr_upscaler)
            model, pixels = self._use(checkpoint, one), to_pixels(picture)
            larger = target.cropped(model.encode(pixels, seeds.seed))
        height, width = (side * LATENT_FACTOR for side in larger.shape[2:])
        extra = self._extra_of_second(model, larger, pixels, seeds)
        return draw.from_picture(
            model.denoising_model(self._conditioning(checkpoint, one), extra),
            one.sampling,
            model.noise(seeds, width, height),
            Start(
                larger,
                request.denoising_strength,
                fix_steps=True,
                extra_noise=job.settings[option.EXTRA_NOISE],
            ),
            watch=self._watch(one),
        )

    def _extra_of_second(
        self, model: LoadedModel, latent: torch.Tensor, pixels: torch.Tensor | None, seeds: Seeds
    ) -> torch.Tensor | None:
        """What an inpainting model sees of the first pass: nothing, unless the options say so.

        `pixels` is the enlarged picture, None if the latent picture was enlarged.
        """
        weight, target = self._job.settings[option.MASK_WEIGHT], self._job.target
        if not model.is_inpainting or weight == 1 or target is None:
            return None
        if pixels is None:
            seen = model.decode(latent).permute(2, 0, 1)[None]
            return inpainting_inputs(model, seen, None, weight=weight, seed=seeds.seed)
        seen = (pixels + 1) / 2  # A1111 gives the VAE this range here
        return target.cropped(inpainting_inputs(model, seen, None, weight=weight, seed=seeds.seed))
