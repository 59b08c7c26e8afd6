"""The units of ControlNet and ADetailer as a job writes them: A1111's own fields, checked. Pure.

Both extensions accept almost anything: they ignore fields that they do not know, replace numbers
out of range, and catch their own errors. A1111 then answers 200 with a picture drawn without the
unit. So whatever they would not do is refused here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, StrictBool, StringConstraints

from worker.extensions.preprocessors import BY_NAME, RESOLUTION, Preprocessor, Range
from worker.job.image_fields import ImageText
from worker.job.model_fields import Float, Int, ModelName, Name, Strict, no_nul
from worker.shown import shown
from worker.spelling import near_matches

UNSET = -1  # the preprocessor's own default
NONE = "None"  # the word for no model

Fraction = Annotated[Float, Field(ge=0, le=1)]
Text = Annotated[str, StringConstraints(max_length=32_768), AfterValidator(no_nul)]
Offset = Annotated[Int, Field(ge=-512, le=512)]  # pixels
Side = Annotated[Int, Field(ge=64, le=4096)]  # pixels


def _known_module(name: str) -> str:
    if name in BY_NAME:
        return name
    near = near_matches(name, BY_NAME, cutoff=0.6)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}" if near else f"known: {', '.join(BY_NAME)}"
    )
    raise ValueError(
        f"is not a preprocessor of this image ({hint}); send the prepared picture with module"
        " 'none' instead"
    )


def _only(*allowed: object) -> AfterValidator:
    """For a field that clients send unasked, and that has an effect only with another value."""

    def check(value: object) -> object:
        if value not in allowed:
            raise ValueError(f"can only be {allowed[0]!r} here: the result could not be proven")
        return value

    return AfterValidator(check)


class ControlNetUnit(Strict):
    """A unit of the extension ControlNet."""

    enabled: StrictBool = True
    module: Annotated[Name, AfterValidator(_known_module)] = "none"
    model: ModelName = Field(
        NONE,
        description="Name in the store's folder ControlNet, with or without A1111's hash, or"
        " any reference to a model.",
    )
    weight: Annotated[Float, Field(ge=0, le=2)] = 1.0
    image: ImageText | None = Field(
        None, validation_alias=AliasChoices("image", "input_image"), description="The picture."
    )
    mask: ImageText | None = Field(
        None, validation_alias=AliasChoices("mask", "mask_image"), description="White: drawn anew."
    )
    resize_mode: Literal[
        "Just Resize",
        "Crop and Resize",
        "Resize and Fill",
        "Inner Fit (Scale to Fit)",
        "Outer Fit (Shrink to Fit)",
        "Scale to Fit (Inner Fit)",
        "Envelope (Outer Fit)",
    ] = "Crop and Resize"
    low_vram: StrictBool = Field(False, validation_alias=AliasChoices("low_vram", "lowvram"))
    processor_res: Int = UNSET
    threshold_a: Float = UNSET
    threshold_b: Float = UNSET
    guidance_start: Fraction = 0.0
    guidance_end: Fraction = Field(1.0, validation_alias=AliasChoices("guidance_end", "guidance"))
    pixel_perfect: StrictBool = False
    control_mode: Literal[
        "Balanced", "My prompt is more important", "ControlNet is more important"
    ] = "Balanced"
    inpaint_crop_input_image: StrictBool = True
    hr_option: Literal["Both", "Low res only", "High res only"] = "Both"

    @property
    def preprocessor(self) -> Preprocessor:
        """What its module takes."""
        return BY_NAME[self.module]

    @property
    def has_model(self) -> bool:
        """Whether it names a model."""
        return self.model.casefold() != NONE.casefold()

    def problem(self, *, has_picture: bool) -> tuple[str, str] | None:
        """The field that would be ignored or fail, and why; None if the unit can be drawn.

        Args:
            has_picture: the job has a picture of its own, which stands in for `image`.
        """
        takes = self.preprocessor
        numbers: dict[str, Range | None] = {
            "processor_res": RESOLUTION if takes.resolution else None,
            "threshold_a": takes.threshold_a,
            "threshold_b": takes.threshold_b,
        }
        for field, allowed in numbers.items():
            value = getattr(self, field)
            if allowed and value != UNSET and not allowed[0] <= value <= allowed[1]:
                return field, (
                    f"is {value:g}, but {self.module} takes {allowed[0]:g} to {allowed[1]:g}"
                )
        if self.guidance_start > self.guidance_end:
            return "guidance_start", "is larger than guidance_end"
        if not self.image and (self.mask or not has_picture):
            return "image", "is missing"
        if self.mask and not takes.mask:
            return "mask", f"has no effect with the module {self.module}"
        if takes.has_model != self.has_model:
            needs = "is missing" if takes.has_model else f"has no effect with {self.module}"
            return "model", needs
        return None


class ADetailerUnit(Strict):
    """A unit of the extension ADetailer."""

    ad_model: Name = Field(
        NONE,
        description="Detector: one of `mediapipe_face_*`, or a file in the store's folder"
        " adetailer.",
    )
    ad_model_classes: Text = ""
    ad_tab_enable: StrictBool = True
    ad_prompt: Text = ""
    ad_negative_prompt: Text = ""
    ad_confidence: Fraction = 0.3
    ad_mask_filter_method: Literal["Area", "Confidence"] = "Area"
    ad_mask_k: Int = Field(0, ge=0, le=100)
    ad_mask_min_ratio: Fraction = 0.0
    ad_mask_max_ratio: Fraction = 1.0
    ad_dilate_erode: Offset = 4
    ad_x_offset: Offset = 0
    ad_y_offset: Offset = 0
    ad_mask_merge_invert: Literal["None", "Merge", "Merge and Invert"] = "None"
    ad_mask_blur: Int = Field(4, ge=0, le=64)
    ad_denoising_strength: Fraction = 0.4
    ad_inpaint_only_masked: StrictBool = True
    ad_inpaint_only_masked_padding: Int = Field(32, ge=0, le=256)
    ad_use_inpaint_width_height: StrictBool = False
    ad_inpaint_width: Side = 512
    ad_inpaint_height: Side = 512
    ad_use_steps: StrictBool = False
    ad_steps: Int = Field(28, ge=1, le=150)
    ad_use_cfg_scale: StrictBool = False
    ad_cfg_scale: Float = Field(7.0, ge=0, le=100)
    ad_use_sampler: StrictBool = False
    ad_sampler: Name = "DPM++ 2M Karras"
    ad_scheduler: Name = "Use same scheduler"
    ad_use_noise_multiplier: StrictBool = False
    ad_noise_multiplier: Float = Field(1.0, ge=0.5, le=1.5)
    ad_use_clip_skip: StrictBool = False
    ad_clip_skip: Int = Field(1, ge=1, le=12)
    # Sent by every client that copies A1111's page.
    ad_use_checkpoint: Annotated[StrictBool, _only(False)] = False
    ad_checkpoint: Any = None
    ad_use_vae: Annotated[StrictBool, _only(False)] = False
    ad_vae: Any = None
    ad_restore_face: Annotated[StrictBool, _only(False)] = False
    ad_controlnet_model: Annotated[str, _only(NONE)] = NONE
    ad_controlnet_module: Any = NONE
    ad_controlnet_weight: Fraction = 1.0
    ad_controlnet_guidance_start: Fraction = 0.0
    ad_controlnet_guidance_end: Fraction = 1.0

    @property
    def enabled(self) -> bool:
        """Whether it has an effect."""
        return self.ad_tab_enable and self.ad_model != NONE

    def body(self) -> dict[str, Any]:
        """The unit as A1111 gets it."""
        left_out = {name for name in self.model_fields_set if name in _NO_EFFECT}
        return self.model_dump(exclude_unset=True, exclude=left_out)


_NO_EFFECT = {
    *("ad_checkpoint", "ad_vae", "ad_controlnet_module", "ad_controlnet_weight"),
    *("ad_controlnet_guidance_start", "ad_controlnet_guidance_end"),
}
DETECTORS = frozenset(
    f"mediapipe_face_{name}" for name in ("full", "short", "mesh", "mesh_eyes_only")
)


def check_detector(name: str, known: frozenset[str]) -> str | None:
    """Why the engine cannot use this detector; None if it can.

    Args:
        name: the `ad_model` of a unit.
        known: the detectors that the engine lists.
    """
    if name in known:
        return None
    near = near_matches(name, known, cutoff=0.8)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else f". {_OWN_DETECTOR}"
    return f"is {shown(name)}, which the engine does not have{hint}"


_OWN_DETECTOR = (
    "Detectors for YOLO are pickles, which can run any code: only files that the operator put into"
    " adetailer/ of MODELS_DIR before the start are used, and only with ALLOW_PICKLES=true"
)
