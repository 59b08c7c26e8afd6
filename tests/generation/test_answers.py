"""Whatever JSON the engine answers, a job ends with one of our errors and not as a bug."""

import copy
import io
import json
import random
from contextlib import suppress
from types import SimpleNamespace

import pytest
import requests
import urllib3
from fakes.recorded import recorded

from worker.errors import EngineFault, IncompleteAnswer, WorkerError
from worker.generation import answers, picture, proof
from worker.generation.payload import Expected
from worker.job.models import Models
from worker.tasks.picture_result import models_used
from worker.webui.client import WebUI, of_generation

ODD = [None, True, 0, -1, 0.5, 10**400, float("nan"), float("inf"), "", "x", "\ud83d", [], {}]
ODD += [[None], [5], ["x"], [[]], [{}], {"x": 1}, {"name": 5}, {"name": "x", "aliases": [1]}]
PICTURE = recorded("post_txt2img_lora_checkpoint")
INFO = json.loads(PICTURE["info"])
ANSWERS = {
    "progress": recorded("get_progress_mid_job"),
    "sd-models": recorded("get_sd-models"),
    "loras": recorded("get_loras"),
    "embeddings": recorded("get_embeddings"),
    "options": recorded("get_options"),
    "memory": recorded("get_memory"),
    "samplers": recorded("get_samplers"),
    "schedulers": recorded("get_schedulers"),
    "upscalers": recorded("get_upscalers"),
    "latent-upscale-modes": recorded("get_latent-upscale-modes"),
    "scripts": recorded("get_scripts"),
    "script-info": recorded("get_script-info"),
    "prompt-styles": recorded("get_prompt-styles"),
    "ad_model": {"ad_model": ["mediapipe_face_full"]},
    "txt2img": PICTURE,
}
EXPECTED = Expected(
    1, "tinyB", frozenset({"loraA"}), "v.pt", frozenset({"e"}), checkpoint_sha256="0" * 64
)


def spoiled(value, draw):
    """A copy in which one part, at any depth, is another value or missing."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        rest = {name: item for name, item in value.items() if name != key}
        return rest if draw.random() < 0.2 else rest | {key: spoiled(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], spoiled(value[at], draw), *value[at + 1 :]]
    return copy.copy(draw.choice(ODD))


def engine(**answered):
    """A client of an engine that answers these bytes on each route."""
    webui = WebUI("http://127.0.0.1:1")

    def request(_method, url, **_):
        route = url.rpartition("/")[2].partition("?")[0]
        response = requests.Response()
        response.status_code = 200
        body = io.BytesIO(answered[route])
        response.raw = urllib3.HTTPResponse(body, preload_content=False)
        return response

    webui._session = SimpleNamespace(request=request)
    return webui


def use(webui):
    """Everything that the worker reads of the answers during a job."""
    catalog = webui.catalog()
    for name in ("Euler", "nope"):
        attempt(catalog.sampler, name, None)
    attempt(catalog.check, "styles", "nope", catalog.styles)
    attempt(catalog.check_script, "img2img", "script_name", "loopback", [1])
    attempt(catalog.check, "hr_upscaler", "nope", catalog.upscalers)
    of_generation(webui.progress(preview=True))
    webui.is_idle()
    webui.ram_used()
    webui.options()
    attempt(proof.check_listed, webui.sd_models(), webui.loras(), EXPECTED)
    attempt(proof.check_embeddings, webui.embeddings(), EXPECTED)
    answer = webui.draw("txt2img", {}, 60)
    for images in (1, None):
        for checkpoint in ("tinyB", None):
            expected = Expected(images, checkpoint, EXPECTED.loras, "v.pt", script_args=("x",))
            attempt(proof.check, answer.facts, answer.images, expected)
    models_used(answer.facts, Models())
    for image in answer.images:
        attempt(picture.from_engine, image, "jpeg")
        picture.thumbnail(image)


def attempt(do, *arguments):
    try:
        do(*arguments)
    except WorkerError:
        return


def as_bytes(value):
    return json.dumps(value).encode()


def test_what_a1111_answers_can_be_used():
    use(engine(**{route: as_bytes(answer) for route, answer in ANSWERS.items()}))


@pytest.mark.parametrize("route", [*ANSWERS, "info"])
def test_an_odd_answer_of_a_route_is_an_error_of_the_engine(route):
    draw = random.Random(route)
    good = {route: as_bytes(answer) for route, answer in ANSWERS.items()}
    for _ in range(120):
        if route == "info":
            odd = PICTURE | {"info": json.dumps(spoiled(INFO, draw))}
        else:
            odd = spoiled(ANSWERS[route], draw)
        changed = {"txt2img" if route == "info" else route: as_bytes(odd)}
        with suppress(EngineFault, IncompleteAnswer):  # any other error fails the test
            use(engine(**good | changed))


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe{", b"[" * 200_000, b"9" * 5000, b'{"a": ' * 100_000]
)
def test_what_is_not_json_is_an_error_of_the_engine(content):
    with pytest.raises(EngineFault):
        engine(memory=content).memory()


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (5, "it is 5, not text"),
        ("[]", "it is a list, not an object"),
        ('{"sd_model_name": 5}', "sd_model_name is 5, not text"),
        ('{"extra_generation_params": {"Lora hashes": 7}}', "Lora hashes is 7, not text"),
        ('{"infotexts": [1]}', "an item of infotexts is 1, not text"),
        ('{"index_of_first_image": "x"}', "index_of_first_image is 'x', not a whole number"),
        ("[" * 100_000, "it is nested too deep"),
        (f'{{"a": {"[" * 100}{"]" * 100}}}', "it is nested too deep"),
    ],
)
def test_facts_that_cannot_prove_a_picture_are_named(info, text):
    with pytest.raises(IncompleteAnswer, match=f"the engine's info cannot be read: {text}"):
        answers.facts(info)
