"""Job inputs of every task, in every form that a caller can send, and templates.json."""

import asyncio
import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from fakes.recorded import recorded
from fakes.stub_engine import handler_with

from tests.fuzz.draw import FromBytes
from tests.fuzz.target import target
from tests.job import test_request_properties as properties
from tests.tasks.test_any_input import CheckingEngine, Pictures, TaskDraw
from worker.delivery import s3_config
from worker.errors import ConfigError, InvalidInput, ModelNotFound
from worker.formats.model_file import ModelFile
from worker.generation import init_images
from worker.generation.catalog import Catalog
from worker.generation.payload import build, engine_names
from worker.job import template
from worker.job.models import Models
from worker.job.request import check
from worker.tasks.table import TASKS
from worker.translation import openai_images
from worker.translation.a1111_body import to_job
from worker.translation.other_workers import understood

TESTS = Path(__file__).parents[1]
BODIES = [
    row["body"] for row in json.loads((TESTS / "translation" / "bodies.json").read_text())
] + list(json.loads((TESTS / "job" / "client_bodies.json").read_text()).values())
FOREIGN = [
    row["input"] for row in json.loads((TESTS / "translation" / "other_workers.json").read_text())
]
PICTURE = next(iter(properties.PICTURES))
MODEL = {"url": "https://civitai.com/models/1", "filename": "x.safetensors", "sha256": "a" * 64}
OWN = [
    {"prompt": "a fox", "steps": 20, "loras": [MODEL | {"scale": 0.5}, "x"], "checkpoint": "x"},
    {"task": "img2img", "init_images": [PICTURE], "mask": PICTURE, "denoising_strength": 0.5},
    {"task": "upscale", "image": PICTURE, "upscaler_1": "Lanczos", "upscaling_resize": 2},
    {"task": "interrogate", "image": PICTURE, "model": "clip"},
    {"task": "png_info", "image": PICTURE},
    {"task": "batch", "inputs": [{"prompt": "a"}, {"task": "health"}]},
    {"task": "prefetch", "checkpoint": MODEL, "loras": [MODEL], "vae": "x", "embeddings": ["x"]},
    *({"task": name, "search": "x", "limit": 3} for name in ("models", "samplers", "styles")),
    *({"task": name} for name in ("health", "schema", "templates")),
    {"prompt": "{2$$a|b} __c__", "wildcards": True, "seed": 1, "hr_prompt": "x", "enable_hr": True},
    {"prompt": "a", "output": {"delivery": "put", "urls": ["https://x.y/a"], "format": "jpeg"}},
    {"prompt": "a", "override_settings": {"sd_vae": "x"}, "alwayson_scripts": {"x": {"args": []}}},
]
FIELDS = sorted({name for one in TASKS for name in one.input.model_fields})
TITLES = {"Foxes": "fox", "x": "y"}
OPENAI = [
    {"model": "default", "prompt": "a fox", "size": "1024x1024", "n": 2, "stream": False},
    {
        "prompt": "a fox",
        "image": [{"image_url": PICTURE}],
        "mask": PICTURE,
        "output_format": "webp",
    },
    {"prompt": "a", "extra_body": {"steps": 3}, "output_compression": 50, "background": "auto"},
    {"prompt": "a", "response_format": "b64_json", "partial_images": 1, "quality": "hd"},
]
SERVED = openai_images.ServedModels({"fox": "Foxes"}, ["x.safetensors", "a/b.ckpt"])
TEMPLATES = [
    {
        "templates": {
            "fox": {
                "name": "Foxes",
                "description": "x",
                "checkpoint": {"name": "x", "url": "https://x.y/z", "filename": "z.safetensors"},
                "loras": [{"name": "l", "url": "civitai:1@2", "scale": 1.5}],
                "defaults": {"steps": 25, "negative_prompt": "blurry", "enable_hr": True},
            },
        },
        "default_template": "fox",
    },
]


def few(value):
    """The same JSON with only the first items of each part: a large document is slow to change."""
    if isinstance(value, dict):
        return {name: few(one) for name, one in [*value.items()][:12]}
    return [few(one) for one in value[:3]] if isinstance(value, list) else value


@cache
def catalog():
    """The names that A1111 v1.9.3 knows."""
    names = ("samplers", "schedulers", "upscalers", "scripts")
    routes = {"latent_modes": "latent-upscale-modes", "script_info": "script-info"}
    routes |= {"styles": "prompt-styles"} | {name: name for name in names}
    return Catalog.from_answers(
        **{name: recorded(f"get_{route}") for name, route in routes.items()}
    )


def parsed(document):
    """The JSON as the worker reads it; None if it does not."""
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        return None


def read_job(job_input):
    """A job's input from its arrival to the request for the engine."""
    understood_as = understood(job_input, TITLES)
    TASKS.is_quick(job_input)
    task = TASKS.of(understood_as.input)
    request = check(understood_as.input, task.input)
    if task.name in properties.DRAWING:
        compose(request, task.name)
    return request


def compose(request, task):
    """The request for the engine, as far as it needs no files."""

    def found(wanted, kind="checkpoint"):
        return ModelFile(kind, Path("/store/x.safetensors"), "x", 1) if wanted else None

    brought = None
    if task == "img2img":
        pictures = {
            field: properties.PICTURES.get(text, properties.SOME[0])
            for field, text in request.images.items()
        }
        brought = init_images.read(request, pictures)
    models = Models(
        checkpoint=found(request.checkpoint),
        loras=tuple((found(lora, "lora"), lora) for lora in request.loras),
        vae=found(request.vae, "vae"),
    )
    names = engine_names(request, catalog())
    composed = build(request, names, models, catalog().styles, brought=brought)
    json.dumps(composed.body, allow_nan=False).encode()


def check_message(error):
    """A message is one short line of text, whatever the input was."""
    text = str(error)
    text.encode()
    assert len(text) < 6_000, len(text)
    assert "\n" not in text.replace("\\n", ""), text


@target(seconds=1.0)
def job_json(draw):
    """JSON of any shape as a job's input."""
    document = draw.json([*OWN, *BODIES, *FOREIGN], FIELDS)
    try:
        read_job(parsed(document))
    except InvalidInput as error:
        check_message(error)


class JobDraw(FromBytes, properties.Draw):
    """The job inputs of `test_request_properties`, drawn from bytes."""


class BesideDraw(FromBytes, TaskDraw):
    """The job inputs of `test_any_input`, drawn from bytes."""


@target(seconds=1.0)
def job_fields(draw):
    """Fields of the right names, most of them with values of the right types."""
    try:
        read_job(JobDraw(draw.rest()).job_input())
    except InvalidInput as error:
        check_message(error)


@cache
def beside():
    """A handler with an engine that checks requests and makes no pictures, and its event loop."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    built = handler_with(CheckingEngine(catalog(), folder), folder)
    return built, asyncio.new_event_loop()


@target(seconds=1.0)
def job_beside(draw):
    """The whole handler for the tasks that draw nothing."""
    built, loop = beside()
    grammar = BesideDraw(draw.rest())
    built.worker = replace(built.worker, images=Pictures(grammar))
    answer = loop.run_until_complete(built({"id": "a", "input": grammar.beside()}))
    assert answer.get("code") != "INTERNAL_ERROR", answer
    json.dumps(answer, allow_nan=False).encode()


@target(InvalidInput, ModelNotFound, seconds=1.0)
def openai(draw):
    """OpenAI's requests, and the jobs that they become."""
    body = parsed(draw.json(OPENAI, FIELDS))
    route, _ = openai_images.route_of(draw.choice([*openai_images.ROUTES, draw.text()]))
    asked = openai_images.read(route, body)
    json.dumps(openai_images.for_queue(body))
    job = {**asked.job, "task": asked.task}
    if asked.image:
        job["init_images"] = [asked.image]
    if asked.model:
        job |= SERVED.fields(asked.model)
    check(job, TASKS[asked.task].input)


@target(InvalidInput, seconds=1.0)
def a1111_body(draw):
    """Requests of A1111's API, and the jobs that they become."""
    routes = ("txt2img", "img2img", "extra-single-image", "png-info", "interrogate", draw.text())
    body, options = parsed(draw.json(BODIES, FIELDS)), parsed(draw.json([{"sd_vae": "x"}]))
    if isinstance(body, dict) and isinstance(options, dict):
        job, notes = to_job(draw.choice(routes), body, options, TITLES)
        assert len(notes) <= 40
        check(job, TASKS.of(job).input)


@target(ConfigError, InvalidInput, seconds=1.0)
def templates_json(draw):
    """templates.json, and a job that is completed from it."""
    document = draw.json(TEMPLATES, FIELDS)
    file = template.parse(document.decode("utf-8", "replace"))
    job = parsed(draw.json(OWN, FIELDS))
    for name, one in file.templates.items():
        if isinstance(job, dict):
            check(template.fill_in(name, one, job), TASKS["txt2img"].input)


S3 = {
    "accessId": "AKIAEXAMPLE0000",
    "accessSecret": "a-very-secret-secret",
    "bucketName": "pictures",
    "endpointUrl": "https://s3.eu-west-1.amazonaws.com",
}


@target()
def s3_config_of_job(draw):
    """The bucket that a caller names: no message may have its keys."""
    given = parsed(draw.json([S3], [*s3_config.FIELDS, *S3.values()]))
    secrets = s3_config.secrets_of(given)
    try:
        s3_config.read(given)
    except InvalidInput as error:
        for name in s3_config.FIELDS[:2]:
            if isinstance(given, dict) and len(given) <= 50 and given.get(name) == S3[name]:
                assert S3[name] in secrets
                assert S3[name] not in str(error)
        check_message(error)
