"""A1111's samplers and schedulers, built from diffusers' schedulers.

Names, aliases and options are those in A1111 v1.9.3's answers. diffusers has no counterpart of
"DPM++ 2S a", "DPM fast", "DPM adaptive" and "Restart", so the engine does not list them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import torch

from engine.errors import SamplerNotFound, Unsupported
from engine.sampling import noise_schedules, schedulers

Sigmas = Callable[..., torch.Tensor]  # of (steps, training sigmas)

TRAINING = {
    "num_train_timesteps": noise_schedules.TRAINING_STEPS,
    "beta_start": noise_schedules.BETA_START,
    "beta_end": noise_schedules.BETA_END,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "linspace",  # otherwise the first noise is scaled unlike k-diffusion's
}
# lets the schedulers that call the model twice per step use other sigmas, see `schedulers`
TWICE = {"use_karras_sigmas": True}


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
class Sampler:
    """A sampler as listed by GET /samplers, and its diffusers scheduler class."""

    name: str
    aliases: list[str]
    cls: str
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    own_schedule: bool = False  # a class of `engine.sampling.schedulers`
    any_schedule: bool = True
    eta: float | None = None  # the amount of noise added in each step; None: no noise

    def describe(self) -> dict[str, Any]:
        """The entry of GET /samplers."""
        return {"name": self.name, "aliases": self.aliases, "options": self.options}

    def calls(self, steps: int) -> int:
        """The number of calls of the model that A1111 expects for this number of steps."""
        return 2 * steps if self.options.get("second_order") == "True" else steps

    def with_eta(self, eta: float | None) -> "Sampler":
        """The sampler with this `eta`; samplers that add no noise ignore it, the same as in A1111.

        Raises Unsupported if diffusers has no such factor.
        """
        if eta is None or self.eta in (None, eta):
            return self
        if self.name != "DDIM":
            raise Unsupported(f"eta with the value {eta!r} with sampler {self.name!r}")
        return replace(self, eta=eta)

    def sigmas(self, scheduler: Scheduler) -> Sigmas:
        """The scheduler's sigmas, without the last one if A1111 discards it for this sampler."""
        if self.options.get("discard_next_to_last_sigma") != "True":
            return scheduler.sigmas
        return lambda steps, *levels: scheduler.sigmas(steps + 1, *levels)[:steps]


_UNIFORM = Scheduler("uniform", "Uniform", noise_schedules.uniform, need_inner_model=True)
SCHEDULERS = (
    Scheduler("automatic", "Automatic", noise_schedules.uniform),
    _UNIFORM,
    Scheduler("karras", "Karras", noise_schedules.karras, default_rho=7.0),
    Scheduler("exponential", "Exponential", noise_schedules.exponential),
    # with A1111's rho of 1, equal to the exponential schedule
    Scheduler("polyexponential", "Polyexponential", noise_schedules.exponential, default_rho=1.0),
    Scheduler(
        "sgm_uniform",
        "SGM Uniform",
        noise_schedules.sgm_uniform,
        aliases=["SGMUniform"],
        need_inner_model=True,
    ),
)

_MULTISTEP = "DPMSolverMultistepScheduler"
# k-diffusion does not lower the order of a solver for few steps
_ORDER = {"lower_order_final": False}
_SDE = {"algorithm_type": "sde-dpmsolver++"} | _ORDER
_BROWNIAN = {"scheduler": "exponential", "brownian_noise": "True"}
_DPM2 = {"scheduler": "karras", "discard_next_to_last_sigma": "True"}

SAMPLERS = (
    Sampler(
        "DPM++ 2M",
        ["k_dpmpp_2m"],
        _MULTISTEP,
        {"algorithm_type": "dpmsolver++"} | _ORDER,
        {"scheduler": "karras"},
    ),
    Sampler(
        "DPM++ SDE",
        ["k_dpmpp_sde"],
        "DPMSolverSDEScheduler",
        TWICE,
        {"scheduler": "karras", "second_order": "True", "brownian_noise": "True"},
        eta=1.0,
    ),
    Sampler("DPM++ 2M SDE", ["k_dpmpp_2m_sde"], _MULTISTEP, _SDE, _BROWNIAN, eta=1.0),
    Sampler(
        "DPM++ 2M SDE Heun",
        ["k_dpmpp_2m_sde_heun"],
        _MULTISTEP,
        _SDE | {"solver_type": "heun"},
        _BROWNIAN | {"solver_type": "heun"},
        eta=1.0,
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
        eta=1.0,
    ),
    Sampler(
        "Euler a",
        ["k_euler_a", "k_euler_ancestral"],
        "EulerAncestralDiscreteScheduler",
        {},
        {"uses_ensd": "True"},
        eta=1.0,
    ),
    Sampler("Euler", ["k_euler"], "EulerDiscreteScheduler"),
    Sampler("LMS", ["k_lms"], "LMSDiscreteScheduler"),
    Sampler("Heun", ["k_heun"], "HeunDiscreteScheduler", TWICE, {"second_order": "True"}),
    Sampler("DPM2", ["k_dpm_2"], "KDPM2DiscreteScheduler", TWICE, _DPM2 | {"second_order": "True"}),
    Sampler(
        "DPM2 a",
        ["k_dpm_2_a"],
        "KDPM2AncestralDiscreteScheduler",
        TWICE,
        _DPM2 | {"uses_ensd": "True", "second_order": "True"},
        eta=1.0,
    ),
    Sampler(
        "DDIM",
        ["ddim"],
        "Ddim",
        {"clip_sample": False, "set_alpha_to_one": False},
        own_schedule=True,
        eta=0.0,
    ),
    Sampler(
        "PLMS",
        ["plms"],
        "Plms",
        {"skip_prk_steps": True, "set_alpha_to_one": False},
        own_schedule=True,
    ),
    Sampler(
        "UniPC",
        ["unipc"],
        "UniPc",
        {"solver_order": 3, "solver_type": "bh1"},
        own_schedule=True,
    ),
    Sampler("LCM", ["k_lcm"], "Lcm", own_schedule=True, any_schedule=False),
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
    label "Automatic" only. Raises Unsupported for a pair that A1111 has and the engine does not.
    """
    if not name or name == "Automatic":
        return _SCHEDULER_BY_NAME[sampler.options.get("scheduler", "automatic")]
    scheduler = _SCHEDULER_BY_NAME.get(name, SCHEDULERS[0])
    if not sampler.any_schedule and scheduler.sigmas is not noise_schedules.uniform:
        raise Unsupported(f"scheduler {scheduler.label!r} with sampler {sampler.name!r}")
    return scheduler


def build(
    sampler: Sampler,
    scheduler: Scheduler | None,
    prediction_type: str,
    seed: int,
    *,
    zero_terminal_snr: bool = False,
) -> Any:  # noqa: ANN401
    """The diffusers scheduler for one picture; without `scheduler`, with the sampler's own one."""
    scheduler = scheduler or find_scheduler(sampler, None)
    alphas = noise_schedules.ZERO_SNR_ALPHAS if zero_terminal_snr else noise_schedules.ALPHAS
    levels = noise_schedules.levels_of(alphas)
    config = TRAINING | {"prediction_type": prediction_type} | sampler.config
    if sampler.cls == "DPMSolverSDEScheduler":
        config["noise_sampler_seed"] = seed  # otherwise its noise differs each time
    if sampler.own_schedule:
        cls = getattr(schedulers, sampler.cls)
    else:
        sigmas = sampler.sigmas(scheduler)
        wanted = getattr(diffusers, sampler.cls)
        cls = schedulers.following(wanted, lambda steps: sigmas(steps, levels))
    built = schedulers.in_single_precision(cls).from_config(config)
    if zero_terminal_snr:
        built.alphas_cumprod, built.levels = alphas, levels
    if isinstance(built, schedulers.Ddim):
        built.eta = sampler.eta or 0.0
    return built
