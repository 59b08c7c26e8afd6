"""A request, read: its texts, its samplers and the settings of its pictures."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from engine.api import options as option
from engine.api.img2img import Img2Img
from engine.api.request import Generation, Txt2Img
from engine.api.second_pass import Target
from engine.prompt import syntax
from engine.prompt.encoding import TextOptions
from engine.prompt.styles import Styles
from engine.sampling import samplers
from engine.sampling.denoiser import Guidance
from engine.sampling.draw import Sampling
from engine.sampling.noise import Seeds
from engine.sampling.samplers import Sampler, SigmaOptions
from engine.sampling.step_options import StepOptions

RANDOM_SEEDS = 2**32 - 1  # A1111 chooses a seed from 0 to 2^32 - 2


@dataclass(frozen=True)
class Texts:
    """The prompts of one pass.

    `prompt` and `negative` have no comments, as in the answer; `text` is the prompt without tags;
    `tags` are the LoRA tags that apply.
    """

    prompt: str
    negative: str
    text: str
    tags: list[syntax.LoraTag]


@dataclass(frozen=True)
class Pass:
    """One of a picture's one or two passes: size, texts and how it is sampled.

    `merging` is the share of the tokens that attention merges.
    """

    width: int
    height: int
    texts: Texts
    sampling: Sampling
    merging: float = 0.0
    base_calls: int | None = None  # of the pass before it

    @property
    def calls(self) -> int:
        """The calls of the model that A1111 expects."""
        return self.sampling.sampler.calls(self.sampling.steps)


class Job:
    """A request with the options that apply to it. Raises Refused, ValueError, LookupError."""

    def __init__(
        self, request: Generation, settings: Mapping[str, Any], styles: Styles | None = None
    ) -> None:
        self.request, self.settings, self._styles = request, settings, styles or Styles()
        width, height = request.first_size
        sampler = samplers.find_sampler(request.sampler_name or request.sampler_index or "")
        texts = self._read(request.prompt, request.negative_prompt)
        sampling = self._sampling(sampler, request.scheduler, request.steps)
        self.first = Pass(width, height, texts, sampling, settings[option.MERGING])
        self.second: Pass | None = None
        self.target: Target | None = None
        is_highres = isinstance(request, Txt2Img) and request.enable_hr
        self.highres = request if isinstance(request, Txt2Img) and is_highres else None
        self.begun = request if isinstance(request, Img2Img) else None  # by given pictures
        if self.highres is not None:
            self.target = Target.of(self.highres, width, height)
            self.second = self._second(self.highres, self.target)
        self.seed, self.subseed = _resolve(request.seed), _resolve(request.subseed)

    def _read(self, prompt: str, negative: str) -> Texts:
        prompt, negative = self._styles.apply(prompt, negative, self.request.styles or ())
        if self.settings[option.COMMENTS]:
            prompt, negative = map(syntax.without_comments, (prompt, negative))
        text, tags = syntax.extract_loras(prompt)
        if self.request.disable_extra_networks:
            return Texts(prompt, negative, text, [])
        syntax.refuse_hypernetworks(prompt)
        return Texts(prompt, negative, text, tags)

    def _second(self, request: Txt2Img, target: Target) -> Pass:
        sampler = self.first.sampling.sampler
        if request.hr_sampler_name:
            sampler = samplers.find_sampler(request.hr_sampler_name)
        scheduler = request.scheduler if request.hr_scheduler is None else request.hr_scheduler
        steps = request.hr_second_pass_steps or request.steps
        texts = self._read(
            request.hr_prompt or request.prompt,
            request.hr_negative_prompt or request.negative_prompt,
        )
        sampling = self._sampling(sampler, scheduler, steps)
        merging = self.settings[option.MERGING_HR] or self.first.merging
        return Pass(target.width, target.height, texts, sampling, merging, self.first.calls)

    def _sampling(self, sampler: Sampler, scheduler: str | None, steps: int) -> Sampling:
        settings = self.settings
        return Sampling(
            sampler,
            samplers.find_scheduler(sampler, scheduler),
            steps,
            Guidance(self.request.cfg_scale, self._chosen("s_min_uncond")),
            self._step_options(sampler),
            SigmaOptions(
                settings["sigma_min"],
                settings["sigma_max"],
                settings["rho"],
                settings["always_discard_next_to_last_sigma"],
            ),
            settings["sgm_noise_multiplier"],
            settings[option.NOISE_SCHEDULE] == option.ZERO_TERMINAL_SNR,
            not settings[option.NO_BATCH_DETERMINISM],
        )

    def _step_options(self, sampler: Sampler) -> StepOptions:
        settings = self.settings
        return StepOptions(
            eta=self.eta(sampler),
            s_churn=self._of_sampler("s_churn"),
            s_tmin=self._of_sampler("s_tmin"),
            s_tmax=self._of_sampler("s_tmax") or math.inf,
            s_noise=self._of_sampler("s_noise"),
            uni_pc_variant=settings["uni_pc_variant"],
            uni_pc_skip_type=settings["uni_pc_skip_type"],
            uni_pc_order=settings["uni_pc_order"],
            uni_pc_lower_order_final=settings["uni_pc_lower_order_final"],
        )

    def eta(self, sampler: Sampler) -> float:
        """The field, otherwise the option for this kind of sampler."""
        asked = self.request.eta
        return float(self.settings[sampler.eta_option] if asked is None else asked)

    def _chosen(self, name: str) -> float:
        """The field, otherwise the option of the same name."""
        asked = getattr(self.request, name)
        return float(self.settings[name] if asked is None else asked)

    def _of_sampler(self, name: str) -> float:
        """As in A1111, an option that is not at its default wins over the field."""
        if self.settings[name] != option.ALL[name]:
            return float(self.settings[name])
        return self._chosen(name)

    @property
    def passes(self) -> int:
        """The passes of each picture."""
        return 1 if self.second is None else 2

    @property
    def tiling(self) -> bool:
        """Whether opposite borders of the pictures fit together."""
        asked = self.request.tiling
        return bool(self.settings["tiling"] if asked is None else asked)

    @cached_property
    def seeds(self) -> list[int]:
        """Picture i has the first seed plus i; with a variation, all have the first seed."""
        step = 0 if self.request.subseed_strength else 1
        return [self.seed + i * step for i in range(self.asked)]

    @property
    def is_plain(self) -> bool:
        """Whether nothing is drawn over a picture, so that there is no denoising strength."""
        return self.highres is None and self.begun is None

    @property
    def asked(self) -> int:
        """The number of pictures that the request names; the answer has the seeds of all."""
        return self.request.n_iter * self.request.batch_size

    @property
    def batch(self) -> int:
        """The pictures of an iteration: one for each given picture, if there are several."""
        given = len(self.begun.init_images or ()) if self.begun else 0
        return given if given > 1 else self.request.batch_size

    @property
    def count(self) -> int:
        """The number of pictures."""
        return self.request.n_iter * self.batch

    def noise_of(self, number: int) -> Seeds:
        """The random numbers of picture `number`."""
        request = self.request
        return Seeds(
            self.seeds[number],
            self.subseed + number,
            request.subseed_strength,
            (request.seed_resize_from_w, request.seed_resize_from_h),
            self.settings["eta_noise_seed_delta"],
            self.settings[option.RANDN_SOURCE],
        )

    def text_options(self, one: Pass) -> TextOptions:
        """How the prompts of a pass are encoded."""
        settings = self.settings
        return TextOptions(
            settings[option.CLIP_SKIP],
            settings["emphasis"],
            settings["comma_padding_backtrack"],
            settings[option.PAD],
            (one.width, one.height),
            (settings["sdxl_crop_left"], settings["sdxl_crop_top"]),
        )


def _resolve(seed: int | None) -> int:
    return secrets.randbelow(RANDOM_SEEDS) if seed in (None, -1) else int(seed or 0)
