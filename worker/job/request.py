"""The input of a job that draws, without its task's own fields: A1111's fields, and ours.

The models here, in `worker.job.txt2img` and in `worker.job.img2img` are the schema (`python
handler.py --schema` prints it as JSON Schema). They are stricter than A1111, which ignores unknown
fields without a message, rounds sizes down, and answers 500 to many numbers. A1111 accepts the
types and ranges of every input that passes here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StrictBool,
    StringConstraints,
    ValidationError,
    model_validator,
)

from worker.clients.nothing_asked import without_blanks, without_nulls
from worker.clients.without_effect import without_effect
from worker.errors import InvalidInput
from worker.job.model_fields import (
    Float,
    Int,
    LoraReference,
    ModelName,
    ModelReference,
    Name,
    Strict,
    Timeout,
    no_nul,
)
from worker.job.output_fields import Output
from worker.job.problems import check_size, joined, problems_of
from worker.shown import shown


def _strict_json(value: JsonValue) -> JsonValue:
    try:
        json.dumps(value, allow_nan=False).encode()
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ValueError("must be plain JSON: no NaN, no Infinity, valid Unicode") from None
    return value


def only(allowed: object, reason: str) -> AfterValidator:
    """For a field of A1111 that may have only this value."""

    def check(value: object) -> object:
        if value != allowed:
            raise ValueError(f"can only be {json.dumps(allowed)}: {reason}")
        return value

    return AfterValidator(check)


Model = TypeVar("Model", bound=Strict)
Request = TypeVar("Request", bound="PictureRequest")

PROMPTS = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt")

Unit = Annotated[Float, Field(ge=0, le=1)]
# -1 means random. Picture i has seed + i, which must not exceed a signed 64-bit number.
Seed = Annotated[Int, Field(ge=-1, le=2**63 - 1 - 2**16)]
Text = Annotated[str, StringConstraints(max_length=32_768), AfterValidator(no_nul)]
Json = Annotated[JsonValue, AfterValidator(_strict_json)]


class AlwaysOnScript(Strict):
    """The arguments of one always-on script."""

    args: list[Json] = Field(default_factory=list)


class OverrideSettings(Strict):
    """A1111 options for one job.

    Only options whose default is in the WebUI's config.json (`worker.config.webui_config`): without
    one, A1111 v1.9.3 keeps the job's value for all later jobs.
    """

    sd_model_checkpoint: ModelName | None = Field(None, description="The same as `checkpoint`.")
    sd_vae: ModelName | None = Field(None, description="The same as `vae`; also Automatic or None.")
    CLIP_stop_at_last_layers: Int | None = Field(
        None, ge=1, le=12, description="The same as `clip_skip`."
    )
    eta_noise_seed_delta: Int | None = Field(None, ge=0, le=2**31)
    eta_ancestral: Unit | None = None
    eta_ddim: Unit | None = None
    randn_source: Literal["GPU", "CPU", "NV"] | None = None
    emphasis: Literal["None", "Ignore", "Original", "No norm"] | None = None
    comma_padding_backtrack: Int | None = Field(None, ge=0, le=74)
    token_merging_ratio: Float | None = Field(None, ge=0, le=0.9)
    token_merging_ratio_hr: Float | None = Field(None, ge=0, le=0.9)
    pad_cond_uncond: StrictBool | None = None
    sd_noise_schedule: Literal["Default", "Zero Terminal SNR"] | None = None
    sgm_noise_multiplier: StrictBool | None = None
    always_discard_next_to_last_sigma: StrictBool | None = None
    no_dpmpp_sde_batch_determinism: StrictBool | None = None
    sigma_min: Float | None = Field(None, ge=0, le=10)
    sigma_max: Float | None = Field(None, ge=0, le=200)
    rho: Float | None = Field(None, ge=0, le=10)
    uni_pc_variant: Literal["bh1", "bh2", "vary_coeff"] | None = None
    uni_pc_skip_type: Literal["time_uniform", "time_quadratic", "logSNR"] | None = None
    uni_pc_order: Int | None = Field(None, ge=1, le=5)
    uni_pc_lower_order_final: StrictBool | None = None
    sdxl_crop_top: Int | None = Field(None, ge=0, le=1024)
    sdxl_crop_left: Int | None = Field(None, ge=0, le=1024)


Fields = TypeVar("Fields", bound="JobFields")


class JobFields(Strict):
    """The fields that every job that draws and a template's defaults have in common."""

    _resolved: Mapping[str, str] | None = PrivateAttr(None)

    @property
    def resolved(self) -> Mapping[str, str] | None:
        """The prompts by their fields, once wildcards are resolved; None before, or without."""
        return self._resolved

    def with_prompts(self: Fields, prompts: Mapping[str, str], seed: int) -> Fields:
        """The same job with the prompts that its wildcards were resolved to, and their seed."""
        copy = self.model_copy(update={**prompts, "seed": seed})
        copy._resolved = {"prompt": "", "negative_prompt": "", **prompts}  # noqa: SLF001 - its own
        return copy

    @model_validator(mode="before")
    @classmethod
    def _what_is_asked(cls, value: object) -> object:
        return without_nulls(without_blanks(value)) if isinstance(value, Mapping) else value

    # Ours.
    vae: ModelReference | None = Field(None, description="VAE to use instead of the checkpoint's.")
    embeddings: list[ModelReference] = Field(
        default_factory=list,
        max_length=32,
        description="Textual inversions; each is used where a prompt has its name.",
    )
    trigger_words: StrictBool = Field(
        False, description="Add the LoRAs' trained words to the prompt, if they are not in it."
    )
    wildcards: StrictBool = Field(
        False,
        description="Choose words for `{red|blue}` and `__name__` in the prompts, by the seed; the"
        " answer's `resolved` has the prompts that were used.",
    )
    clip_skip: Int | None = Field(
        None, ge=1, le=12, description="Use the output of this CLIP layer, counted from the last."
    )
    timeout: Timeout = None
    output: Output = Field(
        default_factory=Output, description="Format and delivery of the pictures."
    )

    # A1111's, in the order of its own schema.
    prompt: Text = ""
    negative_prompt: Text = ""
    styles: list[Name] | None = None
    seed: Seed = -1
    subseed: Seed = -1
    subseed_strength: Unit = 0.0
    seed_resize_from_h: Int = Field(-1, ge=-1, le=4096)
    seed_resize_from_w: Int = Field(-1, ge=-1, le=4096)
    sampler_name: Name | None = None
    scheduler: Name | None = None
    batch_size: Int = Field(1, ge=1, le=16)
    n_iter: Int = Field(1, ge=1, le=64)
    steps: Int = Field(50, ge=1, le=150)
    cfg_scale: Float = Field(7.0, ge=0, le=100)
    width: Int = Field(512, ge=64, le=4096)
    height: Int = Field(512, ge=64, le=4096)
    restore_faces: StrictBool | None = None
    tiling: StrictBool | None = None
    do_not_save_samples: StrictBool = False
    do_not_save_grid: StrictBool = False
    eta: Unit | None = None
    denoising_strength: Unit | None = None
    s_min_uncond: Float | None = Field(None, ge=0, le=15)
    s_churn: Float | None = Field(None, ge=0, le=100)
    s_tmax: Float | None = Field(None, ge=0, le=1000)
    s_tmin: Float | None = Field(None, ge=0, le=1000)
    s_noise: Float | None = Field(None, ge=0, le=2)
    override_settings: OverrideSettings | None = None
    override_settings_restore_afterwards: Annotated[
        StrictBool, only(True, "a job's settings must not reach the next job")
    ] = True
    refiner_checkpoint: ModelName | None = None
    refiner_switch_at: Unit | None = None
    disable_extra_networks: StrictBool = False
    firstpass_image: Annotated[
        Json, only(None, "A1111 v1.9.3 cannot take an image here over the API")
    ] = None
    comments: dict[str, Json] | None = None
    force_task_id: Annotated[str, StringConstraints(max_length=128)] | None = None
    sampler_index: Name | None = None
    script_name: Name | None = None
    script_args: list[Json] = Field(default_factory=list)
    send_images: Annotated[StrictBool, only(True, "the images are the result")] = True
    save_images: StrictBool = False
    alwayson_scripts: dict[Name, AlwaysOnScript] = Field(default_factory=dict)
    infotext: Annotated[
        Json, only(None, "it would fill in fields unchecked; send them by name")
    ] = None


class SecondPass(Strict):
    """The fields with which txt2img enlarges its picture and draws it again."""

    enable_hr: StrictBool = False
    firstphase_width: Annotated[int, only(0, "it is obsolete, use enable_hr")] = 0
    firstphase_height: Annotated[int, only(0, "it is obsolete, use enable_hr")] = 0
    hr_scale: Float = Field(2.0, ge=1, le=8)
    hr_upscaler: Name | None = None
    hr_second_pass_steps: Int = Field(0, ge=0, le=150)
    hr_resize_x: Int = Field(0, ge=0, le=8192)
    hr_resize_y: Int = Field(0, ge=0, le=8192)
    hr_checkpoint_name: ModelName | None = None
    hr_sampler_name: Name | None = None
    hr_scheduler: Name | None = None
    hr_prompt: Text = ""
    hr_negative_prompt: Text = ""


class TemplateDefaults(SecondPass, JobFields):
    """The defaults of a template."""


class PictureRequest(JobFields):
    """The input of a job that draws."""

    task: str
    template: Name | None = Field(
        None,
        description="Template for the fields that the job leaves out; null or none: without one.",
    )
    checkpoint: ModelReference | None = Field(
        None, description="Checkpoint to use; if not given, the engine's default."
    )
    loras: list[LoraReference] = Field(
        default_factory=list,
        max_length=32,
        description="LoRAs; each is added to the prompt as a tag.",
    )

    _notes: tuple[str, ...] = PrivateAttr(())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or is not certain, as sentences for the caller."""
        return self._notes

    @property
    def second_pass(self) -> SecondPass | None:
        """The fields of the second pass; None for a job without one."""
        return self if isinstance(self, SecondPass) and self.enable_hr else None

    @property
    def prompts(self) -> dict[str, str]:
        """The job's prompts by their fields."""
        names = (name for name in PROMPTS if name in type(self).model_fields)
        return {name: getattr(self, name) for name in names}

    @property
    def pictures(self) -> int | None:
        """How many pictures are made; None if a script decides it."""
        return None if self.script_name else self.n_iter * self.batch_size

    @model_validator(mode="wrap")
    @classmethod
    def _as_clients_write(cls, value: object, read: ModelWrapValidatorHandler[Request]) -> Request:
        if not isinstance(value, Mapping):
            return read(value)
        job, notes = without_effect(without_blanks(value), cls.model_fields)
        request = read(job)
        request._notes = tuple(notes)  # noqa: SLF001 - its own
        return request

    @model_validator(mode="after")
    def _is_consistent(self: Request) -> Request:
        problems = [text for wrong, text in self._conflicts() if wrong]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _conflicts(self) -> list[tuple[bool, str]]:
        """Combinations that A1111 answers with a 500, or with another picture than expected."""
        override = self.override_settings or OverrideSettings()
        return [
            (
                self.refiner_checkpoint is not None and self.refiner_switch_at is None,
                "refiner_checkpoint needs refiner_switch_at",
            ),
            *(
                (
                    (getattr(self, field) or "").casefold() == f"use same {word}",
                    f"{field} cannot be 'Use same {word}', only hr_{field} can: name one",
                )
                for field, word in (("sampler_name", "sampler"), ("scheduler", "scheduler"))
            ),
            (
                self.disable_extra_networks and bool(self.loras),
                "disable_extra_networks would ignore the loras",
            ),
            (
                _differ(self.checkpoint, override.sd_model_checkpoint),
                "checkpoint and override_settings.sd_model_checkpoint name two models: give one",
            ),
            (
                _differ(self.vae, override.sd_vae),
                "vae and override_settings.sd_vae name two models: give one",
            ),
            (
                len({self.clip_skip, override.CLIP_stop_at_last_layers} - {None}) > 1,
                "clip_skip and override_settings.CLIP_stop_at_last_layers differ: give one",
            ),
            (
                # A1111's own default for sampler_index is Euler, so clients send it unasked.
                None not in {self.sampler_name, self.sampler_index}
                and _folded(self.sampler_index) not in {_folded(self.sampler_name), "euler"},
                "sampler_name and sampler_index name two samplers: give one",
            ),
            self.output.too_few_or_many_urls(self.pictures),
        ]


def _differ(model: ModelReference | None, name: str | None) -> bool:
    """Whether a field and the option of the same meaning name two models."""
    return model is not None and name is not None and not model.is_named(name)


def _folded(name: str | None) -> str:
    return (name or "").strip().casefold()


def check(job_input: object, model: type[Model], inputs: int = 1) -> Model:
    """Check a job's `input`.

    Args:
        job_input: what the caller sent.
        model: type of the input.
        inputs: how many inputs of other jobs it may contain.

    Raises:
        InvalidInput: names the first dozen problems at once, each with its field, its value and
            the remedy; `problems` in its details has them as a list.
    """
    if not isinstance(job_input, Mapping):
        raise InvalidInput(
            f"the job's input is {shown(job_input)}, not an object.",
            hint='Send {"input": {"prompt": "..."}}.',
        )
    check_size(job_input, inputs)
    try:
        return model.model_validate(dict(job_input))
    except ValidationError as error:
        problems, total = problems_of(error, model), error.error_count()
    raise InvalidInput(joined(problems, total), problems=problems)
