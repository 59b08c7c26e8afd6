import base64
import dataclasses
import io
import json

import pytest
from fakes.recorded import recorded
from PIL import Image

from engine.api import infotext
from engine.api.infotext import Facts

FACTS = Facts(
    prompt="a cat <lora:loraA:0.8>",
    negative_prompt="",
    seeds=[1],
    subseed=3771804235,
    width=64,
    height=64,
    sampler_name="DPM++ 2M",
    asked_schedule="Karras",
    schedule_label="Karras",
    eta_ddim=None,
    cfg_scale=7.0,
    steps=2,
    batch_size=1,
    model_name="tinyB",
    model_hash="9045917406",
    clip_skip=2,
    lora_hashes={"loraA": "8153bd01d4aa"},
    seed_resize=(-1, -1),
    denoising_strength=None,
    job_timestamp="20261121003657",
)


def test_info_equals_the_recorded_one_except_the_version():
    expected = json.loads(recorded("post_txt2img_lora_checkpoint")["info"])
    found = FACTS.info(made=1)
    assert list(found) == list(expected)
    own_texts = [text.replace("1.9.3", infotext.VERSION) for text in expected["infotexts"]]
    assert found == expected | {"version": infotext.VERSION, "infotexts": own_texts}


def test_unused_entries_are_not_written():
    plain = dataclasses.replace(
        FACTS,
        prompt="a cat",
        asked_schedule=None,
        schedule_label=None,
        lora_hashes={},
        clip_skip=1,
        seeds=[5, 6],
    )
    assert plain.infotext(1) == (
        "a cat\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 7.0, Seed: 6, Size: 64x64, "
        f"Model hash: 9045917406, Model: tinyB, Version: {infotext.VERSION}"
    )


def test_requested_schedule_is_written_if_none_was_computed():
    facts = dataclasses.replace(FACTS, asked_schedule="automatic", schedule_label=None)
    assert "Sampler: DPM++ 2M, Schedule type: automatic, CFG scale" in facts.infotext(0)
    assert "Schedule type" not in facts.extra_generation_params


def test_eta_of_ddim_and_negative_prompt():
    text = dataclasses.replace(FACTS, eta_ddim=0.5, negative_prompt="blurry").infotext(0)
    assert "Eta DDIM: 0.5, Version" in text
    assert text.splitlines()[1] == "Negative prompt: blurry"


def test_interrupted_job_has_infotexts_of_the_finished_pictures():
    info = dataclasses.replace(FACTS, seeds=[1, 2, 3]).info(made=2)
    assert (info["all_seeds"], len(info["infotexts"])) == ([1, 2, 3], 2)


@pytest.mark.parametrize(
    ("value", "expected"), [("plain", "plain"), ("a: b", '"a: b"'), ("ü,", '"ü,"'), (7.0, "7.0")]
)
def test_quote(value, expected):
    assert infotext.quote(value) == expected


def test_png_contains_the_text():
    encoded = infotext.encode_png(Image.new("RGB", (8, 8)), "a cat\nSteps: 2")
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).text == {
        "parameters": "a cat\nSteps: 2"
    }
