"""Leaves out of a job what would have no effect on its picture, and says so. Pure.

Each sentence is a warning in the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from worker.clients.foreign_fields import HARMLESS, HARMLESS_OPTIONS, SECOND_PASS, Harmless
from worker.shown import shown

# A1111 cuts off the fraction of these; clients calculate them.
_WHOLE = (
    *("steps", "hr_second_pass_steps", "width", "height", "hr_resize_x", "hr_resize_y"),
    *("mask_blur", "mask_blur_x", "mask_blur_y", "inpaint_full_res_padding"),
)
_OF_MASK = {
    *("mask_blur", "mask_blur_x", "mask_blur_y", "mask_round", "inpainting_fill"),
    *("inpaint_full_res", "inpaint_full_res_padding", "inpainting_mask_invert"),
}


def without_effect(
    asked: Mapping[str, Any], known: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """The job without those fields, a sentence about each, and one about what is not certain.

    Args:
        asked: the job.
        known: the task's fields.
    """
    job, notes = leave_out(asked, known)
    return job, [*notes, *_uncertain(job)]


def leave_out(asked: Mapping[str, Any], known: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """As `without_effect`, but only what is left out."""
    job = dict(asked)
    notes = list(_drop_harmless(job, {n: one for n, one in HARMLESS.items() if n not in known}, ""))
    if isinstance(job.get("override_settings"), Mapping):
        job["override_settings"] = dict(job["override_settings"])
        notes += _drop_harmless(job["override_settings"], HARMLESS_OPTIONS, "override_settings.")
    notes += _drop_second_pass(job)
    notes += _cut_fractions(job)
    notes += _drop_idle(job)
    notes += _drop_without_mask(job) if "mask" in known else ()
    return job, notes


def _drop_harmless(
    fields: dict[str, Any], table: Mapping[str, Harmless], prefix: str
) -> Iterator[str]:
    for name in sorted(fields.keys() & table.keys()):
        if table[name].when(fields[name]):
            del fields[name]
            yield f"{prefix}{name} has no effect: {table[name].reason}."


def _drop_second_pass(job: dict[str, Any]) -> Iterator[str]:
    """Clients send the fields of a second pass with every job."""
    if (enabled := job.get("enable_hr")) is not None and enabled is not False:
        return
    fields = SECOND_PASS & job.keys()
    asked = sorted(name for name in fields - {"hr_scale"} if job[name])
    for name in fields:
        del job[name]
    if asked:
        yield f"{', '.join(asked)}: no effect, because enable_hr is false."


def _cut_fractions(job: dict[str, Any]) -> Iterator[str]:
    for name in _WHOLE:
        value = job.get(name)
        if isinstance(value, float) and abs(value) < 2**53 and value != int(value):
            job[name] = int(value)
            yield f"{name} {value} is not a whole number: {int(value)} was used."


def _drop_idle(job: dict[str, Any]) -> Iterator[str]:
    if job.get("refiner_switch_at") is not None and job.get("refiner_checkpoint") is None:
        del job["refiner_switch_at"]
        yield "refiner_switch_at has no effect without refiner_checkpoint."
    if job.get("save_images") is True:
        del job["save_images"]
        yield "save_images has no effect: the pictures are in the answer."
    scripts = job.get("alwayson_scripts")
    if isinstance(scripts, Mapping):
        idle = [name for name, one in scripts.items() if one in (None, {}, {"args": []})]
        job["alwayson_scripts"] = {name: one for name, one in scripts.items() if name not in idle}
        for name in idle:
            yield f"alwayson_scripts {shown(name)} has no effect: it has no args."


def _drop_without_mask(job: dict[str, Any]) -> Iterator[str]:
    """Clients send the fields of inpainting with every picture."""
    if job.pop("include_init_images", None) is True:
        yield "include_init_images has no effect: the answer does not repeat the job's pictures."
    if job.get("mask") is not None:
        return
    fields = _OF_MASK & job.keys()
    asked = sorted(name for name in fields if not HARMLESS[name].when(job[name]))
    for name in fields:
        del job[name]
    if asked:
        yield f"{', '.join(asked)}: no effect, because the job has no mask."


def _uncertain(job: Mapping[str, Any]) -> Iterator[str]:
    if job.get("restore_faces") is True:
        yield (
            "restore_faces: not proven. A1111 downloads a model for it, and leaves the faces as"
            " they are if it cannot."
        )
    if job.get("scheduler") == "automatic":
        yield (
            "scheduler 'automatic' was read as 'Automatic', the sampler's own; A1111 would take"
            " no schedule at all for the word in small letters."
        )
