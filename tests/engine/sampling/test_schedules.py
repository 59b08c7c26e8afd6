"""The names of samplers and schedulers, and their sigmas compared with the papers' formulas."""

import numpy as np
import pytest
import torch
from fakes.recorded import recorded

from engine.errors import SamplerNotFound
from engine.sampling import noise_schedules, samplers
from engine.sampling.noise_schedules import training_levels
from engine.sampling.samplers import SigmaOptions


def test_samplers_and_schedulers_equal_the_recorded_ones():
    assert [sampler.describe() for sampler in samplers.SAMPLERS] == recorded("get_samplers")
    found = [scheduler.describe() for scheduler in samplers.SCHEDULERS]
    assert found == recorded("get_schedulers")


def test_only_exact_names_of_samplers_are_accepted():
    for name in ("", "euler", "k_euler", "DPM++ 2M Karras"):
        with pytest.raises(SamplerNotFound):
            samplers.find_sampler(name)


def test_find_scheduler():
    for expected, names in {
        "karras": (None, "", "Automatic", "Karras"),
        "uniform": ("uniform",),
        "sgm_uniform": ("SGM Uniform", "sgm_uniform"),
        "automatic": ("automatic", "unknown"),  # the same as in A1111: uniform sigmas
    }.items():
        for name in names:
            found = samplers.find_scheduler(samplers.find_sampler("DPM++ 2M"), name)
            assert found.name == expected, name
    found = samplers.find_scheduler(samplers.find_sampler("Euler"), None)
    assert found.sigmas is noise_schedules.uniform


BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = np.cumprod(1 - BETAS)
# Lin et al., 2023, algorithm 1; the last one is A1111's in place of 0
ROOTS = np.sqrt(ALPHAS)
RESCALED = ((ROOTS - ROOTS[-1]) * ROOTS[0] / (ROOTS[0] - ROOTS[-1])) ** 2
RESCALED[-1] = 4.8973451890853435e-08
SCHEDULES = ["uniform", "karras", "exponential", "polyexponential", "sgm_uniform"]


def formula(schedule, steps, alphas):
    """A1111's sigmas, from the formulas in the papers."""
    levels = np.sqrt((1 - alphas) / alphas)
    first, last, part = levels[-1], levels[0], np.linspace(0, 1, steps)

    def level(time):
        return np.exp(np.interp(time, np.arange(1000), np.log(levels)))

    return {
        "uniform": level(999 * (1 - part)),
        "karras": (first ** (1 / 7) + part * (last ** (1 / 7) - first ** (1 / 7))) ** 7,
        **dict.fromkeys(("exponential", "polyexponential"), first * (last / first) ** part),
        "sgm_uniform": level(999 - 999 / steps * np.arange(steps)),
    }[schedule]


def sigmas(sampler, schedule, steps=20, *, zero_snr=False, **options):
    levels = training_levels(zero_terminal_snr=zero_snr, lcm=sampler.is_lcm)
    scheduler = samplers.find_scheduler(sampler, schedule)
    return sampler.sigmas(scheduler, steps, levels, SigmaOptions(**options)).numpy()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("zero_snr", "alphas"), [(False, ALPHAS), (True, RESCALED)])
def test_every_sampler_uses_the_sigmas_of_every_schedule(schedule, zero_snr, alphas):
    for sampler in samplers.SAMPLERS:
        if sampler.steps_over_times or sampler.is_lcm:
            continue
        for discards in {True, sampler.discards_sigma}:
            asked = {"always_discard_next_to_last_sigma": discards}
            found = sigmas(sampler, schedule, zero_snr=zero_snr, **asked)
            expected = formula(schedule, 20 + discards, alphas)[:20]
            assert np.allclose(found, [*expected, 0], rtol=2e-3 if zero_snr else 1e-4)


def test_times_and_sigmas_are_each_others_inverse():
    levels = training_levels()
    times = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 999
    assert torch.allclose(levels.times_of(levels.sigmas_at(times)), times, atol=0.01)
    assert levels.times_of(torch.tensor([1e-9, 1e9])).tolist() == [0, 999]


def test_options_change_the_ends_and_the_shape_of_a_schedule():
    euler, ends = samplers.find_sampler("Euler"), {"sigma_min": 0.5, "sigma_max": 8.0}
    for schedule in ("karras", "exponential", "polyexponential", "sgm_uniform"):
        found = sigmas(euler, schedule, **ends)
        assert np.isclose(found[0], 8.0, rtol=1e-4)
        assert schedule == "sgm_uniform" or np.isclose(found[-2], 0.5)
        is_bent = not np.allclose(found, sigmas(euler, schedule, **ends, rho=2.0))
        assert is_bent is (schedule in ("karras", "polyexponential"))
    assert np.array_equal(sigmas(euler, "uniform", **ends), sigmas(euler, "uniform"))


def test_lcm_uses_every_20th_level_with_every_schedule():
    levels, every = training_levels(lcm=True), training_levels()
    assert torch.equal(levels.sigmas, every.sigmas[19::20])
    sampler = samplers.find_sampler("LCM")
    for schedule in SCHEDULES:
        found = sigmas(sampler, schedule, 4)
        assert np.isclose(found[0], every.largest, rtol=1e-5)
        assert schedule == "sgm_uniform" or np.isclose(found[-2], levels.smallest, rtol=1e-4)
        times = levels.times_of(torch.tensor(found[:-1]))
        assert ((times + 1) % 20 == 0).all()


@pytest.mark.parametrize(
    ("steps", "count", "last"), [(20, 20, 951), (30, 31, 991), (1, 1, 1), (1000, 1000, 999)]
)
def test_times_of_the_samplers_that_are_not_from_k_diffusion(steps, count, last):
    """The distance 1000 / 30 is rounded down."""
    times = noise_schedules.compvis_times(steps)
    assert (len(times), times[0].item(), times[-1].item()) == (count, 1, last)
    with pytest.raises(ValueError, match="1000 steps at most, not 1001"):
        noise_schedules.compvis_times(1001)
