import numpy as np
import pytest
from fakes.recorded import recorded

from engine.errors import SamplerNotFound, Unsupported
from engine.sampling import noise_schedules, samplers

ABSENT = {"DPM++ 2S a", "DPM fast", "DPM adaptive", "Restart"}


def test_samplers_and_schedulers_equal_the_recorded_ones():
    expected = [entry for entry in recorded("get_samplers") if entry["name"] not in ABSENT]
    assert [sampler.describe() for sampler in samplers.SAMPLERS] == expected
    found = [scheduler.describe() for scheduler in samplers.SCHEDULERS]
    assert found == recorded("get_schedulers")


def test_only_exact_names_of_samplers_are_accepted():
    for name in ("", "euler", "k_euler", "DPM++ 2M Karras", *ABSENT):
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
    with pytest.raises(Unsupported, match="Karras"):
        samplers.find_scheduler(samplers.find_sampler("LCM"), "Karras")


# --------------------------------------------------------------------------------------- sigmas

STEPS = 20
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = np.cumprod(1 - BETAS)
LEVELS = np.sqrt((1 - ALPHAS) / ALPHAS)


def level(time):
    """The sigma of a time, which may be between two training times."""
    return np.exp(np.interp(time, np.arange(1000), np.log(LEVELS)))


def formula(schedule, steps):
    """A1111's sigmas, from the formulas in the papers."""
    first, last, part = LEVELS[-1], LEVELS[0], np.linspace(0, 1, steps)
    exponential = first * (last / first) ** part
    return {
        "uniform": level(999 * (1 - part)),
        "karras": (first ** (1 / 7) + part * (last ** (1 / 7) - first ** (1 / 7))) ** 7,
        **dict.fromkeys(("exponential", "polyexponential"), exponential),
        "sgm_uniform": level(999 - 999 / steps * np.arange(steps)),
    }[schedule]


SCHEDULES = ["uniform", "karras", "exponential", "polyexponential", "sgm_uniform"]
FOLLOWING = [sampler.name for sampler in samplers.SAMPLERS if not sampler.own_schedule]
ONE_CALL = [n for n in FOLLOWING if samplers.find_sampler(n).calls(1) == 1]


def built_for(name, schedule, steps=STEPS, prediction="epsilon", **more):
    sampler = samplers.find_sampler(name)
    scheduler = samplers.find_scheduler(sampler, schedule)
    built = samplers.build(sampler, scheduler, prediction, 1, **more)
    built.set_timesteps(steps)
    return built


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", FOLLOWING)
def test_every_sampler_uses_the_sigmas_of_every_schedule(name, schedule):
    """If a step calls the model twice, diffusers lists most sigmas twice."""
    built = built_for(name, schedule)
    discards = "discard_next_to_last_sigma" in samplers.find_sampler(name).options
    expected = formula(schedule, STEPS + discards)[:STEPS]
    found = built.sigmas.numpy()
    distinct = found[np.diff(found, prepend=np.inf) != 0]
    assert np.allclose(distinct, [*expected, 0], rtol=2e-4)
    if name in {"Heun", *ONE_CALL}:  # the times are not rounded; some of diffusers' are
        assert np.allclose(level(built.timesteps.numpy()), found[:-1], rtol=1e-3)


# Lin et al., 2023, algorithm 1; the last one is A1111's in place of 0
ROOTS = np.sqrt(ALPHAS)
RESCALED = ((ROOTS - ROOTS[-1]) * ROOTS[0] / (ROOTS[0] - ROOTS[-1])) ** 2
RESCALED[-1] = 4.8973451890853435e-08
ZERO_SNR_LEVELS = np.sqrt((1 - RESCALED) / RESCALED)


@pytest.mark.parametrize("name", [sampler.name for sampler in samplers.SAMPLERS])
def test_with_zero_terminal_snr_every_sampler_starts_from_pure_noise(name):
    built = built_for(name, "karras" if name in FOLLOWING else None, zero_terminal_snr=True)
    assert np.allclose(built.alphas_cumprod.numpy(), RESCALED, rtol=1e-3)
    if name in FOLLOWING:
        found = built.sigmas.numpy()
        smallest = found[found > 0].min()
        assert np.isclose(found[0], ZERO_SNR_LEVELS[-1], rtol=1e-3)
        if "discard_next_to_last_sigma" not in samplers.find_sampler(name).options:
            assert np.isclose(smallest, ZERO_SNR_LEVELS[0], rtol=1e-3)
        assert np.isclose(float(built.timesteps[0]), 999, atol=0.01)
    if name == "UniPC":
        assert np.isclose(float(built.sigmas[0]), ZERO_SNR_LEVELS[-1], rtol=1e-3)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS, ids=lambda sampler: sampler.name)
def test_every_sampler_takes_any_number_of_steps_and_the_prediction_type(sampler):
    built = built_for(sampler.name, None, 60, "v_prediction")
    for steps in (60, 3, 2, 1):
        built.set_timesteps(steps)
        # A1111's DDIM and PLMS never call the model for a single step, and show the noise
        assert bool(len(built.timesteps)) is (steps > 1 or sampler.name not in ("DDIM", "PLMS"))
        assert built.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("name", "steps", "first", "last", "calls"),
    [
        ("DDIM", 20, 951, 51, 19),
        ("DDIM", 30, 991, 34, 30),  # the distance 1000 / 30 is rounded down
        ("PLMS", 20, 951, 51, 20),  # two in the first step
        ("UniPC", 20, 999, 49.95, 20),
        ("UniPC", 30, 999, 999 / 31, 31),
        ("LCM", 4, 999, 19, 4),
        ("LCM", 60, 999, 19, 60),
    ],
)
def test_samplers_with_their_own_times(name, steps, first, last, calls):
    times = built_for(name, None, steps).timesteps.numpy()
    assert np.allclose(times[[0, -1]], [first, last], atol=0.01)
    assert len(times) == calls


def test_eta_is_accepted_without_effect_or_used_by_ddim_or_refused():
    for name, eta in {"Euler": 0, "DPM++ 2M": 0.3, "Euler a": 1, "DDIM": 0, "LCM": None}.items():
        sampler = samplers.find_sampler(name)
        assert sampler.with_eta(eta) == sampler
    sampler = samplers.find_sampler("DDIM").with_eta(0.5)
    assert samplers.build(sampler, samplers.SCHEDULERS[0], "epsilon", 1).eta == 0.5
    for name in ("Euler a", "DPM2 a", "DPM++ SDE", "DPM++ 3M SDE"):
        with pytest.raises(Unsupported, match=r"eta with the value 0\.5"):
            samplers.find_sampler(name).with_eta(0.5)
