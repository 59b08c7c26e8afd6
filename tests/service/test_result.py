import json
from pathlib import Path

import pytest
from fakes.a1111.process import write_safetensors
from hypothesis import given
from hypothesis import strategies as st

from worker.answer import failure, plain
from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.job.models import Models
from worker.service.result import models_used, success
from worker.webui.client import Txt2ImgAnswer
from worker.webui.payload import Expected, Payload

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters()),
    st.binary(),
    st.just(Path("/x")),
)
values = st.recursive(
    ODD,
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner),
        st.frozensets(st.text()),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner),
    ),
)


@given(values)
def test_anything_becomes_strict_json(value):
    text = json.dumps(plain(value), allow_nan=False, ensure_ascii=False)

    assert json.loads(text.encode()) == plain(value)


def test_good_json_stays_what_it_is():
    good = {"a": [1, 2.5, None, True, "täxt 😀"], "b": {"c": ""}}

    assert plain(good) == good


def test_lone_surrogates_are_replaced():
    assert plain("a\ud83db") == "a?b"


def test_a_failure_is_text_for_people_and_facts_for_programs():
    told = failure(InvalidInput("steps = 0.", hint="Use 1.", field="steps"))

    assert told == {
        "error": "INVALID_INPUT: steps = 0. Use 1.",
        "message": "Failed to process inference request",
        "code": "INVALID_INPUT",
        "field": "steps",
    }


def test_only_a_retiring_worker_asks_to_be_replaced():
    assert failure(InvalidInput("x"), retire=True)["refresh_worker"] is True


@pytest.fixture
def lora(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path)
    return ModelFile("lora", path, "x", 1)


def test_models_are_those_that_the_engine_names(lora):
    facts = {"sd_model_name": "base", "extra_generation_params": {"Lora hashes": "x: 0123"}}

    used = models_used(facts, Models(written_loras={"x": lora}))

    assert used == [
        {"kind": "checkpoint", "name": "base", "sha256": None, "source": "default"},
        {"kind": "lora", "name": "x", "sha256": lora.sha256(), "source": "job"},
    ]


def test_a_result_has_a1111s_keys_and_ours():
    cache = {
        "checkpoints": {"count": 2, "total_size": 3 << 20},
        "loras": {"count": 1, "total_size": 1 << 20},
    }
    answer = Txt2ImgAnswer(["aGk="], {"steps": 1}, "{}", {})

    told = success(answer, Payload({}, Expected(1), ("careful",)), [], cache, {"total": 1.5})

    assert told == {
        "images": ["aGk="],
        "parameters": {"steps": 1},
        "info": "{}",
        "cache_info": {"checkpoints_cached": 2, "loras_cached": 1, "total_cache_size_mb": 4.0},
        "models": [],
        "timings": {"total": 1.5},
        "warnings": ["careful"],
    }
