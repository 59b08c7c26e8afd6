"""A request for pictures: A1111's fields and defaults, and which of them the engine refuses."""

import json
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from engine.errors import Refused, Unsupported, shown

MAX_SEED = 2**64
MIN_SEED = -(2**63)
# far above what anybody asks for; without them, one request could take all of the memory
LONGEST_SIDE = 8192  # the same for the pictures that a request brings
MOST_STEPS = 1_000_000
MOST_PICTURES = 10_000


def _truncate(value: object) -> object:
    """A1111 reads 100.7 as 100."""
    return int(value) if isinstance(value, float) and abs(value) < MAX_SEED else value


Integer = Annotated[int, BeforeValidator(_truncate)]


LATENT_FACTOR = 8
# fields of both tasks that have an effect
SUPPORTED = frozenset(
    {
        *("prompt", "negative_prompt", "styles", "seed", "sampler_name", "sampler_index"),
        *("scheduler", "batch_size", "n_iter", "steps", "cfg_scale", "width", "height"),
        *("eta", "s_min_uncond", "s_churn", "s_tmax", "s_tmin", "s_noise", "denoising_strength"),
        *("subseed", "subseed_strength", "seed_resize_from_h", "seed_resize_from_w", "tiling"),
        *("refiner_checkpoint", "refiner_switch_at", "do_not_save_samples", "do_not_save_grid"),
        *("override_settings", "override_settings_restore_afterwards", "disable_extra_networks"),
        "send_images",
    }
)
# A1111 does not use these either, unless another field is set that is refused here.
WITHOUT_EFFECT = frozenset(
    {
        "script_args",  # without script_name
        "force_task_id",  # an id for the web UI's progress bar
        "comments",  # the web UI shows them below a picture
    }
)
# A1111 has these behind the fields of the task
LAST = (
    *("force_task_id", "sampler_index", "include_init_images", "script_name", "script_args"),
    *("send_images", "save_images", "alwayson_scripts", "infotext"),
)


def _has_no_effect(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


class Generation(BaseModel):
    """The fields of both tasks; unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore")
    # fields that may have any value
    accepted: ClassVar[frozenset[str]] = SUPPORTED | WITHOUT_EFFECT

    prompt: str = ""
    negative_prompt: str = ""
    styles: list[str] | None = None
    seed: Integer | None = -1
    subseed: Integer | None = -1
    subseed_strength: float = 0
    seed_resize_from_h: Integer = -1
    seed_resize_from_w: Integer = -1
    sampler_name: str | None = None
    scheduler: str | None = None
    batch_size: Integer = 1
    n_iter: Integer = 1
    steps: Integer = 50
    cfg_scale: float = 7.0
    width: Integer = 512
    height: Integer = 512
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    eta: float | None = None
    denoising_strength: float | None = None
    s_min_uncond: float | None = None
    s_churn: float | None = None
    s_tmax: float | None = None
    s_tmin: float | None = None
    s_noise: float | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool = False
    firstpass_image: str | None = None
    comments: dict[str, Any] | None = None
    force_task_id: str | None = None
    sampler_index: str | None = "Euler"
    script_name: str | None = None
    script_args: list[Any] = []
    send_images: bool = True
    save_images: bool = False
    alwayson_scripts: dict[str, Any] = {}
    infotext: str | None = None

    def check(self) -> None:
        """Raise Refused for a field that the engine would have to ignore, ValueError for an
        impossible number. A1111 too answers such numbers with status 500.
        """
        for script in filter(None, [self.script_name, *self.alwayson_scripts]):
            raise Refused(f"Script {shown(script)} not found")
        unread = self.accepted | self.not_read()
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in unread and value != info.default and not _has_no_effect(value):
                raise Unsupported(f"{name} with the value {shown(value)}")
        self._check_numbers()
        self._check_sizes()
        self._check_task()
        self._check_answer()

    def echo(self) -> dict[str, Any]:
        """The request with its defaults in A1111's order: the answer's `parameters`."""
        fields = self.model_dump()
        last = {name: fields.pop(name) for name in LAST if name in fields}
        return fields | last

    def not_read(self) -> frozenset[str]:
        """The fields that have no effect because of the values of others."""
        return frozenset()

    def _check_task(self) -> None:
        """Check the fields of the task."""

    @property
    def first_size(self) -> tuple[int, int]:
        """The size of the first pass."""
        return self.width, self.height

    def _check_numbers(self) -> None:
        for name in ("steps", "batch_size", "n_iter"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {shown(getattr(self, name))}")
        if self.steps > MOST_STEPS:
            raise ValueError(f"steps must be at most {MOST_STEPS}, not {shown(self.steps)}")
        pictures = self.batch_size * self.n_iter
        if pictures > MOST_PICTURES:
            raise ValueError(
                f"batch_size times n_iter must be at most {MOST_PICTURES}, not {shown(pictures)}"
            )
        for name in ("seed", "subseed"):
            seed = getattr(self, name)
            if not MIN_SEED <= (seed or 0) <= MAX_SEED - pictures:
                raise ValueError(f"{name} must be {MIN_SEED} to 2^64 - 1, not {shown(seed)}")

    def _check_sizes(self) -> None:
        width, height = self.first_size
        size = f"size {shown(width)}x{shown(height)}"
        if min(width, height) < LATENT_FACTOR:
            raise ValueError(f"{size} is too small: each side needs {LATENT_FACTOR} pixels")
        if max(width, height) > LONGEST_SIDE:
            raise ValueError(f"{size} is too large: each side has {LONGEST_SIDE} pixels at most")
        others = (self.seed_resize_from_w, self.seed_resize_from_h)
        # as in A1111, a side below LATENT_FACTOR is allowed: its noise has no pixel to put in
        if min(others) > 0 and max(others) > LONGEST_SIDE:
            raise ValueError(
                f"seed_resize_from_w and seed_resize_from_h must be at most {LONGEST_SIDE}, not "
                f"{shown(others)}"
            )

    def _check_denoising(self) -> None:
        if self.denoising_strength is None or not 0 <= self.denoising_strength <= 1:
            raise ValueError(
                f"denoising_strength must be 0 to 1, not {shown(self.denoising_strength)}"
            )

    def _check_answer(self) -> None:
        """Raise Refused if the answer, which repeats the request, could not be written."""
        try:
            json.dumps(self.model_dump(), allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise Refused(
                "the request has a value that no JSON answer can repeat: NaN, Infinity, half of a "
                f"surrogate pair, or too many nested lists ({shown(str(error))})"
            ) from error


class Txt2Img(Generation):
    """A1111's StableDiffusionProcessingTxt2Img."""

    accepted: ClassVar[frozenset[str]] = Generation.accepted | {
        *("enable_hr", "firstphase_width", "firstphase_height", "hr_scale", "hr_upscaler"),
        *("hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name"),
        *("hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt"),
    }

    enable_hr: bool = False
    firstphase_width: Integer = 0
    firstphase_height: Integer = 0
    hr_scale: float = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: Integer = 0
    hr_resize_x: Integer = 0
    hr_resize_y: Integer = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str = ""
    hr_negative_prompt: str = ""

    def not_read(self) -> frozenset[str]:
        """Without a second pass, no picture for it is read."""
        return frozenset() if self.enable_hr else frozenset({"firstpass_image"})

    @property
    def first_size(self) -> tuple[int, int]:
        """The size of the first pass, which may have fields of its own."""
        if self.firstphase_width or self.firstphase_height:
            return self.firstphase_width, self.firstphase_height
        return self.width, self.height

    def _check_task(self) -> None:
        if not self.enable_hr:
            return
        if self.denoising_strength is None:
            raise ValueError("enable_hr needs a denoising_strength")
        self._check_denoising()
        if not 0 <= self.hr_second_pass_steps <= MOST_STEPS:
            raise ValueError(
                f"hr_second_pass_steps must be 0 to {MOST_STEPS}, not "
                f"{shown(self.hr_second_pass_steps)}"
            )
