import base64
import dataclasses
import io
import json

from fakes.recorded import recorded
from PIL import Image

from engine.api import infotext
from engine.api.infotext import Facts

INFO = json.loads(recorded("post_txt2img_lora_checkpoint")["info"])
FACTS = Facts(
    **{field.name: INFO[field.name] for field in dataclasses.fields(Facts) if field.name in INFO},
    seeds=[1],
    asked_schedule="Karras",
    schedule_label="Karras",
    eta_ddim=None,
    model_name="tinyB",
    model_hash="9045917406",
    lora_hashes={"loraA": "8153bd01d4aa"},
    seed_resize=(-1, -1),
)


def changed(**facts):
    return dataclasses.replace(FACTS, **facts)


def test_info_equals_the_recorded_one_except_the_version():
    found = FACTS.info(made=1)
    assert list(found) == list(INFO)
    own_texts = [text.replace("1.9.3", infotext.VERSION) for text in INFO["infotexts"]]
    assert found == INFO | {"version": infotext.VERSION, "infotexts": own_texts}


def test_unused_entries_are_not_written():
    unused = {"asked_schedule": None, "schedule_label": None, "lora_hashes": {}, "clip_skip": 1}
    assert changed(prompt="a cat", seeds=[5, 6], **unused).infotext(1) == (
        "a cat\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 7.0, Seed: 6, Size: 64x64, "
        f"Model hash: 9045917406, Model: tinyB, Version: {infotext.VERSION}"
    )


def test_requested_schedule_eta_and_negative_prompt_are_written():
    facts = changed(asked_schedule="automatic", schedule_label=None)
    assert "Sampler: DPM++ 2M, Schedule type: automatic, CFG scale" in facts.infotext(0)
    assert "Schedule type" not in facts.extra_generation_params
    text = changed(eta_ddim=0.5, negative_prompt="blurry").infotext(0)
    assert "Eta DDIM: 0.5, Version" in text
    schedule = changed(noise_schedule="Zero Terminal SNR").infotext(0)
    assert "Noise Schedule: Zero Terminal SNR, Version" in schedule
    assert text.splitlines()[1] == "Negative prompt: blurry"
    # an interrupted job has infotexts of the finished pictures
    info = changed(seeds=[1, 2, 3]).info(made=2)
    assert (info["all_seeds"], len(info["infotexts"])) == ([1, 2, 3], 2)


def test_quote():
    for value, text in {"plain": "plain", "a: b": '"a: b"', "ü,": '"ü,"', 7.0: "7.0"}.items():
        assert infotext.quote(value) == text


def test_png_contains_the_text():
    text = "a cat\nSteps: 2"
    encoded = base64.b64decode(infotext.encode_png(Image.new("RGB", (8, 8)), text))
    assert Image.open(io.BytesIO(encoded)).text == {"parameters": text}
