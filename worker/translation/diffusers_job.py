"""Jobs with the names of diffusers and of the workers that are built on it. Pure.

    {"prompt": "a fox", "num_inference_steps": 25, "guidance_scale": 7.5, "scheduler": "K_EULER"}

A value under another name is read as ours where it means the same, and one warning says which.
Otherwise the job is refused with the change that it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from worker.clients.foreign_fields import SAME_VALUE
from worker.clients.nothing_asked import is_blank
from worker.errors import InvalidInput
from worker.shown import shown

Job = dict[str, Any]

# Names of a picture to begin with, and of its mask.
_PICTURES = ("image_url", "init_image", "image")
_MASKS = ("mask_image", "mask_url", "mask_image_url")
_STRENGTHS = ("strength", "prompt_strength", "denoise")
# diffusers repaints a mask in the whole picture; A1111's default is to draw the masked part alone.
_WHOLE_PICTURE = {"inpaint_full_res": False, "inpainting_fill": 1}
# Names that only programs of diffusers use; its `clip_skip` counts from another layer.
_OF_DIFFUSERS = {"num_inference_steps", "guidance_scale", "num_images_per_prompt"}
_LONGEST_NUMBER = 40  # characters of a number that is written as text

# diffusers' classes without "Scheduler", and the short names of Replicate and worker-sdxl, in
# small letters -> the sampler of A1111, and its schedule where A1111's default is another one.
_SAMPLERS: Mapping[str, tuple[str, str | None]] = {
    **dict.fromkeys(("k_euler", "eulerdiscrete"), ("Euler", None)),
    **dict.fromkeys(("k_euler_ancestral", "eulerancestraldiscrete"), ("Euler a", None)),
    **dict.fromkeys(("klms", "k_lms", "lmsdiscrete"), ("LMS", None)),
    **dict.fromkeys(("k_heun", "heundiscrete"), ("Heun", None)),
    **dict.fromkeys(("k_dpm_2", "kdpm2discrete"), ("DPM2", "Uniform")),
    **dict.fromkeys(("k_dpm_2_ancestral", "kdpm2ancestraldiscrete"), ("DPM2 a", "Uniform")),
    "dpmsolvermultistep": ("DPM++ 2M", "Uniform"),
    "karrasdpm": ("DPM++ 2M", "Karras"),
    "dpmsolversde": ("DPM++ SDE", "Uniform"),
    "ddim": ("DDIM", None),
    "pndm": ("PLMS", None),
    "unipcmultistep": ("UniPC", None),
    "lcm": ("LCM", None),
}
_NO_SAMPLER = {"dpmsolversinglestep", "deismultistep", "edmeuler", "ddpm", "flowmatcheulerdiscrete"}

_OF_REFINER = ("high_noise_frac", "refiner_inference_steps")
_NAMES = {*SAME_VALUE, *_PICTURES, *_MASKS, *_STRENGTHS, *_OF_REFINER, "scheduler"}


def as_a1111(job: Mapping[str, Any]) -> tuple[Job, list[str]]:
    """The job with A1111's names, and the warnings about what was read as what.

    Args:
        job: of txt2img, img2img, or without a task, unchecked.

    Raises:
        InvalidInput: one value has two names, or a field means what A1111 does not have.
    """
    if not _NAMES & job.keys():
        return dict(job), []
    others = _NAMES - {"scheduler"}  # ours too: null removes the value of a template
    found = {n: value for n, value in job.items() if not (n in others and is_blank(value))}
    read: list[str] = []
    _refuse_refiner_steps(found)
    has_picture = _take_picture(found, read)
    notes = [*_drop_refiner(found, has_picture=has_picture), *_of_other_meaning(found)]
    for name in sorted(SAME_VALUE.keys() & found.keys()):
        _take(found, name, SAME_VALUE[name], read)
    notes += _take_strength(found, read)
    _take_sampler(found, read)
    told = [f"{', '.join(sorted(read))}."] if read else []
    return found, [*told, *notes]


def _take(job: Job, name: str, ours: str, read: list[str]) -> None:
    """Give the value our name."""
    value = job.pop(name)
    if not is_blank(job.get(ours)) and job[ours] != value:
        raise InvalidInput(
            f"{ours} = {shown(job[ours])} and {name} = {shown(value)} are two names for one value.",
            hint=f"Send {ours} alone.",
            field=name,
        )
    job[ours] = value
    read.append(f"{name} was read as {ours}")


def _of_other_meaning(job: Job) -> Iterator[str]:
    """Values that would make another picture under our name."""
    guidance = _number(job.get("guidance_scale"))
    if guidance is not None and 0 <= guidance < 1:
        job["guidance_scale"] = 1
        yield (
            f"guidance_scale {guidance:g} was read as 1: diffusers draws without guidance then, and"
            " A1111 does so with 1."
        )
    if _OF_DIFFUSERS & job.keys() and not is_blank(job.get("clip_skip")):
        yield (
            f"clip_skip {shown(job['clip_skip'])} was read as A1111's, which counts from 1 for the"
            " last layer; diffusers' number is one less."
        )


def _number(value: object) -> float | None:
    """The number, which may be written as text; None for anything else."""
    is_text = isinstance(value, str) and len(value) <= _LONGEST_NUMBER
    if isinstance(value, bool) or not (is_text or isinstance(value, int | float)):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return None


def _take_picture(job: Job, read: list[str]) -> bool:
    """Make a job with a picture to begin with an img2img job; returns whether it is one."""
    named = [name for name in _PICTURES if isinstance(job.get(name), str)]
    draws = job.get("task") == "img2img" or (is_blank(job.get("task")) and "prompt" in job)
    if not named or not draws:
        return job.get("task") == "img2img"
    for name in named:
        job[name] = [job[name]]
        _take(job, name, "init_images", read)
    for name in _MASKS:
        if name in job:
            _take(job, name, "mask", read)
    if not is_blank(job.get("mask")) and not _WHOLE_PICTURE.keys() & job.keys():
        job |= _WHOLE_PICTURE
        read.append("the mask is of the whole picture (inpaint_full_res false, inpainting_fill 1)")
    job["task"] = "img2img"
    return True


def _take_strength(job: Job, read: list[str]) -> Iterator[str]:
    for name in _STRENGTHS:
        if name not in job:
            continue
        if job.get("task") == "img2img" or job.get("enable_hr"):
            _take(job, name, "denoising_strength", read)
        else:
            del job[name]
            yield f"{name} has no effect: the job has no picture to begin with."


def _take_sampler(job: Job, read: list[str]) -> None:
    """In diffusers a scheduler is a sampler, and in A1111 a schedule of noise."""
    given = job.get("scheduler")
    word = given.strip().casefold().removesuffix("scheduler") if isinstance(given, str) else ""
    if word in _NO_SAMPLER:
        raise InvalidInput(
            f"scheduler = {shown(given)} has no counterpart in A1111.",
            hint='Leave it out, or send "sampler_name", such as "DPM++ 2M".',
            field="scheduler",
        )
    if word not in _SAMPLERS:
        return
    del job["scheduler"]
    sampler, schedule = _SAMPLERS[word]
    named = [job.get(name) for name in ("sampler_name", "sampler_index")]
    others = [one for one in named if not is_blank(one) and one != sampler]
    if others:
        raise InvalidInput(
            f"scheduler = {shown(given)} names the sampler {sampler!r}, and sampler_name is"
            f" {shown(others[0])}.",
            hint="Send sampler_name alone.",
            field="scheduler",
        )
    job["sampler_name"] = sampler
    as_schedule = ""
    if schedule:
        job["scheduler"] = schedule
        as_schedule = f" with the scheduler {schedule!r}"
    read.append(f"scheduler {shown(given)} was read as sampler_name {sampler!r}{as_schedule}")


# The refiner of runpod-workers/worker-sdxl --------------------------------------------------------


def _refuse_refiner_steps(job: Job) -> None:
    if "refiner_inference_steps" in job and not is_blank(job.get("refiner_checkpoint")):
        raise InvalidInput(
            f"refiner_inference_steps = {shown(job['refiner_inference_steps'])}: A1111's refiner"
            " draws the last part of `steps`.",
            hint="Leave it out; refiner_switch_at says where the refiner begins.",
            field="refiner_inference_steps",
        )


def _drop_refiner(job: Job, *, has_picture: bool) -> Iterator[str]:
    """Its own refiner draws from a picture, and the end of any other; here a job names one."""
    steps = job.pop("refiner_inference_steps", None)
    if steps is not None and has_picture:
        job["num_inference_steps"] = steps
        unread = [name for name in ("width", "height") if job.pop(name, None) is not None]
        yield (
            "refiner_inference_steps was read as steps: worker-sdxl draws so from a picture"
            + (f", and does not read {' and '.join(unread)}." if unread else ".")
        )
    elif steps is not None:
        yield "refiner_inference_steps has no effect: the job names no refiner_checkpoint."
    if "high_noise_frac" not in job:
        return
    switch = job.pop("high_noise_frac")
    if is_blank(job.get("refiner_checkpoint")):
        yield "high_noise_frac has no effect: the job names no refiner_checkpoint."
    elif job.setdefault("refiner_switch_at", switch) != switch:
        raise InvalidInput(
            f"refiner_switch_at = {shown(job['refiner_switch_at'])} and high_noise_frac ="
            f" {shown(switch)} are two names for one value.",
            hint="Send refiner_switch_at alone.",
            field="high_noise_frac",
        )
    else:
        yield "high_noise_frac was read as refiner_switch_at."
