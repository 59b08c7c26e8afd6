"""The pictures of a job: one after the other, each in one or two passes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from PIL import Image

from engine.api import options as option
from engine.api import second_pass
from engine.api.job import Job, Pass
from engine.api.progress import Progress
from engine.api.request import LATENT_FACTOR
from engine.models.loaded_model import LoadedModel, PictureSettings, to_image
from engine.models.loras import Loras, LoraUse
from engine.sampling import draw
from engine.sampling.conditioning import Conditioning
from engine.sampling.draw import Start, Watch
from engine.sampling.noise import Seeds


class Drawing:
    """Draws with a loaded model. While it is open, the LoRAs of one pass are applied."""

    def __init__(self, job: Job, model: LoadedModel, loras: Loras, progress: Progress) -> None:
        self._job, self._model, self._progress = job, model, progress
        self._uses = {id(one): loras.resolve(one.texts.tags) for one in self._passes()}
        self._applied: list[LoraUse] | None = None
        self._stack = ExitStack()
        self._encoded: dict[int, Conditioning] = {}

    def _passes(self) -> list[Pass]:
        return [one for one in (self._job.first, self._job.second) if one is not None]

    def lora_hashes(self) -> tuple[dict[str, str], dict[str, str]]:
        """{name: hash} of the LoRAs of the first and of the second pass."""
        first, *others = (
            {use.lora.name: use.lora.hash() for use in self._uses[id(one)]}
            for one in self._passes()
        )
        return first, others[0] if others else {}

    @property
    def pads(self) -> bool:
        """Whether the shorter of both prompts was padded."""
        return any(one.pads for one in self._encoded.values())

    @contextmanager
    def open(self) -> Iterator["Drawing"]:
        """Afterwards the model is the same as before, bit for bit."""
        with ExitStack() as whole:
            if self._job.tiling:
                whole.enter_context(self._model.tiling())
            whole.callback(self._close)
            self._apply(self._job.first)
            yield self

    def _close(self) -> None:
        self._stack.close()

    def _apply(self, one: Pass) -> None:
        """Apply the LoRAs of a pass, unless they are applied already."""
        uses = self._uses[id(one)]
        if uses != self._applied:
            self._stack.close()
            self._stack.enter_context(self._model.with_loras(uses))
            self._applied = uses

    def _conditioning(self, one: Pass) -> Conditioning:
        """The encoded prompts, with the LoRAs of this pass."""
        self._apply(one)
        if id(one) not in self._encoded:
            encoder = self._model.text_encoder(self._job.text_options(one))
            texts = one.texts
            self._encoded[id(one)] = encoder.conditioning(
                texts.text, texts.negative, one.calls, one.base_calls
            )
        return self._encoded[id(one)]

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
        seeds, first = self._job.noise_of(number), self._job.first
        watch = Watch(self._progress.step)
        settings = PictureSettings(seeds, first.width, first.height, first.sampling)
        latent = self._model.latent(self._conditioning(first), settings, watch)
        second = self._job.second
        if second is not None and not (self._progress.skipped or self._progress.stopping):
            self._progress.begin_picture(number * self._job.passes + 1)
            latent = self._enlarged(second, latent, seeds, watch)
        return to_image(self._model.decode(latent))

    @torch.no_grad()
    def _enlarged(
        self, one: Pass, latent: torch.Tensor, seeds: Seeds, watch: Watch
    ) -> torch.Tensor:
        """The latent picture of the second pass."""
        job, model, request = self._job, self._model, self._job.request
        if job.target is None or request.denoising_strength is None:
            raise ValueError("the second pass has no size or no denoising_strength")
        start = second_pass.enlarge(model, latent, job.target, request.hr_upscaler, seeds.seed)
        height, width = (side * LATENT_FACTOR for side in start.shape[2:])
        return draw.from_picture(
            model.denoising_model(self._conditioning(one)),
            one.sampling,
            model.noise(seeds, width, height),
            Start(
                start,
                request.denoising_strength,
                fix_steps=True,
                extra_noise=job.settings[option.EXTRA_NOISE],
            ),
            watch=watch,
        )
