"""A1111's samplers and schedulers: names, aliases and options as in A1111 v1.9.3's answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.errors import SamplerNotFound
from engine.sampling import (
    dpm_solver,
    multistep,
    noise_schedules,
    one_step,
    timesteps,
    unipc,
)
from engine.sampling.noise_schedules import Levels

Sigmas = Callable[..., torch.Tensor]  # of (steps, levels, smallest, largest, rho=)


@dataclass(frozen=True)
class Scheduler:
    """A noise schedule as listed by GET /schedulers, and its sigmas for a number of steps."""

    name: str
    label: str
    sigmas: Sigmas
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
class SigmaOptions:
    """A1111's options that change the sigmas; 0 means the schedule's own value."""

    sigma_min: float = 0.0
    sigma_max: float = 0.0
    rho: float = 0.0
    always_discard_next_to_last_sigma: bool = False


@dataclass(frozen=True)
class Sampler:
    """A sampler as listed by GET /samplers, and its function.

    `steps_over_times`: it is one of those that are not from k-diffusion. `reads` names the options
    that A1111 passes to it.
    """

    name: str
    aliases: list[str]
    function: Callable[..., torch.Tensor]
    options: dict[str, str] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    steps_over_times: bool = False

    @property
    def discards_sigma(self) -> bool:
        """Whether A1111 leaves out the last sigma before 0."""
        return self.options.get("discard_next_to_last_sigma") == "True"

    @property
    def is_lcm(self) -> bool:
        """Whether it uses the levels of consistency models."""
        return self.function is one_step.lcm

    @property
    def eta_option(self) -> str:
        """The option that is used without a field `eta`."""
        return "eta_ddim" if self.steps_over_times else "eta_ancestral"

    @property
    def default_eta(self) -> float:
        """The eta that is not written into the infotext."""
        return 0.0 if self.steps_over_times else 1.0

    def describe(self) -> dict[str, Any]:
        """The entry of GET /samplers."""
        return {"name": self.name, "aliases": self.aliases, "options": self.options}

    def calls(self, steps: int) -> int:
        """The number of calls of the model that A1111 expects for this number of steps."""
        return 2 * steps if self.options.get("second_order") == "True" else steps

    def sigmas(
        self, scheduler: Scheduler, steps: int, levels: Levels, options: SigmaOptions
    ) -> torch.Tensor:
        """`steps` sigmas and the 0 after them."""
        discards = self.discards_sigma or options.always_discard_next_to_last_sigma
        arguments = {}
        if scheduler.default_rho != -1 and options.rho not in (0, scheduler.default_rho):
            arguments["rho"] = options.rho
        found = scheduler.sigmas(
            steps + discards,
            levels,
            options.sigma_min or levels.smallest,
            options.sigma_max or levels.largest,
            **arguments,
        )[:steps]
        return torch.cat([found, found.new_zeros(1)])


_UNIFORM = Scheduler("uniform", "Uniform", noise_schedules.uniform, need_inner_model=True)
SCHEDULERS = (
    Scheduler("automatic", "Automatic", noise_schedules.uniform),
    _UNIFORM,
    Scheduler("karras", "Karras", noise_schedules.karras, default_rho=7.0),
    Scheduler("exponential", "Exponential", noise_schedules.exponential),
    Scheduler(
        "polyexponential", "Polyexponential", noise_schedules.polyexponential, default_rho=1.0
    ),
    Scheduler(
        "sgm_uniform",
        "SGM Uniform",
        noise_schedules.sgm_uniform,
        aliases=["SGMUniform"],
        need_inner_model=True,
    ),
)

_KARRAS = {"scheduler": "karras"}
_BROWNIAN = {"scheduler": "exponential", "brownian_noise": "True"}
_DISCARD = {"discard_next_to_last_sigma": "True"}
_ENSD = {"uses_ensd": "True"}
_TWICE = {"second_order": "True"}

_CHURN = frozenset({"s_churn", "s_tmin", "s_tmax", "s_noise"})
_ETA = frozenset({"eta"})
_BOTH = frozenset({"eta", "s_noise"})
_DPM2 = _KARRAS | _DISCARD | _TWICE

SAMPLERS = (
    Sampler("DPM++ 2M", ["k_dpmpp_2m"], multistep.dpmpp_2m, _KARRAS),
    Sampler(
        "DPM++ SDE",
        ["k_dpmpp_sde"],
        one_step.dpmpp_sde,
        _KARRAS | _TWICE | {"brownian_noise": "True"},
        _BOTH,
    ),
    Sampler("DPM++ 2M SDE", ["k_dpmpp_2m_sde"], multistep.dpmpp_2m_sde, _BROWNIAN, _BOTH),
    Sampler(
        "DPM++ 2M SDE Heun",
        ["k_dpmpp_2m_sde_heun"],
        multistep.dpmpp_2m_sde_heun,
        _BROWNIAN | {"solver_type": "heun"},
        _BOTH,
    ),
    Sampler(
        "DPM++ 2S a",
        ["k_dpmpp_2s_a"],
        one_step.dpmpp_2s_ancestral,
        _KARRAS | _ENSD | _TWICE,
        _BOTH,
    ),
    Sampler(
        "DPM++ 3M SDE",
        ["k_dpmpp_3m_sde"],
        multistep.dpmpp_3m_sde,
        {"scheduler": "exponential"} | _DISCARD | {"brownian_noise": "True"},
        _BOTH,
    ),
    Sampler("Euler a", ["k_euler_a", "k_euler_ancestral"], one_step.euler_ancestral, _ENSD, _ETA),
    Sampler("Euler", ["k_euler"], one_step.euler, reads=_CHURN),
    Sampler("LMS", ["k_lms"], multistep.lms),
    Sampler("Heun", ["k_heun"], one_step.heun, _TWICE, _CHURN),
    Sampler("DPM2", ["k_dpm_2"], one_step.dpm_2, _DPM2, _CHURN),
    Sampler("DPM2 a", ["k_dpm_2_a"], one_step.dpm_2_ancestral, _DPM2 | _ENSD, _BOTH),
    Sampler("DPM fast", ["k_dpm_fast"], dpm_solver.dpm_fast, _ENSD, _BOTH),
    Sampler("DPM adaptive", ["k_dpm_ad"], dpm_solver.dpm_adaptive, _ENSD, _ETA),
    Sampler("Restart", ["restart"], one_step.restart, _KARRAS | _TWICE),
    Sampler("DDIM", ["ddim"], timesteps.ddim, reads=_ETA, steps_over_times=True),
    Sampler("PLMS", ["plms"], timesteps.plms, steps_over_times=True),
    Sampler("UniPC", ["unipc"], unipc.unipc, steps_over_times=True),
    Sampler("LCM", ["k_lcm"], one_step.lcm),
)

_BY_NAME = {sampler.name: sampler for sampler in SAMPLERS}
_SCHEDULER_BY_NAME = {s.name: s for s in SCHEDULERS} | {s.label: s for s in SCHEDULERS}


def find_sampler(name: str) -> Sampler:
    """The sampler with exactly this name (not an alias). Raises SamplerNotFound."""
    if name not in _BY_NAME:
        raise SamplerNotFound
    return _BY_NAME[name]


def find_scheduler(sampler: Sampler, name: str | None) -> Scheduler:
    """The scheduler with this name or label; without a name, or for "Automatic", the sampler's own.

    An unknown name gives the uniform one, and so does "automatic", because A1111 compares with the
    label "Automatic" only.
    """
    if not name or name == "Automatic":
        name = sampler.options.get("scheduler", "automatic")
    return _SCHEDULER_BY_NAME.get(name, SCHEDULERS[0])
