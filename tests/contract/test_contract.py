"""What the worker relies on from any engine: the fake, the embedded one, and a live A1111.

A live one is tested when WEBUI_URL names it and it has two checkpoints and a LoRA for them.
"""

import base64
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from fakes.a1111.picture import png_chunks, png_text
from fakes.a1111.process import free_port, running_a1111, wait_until, write_safetensors
from fakes.recorded import recorded
from PIL import Image

from worker.errors import WorkerError
from worker.generation import init_images, proof
from worker.generation.payload import build, engine_names
from worker.images.input_image import InputImage
from worker.job.img2img import Img2ImgRequest
from worker.job.models import Models
from worker.job.request import check
from worker.webui.client import WebUI

ROOT = Path(__file__).parents[2]
LIVE_URL = os.environ.get("WEBUI_URL")


def picture(left, right):
    """A picture whose halves have these colours."""
    image = Image.new("RGB", (64, 64), right)
    image.paste(left, (0, 0, 32, 64))
    image.save(file := io.BytesIO(), "PNG")
    return InputImage(file.getvalue(), "png", 64, 64)


INPUT_IMAGES = [picture("navy", "orange"), picture("white", "black")]
IN_BASE64 = [image.base64() for image in INPUT_IMAGES]
SMALL = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 7}
TIMEOUT = 180.0


@dataclass(frozen=True)
class Engine:
    """An engine under test: two checkpoints and a LoRA by stem; `models` if tests may change it."""

    url: str
    checkpoints: list[str]
    lora: str
    models: Path | None = None

    def post(self, body, route="txt2img"):
        return requests.post(f"{self.url}/sdapi/v1/{route}", json=body, timeout=TIMEOUT)

    def get(self, route):
        return requests.get(f"{self.url}/sdapi/v1/{route}", timeout=TIMEOUT)

    def txt2img(self, **changes):
        answer = self.post(SMALL | changes)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def info(self, **changes):
        return json.loads(self.txt2img(**changes)["info"])


@contextmanager
def fake(folder):
    for number, name in enumerate(("first", "second")):
        write_safetensors(folder / f"models/Stable-diffusion/{name}.safetensors", bytes([number]))
    write_safetensors(folder / "models/Lora/detail.safetensors")
    slow = {"fault": "slow_steps", "seconds": 0.02, "times": -1}
    with running_a1111(folder, faults=(slow,)) as a:
        yield Engine(a.url, ["first", "second"], "detail", folder / "models")


@contextmanager
def embedded(folder):
    tiny_models = pytest.importorskip("fakes.tiny_models", reason="the engine is not installed")
    for seed, name in enumerate(("first", "second")):
        path = folder / f"models/Stable-diffusion/{name}.safetensors"
        tiny_models.write(tiny_models.make_checkpoint(seed), path)
    tiny_models.write(tiny_models.make_lora(), folder / "models/Lora/detail.safetensors")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    where = ["--port", str(port), "--data-dir", str(folder), "--threads", "1"]
    with subprocess.Popen([sys.executable, "-m", "engine", *where], cwd=ROOT) as process:

        def answers():
            assert process.poll() is None
            with suppress(WorkerError):
                return WebUI(url).loras() is not None

        try:
            wait_until(answers, "the start of the embedded engine", TIMEOUT)
            yield Engine(url, ["first", "second"], "detail", folder / "models")
        finally:
            process.kill()


@contextmanager
def live(_folder):
    webui = WebUI(LIVE_URL)
    checkpoints = [model["model_name"] for model in webui.sd_models()]
    yield Engine(LIVE_URL, checkpoints, webui.loras()[0]["name"])


ENGINES = [fake, embedded] + ([live] if LIVE_URL else [])


@pytest.fixture(scope="module", params=ENGINES, ids=lambda engine: engine.__name__)
def engine(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp(request.param.__name__)) as engine:
        engine.post(SMALL)  # the default checkpoint is loaded and hashed
        yield engine


def pixels(image):
    """The PNG's pixel data without its text."""
    chunks = png_chunks(base64.b64decode(image))
    return zlib.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))


# Lists ---------------------------------------------------------------------------------------


def test_lists_have_a1111s_names_and_fields(engine):
    for route in ("samplers", "schedulers"):
        known = {item["name"]: item for item in recorded(f"get_{route}")}
        listed = engine.get(route).json()
        assert listed
        assert all(known[item["name"]].keys() == item.keys() for item in listed)
    for route in ("sd-models", "loras"):
        assert {*engine.get(route).json()[0]} == {*recorded(f"get_{route}_two")[0]}
    for route in ("upscalers", "latent-upscale-modes", "prompt-styles", "sd-vae"):
        assert isinstance(engine.get(route).json(), list)
    assert {"txt2img", "img2img"} <= engine.get("scripts").json().keys()


def test_the_worker_reads_its_catalog(engine):
    catalog = WebUI(engine.url).catalog()
    assert catalog.sampler("DPM++ 2M Karras", None) == ("DPM++ 2M", "Karras")


def test_memory_and_progress_have_a1111s_fields(engine):
    assert engine.get("memory").json()["ram"].keys() == recorded("get_memory")["ram"].keys()
    idle = engine.get("progress").json()
    assert idle.keys() == recorded("get_progress").keys()
    assert idle["state"].keys() == recorded("get_progress")["state"].keys()
    assert idle["state"]["job"] == ""


# A picture -------------------------------------------------------------------------------------


def test_an_answer_has_a1111s_keys(engine):
    answer = engine.txt2img()
    example = recorded("post_txt2img_lora_checkpoint")
    assert answer.keys() == example.keys()
    assert answer["parameters"].keys() == example["parameters"].keys()
    assert json.loads(answer["info"]).keys() == json.loads(example["info"]).keys()


def test_a_picture_carries_its_infotext(engine):
    answer = engine.txt2img(sampler_name="DPM++ 2M", scheduler="Karras", negative_prompt="dog")
    (infotext,) = json.loads(answer["info"])["infotexts"]
    assert png_text(base64.b64decode(answer["images"][0])) == infotext
    first, second, last = infotext.split("\n")
    assert (first, second) == ("a cat", "Negative prompt: dog")
    assert last.startswith("Steps: 2, Sampler: DPM++ 2M, ")
    assert "CFG scale: 7.0, Seed: 7, Size: 64x64, Model hash: " in last


def test_one_seed_gives_one_picture(engine):
    first, again, other = (engine.txt2img(seed=seed)["images"][0] for seed in (7, 7, 8))
    assert pixels(first) == pixels(again) != pixels(other)


def test_a_random_seed_is_in_info(engine):
    answer = engine.txt2img(seed=-1)
    assert answer["parameters"]["seed"] == -1
    assert json.loads(answer["info"])["seed"] >= 0


def test_each_picture_of_a_batch_has_the_next_seed(engine):
    answer = engine.txt2img(batch_size=2, n_iter=2)
    assert len(answer["images"]) == 4
    assert json.loads(answer["info"])["all_seeds"] == [7, 8, 9, 10]


def test_unknown_fields_are_ignored_and_sizes_rounded_down_to_multiples_of_8(engine):
    answer = engine.txt2img(num_inference_steps=99, width=71)
    assert answer["parameters"]["steps"] == 2
    png = base64.b64decode(answer["images"][0])
    assert struct.unpack(">II", png[16:24]) == (64, 64)


# Pictures from pictures ------------------------------------------------------------------------

TWO = {"init_images": [IN_BASE64[0]] * 2}
FULL = {"mask": IN_BASE64[1], "mask_blur": 2, "inpaint_full_res_padding": 4}
MASKED = FULL | {"inpaint_full_res": False}
FIXED = {"img2img_fix_steps": True}
BLURS = {"mask_blur": None, "mask_blur_x": 3, "mask_blur_y": 0}
FROM_PICTURES = [
    *({}, {"denoising_strength": 1, "steps": 1}, {"initial_noise_multiplier": 0.5}),
    *({"resize_mode": mode, "width": 96} for mode in (0, 1, 2, 3)),
    *(MASKED | {"inpainting_fill": fill} for fill in (0, 1, 2, 3)),
    *(FULL, FULL | {"width": 96}, FULL | {"inpainting_mask_invert": 1}, MASKED | BLURS),
    *(TWO, TWO | {"n_iter": 2}, {"batch_size": 2}, TWO | MASKED),
    *({"override_settings": one} for one in (FIXED, {"img2img_extra_noise": 0.1})),
    MASKED | {"override_settings": {"inpainting_mask_weight": 0.5}},
    *({"sampler_name": name, "steps": 8} for name in ("UniPC", "DDIM", "DPM++ 2M SDE")),
]


@pytest.mark.parametrize("fields", FROM_PICTURES, ids=" ".join)
def test_an_engine_reports_of_img2img_what_the_worker_must_find(engine, catalog, fields):
    """The worker's own request is sent, and its own proof looks at the answer."""
    job = {"task": "img2img", "init_images": IN_BASE64[:1], "steps": 4, "seed": 7} | fields
    request = check(job, Img2ImgRequest)
    pictures = {field: INPUT_IMAGES[field == "mask"] for field in request.images}
    brought = init_images.read(request, pictures)
    payload = build(request, engine_names(request, catalog), Models(), brought=brought)
    answer = WebUI(engine.url).draw(payload.route, payload.body, TIMEOUT)
    proof.check(answer.facts, answer.images, payload.expected)


def test_one_picture_gives_one_picture_and_another_one_another(engine):
    body = SMALL | {"denoising_strength": 0.5}
    first, again, other = (
        engine.post(body | {"init_images": [picture]}, "img2img").json()["images"][0]
        for picture in (IN_BASE64[0], *IN_BASE64)
    )
    assert pixels(first) != pixels(other)
    if engine.models:  # a real one takes the noise of its VAE from a generator that runs on
        assert pixels(first) == pixels(again)


@pytest.mark.parametrize(
    "fields",
    [{}, {"init_images": []}, {"init_images": ["no picture"]}, {"init_images": IN_BASE64}],
    ids=["none", "empty", "broken", "too many"],
)
def test_img2img_without_a_picture_is_an_error(engine, fields):
    answer = engine.post(SMALL | fields, "img2img")
    assert answer.status_code in {404, 500}
    assert answer.json().keys() == {"error", "detail", "body", "errors"}


# Models ----------------------------------------------------------------------------------------


def test_a_checkpoint_is_switched_by_its_stem_for_one_request(engine):
    default = engine.info()["sd_model_name"]
    other = next(name for name in engine.checkpoints if name != default)
    switched = engine.info(override_settings={"sd_model_checkpoint": other})
    assert switched["sd_model_name"] == other
    assert engine.info()["sd_model_name"] == default
    hashes = {m["model_name"]: m["sha256"] for m in engine.get("sd-models").json()}
    assert hashes[other].startswith(switched["sd_model_hash"])


def test_a_lora_is_applied_and_listed_by_its_hash(engine):
    plain = engine.txt2img()
    applied = engine.txt2img(prompt=f"a cat <lora:{engine.lora}:1>")
    listed = json.loads(applied["info"])["extra_generation_params"]["Lora hashes"]
    name, digest = listed.split(": ")
    assert (name, len(digest)) == (engine.lora, 12)
    assert pixels(applied["images"][0]) != pixels(plain["images"][0])


def test_comments_are_no_part_of_the_prompts_and_hide_tags(engine):
    hidden = f"a cat # a dog <lora:{engine.lora}:1>\n# a bird"
    commented = engine.txt2img(prompt=hidden, negative_prompt="red # blue")
    plain = engine.txt2img(prompt="a cat \n", negative_prompt="red \n")
    info = json.loads(commented["info"])
    assert (info["prompt"], info["negative_prompt"]) == ("a cat \n", "red \n")
    assert "Lora hashes" not in info["extra_generation_params"]
    assert commented["parameters"]["prompt"] == hidden
    assert pixels(commented["images"][0]) == pixels(plain["images"][0])


@pytest.mark.parametrize(
    "tag", ["<LoRA:{}:1>", "<lora :{}:1>", "<other:<lora:{}:1>", "<lora: {}:1>"]
)
def test_a_tag_in_another_spelling_applies_no_lora(engine, tag):
    info = engine.info(prompt=f"a cat {tag.format(engine.lora)}")
    assert "Lora hashes" not in info["extra_generation_params"]


@pytest.mark.parametrize("kind", ["lora", "lyco"])
def test_a_repeated_lora_is_applied_each_time_with_its_last_weight(engine, kind):
    tags = f"a cat <lora:{engine.lora}:%g> <{kind}:{engine.lora}:%g>"
    first, same, other = (
        engine.txt2img(prompt=tags % weights)["images"][0]
        for weights in ((0.1, 0.8), (0.8, 0.8), (0.8, 0.1))
    )
    assert pixels(first) == pixels(same) != pixels(other)


def test_a_weight_in_brackets_that_is_not_a_number_is_an_error(engine):
    answer = engine.post(SMALL | {"prompt": "a (cat:1.2.3)"})
    assert (answer.status_code, answer.json()["error"]) == (500, "ValueError")
    assert engine.post(SMALL | {"prompt": "a cat:1.2.3)"}).status_code == 200


def test_unknown_models_are_ignored_and_info_names_those_used(engine):
    unknown = {"override_settings": {"sd_model_checkpoint": "nope"}}
    info = engine.info(prompt="a cat <lora:nope:1>", **unknown)
    assert info["sd_model_name"] in engine.checkpoints
    assert "Lora hashes" not in info["extra_generation_params"]


def test_clip_skip_is_for_one_request(engine):
    WebUI(engine.url).set_options({"CLIP_stop_at_last_layers": 1})
    skipped = engine.info(override_settings={"CLIP_stop_at_last_layers": 2})
    assert (skipped["clip_skip"], engine.info()["clip_skip"]) == (2, 1)
    assert "Clip skip: 2" in skipped["infotexts"][0]


def test_a_new_checkpoint_is_seen_after_a_refresh(engine):
    if engine.models is None:
        pytest.skip("needs an engine whose model folder this test may change")
    folder = engine.models / "Stable-diffusion"
    shutil.copy(folder / "second.safetensors", folder / "third.safetensors")
    wanted = {"override_settings": {"sd_model_checkpoint": "third"}}
    assert engine.info(**wanted)["sd_model_name"] != "third"
    WebUI(engine.url).refresh()
    assert engine.info(**wanted)["sd_model_name"] == "third"


# Errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["err_bad_sampler", "err_missing_route", "err_options_unknown_checkpoint"]
)
def test_errors_are_those_of_a1111(engine, name):
    asked, example = recorded(name)["request"], recorded(name)
    answer = engine.post(asked["body"], asked["path"].removeprefix("/sdapi/v1/"))
    assert (answer.status_code, answer.json()) == (example["status"], example["response"])


@pytest.mark.parametrize("body", [{"steps": "abc"}, {"prompt": ["a"]}, {"override_settings": 1}])
def test_a_wrong_type_is_a_422_that_names_the_field(engine, body):
    answer = engine.post(body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", *body]


def test_a_get_on_txt2img_proves_the_route(engine):
    answer = engine.get("txt2img")
    assert (answer.status_code, answer.json()) == (405, {"detail": "Method Not Allowed"})


@pytest.mark.parametrize("body", [{"steps": 0}, {"batch_size": 0}, {"width": 0}])
def test_an_impossible_number_is_an_error_with_a1111s_keys(engine, body):
    answer = engine.post(SMALL | body)
    assert answer.status_code == 500
    assert answer.json().keys() == {"error", "detail", "body", "errors"}


# A running job ---------------------------------------------------------------------------------


@contextmanager
def running_job(engine, **changes):
    """A job of many steps; yields a list that gets its answer."""
    answers = []
    body = SMALL | {"steps": 150, "width": 256, "height": 256} | changes
    job = threading.Thread(target=lambda: answers.append(engine.post(body)))
    job.start()

    def steps():
        return engine.get("progress").json()["state"]["sampling_step"] > 0

    try:
        wait_until(steps, "the job's first step")
        yield answers
    finally:
        engine.post(None, "interrupt")
        job.join(TIMEOUT)


def test_progress_has_the_running_job_and_its_steps(engine):
    with running_job(engine):
        running = engine.get("progress?skip_current_image=true").json()
    assert running["state"]["job"] == "scripts_txt2img"
    assert running["state"]["sampling_steps"] == 150
    assert running["current_image"] is None


def test_an_interrupted_job_answers_with_the_picture_that_it_has(engine):
    """Of a hundred pictures it answers with one: it did not go on to its end."""
    with running_job(engine, n_iter=100) as answers:
        assert engine.post(None, "interrupt").json() == {}
        wait_until(lambda: answers, "the interrupted job's answer", TIMEOUT)
    assert (answers[0].status_code, len(answers[0].json()["images"])) == (200, 1)
    assert WebUI(engine.url).is_idle()


def test_a_second_job_waits_for_the_first(engine):
    """When the second one is answered, the first one, which is longer, does not run any more."""
    with running_job(engine, steps=20):
        engine.info()
        assert WebUI(engine.url).is_idle()


def test_an_interrupt_while_idle_does_not_affect_the_next_job(engine):
    engine.post(None, "interrupt")
    first, second = engine.txt2img(), engine.txt2img()
    assert pixels(first["images"][0]) == pixels(second["images"][0])
