"""The optional entries of A1111's generation parameters, in the order in which A1111 adds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.api import options as option
from engine.api.job import Job, Pass
from engine.api.request import Txt2Img
from engine.prompt.syntax import bare
from engine.sampling.samplers import Sampler

# option -> entry, if the option is not at its default and the sampler reads it
_SIGMA_ENTRIES = {
    "s_churn": "Sigma churn",
    "s_tmin": "Sigma tmin",
    "s_tmax": "Sigma tmax",
    "s_noise": "Sigma noise",
}
# of these, `info` has only the name
HIRES_PROMPTS = {"Hires prompt", "Hires negative prompt"}


def main_entries(job: Job, used: "Used") -> dict[str, Any]:
    """The entries between "Model" and the optional ones; None for those that are not written."""
    request, settings = job.request, job.settings
    width, height = request.seed_resize_from_w, request.seed_resize_from_h
    clip_skip, source = settings[option.CLIP_SKIP], settings[option.RANDN_SOURCE]
    # the engine's default is not A1111's, so that it is not written unless it was asked for
    own_default = option.ALL[option.RANDN_SOURCE]
    asked = option.RANDN_SOURCE in (request.override_settings or {})
    least = job.first.sampling.guidance.s_min_uncond
    return {
        "Variation seed strength": request.subseed_strength or None,
        "Seed resize from": f"{width}x{height}" if min(width, height) > 0 else None,
        "Denoising strength": None if job.is_plain else request.denoising_strength,
        "Conditional mask weight": settings[option.MASK_WEIGHT] if used.is_inpainting else None,
        "Clip skip": clip_skip if clip_skip > 1 else None,
        "ENSD": _ensd(job),
        "Token merging ratio": job.first.merging or None,
        "Token merging ratio hr": (job.second and job.second.merging) or None,
        "RNG": source if source != "GPU" and (asked or source != own_default) else None,
        "NGMS": least or None,
        "Tiling": "True" if job.tiling else None,
    }


def _ensd(job: Job) -> int | None:
    """The option, if the sampler adds noise in its steps."""
    delta: int = job.settings["eta_noise_seed_delta"]
    sampler = job.first.sampling.sampler
    uses = sampler.options.get("uses_ensd") and job.first.sampling.step_options.eta
    return delta if delta and uses else None


@dataclass(frozen=True)
class Used:
    """What a job was drawn with: the checkpoint; name and hash of another VAE, and of the LoRAs of
    both passes; what the first pass's prompts add to the parameters; whether a prompt was padded;
    the titles of the second pass's checkpoint and the refiner; whether the checkpoint is for
    inpainting; and the entries about the given pictures.
    """

    model_name: str
    model_hash: str
    vae: tuple[str, str] | None = None
    loras: Sequence[tuple[str, str]] = ()
    later_loras: Sequence[tuple[str, str]] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    pads: bool = False
    second: str = ""
    refiner: str = ""
    is_inpainting: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)


def optional_entries(job: Job, used: Used) -> dict[str, Any]:
    """What A1111 collects in `extra_generation_params`; only LoRAs that were applied are listed."""
    entries = _task_entries(job, used) | _hashes(used.loras)
    entries |= used.notes
    if job.settings[option.NOISE_SCHEDULE] != option.ALL[option.NOISE_SCHEDULE]:
        entries["Noise Schedule"] = job.settings[option.NOISE_SCHEDULE]
    entries |= _first_entries(job)
    if used.pads:
        entries["Pad conds"] = True
    if job.second is not None:
        entries |= _second_entries(job, job.second, used, entries.get("Schedule type"))
    if used.refiner:
        entries["Refiner"] = used.refiner
        entries["Refiner switch at"] = job.request.refiner_switch_at
    return entries


def _task_entries(job: Job, used: Used) -> dict[str, Any]:
    """What is known before the first step: of the second pass, or of the given pictures."""
    if job.second is not None and job.highres is not None:
        return _second_pass(job, job.second, job.highres, used)
    if job.begun is not None:
        return {"Denoising strength": job.begun.denoising_strength, **used.given}
    return {}


def _first_entries(job: Job) -> dict[str, Any]:
    """What the sampler of the first pass adds."""
    entries: dict[str, Any] = {}
    if job.begun is not None and (multiplier := job.begun.noise_multiplier(job.settings)) != 1:
        entries["Noise multiplier"] = multiplier
    entries |= _sampler_entries(job, job.first)
    if job.begun is not None:
        entries |= _extra_noise(job)
    return entries | _step_entries(job, job.first.sampling.sampler)


def _second_entries(job: Job, second: Pass, used: Used, first_label: str | None) -> dict[str, Any]:
    """What the sampler of the second pass adds."""
    entries = _hashes(used.later_loras)
    label = _label(second)
    if label is not None and label != first_label:
        entries["Hires schedule type"] = label
    return entries | _step_entries(job, second.sampling.sampler) | _extra_noise(job)


def _extra_noise(job: Job) -> dict[str, Any]:
    extra = job.settings[option.EXTRA_NOISE]
    return {"Extra noise": extra} if extra else {}


def _hashes(loras: Sequence[tuple[str, str]]) -> dict[str, Any]:
    hashes = ", ".join(f"{bare(name)}: {digits}" for name, digits in loras)
    return {"Lora hashes": hashes} if hashes else {}


def _second_pass(job: Job, second: Pass, request: Txt2Img, used: Used) -> dict[str, Any]:
    entries: dict[str, Any] = {"Denoising strength": request.denoising_strength}
    if used.second:
        entries["Hires checkpoint"] = used.second
    if request.hr_sampler_name not in (None, job.first.sampling.sampler.name):
        entries["Hires sampler"] = request.hr_sampler_name
    texts, first = second.texts, job.first.texts
    entries["Hires prompt"] = None if texts.prompt == first.prompt else texts.prompt
    same = texts.negative == first.negative
    entries["Hires negative prompt"] = None if same else texts.negative
    entries["Hires schedule type"] = None
    if request.hr_resize_x == 0 and request.hr_resize_y == 0:
        entries["Hires upscale"] = request.hr_scale
    else:
        entries["Hires resize"] = f"{request.hr_resize_x}x{request.hr_resize_y}"
    if request.hr_second_pass_steps:
        entries["Hires steps"] = request.hr_second_pass_steps
    if request.hr_upscaler is not None:
        entries["Hires upscaler"] = request.hr_upscaler
    return entries


def _label(one: Pass) -> str | None:
    """The label of a computed schedule, also if it is the sampler's default (as in A1111)."""
    scheduler, sampler = one.sampling.scheduler, one.sampling.sampler
    computed = scheduler.name != "automatic" and not sampler.steps_over_times
    return scheduler.label if computed else None


def _sampler_entries(job: Job, one: Pass) -> dict[str, Any]:
    """What the sampler adds about its schedule."""
    sampler, settings, levels = one.sampling.sampler, job.settings, one.sampling.levels
    entries: dict[str, Any] = {}
    if settings["always_discard_next_to_last_sigma"] and not sampler.discards_sigma:
        entries["Discard penultimate sigma"] = True
    if (label := _label(one)) is not None:
        entries["Schedule type"] = label
        if settings["sigma_min"] not in (0, levels.smallest):
            entries["Schedule min sigma"] = settings["sigma_min"]
        if settings["sigma_max"] not in (0, levels.largest):
            entries["Schedule max sigma"] = settings["sigma_max"]
        own_rho = one.sampling.scheduler.default_rho
        if own_rho != -1 and settings["rho"] not in (0, own_rho):
            entries["Schedule rho"] = settings["rho"]
    if settings["sgm_noise_multiplier"] and not sampler.steps_over_times:
        entries["SGM noise multiplier"] = True
    return entries


def _step_entries(job: Job, sampler: Sampler) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    eta = job.eta(sampler)
    if "eta" in sampler.reads and eta != sampler.default_eta:
        entries["Eta DDIM" if sampler.steps_over_times else "Eta"] = eta
    for name, entry in _SIGMA_ENTRIES.items():
        if name in sampler.reads and job.settings[name] != option.ALL[name]:
            entries[entry] = job.settings[name]
    return entries
