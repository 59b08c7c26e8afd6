import json
import re

import pytest
from fakes.recorded import recorded

from worker.config.settings import PROJECT
from worker.errors import InvalidInput
from worker.job.reference import CivitAIVersion, Sha256, StoreName, WebFile
from worker.job.request import FOREIGN_NAMES, Txt2ImgRequest, parse
from worker.webui.payload import OURS

SCHEMAS = recorded("openapi")["components"]["schemas"]
A1111_FIELDS = SCHEMAS["StableDiffusionProcessingTxt2Img"]["properties"]
HIRES = {"enable_hr": True, "denoising_strength": 0.5}
CLIP = {"clip_skip": 2, "override_settings": {"CLIP_stop_at_last_layers": 2}}
TWO_CHECKPOINTS = {"checkpoint": "a", "override_settings": {"sd_model_checkpoint": "b"}}
REFUSED = [
    # input, part of the message
    ({"steps": 0}, "steps = 0: must be greater than or equal to 1"),
    ({"steps": 151}, "steps = 151: must be less than or equal to 150"),
    ({"steps": None}, "steps = None: must be a valid integer"),
    ({"steps": True}, "steps = True: must be a number, not true or false"),
    ({"width": 0}, "width = 0"),
    ({"height": 2**40}, "height = 1099511627776"),
    ({"batch_size": 0}, "batch_size = 0"),
    ({"n_iter": -1}, "n_iter = -1"),
    ({"seed": 2**64}, "seed = 18446744073709551616"),
    ({"cfg_scale": float("nan")}, "cfg_scale = nan"),
    ({"cfg_scale": float("inf")}, "cfg_scale = inf"),
    ({"cfg_scale": 1e30}, "cfg_scale = 1e+30"),
    ({"prompt": ["a cat"]}, "prompt = ['a cat']: must be a valid string"),
    ({"prompt": "\ud83d"}, "unable to parse raw data as a unicode string"),
    ({"prompt": "a\x00b"}, "must not contain the character NUL"),
    ({"prompt": "x" * 40_000}, "at most 32768 characters"),
    ({"enable_hr": True}, "enable_hr needs denoising_strength"),
    (HIRES | {"hr_resize_x": 7}, "hr_resize makes a side of 7 pixels, less than 8"),
    (HIRES | {"width": 4096, "height": 64, "hr_resize_x": 100}, "makes a side of 1 pixels"),
    ({"refiner_checkpoint": "x"}, "refiner_checkpoint needs refiner_switch_at"),
    ({"send_images": False}, "the images are the result"),
    ({"override_settings_restore_afterwards": False}, "must not reach the next job"),
    ({"infotext": "Steps: 0"}, "it would fill in fields unchecked"),
    ({"firstpass_image": "aGVsbG8="}, "cannot take an image here"),
    ({"override_settings": {"CLIP_stop_at_last_layers": "two"}}, "CLIP_stop_at_last_layers"),
    ({"override_settings": {"outdir_samples": "/"}}, "outdir_samples is not a known field"),
    ({"clip_skip": 99}, "clip_skip = 99"),
    (CLIP, "are the same, give one"),
    (TWO_CHECKPOINTS, "are the same, give one"),
    ({"checkpoint": {}}, "the model is not named"),
    ({"checkpoint": 5.5}, "must be a reference, or an object"),
    ({"loras": ["x"], "disable_extra_networks": True}, "would ignore the loras"),
    ({"loras": [{"name": "x", "scale": float("nan")}]}, "loras.0.scale = nan"),
    ({"alwayson_scripts": {"ADetailer": {"args": [float("nan")]}}}, "must be plain JSON"),
    ({"script_args": [b"x"]}, "script_args.0"),
    ({"num_inference_steps": 5}, "did you mean `steps`?"),
    ({"stepz": 5}, "did you mean `steps`?"),
    ({"Prompt": "x"}, "did you mean `prompt`?"),
    ({"xyzzy": 5}, "xyzzy is not a known field."),
    ({"timeout": 0}, "timeout = 0"),
    ({"task": "img2img"}, "task = 'img2img'"),
    ([1], "the job's input is [1], not an object"),
]


@pytest.mark.parametrize(("job_input", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_bad_input_is_refused_with_field_value_and_remedy(job_input, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        parse(job_input)


ACCEPTED = [
    ({}, {}),
    ({"steps": "20"}, {"steps": 20}),  # as A1111 does
    ({"width": 512.0}, {"width": 512}),
    ({"sampler_name": None, "scheduler": None}, {"sampler_name": None, "scheduler": None}),
    ({"checkpoint": "x"}, {"checkpoint": {"name": "x"}}),
    ({"loras": ["x"]}, {"loras": [{"name": "x"}]}),
    ({"loras": [{"name": "x", "weight": 0.5}]}, {"loras": [{"name": "x", "scale": 0.5}]}),
    (HIRES, HIRES),
]


@pytest.mark.parametrize(("job_input", "read"), ACCEPTED)
def test_good_input_is_read(job_input, read):
    assert parse(job_input).model_dump(exclude_unset=True) == read


def test_all_problems_are_in_the_details_and_the_first_ones_in_the_message():
    with pytest.raises(InvalidInput) as raised:
        parse({"steps": 0, "num_inference_steps": 5} | {f"unknown{n}": n for n in range(98)})
    assert len(raised.value.details["problems"]) == 100
    assert len(str(raised.value)) < 1000
    assert "(and 88 more)" in str(raised.value)


def test_the_fields_and_defaults_are_those_of_a1111_and_ours():
    ours = set(Txt2ImgRequest.model_fields)
    assert set(A1111_FIELDS) - ours == set()
    assert ours - set(A1111_FIELDS) == OURS - {"sampler_index"}
    defaults = {name: field.get("default") for name, field in A1111_FIELDS.items()}
    # sampler_index is only the fallback for a missing sampler_name; A1111 fills it in.
    expected = defaults | {"sampler_index": None}
    assert Txt2ImgRequest().model_dump(include=set(A1111_FIELDS)) == expected
    assert set(FOREIGN_NAMES.values()) <= ours
    assert not set(FOREIGN_NAMES) & ours


def test_the_example_in_the_repository_is_valid():
    parse(json.loads((PROJECT / "test_input.json").read_text())["input"])


REFERENCES = [
    (1590699, CivitAIVersion(1590699), None),
    ({"version_id": 7, "name": "For people: any text"}, CivitAIVersion(7), None),
    ({"air": "civitai:4384@128713"}, CivitAIVersion(128713), None),
    ({"url": "https://example.com/x.safetensors", "sha256": "A" * 64}, "url", "a" * 64),
    ({"sha256": f"sha256:{'b' * 64}"}, Sha256("b" * 64), "b" * 64),
    ({"name": "Detail", "filename": "detail.safetensors"}, StoreName("detail.safetensors"), None),
    ("detail [0123456789]", StoreName("detail"), None),
]


@pytest.mark.parametrize(("written", "ref", "sha256"), REFERENCES, ids=str)
def test_a_model_can_be_named_in_many_ways(written, ref, sha256):
    wanted = parse({"checkpoint": written}).checkpoint.wanted("checkpoint")
    assert wanted.ref == (WebFile(written["url"]) if ref == "url" else ref)
    assert (wanted.kind, wanted.sha256) == ("checkpoint", sha256)


SECRET = "abcdefghijklmnop"
UNREADABLE = [
    {"url": "s3://bucket/x.safetensors"},
    {"url": "https://a.example/x", "version_id": 5},
    {"version_id": True},
    {"air": "https://example.com/x"},
    {"sha256": "abc"},
    {"filename": "../x.safetensors"},
    {"url": f"https://civitai.com/images/5?token={SECRET}"},
    f"https://a:{SECRET}@x.y/?{SECRET}={SECRET}",
    {"name": 5, "url": f"https://x.y/z?sig={SECRET}"},
]


@pytest.mark.parametrize("written", UNREADABLE, ids=str)
@pytest.mark.parametrize("field", ["checkpoint", "vae", "loras", "embeddings"])
def test_a_reference_that_cannot_be_read_is_refused_at_once(field, written):
    with pytest.raises(InvalidInput, match=field) as raised:
        parse({field: [written] if field.endswith("s") else written})
    assert SECRET not in f"{raised.value} {raised.value.details}"
