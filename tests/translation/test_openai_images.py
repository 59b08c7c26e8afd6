"""OpenAI's requests as jobs, and a job's answers and errors as OpenAI's."""

import asyncio
import base64
import json
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import requests
from fakes.a1111.process import write_safetensors
from fakes.hosts.bucket import s3_server
from fakes.input_pictures import saved, scene
from fakes.stub_engine import StubEngine, handler_with
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from worker.errors import InvalidInput
from worker.service.counters import Ended
from worker.tasks.table import TASKS
from worker.translation import openai_images

TEMPLATES = {
    "templates": {
        "fox": {"name": "Foxes", "checkpoint": {"filename": "first.safetensors"}},
        "plain": {
            "name": "Plain",
            "checkpoint": {"filename": "base.safetensors"},
            "defaults": {"width": 128, "height": 64, "steps": 9},
        },
    },
    "default_template": "plain",
}


def text_of(picture: Image.Image, form: str = "PNG") -> str:
    return base64.b64encode(saved(picture, form)).decode()


def with_hole() -> str:
    """A mask in OpenAI's form: its left half is transparent."""
    picture = scene().convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 64, 128))
    return text_of(picture)


IMAGE, MASK = text_of(scene()), with_hole()


class NotingEngine(StubEngine):
    """An engine that notes what it is asked for, and draws the number of pictures."""

    body = None

    async def generate(self, payload, *parts, **named):
        self.body = payload.body
        answer = await super().generate(payload, *parts, **named)
        return replace(answer, images=answer.images * payload.body.get("batch_size", 1))


@pytest.fixture
def ask(tmp_path, catalog):
    """Send one request; returns the answer and what the engine was asked for."""
    for name in ("base", "first"):
        write_safetensors(tmp_path / f"models/Stable-diffusion/{name}.safetensors")
    (tmp_path / "templates.json").write_text(json.dumps(TEMPLATES))
    engine = NotingEngine(catalog, tmp_path)

    def ask(body, route="/v1/images/generations", **beside):
        built = handler_with(engine, tmp_path, tmp_path / "templates.json")
        job = {"openai_route": route, "openai_input": body, **beside}
        return asyncio.run(built({"id": "a", "input": job})), engine.body

    return ask


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({}, {"width": 128, "height": 64, "steps": 9}),
        ({"model": "default", "size": "auto", "n": None}, {"width": 128}),
        ({"model": "Foxes", "n": 2, "size": "256x192"}, {"width": 256, "batch_size": 2}),
        ({"model": "fox", "n": "3"}, {"batch_size": 3, "n_iter": 1}),
        ({"n": 1, "n_iter": 2}, {"batch_size": 1, "n_iter": 2}),
        ({"model": "first"}, {}),
        ({"model": "first.safetensors [0123456789]", "steps": 4}, {"steps": 4}),
        ({"extra_body": {"seed": 5, "negative_prompt": "blurry"}}, {"seed": 5}),
        ({"size": "256x192", "width": 256}, {"width": 256, "height": 192}),
        ({"batch_size": 2, "quality": "auto", "background": "auto"}, {"batch_size": 2}),
    ],
    ids=str,
)
def test_a_request_becomes_a_job_of_its_model(ask, body, sent):
    answer, asked = ask({"prompt": "a fox"} | body)
    assert asked | sent == asked, answer
    assert len(answer["data"]) == asked.get("batch_size", 1)
    first = body.get("model") in {"Foxes", "fox", "first", "first.safetensors [0123456789]"}
    checkpoint = asked["override_settings"]["sd_model_checkpoint"]
    assert checkpoint.startswith("first" if first else "base")


def test_the_answer_is_openais_and_says_what_had_no_effect(ask):
    body = {"prompt": "a fox", "output_format": "jpeg", "output_compression": 0, "quality": "hd"}
    answer, _ = ask(body | {"user": "me", "style": "vivid", "response_format": "b64_json"})
    assert base64.b64decode(answer["data"][0]["b64_json"])[:2] == b"\xff\xd8"
    known = ("output_format", "size", "background", "delivery")
    format_, size, background, delivery = (answer[key] for key in known)
    assert (format_, size, background, delivery["quality"]) == ("jpeg", "64x64", "opaque", 1)
    assert answer["usage"]["total_tokens"] == 0
    said = [one.split()[0] for one in answer["warnings"] if "no effect" in one]
    assert said == ["quality", "style", "user"]
    png, _ = ask({"prompt": "a fox", "output_compression": 100})
    assert png["output_format"] == "png"
    assert "PNG files have no quality" in " ".join(png["warnings"])
    wild, _ = ask({"prompt": "{red} fox", "wildcards": True})
    assert wild["data"][0]["revised_prompt"] == "red fox"


@pytest.mark.parametrize(
    ("body", "param", "status", "words"),
    [
        ({"prompt": None}, "prompt", 400, "prompt is missing"),
        ({"prompt": 5}, "prompt", 400, "prompt = 5: must be a text"),
        ({"size": "big"}, "size", 400, "WIDTHxHEIGHT"),
        ({"size": "9x512"}, "size", 400, "width = 9: must be at least 64"),
        ({"size": 512}, "size", 400, "size = 512"),
        ({"n": 11}, "n", 400, "a whole number from 1 to 10"),
        ({"image": IMAGE, "mask": IMAGE}, "image", 400, "belongs to /v1/images/edits"),
        ({"n": True}, "n", 400, "a whole number from 1 to 10"),
        ({"n": 2, "batch_size": 3}, "n", 400, "n and batch_size = 3 say different things"),
        ({"size": "64x64", "width": 65}, "size", 400, "size and width = 65"),
        ({"model": "dall-e-3"}, "model", 404, "The models are 'default', 'fox', 'plain', 'base.s"),
        ({"model": "../x"}, "model", 404, "'../x' is not served"),
        ({"model": 5}, "model", 400, "must be the name of a model"),
        ({"model": "fox", "checkpoint": "base"}, "model", 400, "name two models"),
        ({"template": "nope"}, "template", 404, "template 'nope' is not known"),
        ({"output_format": "gif"}, "output_format", 400, "must be png, jpeg or webp"),
        ({"output_compression": 50}, "output_compression", 400, "PNG files have no quality"),
        ({"output_compression": 101}, "output_compression", 400, "from 0 to 100"),
        ({"response_format": "url"}, "response_format", 400, "no bucket"),
        ({"response_format": ["b64_json"]}, "response_format", 400, "must be b64_json or url"),
        ({"background": "transparent"}, "background", 400, "opaque"),
        ({"svg": {"model": "x"}}, "svg", 400, "SVG"),
        ({"task": "health"}, "task", 400, "the route is the task"),
        ({"stream": True}, "stream", 400, "a queue job returns its pictures at once"),
        ({"stream": "maybe"}, "stream", 400, "must be true or false"),
        ({"partial_images": 4}, "partial_images", 400, "from 0 to 3"),
        ({"steps": 999}, "steps", 400, "steps = 999: must be at most 150"),
        ({"promt": "x"}, "promt", 400, "did you mean `prompt`"),
        ({"loras": [{"name": "a", "scale": 99}]}, "loras", 400, "loras.0.scale = 99"),
        ({"prompt": "<lora:nope:1>"}, None, 404, "lora 'nope'"),
        ({"extra_body": {"prompt": "b"}}, "prompt", 400, "in extra_body and beside it"),
        ({"extra_body": 5}, "extra_body", 400, "not an object"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_named_in_openais_error(ask, body, param, status, words):
    answer, asked = ask({"prompt": "a fox"} | body)
    assert asked is None
    assert words in answer["message"]
    assert (answer["param"], answer["status"]) == (param, status)
    assert answer["error"] == answer["detail"] == f"{answer['code'].upper()}: {answer['message']}"
    assert (answer["object"], answer["type"]) == ("error", "invalid_request_error")


@pytest.mark.parametrize(
    ("route", "body", "words"),
    [
        ("/v1/chat/completions", {}, "This worker has /v1/images/generations"),
        (None, {}, "openai_route = None: must be a text"),
        ("/v1/models/nope", None, "model 'nope' is not served"),
        ("/v1/images/generations", None, "prompt is missing"),
        ("/v1/images/edits", {"prompt": "a"}, "image is missing"),
        ("/v1/images/edits", {"prompt": "a", "image": []}, "image is missing"),
        ("/v1/images/edits", {"prompt": "a", "image": [IMAGE, IMAGE]}, "combines none"),
        ("/v1/images/edits", {"prompt": "a", "image": 5}, "image = 5"),
        ("/v1/images/edits", {"prompt": "a", "image": IMAGE, "mask": IMAGE}, "no transparent"),
        ("/v1/images/edits", {"prompt": "a", "image": IMAGE, "mask": "?"}, "mask = '?'"),
        ("/v1/images/edits", {"prompt": "a", "image": "?"}, "init_images.0 = '?'"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_a_route_or_an_edit_that_cannot_be_served_is_refused(ask, route, body, words):
    answer, asked = ask(body, route)
    assert asked is None
    assert words in answer["message"]


def test_an_edit_draws_the_transparent_part_of_the_mask_anew(ask):
    body = {"prompt": "a fox", "image": [{"image_url": f"data:image/png;base64,{IMAGE}"}]}
    answer, asked = ask(body | {"mask": MASK, "size": "256x256"}, "/v1/images/edits")
    assert answer["data"][0]["b64_json"], answer
    assert (asked["width"], asked["inpainting_mask_invert"], asked["inpainting_fill"]) == (
        256,
        1,
        1,
    )
    assert asked["inpaint_full_res"] in (False, 0)
    _, whole = ask(body | {"model": "plain", "denoising_strength": 0.3}, "/v1/images/edits")
    assert (whole["width"], whole["height"], whole["denoising_strength"]) == (128, 128, 0.3)
    assert not whole.get("mask")


def test_a_url_is_answered_if_there_is_a_bucket(tmp_path, catalog):
    write_safetensors(tmp_path / "models/Stable-diffusion/base.safetensors")
    body = {"prompt": "a fox", "response_format": "url", "output_format": "webp"}
    job = {"openai_route": "/v1/images/generations", "openai_input": body}
    with s3_server() as bucket:
        built = handler_with(NotingEngine(catalog, tmp_path), tmp_path, **bucket.environ())
        answer = asyncio.run(built({"id": "a", "input": job}))
        picture = requests.get(answer["data"][0]["url"], timeout=30)
    assert picture.content[8:12] == b"WEBP"
    assert answer["data"][0].keys() == {"url"}
    assert "size" not in answer


def test_models_are_the_templates_and_checkpoints(ask):
    listed, _ = ask(None, "/v1/models")
    ids = {one["id"]: one["owned_by"] for one in listed["data"]}
    assert list(ids) == ["default", "fox", "plain", "base.safetensors", "first.safetensors"]
    assert list(ids.values()) == ["default", "template", "template", "checkpoint", "checkpoint"]
    one, _ = ask(None, "/v1/models/fox/")
    assert (one["id"], one["object"]) == ("fox", "model")


def test_the_form_stands_alone(ask):
    answer, _ = ask({"prompt": "a fox"}, prompt="a wolf")
    assert "prompt is not a field of this task" in answer["message"]
    mixed, _ = ask({"prompt": "a fox"}, task="txt2img")
    assert "send openai_route and openai_input without other fields" in mixed["error"]
    assert mixed["code"] == "INVALID_INPUT"


def test_openais_answers_can_be_a_batchs_and_its_errors_count_by_our_codes(tmp_path, catalog):
    write_safetensors(tmp_path / "models/Stable-diffusion/base.safetensors")
    built = handler_with(NotingEngine(catalog, tmp_path), tmp_path)
    one = {"openai_route": "/v1/images/generations", "openai_input": {"prompt": "a", "n": 0}}
    asyncio.run(built({"id": "a", "input": one}))
    assert built.worker.counters.ended == {Ended("openai", "failed", "INVALID_INPUT"): 1}
    good = one | {"openai_input": {"prompt": "a"}}
    answer = asyncio.run(built({"id": "a", "input": {"task": "batch", "inputs": [one, good]}}))
    bad, drawn = answer["results"]
    assert (bad["param"], drawn["delivery"]["method"], answer["failed"]) == ("n", "base64", 1)


class Refused(Exception):
    """The request was refused with the detail that OpenAI's error needs."""


@contextmanager
def refused_as(detail):
    try:
        yield
    except InvalidInput as error:
        raise Refused(error.details[detail]) from None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
NAMES = sorted(
    {*openai_images._WITHOUT_EFFECT, *openai_images._REFUSED, "extra_body"}
    | {"prompt", "model", "n", "size", "image", "images", "mask", "output", "output_format"}
    | {"output_compression", "response_format", "background", "stream", "partial_images"}
)


@given(st.sampled_from(openai_images.ROUTES[:2]), st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_body_is_read_or_refused_with_a_parameter(route, body):
    with suppress(Refused), refused_as("param"):
        asked = openai_images.read(route, {"prompt": "a"} | body)
        assert asked.job.keys().isdisjoint({"n", "size", "model", "image", "quality", "stream"})


@given(JSON)
def test_any_route_is_known_or_refused(route):
    with suppress(Refused), refused_as("status"):
        assert openai_images.route_of(route)[0] in openai_images.ROUTES


def test_the_task_is_in_the_schema_with_its_error():
    assert TASKS["openai"].input.model_fields.keys() == {"task", "openai_route", "openai_input"}
