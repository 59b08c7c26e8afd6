import base64
import io
import json
import re

import pytest
from fakes.recorded import recorded
from PIL import Image

from engine.api import infotext
from engine.api.infotext import Facts
from engine.api.job import Job
from engine.api.options import DEFAULTS
from engine.api.parameters import Used
from engine.api.request import Txt2Img

RECORDED = recorded("post_txt2img_lora_checkpoint")
INFO = json.loads(RECORDED["info"])
USED = Used("tinyB", "9045917406", loras=[("loraA", "8153bd01d4aa")])


def facts(used=USED, options=(), **fields):
    """The facts of the recorded request with other fields."""
    own = {"seed": INFO["seed"], "subseed": INFO["subseed"]}
    request = Txt2Img(**RECORDED["parameters"] | own | fields)
    settings = DEFAULTS | request.override_settings | dict(options)
    return Facts.of(Job(request, settings), used, INFO["job_timestamp"])


def test_info_equals_the_recorded_one_except_the_version():
    found = facts().info(made=1)
    assert list(found) == list(INFO)
    own_texts = [text.replace("1.9.3", infotext.VERSION) for text in INFO["infotexts"]]
    assert found == INFO | {"version": infotext.VERSION, "infotexts": own_texts}


def test_unused_entries_are_not_written():
    text = facts(
        Used("tinyB", "9045917406"),
        {"CLIP_stop_at_last_layers": 1},
        prompt="a cat", seed=5, n_iter=2, scheduler=None, sampler_name="Euler",
    ).infotext(1)  # fmt: skip
    assert text == (
        "a cat\nSteps: 2, Sampler: Euler, CFG scale: 7.0, Seed: 6, Size: 64x64, "
        f"Model hash: 9045917406, Model: tinyB, Version: {infotext.VERSION}"
    )


# What A1111 v1.9.3 writes between "Clip skip: 2" and the version for these options and fields,
# taken from its answers.
SECOND_PASS = {"enable_hr": True, "denoising_strength": 0.6, "hr_scale": 1.5}
WRITTEN = [
    ({}, {"sampler_name": "DDIM", "eta": 0.5}, "Eta DDIM: 0.5"),
    ({}, {"sampler_name": "DPM++ 2S a", "eta": 0}, "Schedule type: Karras|Eta: 0.0"),
    ({"eta_ancestral": 0.6}, {"sampler_name": "Euler a"}, "Eta: 0.6"),
    ({"sd_noise_schedule": "Zero Terminal SNR"}, {}, "Noise Schedule: Zero Terminal SNR"),
    ({"eta_noise_seed_delta": 31337}, {"sampler_name": "Euler a"}, "ENSD: 31337"),
    ({"eta_noise_seed_delta": 31337}, {"sampler_name": "Euler a", "eta": 0}, "Eta: 0.0"),
    ({"randn_source": "NV"}, {}, "RNG: NV"),
    ({"randn_source": "GPU"}, {}, ""),
    (
        {},
        {"subseed": 5, "subseed_strength": 0.3},
        "Variation seed: 5, Variation seed strength: 0.3",
    ),
    ({}, {"seed_resize_from_w": 64, "seed_resize_from_h": 96}, "Seed resize from: 64x96"),
    ({}, {"s_min_uncond": 3.0, "tiling": True}, "NGMS: 3.0, Tiling: True"),
    ({"s_churn": 4.0}, {}, "Sigma churn: 4.0"),
    (
        {"sigma_min": 0.1, "sigma_max": 10.0, "rho": 5.0},
        {"scheduler": "Karras"},
        "Schedule type: Karras|Schedule min sigma: 0.1, Schedule max sigma: 10.0, Schedule rho",
    ),
    (
        {"always_discard_next_to_last_sigma": True, "sgm_noise_multiplier": True},
        {},
        "Discard penultimate sigma: True, SGM noise multiplier: True",
    ),
    ({"token_merging_ratio": 0.5}, {}, "Token merging ratio: 0.5"),
    (
        {"token_merging_ratio_hr": 0.3},
        SECOND_PASS,
        "Denoising strength: 0.6|Token merging ratio hr: 0.3|Hires upscale: 1.5",
    ),
    (
        {},
        SECOND_PASS | {"hr_resize_x": 192, "hr_resize_y": 136, "hr_upscaler": "Nearest"},
        "Denoising strength: 0.6|Hires resize: 192x136, Hires upscaler: Nearest",
    ),
    (
        {},
        SECOND_PASS
        | {"hr_sampler_name": "DPM++ 2M SDE", "hr_scheduler": "Karras", "hr_second_pass_steps": 5},
        (
            "Denoising strength: 0.6|Hires sampler: DPM++ 2M SDE, Hires schedule type: Karras, "
            "Hires upscale: 1.5, Hires steps: 5"
        ),
    ),
    (
        {"img2img_extra_noise": 0.1},
        SECOND_PASS | {"hr_prompt": "a red, cat", "hr_negative_prompt": "gray"},
        (
            'Denoising strength: 0.6|Hires prompt: "a red, cat", Hires negative prompt: gray, '
            "Hires upscale: 1.5, Extra noise: 0.1"
        ),
    ),
]


@pytest.mark.parametrize(("options", "fields", "written"), WRITTEN)
def test_what_a1111_writes(options, fields, written):
    plain = {"scheduler": None, "sampler_name": "Euler", "prompt": "a cat"}
    found = facts(Used("tinyB", "9045917406"), options, **plain | fields)
    text = found.infotext(0)
    for part in filter(None, written.split("|")):
        assert part in text
    names = {entry.split(":")[0] for entry in re.split(r", |\|", written)} - {""}
    own = set(re.findall(r"(?:\n|, )([A-Z][\w ]*):", text)) - PLAIN
    assert own <= names | {' cat"'}
    assert json.loads(json.dumps(found.info(1)))["extra_generation_params"].keys() >= own - MAIN


PLAIN = {
    *("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model", "Clip skip"),
    "Version",
}
MAIN = {
    *("ENSD", "RNG", "NGMS", "Tiling", "Variation seed", "Variation seed strength"),
    *("Seed resize from", "Token merging ratio", "Token merging ratio hr"),
}


def test_another_vae_and_what_the_prompts_add():
    used = Used("tinyB", "9045917406", ("v.safetensors", "a1"), notes={"TI hashes": "e: 12"})
    found = facts(used, prompt="a cat, e")
    assert "Model: tinyB, VAE hash: a1, VAE: v.safetensors, " in found.infotext(0)
    assert found.infotext(0).count('TI hashes: "e: 12"') == 1
    assert [found.info(1)[f"sd_vae_{end}"] for end in ("name", "hash")] == ["v.safetensors", "a1"]


def test_requested_schedule_and_negative_prompt_are_written_and_prompts_hidden():
    found = facts(scheduler="automatic", sampler_name="DPM++ 2M", negative_prompt="blurry")
    assert "Sampler: DPM++ 2M, Schedule type: automatic, CFG scale" in found.infotext(0)
    assert "Schedule type" not in found.extra
    assert found.infotext(0).splitlines()[1] == "Negative prompt: blurry"
    own = facts(hr_prompt="a dog", **SECOND_PASS).info(1)["extra_generation_params"]
    assert own["Hires prompt"] is None
    # an interrupted job has infotexts of the finished pictures
    info = facts(n_iter=3, seed=1).info(made=2)
    assert (info["all_seeds"], len(info["infotexts"])) == ([1, 2, 3], 2)


def test_loras_of_the_second_pass_follow_and_padding_is_told():
    used = Used("tinyB", "9045917406", None, [("a", "1")], [("b", "2")], pads=True)
    extra = facts(used, **SECOND_PASS).extra
    assert extra["Lora hashes"] == "b: 2"
    assert extra["Pad conds"] is True
    later = {"second": "x [1]", "refiner": "y [2]"}
    alone = facts(
        Used("tinyB", "9045917406", later_loras=[("b", "2")], **later), **SECOND_PASS
    ).extra
    assert list(alone)[:2] == ["Denoising strength", "Hires checkpoint"]
    assert list(alone)[-3:] == ["Lora hashes", "Refiner", "Refiner switch at"]


def test_quote():
    for value, text in {"plain": "plain", "a: b": '"a: b"', "ü,": '"ü,"', 7.0: "7.0"}.items():
        assert infotext.quote(value) == text


def test_png_contains_the_text():
    text = "a cat\nSteps: 2"
    encoded = base64.b64decode(infotext.encode_png(Image.new("RGB", (8, 8)), {"parameters": text}))
    assert Image.open(io.BytesIO(encoded)).text == {"parameters": text}
