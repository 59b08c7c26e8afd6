"""A1111's samplers and schedulers in terms of diffusers' schedulers.

The names, aliases and options are A1111 v1.9.3's own answers. "linspace" is the spacing that gives
k-diffusion's sigmas. "DPM++ 2S a", "DPM fast", "DPM adaptive" and "Restart" have no counterpart in
diffusers and are not listed.
"""

from dataclasses import dataclass, field
from typing import Any

import diffusers

from engine.errors import SamplerNotFound, Unsupported

TRAINING = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "linspace",
}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}


@dataclass(frozen=True)
class Scheduler:
    """A noise schedule as GET /schedulers lists it, and the diffusers options that make it."""

    name: str
    label: str
    config: dict[str, Any]
    aliases: list[str] | None = None
    default_rho: float = -1.0
    need_inner_model: bool = False

    def describe(self) -> dict[str, Any]:
        """The entry of GET /schedulers."""
        return {
            "name": self.name,
            "label": self.label,
            "aliases": self.aliases,
            "default_rho": self.default_rho,
            "need_inner_model": self.need_inner_model,
        }


@dataclass(frozen=True)
class Sampler:
    """A sampler as GET /samplers lists it, and the diffusers scheduler class that does it."""

    name: str
    aliases: list[str]
    cls: str
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    schedules: tuple[str, ...] = ("karras", "exponential", "polyexponential", "sgm_uniform")
    ignores_scheduler: bool = False  # so does A1111: these choose their own timesteps

    def describe(self) -> dict[str, Any]:
        """The entry of GET /samplers."""
        return {"name": self.name, "aliases": self.aliases, "options": self.options}


SCHEDULERS = (
    Scheduler("automatic", "Automatic", {}),
    Scheduler("uniform", "Uniform", {}, need_inner_model=True),
    Scheduler("karras", "Karras", KARRAS, default_rho=7.0),
    Scheduler("exponential", "Exponential", EXPONENTIAL),
    # with A1111's rho of 1 it is the exponential schedule
    Scheduler("polyexponential", "Polyexponential", EXPONENTIAL, default_rho=1.0),
    Scheduler(
        "sgm_uniform",
        "SGM Uniform",
        {"timestep_spacing": "trailing"},
        aliases=["SGMUniform"],
        need_inner_model=True,
    ),
)

_MULTISTEP = "DPMSolverMultistepScheduler"
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_BROWNIAN = {"scheduler": "exponential", "brownian_noise": "True"}
_DPM2 = {"scheduler": "karras", "discard_next_to_last_sigma": "True"}

SAMPLERS = (
    Sampler(
        "DPM++ 2M",
        ["k_dpmpp_2m"],
        _MULTISTEP,
        {"algorithm_type": "dpmsolver++"},
        {"scheduler": "karras"},
    ),
    Sampler(
        "DPM++ SDE",
        ["k_dpmpp_sde"],
        "DPMSolverSDEScheduler",
        {},
        {"scheduler": "karras", "second_order": "True", "brownian_noise": "True"},
    ),
    Sampler("DPM++ 2M SDE", ["k_dpmpp_2m_sde"], _MULTISTEP, _SDE, _BROWNIAN),
    Sampler(
        "DPM++ 2M SDE Heun",
        ["k_dpmpp_2m_sde_heun"],
        _MULTISTEP,
        _SDE | {"solver_type": "heun"},
        _BROWNIAN | {"solver_type": "heun"},
    ),
    Sampler(
        "DPM++ 3M SDE",
        ["k_dpmpp_3m_sde"],
        _MULTISTEP,
        _SDE | {"solver_order": 3},
        {
            "scheduler": "exponential",
            "discard_next_to_last_sigma": "True",
            "brownian_noise": "True",
        },
    ),
    Sampler(
        "Euler a",
        ["k_euler_a", "k_euler_ancestral"],
        "EulerAncestralDiscreteScheduler",
        {},
        {"uses_ensd": "True"},
        schedules=("sgm_uniform",),
    ),
    Sampler("Euler", ["k_euler"], "EulerDiscreteScheduler"),
    Sampler("LMS", ["k_lms"], "LMSDiscreteScheduler"),
    Sampler("Heun", ["k_heun"], "HeunDiscreteScheduler", {}, {"second_order": "True"}),
    Sampler("DPM2", ["k_dpm_2"], "KDPM2DiscreteScheduler", {}, _DPM2 | {"second_order": "True"}),
    Sampler(
        "DPM2 a",
        ["k_dpm_2_a"],
        "KDPM2AncestralDiscreteScheduler",
        {},
        _DPM2 | {"uses_ensd": "True", "second_order": "True"},
    ),
    Sampler(
        "DDIM",
        ["ddim"],
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False},
        ignores_scheduler=True,
    ),
    Sampler(
        "PLMS",
        ["plms"],
        "PNDMScheduler",
        {"skip_prk_steps": True, "set_alpha_to_one": False},
        ignores_scheduler=True,
    ),
    Sampler(
        "UniPC", ["unipc"], "UniPCMultistepScheduler", {"solver_order": 3}, ignores_scheduler=True
    ),
    Sampler("LCM", ["k_lcm"], "LCMScheduler", schedules=()),
)

_BY_NAME = {sampler.name: sampler for sampler in SAMPLERS}
_SCHEDULER_BY_NAME = {s.name: s for s in SCHEDULERS} | {s.label: s for s in SCHEDULERS}


def find_sampler(name: str) -> Sampler:
    """The sampler of exactly this name (no alias, no old "Karras" suffix), or SamplerNotFound."""
    if name not in _BY_NAME:
        raise SamplerNotFound
    return _BY_NAME[name]


def find_scheduler(sampler: Sampler, name: str | None) -> Scheduler | None:
    """The scheduler asked for by name or label; None is automatic, as is any unknown name.

    Raises Unsupported where A1111 could combine the two and diffusers cannot.
    """
    scheduler = _SCHEDULER_BY_NAME.get(name or "automatic", SCHEDULERS[0])
    if scheduler.name == "automatic":
        return None
    possible = sampler.ignores_scheduler or scheduler.name in ("uniform", *sampler.schedules)
    if not possible:
        raise Unsupported(f"scheduler {scheduler.label!r} with sampler {sampler.name!r}")
    return scheduler


def build(sampler: Sampler, scheduler: Scheduler | None, prediction_type: str, seed: int) -> Any:  # noqa: ANN401
    """The diffusers scheduler for one picture; automatic is the sampler's own default."""
    automatic = _SCHEDULER_BY_NAME[sampler.options.get("scheduler", "uniform")]
    config = TRAINING | {"prediction_type": prediction_type} | sampler.config
    if not sampler.ignores_scheduler:
        config |= (scheduler or automatic).config
    if sampler.cls == "DPMSolverSDEScheduler":
        config["noise_sampler_seed"] = seed  # it draws its own noise, and would not repeat it
    return getattr(diffusers, sampler.cls).from_config(config)
