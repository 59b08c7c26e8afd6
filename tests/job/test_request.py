import json
import re
from pathlib import Path

import pytest
from fakes.recorded import recorded

from worker.clients.foreign_fields import FOREIGN_NAMES, HARMLESS, HARMLESS_OPTIONS
from worker.config.settings import PROJECT
from worker.errors import InvalidInput
from worker.generation.payload import OURS
from worker.job.img2img import Img2ImgOptions, Img2ImgRequest
from worker.job.reference import CivitAIVersion, Sha256, StoreName, WebFile
from worker.job.request import SecondPass
from worker.job.txt2img import Txt2ImgRequest, parse
from worker.shown import shown, without_secrets

SCHEMAS = recorded("openapi")["components"]["schemas"]
A1111_FIELDS = {
    name: SCHEMAS[f"StableDiffusionProcessing{name}"]["properties"]
    for name in ("Txt2Img", "Img2Img")
}
BROUGHT = {"init_images", "mask", "include_init_images"}  # what A1111 gets in another form
A_PICTURE = "aGVsbG8="  # only its form is checked here
HIRES = {"enable_hr": True, "denoising_strength": 0.5}
CLIP = {"clip_skip": 2, "override_settings": {"CLIP_stop_at_last_layers": 3}}
EQUAL_CLIP = {"clip_skip": 2, "override_settings": {"CLIP_stop_at_last_layers": 2}}
NO_MODELS = {"loras": [], "embeddings": []}
NO_OPTIONS = {"override_settings": {}}
REFINER = {"refiner_checkpoint": "x"}
SAME_AS_FIRST = {
    "hr_sampler_name": "Use same sampler",
    "hr_scheduler": "Use same scheduler",
    "hr_checkpoint_name": "Use same checkpoint",
}
SD_MODEL = {"override_settings": {"sd_model_checkpoint": "a"}}
A_TITLE = {"name": "a [0123456789]"}
BOTH_SAMPLERS = {"sampler_name": "Euler a", "sampler_index": "euler a"}
VOLUME = "/runpod-volume/models/Stable-diffusion/x.safetensors"
CLIENTS = json.loads(Path(__file__).with_name("client_bodies.json").read_text())
TWO_CHECKPOINTS = {"checkpoint": "a", "override_settings": {"sd_model_checkpoint": "b"}}
REFUSED = [
    # input, part of the message
    ({"steps": 0}, "steps = 0: must be at least 1"),
    ({"steps": 151}, "steps = 151: must be at most 150"),
    ({"steps": True}, "steps = True: must be a number, not true or false"),
    ({"width": 0}, "width = 0"),
    ({"height": 2**40}, "height = 1099511627776"),
    ({"batch_size": 0}, "batch_size = 0"),
    ({"n_iter": -1}, "n_iter = -1"),
    ({"seed": 2**64}, "seed = 18446744073709551616"),
    ({"cfg_scale": float("nan")}, "cfg_scale = nan"),
    ({"cfg_scale": float("inf")}, "cfg_scale = inf"),
    ({"cfg_scale": 1e30}, "cfg_scale = 1e+30"),
    ({"prompt": ["a cat"]}, "prompt = ['a cat']: must be a text"),
    ({"prompt": "\ud83d"}, "unable to parse raw data as a unicode string"),
    ({"prompt": "a\x00b"}, "must not contain the character NUL"),
    ({"prompt": "x" * 40_000}, "at most 32768 characters"),
    ({"enable_hr": True}, "enable_hr needs denoising_strength"),
    ({"enable_hr": []}, "enable_hr = []: must be true or false"),
    ({"enable_hr": {"a": 1}}, "enable_hr = {'a': 1}: must be true or false"),
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
    (CLIP, "CLIP_stop_at_last_layers differ: give one"),
    (TWO_CHECKPOINTS, "name two models: give one"),
    ({"vae": "a", "override_settings": {"sd_vae": "None"}}, "name two models"),
    ({"vae": "None", "override_settings": {"sd_vae": "a"}}, "name two models"),
    ({"sampler_name": "Euler a", "sampler_index": "DDIM"}, "name two samplers"),
    ({"sampler_name": "Use same sampler"}, "only hr_sampler_name can"),
    ({"scheduler": "use same scheduler"}, "only hr_scheduler can"),
    ({"checkpoint": {}}, "the model is not named"),
    ({"checkpoint": 5.5}, "must be a reference, or an object"),
    ({"loras": ["x"], "disable_extra_networks": True}, "would ignore the loras"),
    ({"loras": [{"name": "x", "scale": float("nan")}]}, "loras.0.scale = nan"),
    ({"alwayson_scripts": {"ADetailer": {"args": [float("nan")]}}}, "must be plain JSON"),
    ({"script_args": [b"x"]}, "script_args.0"),
    ({"num_inference_steps": 5}, "is not a known field (did you mean `steps`?)."),
    ({"stepz": 5}, "did you mean `steps`?"),
    ({"Prompt": "x"}, "did you mean `prompt`?"),
    ({"ckpt_name": "x"}, "did you mean `checkpoint`?"),
    ({"lora_strength": 1}, "lora_strength belongs to one of the LoRAs: send"),
    ({"xyzzy": 5}, "xyzzy is not a known field."),
    ({"s_noice_x": 5}, "s_noice_x is not a known field."),
    ({"a\n2026 INFO": 5}, r"'a\n2026 INFO' is not a known field."),
    ({"override_settings": {"a\r": 5}}, r"'override_settings.a\r' is not a known field."),
    ({"timeout": 0}, "timeout = 0"),
    ({"task": "img2img"}, "task = 'img2img'"),
    # the forms of other programs
    (
        {"api": {}, "payload": {}},
        "of another worker: send the fields of the payload themselves as the input; payload is no",
    ),
    ({"input": {"prompt": "x"}}, "input stands inside the input"),
    ({"workflow": {}}, "workflow is ComfyUI's"),
    ({"openai_route": "/v1", "openai_input": {}}, "belongs to OpenAI's form"),
    ({"s3Config": {"accessSecret": "hunter2"}}, "s3Config stands beside `input` in RunPod's req"),
    ({"webhook": "https://x.example"}, "webhook stands beside `input`"),
    ({"init_images": ["aGVsbG8="]}, 'init_images belongs to the task img2img: add "task": "img2im'),
    ({"mask_blur": 8}, "mask_blur belongs to the task img2img"),
    ({"override_settings": {"img2img_fix_steps": True}}, "img2img_fix_steps belongs to the task"),
    ({"image": "aGVsbG8="}, "image is no field of a job that draws: send `init_images` with"),
    ({"url": "https://civitai.com/models/5"}, "url is no field of a job: name a model's URL"),
    ({"adetailer": True}, "belongs to an extension"),
    ({"hr_additional_modules": ["clip_l"]}, "names modules of Forge"),
    # what only its size makes dangerous
    ({"a": {str(n): n for n in range(2_001)}}, "has more than 2,000 keys"),
    ({"script_args": [0] * 100_001}, "has more than 100,000 values"),
    ([1], "the job's input is [1], not an object"),
]


@pytest.mark.parametrize(("job_input", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_bad_input_is_refused_with_field_value_and_remedy(job_input, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        parse(job_input)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_an_input_that_is_nested_deeply_is_refused_and_shown_shortly():
    with pytest.raises(InvalidInput, match="nested more than 60 levels deep"):
        parse({"script_args": nested(1_500)})
    assert shown(nested(100_000)) == "[[[[...]]]]"


SECRET = "abcdefghijklmnop"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (f"https://a:{SECRET}@x.y/z", "'https://...@x.y/z'"),
        (f"https://{SECRET * 40}@x.y/z", "'https://..."),
        (f"https://x.y/z?{SECRET}={SECRET}&a b", "'https://x.y/z?... b'"),
        (f"https://x.y/{'z' * 380}?{SECRET * 9}", "'https://x.y/zz"),
        ([{"url": f"s3://x.y/z?{SECRET}={SECRET}"}], "[{'url': 's3://x.y/z?...'}]"),
        ("what?", "'what?'"),
        ({n: n for n in range(1_000)}, "{0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, ...}"),
    ],
)
def test_a_value_is_shown_on_one_line_without_the_secrets_of_a_url(value, text):
    assert shown(value).startswith(text)
    assert SECRET not in shown(value)


def test_a_json_value_is_shown_whole_without_the_secrets_of_its_urls():
    url, prompt = f"https://a:{SECRET}@x.y/z?{SECRET}={SECRET}", f"what is {'this? ' * 5_000}"
    shown_ = without_secrets({"a": [url, {"b": f" {url} x"}, 5], "prompt": prompt})
    assert shown_ == {
        "a": ["https://...@x.y/z?...", {"b": "https://...@x.y/z?... x"}, 5],
        "prompt": prompt,
    }
    assert len(str(without_secrets("://" * 100_000))) < 5_000
    assert SECRET not in str(without_secrets(f"civitai.com/x?{'a' * 4_090}={SECRET}"))


@pytest.mark.parametrize("unit", ["?", "://", "?=", "@", "://a@", "?a=", "'", " "])
def test_a_value_of_any_length_is_cut_before_it_is_searched(unit):
    class Text(str):
        """Counts the characters that are read from it."""

        __slots__ = ()

        def __getitem__(self, part):
            read.append(part)
            return str.__getitem__(self, part)

        def __repr__(self):
            raise AssertionError("the whole text was written")

    read = []
    assert len(shown(Text(unit * 1_000_000))) <= 60
    assert read == [slice(None, 400)]


ACCEPTED = [
    ({}, {}),
    ({"steps": None, "seed": None, "negative_prompt": None, "loras": None}, {}),
    ({"negative_prompt": ""}, {"negative_prompt": ""}),
    ({"vae": "", "script_name": "None", "infotext": "", "timeout": " "}, {}),
    ({"clip_skip": 0, "override_settings": {"CLIP_stop_at_last_layers": 0}}, NO_OPTIONS),
    ({"refiner_checkpoint": "", "refiner_switch_at": 0}, {}),
    ({"refiner_checkpoint": "None", "refiner_switch_at": 0.0}, {}),
    (REFINER | {"refiner_switch_at": 0}, REFINER | {"refiner_switch_at": 0}),
    ({"override_settings": {"sd_vae": "", "sd_model_checkpoint": None}}, NO_OPTIONS),
    ({"styles": ["None", "", "fox"]}, {"styles": ["fox"]}),
    ({"loras": ["", None, {"name": "", "scale": 1}, "x"]}, {"loras": [{"name": "x"}]}),
    ({"loras": ["None", {"name": "none", "scale": 0}], "embeddings": ["None"]}, NO_MODELS),
    ({"override_settings": [], "alwayson_scripts": [], "comments": [], "output": []}, {}),
    ({"loras": [{"url": "https://a.b/x", "name": ""}]}, {"loras": [{"url": "https://a.b/x"}]}),
    ({"checkpoint": {"name": "x", "sha256": "", "url": None}}, {"checkpoint": {"name": "x"}}),
    (HIRES | SAME_AS_FIRST, HIRES),
    # one value under two names
    (EQUAL_CLIP, EQUAL_CLIP),
    ({"checkpoint": "a"} | SD_MODEL, {"checkpoint": {"name": "a"}} | SD_MODEL),
    ({"checkpoint": "a [0123456789]"} | SD_MODEL, {"checkpoint": A_TITLE} | SD_MODEL),
    (BOTH_SAMPLERS, BOTH_SAMPLERS),
    ({"sampler_name": "DDIM", "sampler_index": "Euler"}, None),  # A1111's own default
    # words and spellings
    ({"vae": "None"}, {"override_settings": {"sd_vae": "None"}}),
    ({"vae": "automatic"}, {"override_settings": {"sd_vae": "Automatic"}}),
    ({"override_settings": {"sd_vae": "none"}}, {"override_settings": {"sd_vae": "None"}}),
    ({"checkpoint": VOLUME}, {"checkpoint": {"name": "x.safetensors"}}),
    ({"refiner_checkpoint": VOLUME, "refiner_switch_at": 1}, None),
    ({"loras": [{"filename": r"C:\sd\x.safetensors"}]}, {"loras": [{"filename": "x.safetensors"}]}),
    ({"steps": "20"}, {"steps": 20}),  # as A1111 does
    ({"width": 512.0}, {"width": 512}),
    ({"sampler_name": None, "scheduler": None}, {}),
    ({"checkpoint": "x"}, {"checkpoint": {"name": "x"}}),
    ({"loras": ["x"]}, {"loras": [{"name": "x"}]}),
    ({"loras": [{"name": "x", "weight": 0.5}]}, {"loras": [{"name": "x", "scale": 0.5}]}),
    (HIRES, HIRES),
]


@pytest.mark.parametrize(("job_input", "read"), ACCEPTED)
def test_good_input_is_read_and_what_asks_for_nothing_needs_no_warning(job_input, read):
    request = parse(job_input)
    assert read is None or request.model_dump(exclude_unset=True) == read
    assert request.notes == ()
    assert parse(request.model_dump(exclude_unset=True)) == request


def test_the_first_dozen_problems_are_named_and_the_others_are_counted():
    with pytest.raises(InvalidInput) as raised:
        parse({"steps": 0, "num_inference_steps": 5} | {f"unknown{n}": n for n in range(98)})
    assert len(raised.value.details["problems"]) == 12
    assert len(str(raised.value)) < 1000
    assert str(raised.value).endswith("(and 88 more).")


SECOND_PASS_FIELDS = set(SecondPass.model_fields)
SECOND_PASS = {"hr_upscaler": "Latnt", "hr_scale": 0, "hr_sampler_name": "nope", "hr_prompt": "x"}
NOTED = [
    # the job's fields, those that are left, the warning
    ({"seed_enable_extras": True}, {}, "seed_enable_extras has no effect: A1111 v1.9.3 reads"),
    ({"url": "http://127.0.0.1:7860/"}, {}, "url has no effect"),
    ({"auth": "me:hunter2"}, {}, "auth has no effect"),
    ({"hr_additional_modules": []}, {}, "hr_additional_modules has no effect: it names no module"),
    ({"hr_additional_modules": ["Use same choices"]}, {}, "it names no module"),
    ({"init_images": []}, {}, "init_images has no effect: it belongs to img2img"),
    ({"mask_blur": 4}, {}, "mask_blur has no effect: it belongs to img2img"),
    ({"image_cfg_scale": 3}, {}, "image_cfg_scale has no effect: only InstructPix2Pix"),
    ({"override_settings": {"grid_save": True}}, NO_OPTIONS, "override_settings.grid_save has no"),
    (SECOND_PASS, {}, "hr_prompt, hr_sampler_name, hr_upscaler: no effect, because enable_hr is"),
    ({"enable_hr": 0, "hr_upscaler": "x"}, None, "hr_upscaler: no effect"),
    ({"steps": 20.9}, {"steps": 20}, "steps 20.9 is not a whole number: 20 was used."),
    ({"refiner_switch_at": 0.8}, {}, "refiner_switch_at has no effect without refiner_checkpoint"),
    ({"save_images": True}, {}, "save_images has no effect: the pictures are in the answer."),
    ({"alwayson_scripts": {"ADetailer": {"args": []}}}, {"alwayson_scripts": {}}, "has no args"),
    ({"restore_faces": True}, {"restore_faces": True}, "restore_faces: not proven. A1111 downl"),
    ({"scheduler": "automatic"}, {"scheduler": "automatic"}, "was read as 'Automatic'"),
]


@pytest.mark.parametrize(("job_input", "read", "note"), NOTED, ids=str)
def test_what_has_no_effect_is_left_out_with_a_warning(job_input, read, note):
    if "enable_hr" in job_input:  # a number is no switch
        with pytest.raises(InvalidInput, match="enable_hr = 0"):
            parse(job_input)
        return
    request = parse(job_input)
    assert request.model_dump(exclude_unset=True) == read
    assert len(request.notes) == 1
    assert note in request.notes[0]
    assert "hunter2" not in request.notes[0]


def test_every_harmless_name_has_its_source_and_is_no_field_of_every_task():
    common = Txt2ImgRequest.model_fields.keys() & Img2ImgRequest.model_fields.keys()
    options = Img2ImgOptions.model_fields.keys()
    for table, fields in ((HARMLESS, common), (HARMLESS_OPTIONS, options)):
        assert not table.keys() & fields
        assert all(one.source and one.reason for one in table.values())


@pytest.mark.parametrize("client", CLIENTS)
def test_what_clients_send_when_nothing_special_was_chosen_is_accepted(client):
    parse(CLIENTS[client])


@pytest.mark.parametrize(
    ("request_", "schema", "missing"),
    [
        (Txt2ImgRequest(), "Txt2Img", set()),
        (Img2ImgRequest(task="img2img", init_images=[A_PICTURE]), "Img2Img", {"image_cfg_scale"}),
    ],
)
def test_the_fields_and_defaults_are_those_of_a1111_and_ours(request_, schema, missing):
    ours, fields = set(type(request_).model_fields), A1111_FIELDS[schema]
    assert set(fields) - ours == missing
    also_a1111s = {"sampler_index", "disable_extra_networks", *BROUGHT}
    assert ours - set(fields) == OURS - also_a1111s
    defaults = {name: field.get("default") for name, field in fields.items()}
    # sampler_index is only the fallback for a missing sampler_name; A1111 fills it in.
    expected = defaults | {"sampler_index": None} | {name: defaults.get(name) for name in missing}
    read = request_.model_dump(include=set(fields) - {"init_images"})
    assert read == {name: expected[name] for name in read}
    assert set(FOREIGN_NAMES.values()) <= ours | SECOND_PASS_FIELDS
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
