"""Every sampler, on a model whose solution is known.

The data are normal numbers of size SIZE. The best guess of a number in noise of a sigma is then
x * SIZE^2 / (SIZE^2 + sigma^2), and without new noise, a sampler must scale what it began with.
"""

import math
from itertools import pairwise

import pytest
import torch

from engine.errors import NansException
from engine.sampling import dpm_solver, multistep, one_step, samplers
from engine.sampling.noise import BrownianNoise, Noise, Seeds
from engine.sampling.noise_schedules import karras, training_levels
from engine.sampling.step_options import StepOptions
from engine.sampling.timesteps import TimePath

SIZE, SHAPE = 0.5, (4, 32, 32)
LEVELS = training_levels()
OVER_SIGMAS = [one for one in samplers.SAMPLERS if not one.steps_over_times and not one.is_lcm]
OVER_TIMES = [one for one in samplers.SAMPLERS if one.steps_over_times]


def by_name(some):
    return {"argnames": "sampler", "argvalues": some, "ids": lambda sampler: sampler.name}


def denoise(x, sigma):
    return x * SIZE**2 / (SIZE**2 + sigma**2)


def predict(x, time):
    """The noise in the picture; between two training levels, log(alpha) is linear."""
    logs, below = LEVELS.alphas.log(), int(min(float(time), 998))
    alpha = torch.lerp(logs[below], logs[below + 1], float(time) - below).exp()
    return x * (1 - alpha).sqrt() / (alpha * SIZE**2 + 1 - alpha)


def sample(sampler, steps, seed=1, **options):
    """The first noise, and the result."""
    noise = Noise(Seeds(seed), SHAPE)
    x = noise.first()
    if sampler.steps_over_times:
        path = TimePath(torch.arange(1, 1000, 1000 // steps), LEVELS)
        return x, sampler.function(predict, x, path, noise, StepOptions(**options))
    down = karras(steps, None, LEVELS.smallest, LEVELS.largest)
    sigmas = torch.cat([down, torch.zeros(1)])
    x = x * sigmas[0]
    given = StepOptions(ends=(LEVELS.largest, LEVELS.smallest), **options)
    if "brownian_noise" in sampler.options:
        noise = BrownianNoise(noise, sigmas)
    return x, sampler.function(denoise, x, sigmas, noise, given)


def error(sampler, steps, **options):
    """The distance from the exact solution, in sizes of the data."""
    x, result = sample(sampler, steps, **options)
    first = LEVELS.alphas[-1 if "UniPC" in sampler.name else 1000 - 1000 // steps]
    start = (first * SIZE**2 + 1 - first).sqrt() if sampler.steps_over_times else None
    exact = x * SIZE / (start or math.hypot(SIZE, LEVELS.largest))
    return (result - exact).abs().max().item() / SIZE


def is_restarting(sampler):
    """Its jumps back add noise whatever its options are."""
    return sampler.name == "Restart"


@pytest.mark.parametrize(**by_name(OVER_SIGMAS + OVER_TIMES))
def test_without_noise_every_sampler_finds_the_exact_solution(sampler):
    steps = 19 if is_restarting(sampler) else 100
    found = error(sampler, steps, eta=0.0)
    # DPM fast and adaptive end at the smallest sigma, not at 0
    assert found < (0.2 if steps == 19 else 0.12)


@pytest.mark.parametrize(
    ("name", "order"), [("Euler", 1), ("Heun", 2), ("DPM2", 2), ("DPM++ 2M", 2), ("DPM++ 2S a", 2)]
)
def test_twice_the_steps_divide_the_error_by_two_to_the_order(name, order):
    """Down to a sigma above 0: the step to 0 has an error of its own."""
    sampler, errors = samplers.find_sampler(name), []
    for steps in (40, 80):
        sigmas, noise = karras(steps + 1, None, 0.5, 10.0), Noise(Seeds(1), SHAPE)
        x = noise.first() * 10
        found = sampler.function(denoise, x, sigmas, noise, StepOptions(eta=0.0))
        exact = x * math.hypot(SIZE, 0.5) / math.hypot(SIZE, 10.0)
        errors.append((found - exact).abs().max())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize(
    **by_name([one for one in OVER_SIGMAS if "eta" in one.reads or is_restarting(one)])
)
def test_with_noise_the_results_have_the_size_of_the_data(sampler):
    _, plain = sample(sampler, 60, eta=0.0)
    _, noisy = sample(sampler, 60, eta=1.0)
    assert is_restarting(sampler) or not torch.allclose(plain, noisy, atol=0.1)
    assert noisy.std().item() == pytest.approx(SIZE, rel=0.1)
    _, other = sample(sampler, 60, seed=2, eta=1.0)
    correlation = torch.corrcoef(torch.stack([noisy.flatten(), other.flatten()]))[0, 1]
    assert abs(correlation) < 0.1


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM2"])
def test_churn_adds_noise_between_its_bounds(name):
    sampler = samplers.find_sampler(name)
    _, plain = sample(sampler, 40)
    _, churned = sample(sampler, 40, s_churn=10.0)
    assert not torch.allclose(plain, churned, atol=0.1)
    assert churned.std().item() == pytest.approx(SIZE, rel=0.1)
    _, outside = sample(sampler, 40, s_churn=10.0, s_tmin=15.0)
    assert torch.equal(plain, outside)


def test_ddim_with_eta_has_the_size_of_the_data_and_lcm_ends_at_a_denoised_picture():
    _, noisy = sample(samplers.find_sampler("DDIM"), 50, eta=1.0)
    assert noisy.std().item() == pytest.approx(SIZE, rel=0.1)
    sigmas, noise = torch.tensor([14.0, 2.0, 0.0]), Noise(Seeds(1), SHAPE)
    x = noise.first() * 14
    again = Noise(Seeds(1), SHAPE)
    again.first()
    expected = denoise(denoise(x, sigmas[0]) + 2 * again(), sigmas[1])
    assert torch.equal(one_step.lcm(denoise, x, sigmas, noise, StepOptions()), expected)


@pytest.mark.parametrize("variant", ["bh1", "bh2", "vary_coeff"])
@pytest.mark.parametrize("skip", ["time_uniform", "time_quadratic", "logSNR"])
def test_every_form_of_unipc_finds_the_solution(variant, skip):
    sampler = samplers.find_sampler("UniPC")
    words = {"uni_pc_variant": variant, "uni_pc_skip_type": skip}
    for order in (1, 2, 3):
        # the corrector of the authors' vary_coeff is not exact, see `unipc`
        largest = 0.3 if variant == "vary_coeff" else 0.15
        assert error(sampler, 50, uni_pc_order=order, **words) < largest
    for steps in (1, 2):  # fewer than the order
        assert sample(sampler, steps, **words)[1].isfinite().all()
    for word in words:
        with pytest.raises(ValueError, match=f"{word} must be"):
            sample(sampler, 5, **words | {word: "x"})


@pytest.mark.parametrize("known", [1, 2, 3, 4])
def test_lms_integrates_polynomials_exactly(known):
    places = [5.0, 6.5, 7.0, 9.0][:known]
    factors = multistep.lms_factors(torch.tensor(places).double().numpy(), 4.0)
    for power in range(known):
        whole = (4.0 ** (power + 1) - 5.0 ** (power + 1)) / (power + 1)
        assert sum(factors * [place**power for place in places]) == pytest.approx(whole)


@pytest.mark.parametrize("steps", [*range(1, 20), 20, 24, 35, 36, 40, 60])
def test_restart_and_dpm_fast_make_as_many_steps_as_asked(steps):
    down = torch.cat([karras(steps, None, 0.03, 14.6), torch.zeros(1)])
    found = one_step.restart_steps(down)
    assert len(found) == steps
    assert (found[0][0], found[-1][1]) == (down[0], 0)
    jumps = sum(bool(one[1] < two[0]) for one, two in pairwise(found))
    assert jumps == (steps >= 20) + (steps >= 36)
    calls = []
    options = StepOptions(ends=(14.6, 0.03), eta=0.0)

    def counted(x, sigma):
        calls.append(sigma)
        return denoise(x, sigma)

    noise = Noise(Seeds(1), SHAPE)
    dpm_solver.dpm_fast(counted, noise.first(), down, noise, options)
    assert len(calls) == steps


def test_dpm_adaptive_fails_at_once_if_the_model_gives_nan():
    noise = Noise(Seeds(1), SHAPE)
    with pytest.raises(NansException):
        dpm_solver.dpm_adaptive(
            lambda x, _: x * math.nan, noise.first(), torch.zeros(1), noise, StepOptions()
        )
