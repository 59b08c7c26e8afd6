import pytest

from engine import samplers
from engine.errors import SamplerNotFound, Unsupported
from fakes.recorded import recorded

# diffusers passes tensors where numpy 2 wants arrays
pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ :DeprecationWarning")

ABSENT = {"DPM++ 2S a", "DPM fast", "DPM adaptive", "Restart"}


def test_samplers_are_described_as_recorded():
    expected = [entry for entry in recorded("get_samplers") if entry["name"] not in ABSENT]
    assert [sampler.describe() for sampler in samplers.SAMPLERS] == expected


def test_schedulers_are_described_as_recorded():
    described = [scheduler.describe() for scheduler in samplers.SCHEDULERS]
    assert described == recorded("get_schedulers")


@pytest.mark.parametrize("name", ["", "euler", "k_euler", "DPM++ 2M Karras", *sorted(ABSENT)])
def test_only_exact_names(name):
    with pytest.raises(SamplerNotFound):
        samplers.find_sampler(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, None),
        ("Automatic", None),
        ("unknown", None),
        ("Karras", "karras"),
        ("karras", "karras"),
        ("SGM Uniform", "sgm_uniform"),
        ("sgm_uniform", "sgm_uniform"),
    ],
)
def test_find_scheduler(name, expected):
    found = samplers.find_scheduler(samplers.find_sampler("Euler"), name)
    assert (found and found.name) == expected


def test_what_diffusers_cannot_combine_is_refused():
    with pytest.raises(Unsupported, match="Karras"):
        samplers.find_scheduler(samplers.find_sampler("Euler a"), "Karras")


@pytest.mark.parametrize(
    ("name", "schedule", "is_karras"),
    [
        ("DPM++ 2M", None, True),
        ("DPM++ 2M", "uniform", False),
        ("DPM++ 2M SDE", None, False),
        ("Euler", None, False),
        ("Euler", "karras", True),
    ],
)
def test_automatic_is_the_samplers_own_schedule(name, schedule, is_karras):
    sampler = samplers.find_sampler(name)
    built = samplers.build(sampler, samplers.find_scheduler(sampler, schedule), "epsilon", 1)
    assert built.config.use_karras_sigmas == is_karras


def test_uniform_schedule_has_k_diffusions_ends():
    built = samplers.build(samplers.find_sampler("Euler"), None, "epsilon", 1)
    built.set_timesteps(20)
    assert built.sigmas[0].item() == pytest.approx(14.6146, abs=1e-3)
    assert built.sigmas[-1].item() == 0


@pytest.mark.parametrize("sampler", samplers.SAMPLERS, ids=lambda sampler: sampler.name)
def test_prediction_type_reaches_every_sampler(sampler):
    built = samplers.build(sampler, None, "v_prediction", 1)
    assert built.config.prediction_type == "v_prediction"
