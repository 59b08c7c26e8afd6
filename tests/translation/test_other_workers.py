"""Job inputs of other workers: accepted where they mean the same, or refused with the change."""

import asyncio
import json
import random
import re
from pathlib import Path

import pytest
from fakes.a1111.process import write_safetensors
from fakes.stub_engine import StubEngine, handler_with

from tests.job.test_request_properties import SOME, Draw
from worker.answer import Failure
from worker.errors import InvalidInput
from worker.job.request import check
from worker.tasks.table import TASKS
from worker.translation.comfy_workflow import MOST_NODES, SAMPLERS, SCHEDULERS, job_of
from worker.translation.diffusers_job import _SAMPLERS
from worker.translation.other_workers import understood

PICTURE = SOME[3].base64()
SHAPES = json.loads(
    Path(__file__).with_name("other_workers.json").read_text().replace("<picture>", PICTURE)
)


def read(job_input, titles=()):
    """The task, its checked input, and the notes."""
    found = understood(job_input, dict(titles))
    task = TASKS.of(found.input)
    return task.name, check(found.input, task.input), found.notes


# What becomes of each of the 34 shapes: the task, or words of the refusal that say what to do.
_SD = "/sdapi/v1/"
BY_ROUTE = {
    "/v1/download": 'Send {"task": "prefetch"} with the URL',
    "/v1/sync": "with a file of it, such as 'someone/models/model.safetensors'",
    f"{_SD}embeddings": "embeddings",
    f"{_SD}extensions": "The task `scripts` lists what the installed extensions run",
    f"{_SD}hypernetworks": "a prompt names one with a tag: <hypernet:name:1>",
    f"{_SD}latent-upscale-modes": "upscalers",
    f"{_SD}memory": "health",
    f"{_SD}sd-models": "models",
    f"{_SD}prompt-styles": "styles",
    f"{_SD}realesrgan-models": "upscalers",
    f"{_SD}schedulers": "schedulers",
    f"{_SD}script-info": "scripts",
    f"{_SD}upscalers": "upscalers",
    f"{_SD}sd-vae": "vaes",
    f"{_SD}img2img": "img2img",
    f"{_SD}txt2img": "txt2img",
    f"{_SD}interrogate": "interrogate",
    f"{_SD}refresh-checkpoints": "by itself: leave this job out",
    f"{_SD}refresh-loras": "by itself: leave this job out",
    f"{_SD}refresh-vae": "by itself: leave this job out",
    f"{_SD}options": 'Send in each job that draws: {"override_settings": {"sd_vae": ',
}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["worker"])
def test_each_known_shape_is_accepted_or_refused_with_the_exact_change(shape):
    job_input = shape["input"]
    route = job_input.get("api", {}).get("endpoint")
    expected = BY_ROUTE.get(route, "txt2img")
    if "workflow" in job_input:
        expected = "Send A1111's fields, such as"
    if " " not in expected:
        assert read(job_input)[0] == expected
        return
    with pytest.raises(InvalidInput, match=re.escape(expected)) as raised:
        read(job_input)
    assert "hf_secret" not in f"{raised.value} {raised.value.details}"


def test_most_shapes_are_accepted():
    def accepted(shape):
        try:
            read(shape["input"])
        except InvalidInput:
            return False
        return True

    assert (sum(map(accepted, SHAPES)), len(SHAPES)) == (24, 34)


SDXL = {"num_inference_steps": 25, "guidance_scale": 7.5, "num_images": 1, "scheduler": "K_EULER"}
SDXL |= {"refiner_inference_steps": 50, "strength": 0.3, "high_noise_frac": 0.8}
AS_A1111 = {"steps": 25, "cfg_scale": 7.5, "batch_size": 1, "sampler_name": "Euler"}
FROM_PICTURE = {"init_images": ["https://a.b/x.png"], "task": "img2img"}
REFINER = {"refiner_checkpoint": "x", "high_noise_frac": 0.7}
URL = {"image_url": "https://a.b/x.png"}
PROMPT = {"prompt": "a fox"}
WHOLE = {"inpaint_full_res": False, "inpainting_fill": 1}
MEANS = [
    # the job's fields -> ours, words of the notes
    ({"steps": 5}, {"steps": 5}, ()),
    ({"scheduler": "Karras"}, {"scheduler": "Karras"}, ()),
    ({"scheduler": None, "num_images": None}, {"scheduler": None}, ()),
    (SDXL | {"image_url": None}, AS_A1111, ("num_inference_steps was read as steps", "refiner_ch")),
    ({"num_outputs": 2, "sampler": "DDIM"}, {"batch_size": 2, "sampler_name": "DDIM"}, ("num",)),
    ({"steps": 20, "num_inference_steps": 20}, {"steps": 20}, ("num_inference_steps was read",)),
    ({"scheduler": "DPMSolverMultistepScheduler"},
     {"sampler_name": "DPM++ 2M", "scheduler": "Uniform"}, ("with the scheduler 'Uniform'",)),
    ({"scheduler": "KarrasDPM"}, {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}, ("'Karr",)),
    ({"scheduler": "K_EULER", "sampler_name": "Euler"}, {"sampler_name": "Euler"}, ("'K_EULER'",)),
    (PROMPT | URL | {"strength": 0.5}, PROMPT | FROM_PICTURE | {"denoising_strength": 0.5},
     ("image_url was read as init_images, strength was read as denoising_strength.",)),
    (PROMPT | {"image": "aGk=", "mask_image": "aGk="},
     PROMPT | {"task": "img2img", "init_images": ["aGk="], "mask": "aGk="} | WHOLE,
     ("image was read as", "the mask is of the whole picture")),
    (PROMPT | URL | {"mask": "aGk=", "inpaint_full_res": True},
     PROMPT | FROM_PICTURE | {"mask": "aGk=", "inpaint_full_res": True}, ("image_url was read",)),
    ({"guidance_scale": 0, "clip_skip": 1}, {"cfg_scale": 1, "clip_skip": 1},
     ("guidance_scale 0 was read as 1", "clip_skip 1 was read as A1111's")),
    ({"guidance_scale": "0.5"}, {"cfg_scale": 1}, ("guidance_scale 0.5 was read as 1",)),
    ({"guidance_scale": -1}, {"cfg_scale": -1}, ("guidance_scale was read as cfg_scale",)),
    ({"cfg": 0}, {"cfg_scale": 0}, ("cfg was read as cfg_scale.",)),  # ComfyUI's means the same
    (PROMPT | URL | {"width": 9, "num_inference_steps": 25, "refiner_inference_steps": 50},
     PROMPT | FROM_PICTURE | {"steps": 50}, ("refiner_inference_steps was read as steps", "width")),
    ({"enable_hr": True, "strength": 0.5}, {"enable_hr": True, "denoising_strength": 0.5}, ("s",)),
    ({"strength": 0.5}, {}, ("strength has no effect: the job has no picture",)),
    (REFINER, {"refiner_checkpoint": "x", "refiner_switch_at": 0.7}, ("high_noise_frac was read",)),
    ({"sd_model_checkpoint": "x", "sd_vae": "None"}, {"checkpoint": "x", "vae": "None"}, ("sd",)),
]  # fmt: skip


@pytest.mark.parametrize(("job", "ours", "words"), MEANS, ids=str)
def test_names_of_diffusers_are_read_as_ours_with_a_warning(job, ours, words):
    found = understood(job)
    assert found.input == ours
    assert bool(found.notes) == bool(words)
    assert all(word in " ".join(found.notes) for word in words)


@pytest.mark.parametrize("task", ["upscale", "interrogate", "batch", "models", "nope"])
def test_the_other_tasks_keep_their_fields(task):
    job = {"task": task, "image": "aGk=", "num_inference_steps": 5, "workflow": {}}
    assert understood(job) == (job, ())


HF = "https://huggingface.co/a/b/resolve/main/x.safetensors"
API = {"method": "POST", "endpoint": "/sdapi/v1/txt2img"}
OF = "override_settings"


def api(route, payload=None, method="POST", **beside):
    payload = {} if payload is None else {"payload": payload}
    return {"api": {"method": method, "endpoint": route}, **payload, **beside}


def download(path, url=HF):
    return api("/v1/download", {"source_url": url, "download_path": path})


ROUTES = [
    (api("/sdapi/v1/txt2img", {"prompt": "x", "foo": 1}, output={"format": "webp"}, timeout=9),
     {"task": "txt2img", "prompt": "x", "output": {"format": "webp"}, "timeout": 9}),
    (api("sdapi/v1/extra-single-image", {"image": "aGk=", "upscaler_1": "Lanczos"}),
     {"task": "upscale", "image": "aGk=", "upscaler_1": "Lanczos", "resize_mode": 0}),
    (api("/sdapi/v1/png-info", {"image": "aGk="}), {"task": "png_info", "image": "aGk="}),
    (api("/sdapi/v1/loras", None, "GET", limit=5), {"task": "loras", "limit": 5}),
    (api("/sdapi/v1/options", {}, "GET"), {"task": "health"}),
    (api("/sdapi/v1/progress?skip_current_image=true", {}, "get"), {"task": "health"}),
    (api("/sdapi/v1/txt2img", {OF: {"sd_model_checkpoint": "Demo shapes"}}),
     {"task": "txt2img", "template": "demo-shapes"}),
    (download("/sd/models/Lora/fox.safetensors"),
     {"task": "prefetch", "template": None, "loras": [{"url": HF, "filename": "fox.safetensors"}]}),
    (download("C:\\sd\\models\\Stable-diffusion\\x.ckpt"),
     {"task": "prefetch", "template": None, "checkpoint": {"url": HF, "filename": "x.ckpt"}}),
]  # fmt: skip


@pytest.mark.parametrize(("job", "ours"), ROUTES, ids=str)
def test_routes_of_a1111_run_our_task_and_a_warning_names_it(job, ours):
    found = understood(job, {"Demo shapes": "demo-shapes"})
    assert found.input == ours
    assert f"was read as the task {ours['task']!r}" in found.notes[0]
    assert any("foo has no effect" in note for note in found.notes) == ("foo" in str(job))


CHANGES = [
    ({"steps": 20, "num_inference_steps": 30},
     "steps = 20 and num_inference_steps = 30 are two names for one value. Send steps alone."),
    ({"num_inference_steps": 5, "inference_steps": 6}, "are two names for one value"),
    ({"scheduler": "K_EULER", "sampler_name": "DDIM"}, "names the sampler 'Euler', and"),
    ({"scheduler": "DPMSolverSinglestep"}, "has no counterpart in A1111. Leave it out, or send"),
    (PROMPT | URL | {"init_images": ["aGk="]}, "init_images = ['aGk='] and image_url"),
    (REFINER | {"refiner_switch_at": 0.5}, "refiner_switch_at = 0.5 and high_noise_frac = 0.7"),
    (REFINER | {"refiner_inference_steps": 5}, "A1111's refiner draws the last part of `steps`"),
    (api("/sdapi/v1/txt2img"), "payload is missing. Send the fields of A1111 in it."),
    (api("/sdapi/v1/txt2img", [1]), "payload = [1] is not an object."),
    (api("/sdapi/v1/txt2img", {"timeout": 5}, timeout=9), "timeout = 9 stands beside payload"),
    (api("/sdapi/v1/txt2img", {}, foo=9), "foo is not a known field"),
    (api("/sdapi/v1/options", {"sd_model_checkpoint": "https://a.b/x?token=hunter2"}),
     'Send in each job that draws: {"checkpoint": "https://a.b/x?..."}'),
    (api("/sdapi/v1/options", {"font": "x"}), "Leave this job out."),
    (api("/sdapi/v1/server-kill", {}), "Only the operator can change that"),
    (api("/reactor/image", {}), "This worker has the tasks 'txt2img', "),
    (api("/sdapi/v1/txt2img", {"enable_hr": True}), "enable_hr needs denoising_strength"),
    (download("/sd/models/ESRGAN/x.pth"), "puts any file anywhere; a job here names models."),
    ({"api": {"endpoint": 5}}, "api belongs to the form"),
    ({"api": API, "payload": {}, "task": "txt2img"}, "api belongs to the form"),
    ({"workflow": "x"}, "workflow is ComfyUI's"),
    ({"workflow": {}}, "Send A1111's fields"),
    ({"prompt": [[[]]] * 3, "a": {str(n): n for n in range(3_000)}}, "more than 2,000 keys"),
]  # fmt: skip


@pytest.mark.parametrize(("job", "words"), CHANGES, ids=lambda value: str(value)[:70])
def test_what_does_not_mean_the_same_is_refused_with_the_change(job, words):
    with pytest.raises(InvalidInput, match=re.escape(words)) as raised:
        read(job)
    assert "hunter2" not in f"{raised.value} {raised.value.details}"


def test_the_samplers_of_others_are_a1111s(catalog):
    names = {*SAMPLERS.values(), *(sampler for sampler, _ in _SAMPLERS.values())}
    labels = {*SCHEDULERS.values(), *(label for _, label in _SAMPLERS.values())} - {None}
    assert names <= {*catalog.samplers.values()}
    assert labels <= {*catalog.schedulers.values()}


@pytest.mark.parametrize(
    ("job", "is_quick"),
    [
        (api("/sdapi/v1/loras", {}, "GET"), True),
        (api("/sdapi/v1/png-info", {"image": PICTURE}), True),
        (api("/sdapi/v1/txt2img", {}), False),
        (api("/sdapi/v1/options", {}), True),  # it is refused at once
        ({"task": "batch", "inputs": [api("/sdapi/v1/loras", {}, "GET")]}, True),
        ({"task": "batch", "inputs": [api("/sdapi/v1/img2img", {})]}, False),
    ],
)
def test_a_list_in_another_form_does_not_wait_for_a_picture(job, is_quick):
    assert TASKS.is_quick(job) == is_quick


# ComfyUI ------------------------------------------------------------------------------------------


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": "x"}}


def graph(*lora, sampler=None, **more):
    """The workflow that ComfyUI starts with; with LoRAs, and with nodes in place of its own."""
    model, clip, nodes = ["4", 0], ["4", 1], {}
    for number, (kind, one) in enumerate(lora, 100):
        nodes[str(number)] = node(kind, model=model, clip=clip, **one)
        model = [str(number), 0]
        clip = clip if kind == "LoraLoaderModelOnly" else [str(number), 1]
    given = {"seed": 5, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal"}
    given |= {"denoise": 1, "model": model, "positive": ["6", 0], "negative": ["7", 0]}
    given |= {"latent_image": ["5", 0]} | (sampler or {})
    nodes |= {
        "3": node("KSampler", **given),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd\\v1.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=2),
        "6": node("CLIPTextEncode", text="a fox", clip=clip),
        "7": node("CLIPTextEncode", text="", clip=clip),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="x", images=["8", 0]),
    }
    return nodes | more


PLAIN = {"prompt": "a fox", "negative_prompt": "", "seed": 5, "steps": 20, "cfg_scale": 8}
PLAIN |= {"sampler_name": "Euler", "scheduler": "Uniform", "checkpoint": "sd/v1.safetensors"}
SIZE = {"width": 512, "height": 768, "batch_size": 2}
FOX = ("LoraLoader", {"lora_name": "fox", "strength_model": 0.8, "strength_clip": 0.8})
HAT = ("LoraLoader", {"lora_name": "hat", "strength_model": 1, "strength_clip": 0.5})
ONLY = ("LoraLoaderModelOnly", {"lora_name": "only", "strength_model": 1})
LORAS = [{"name": "fox", "scale": 0.8}, {"name": "hat", "scale": 1, "te": 0.5}]
SKIP = {"10": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["4", 1])}
SKIP |= {name: node("CLIPTextEncode", text="", clip=["10", 0]) for name in "67"}
PIXELS = {"5": node("VAEEncode", pixels=["10", 0]), "10": node("LoadImage", image="x.png")}
OWN_VAE = {"8": node("VAEDecode", vae=["10", 0]), "10": node("VAELoader", vae_name="v.pt")}
GRAPHS = [
    (graph(), PLAIN | SIZE),
    (graph(FOX, HAT), PLAIN | SIZE | {"loras": LORAS}),
    (graph(ONLY), PLAIN | SIZE | {"loras": [{"name": "only", "scale": 1, "te": 0}]}),
    (graph(**SKIP), PLAIN | SIZE | {"prompt": "", "clip_skip": 2}),
    (graph(**OWN_VAE), PLAIN | SIZE | {"vae": "v.pt"}),
    (graph(sampler={"sampler_name": "dpmpp_2m", "scheduler": "karras"}),
     PLAIN | SIZE | {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}),
    (graph(sampler={"sampler_name": "ddim", "scheduler": "karras"}),
     PLAIN | SIZE | {"sampler_name": "Euler", "scheduler": "Karras"}),
    (graph(sampler={"denoise": 0.4}, **PIXELS),
     PLAIN | {"task": "img2img", "denoising_strength": 0.4, OF: {"img2img_fix_steps": True},
              "init_images": ["<the picture in base64, or its https URL>"]}),
]  # fmt: skip
NOT_PLAIN = [
    graph(**{"10": node("FluxGuidance", guidance=3.5)}),
    graph(**{"10": node("KSampler")}),
    graph(sampler={"scheduler": "beta"}),
    graph(sampler={"sampler_name": "uni_pc", "scheduler": "karras"}),  # A1111 ignores it
    graph(sampler={"denoise": 0.5}),
    graph(sampler={"seed": "5"}),
    graph(sampler={"model": ["100", 0]}, **{"100": node("LoraLoader", model=["100", 0])}),
    graph(**{"7": node("CLIPTextEncode", text="", clip=["8", 0])}),
    graph(**SKIP | {"7": node("CLIPTextEncode", text="", clip=["4", 1])}),
    graph(**{"4": node("CheckpointLoaderSimple")}),
    graph(**{str(number): node("PreviewImage") for number in range(20, 20 + MOST_NODES)}),
    {**graph(), "x": 5},
    {"nodes": [], "links": []},  # the form for ComfyUI's page
]


@pytest.mark.parametrize(("workflow", "job"), GRAPHS, ids=range(len(GRAPHS)))
def test_a_plain_workflow_is_refused_with_the_job_that_means_the_same(workflow, job):
    with pytest.raises(InvalidInput) as raised:
        understood({"workflow": workflow, "images": []})
    assert raised.value.details["instead"] == job
    text = re.search(r"Send this input instead: (\{.*\})\.", str(raised.value))[1]
    sent = json.loads(text) | ({"init_images": ["aGk="]} if "init_images" in job else {})
    read(sent)


@pytest.mark.parametrize("workflow", NOT_PLAIN, ids=range(len(NOT_PLAIN)))
def test_another_workflow_is_refused_with_what_a_job_has(workflow):
    assert job_of(workflow) is None
    with pytest.raises(InvalidInput, match="checkpoint` and `loras` name the models") as raised:
        understood({"workflow": workflow})
    assert ("its nodes 'FluxGuidance'" in str(raised.value)) == ("Flux" in str(workflow))


# Whole jobs ---------------------------------------------------------------------------------------


TXT2IMG = api("/sdapi/v1/txt2img", {"prompt": "a fox", "foo": 1})
UPSCALED = api("/sdapi/v1/extra-single-image", {"image": PICTURE, "upscaler_1": "Lanczos"})
JOBS = [
    # the job, a key of its answer
    (PROMPT | {"num_inference_steps": 5}, "images"),
    (TXT2IMG, "images"),
    (UPSCALED, "images"),
    (api("/sdapi/v1/png-info", {"image": PICTURE}), "info"),
    (api("/sdapi/v1/interrogate", {"image": PICTURE}), "caption"),
    (api("/sdapi/v1/samplers", {}, "GET"), "samplers"),
    (api("/sdapi/v1/memory", {}, "GET"), "engine"),
    ({"task": "batch", "inputs": [TXT2IMG]}, "results"),
]


@pytest.fixture
def answers(catalog, tmp_path):
    """The answers of whole jobs."""

    async def run(jobs):
        built = handler_with(StubEngine(catalog, tmp_path), tmp_path)
        return [await built({"id": "a", "input": job}) for job in jobs]

    return lambda *jobs: asyncio.run(run(jobs))


def test_the_notes_are_the_first_warnings_of_the_answer(answers):
    for (_, key), found in zip(JOBS, answers(*(job for job, _ in JOBS)), strict=True):
        assert key in found
        [one] = found.get("results", [found])
        assert "was read as" in one["warnings"][0]
        assert sum("was read as" in warning for warning in one["warnings"]) == 1


def test_a_title_names_its_template_unless_a_checkpoint_has_that_name(catalog, tmp_path):
    write_safetensors(tmp_path / "models/Stable-diffusion/Fox.safetensors")
    write_safetensors(tmp_path / "models/Stable-diffusion/red foxes.safetensors")
    checkpoint = {"filename": "Fox.safetensors"}
    templates = {name: {"name": name, "checkpoint": checkpoint} for name in ("Fox", "Red foxes")}
    (tmp_path / "t.json").write_text(json.dumps({"templates": templates}))
    handler = handler_with(StubEngine(catalog, tmp_path), tmp_path, tmp_path / "t.json")
    used = {}
    for name in ("Fox", "Red foxes", "red foxes"):
        job = api("/sdapi/v1/txt2img", {OF: {"sd_model_checkpoint": name}})
        used[name] = asyncio.run(handler({"id": "a", "input": job})).get("template")
    assert used == {"Fox": None, "Red foxes": "Red foxes", "red foxes": None}


def test_a_failure_says_what_was_read_as_what(answers):
    found, *ours = answers({"num_inference_steps": 0}, {"steps": 0}, {"task": "samplers"}, PROMPT)
    assert found["detail"] == found["error"] == "INVALID_INPUT: steps = 0: must be at least 1."
    assert found["warnings"] == ["num_inference_steps was read as steps."]
    Failure.model_validate(found)
    assert [one.get("warnings") for one in ours] == [None, None, []]


class OtherDraw(Draw):
    """Draws job inputs with the names and forms of other workers."""

    def other(self):
        names = [*MEANS_NAMES, "prompt", "steps", "task", "api", "payload", "workflow", "images"]
        drawn = {n: self.field(n) for n in self.choices(names, k=self.randint(0, 7))}
        return self.choice([drawn, drawn, drawn, self.anything()])

    def field(self, name):
        routes = [
            *BY_ROUTE,
            "/sdapi/v1/options",
            "/v1/download",
            "/sdapi/v1/png-info",
            self.scalar(),
        ]
        nested = {
            "api": {"endpoint": self.choice(routes), "method": self.choice(["GET", "POST", 5])},
            "payload": self.other() if name == "payload" else {},
            "workflow": self.broken() if name == "workflow" else {},
            "task": self.choice(["txt2img", "img2img", None, "", "upscale"]),
        }
        return self.choice([nested.get(name, self.scalar())] * 4 + [self.anything()])

    def broken(self):
        """A workflow with one value of one node replaced."""
        nodes = json.loads(json.dumps(graph(FOX, **SKIP)))
        inputs = self.choice([*nodes.values()])["inputs"]
        if inputs:
            inputs[self.choice([*inputs])] = self.choice([self.anything(), ["4", 0], ["3", 0]])
        return nodes


MEANS_NAMES = sorted({name for job, _, _ in MEANS for name in job})


@pytest.mark.parametrize("inputs", [2_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_any_input_is_understood_or_refused(inputs):
    seed = 1 if inputs == 2_000 else random.SystemRandom().getrandbits(32)
    draw, ends = OtherDraw(seed), {"accepted": 0, "refused": 0}
    for _ in range(inputs):
        job_input = draw.other()
        try:
            read(job_input)
            ends["accepted"] += 1
        except InvalidInput as refused:
            json.dumps([str(refused), refused.details]).encode()
            ends["refused"] += 1
        except Exception as problem:
            raise AssertionError(f"seed {seed}: {job_input!r}") from problem
    assert min(ends.values()) > inputs / 20, ends
