import re

import pytest

from worker.errors import InvalidInput
from worker.generation.catalog import Catalog

SAMPLERS = [
    # sampler and scheduler as written -> exact sampler and scheduler label
    ("dpm++ 2m karras", None, "DPM++ 2M", "Karras"),
    ("DPM++_2M_SGMUniform", None, "DPM++ 2M", "SGM Uniform"),
    ("k_dpmpp_2m", None, "DPM++ 2M", None),
    ("k_euler_ancestral", None, "Euler a", None),
    ("DPM++ 2M", "sgm_uniform", "DPM++ 2M", "SGM Uniform"),
    ("DPM++ 2M", "Automatic", "DPM++ 2M", "Automatic"),
    ("DPM++ 2M Karras", "Karras", "DPM++ 2M", "Karras"),
    ("DPM++ 2M Karras", "Automatic", "DPM++ 2M", "Karras"),
]


@pytest.mark.parametrize(("written", "scheduler", "exact", "label"), SAMPLERS)
def test_a_common_spelling_becomes_the_exact_names(catalog, written, scheduler, exact, label):
    assert catalog.sampler(written, scheduler) == (exact, label)


def test_every_sampler_of_a1111_is_found_with_and_without_each_scheduler(catalog):
    for sampler in set(catalog.samplers.values()):
        assert catalog.sampler(sampler, None) == (sampler, None)
        for label in set(catalog.schedulers.values()):  # "SGM Uniform" also ends with "Uniform"
            assert catalog.sampler(f"{sampler} {label}", None) == (sampler, label)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "message"),
    [
        ("Eulr", None, "Did you mean 'Euler'"),
        ("DPM+ 2M Karas", None, "'DPM++ 2M Karras'"),
        ("Euler", "karas", "'Karras'"),
        ("xyzzy", None, "Known: 'DDIM'"),
        ("Karras", None, 'It is a scheduler: send "scheduler": "Karras".'),
        *((name, None, "Known: 'DDIM'") for name in ("KarrasDPM", "ddpm", "dpm_2_ancestral")),
        ("Euler", "UniPC", 'It is a sampler: send "sampler_name": "UniPC".'),
        ("Euler", "K_DPMPP_2M_KARRAS", 'send "sampler_name": "DPM++ 2M", "scheduler": "Karras".'),
        ("Euler", "simple", "Known: 'Automatic'"),
        ("DPM++ 2M Karras", "Exponential", "names scheduler 'Karras', but scheduler is 'Expone"),
    ],
)
def test_an_unknown_or_contradictory_name_is_refused(catalog, sampler, scheduler, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        catalog.sampler(sampler, scheduler)


def test_an_engine_without_upscalers_has_no_names_to_suggest():
    with pytest.raises(InvalidInput, match="does not know hr_upscaler 'Latent'") as raised:
        Catalog({}, {}).check("hr_upscaler", "Latent", frozenset())
    assert raised.value.hint == "Known: none on this engine."
