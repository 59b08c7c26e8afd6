"""A body of A1111's API becomes the job that means the same, or one that is refused by name.

What A1111 itself would read from the client's body is compared with what it would read from the
body that the worker sends for the job.
"""

import json
import random
import re
from pathlib import Path

import pytest
from fakes.a1111.request import SCHEMAS, ApiError, read_request
from fakes.recorded import recorded

from tests.job.test_request_properties import SOME, Draw
from worker.config.webui_config import OVERRIDABLE
from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.generation import init_images
from worker.generation.payload import build, engine_names
from worker.job.img2img import Img2ImgOptions
from worker.job.models import Models
from worker.job.prompt import without_comments
from worker.job.request import OverrideSettings, check
from worker.tasks.table import TASKS
from worker.translation.a1111_body import MOST_NOTES, to_job
from worker.translation.a1111_options import PICTURE_OPTIONS

PICTURE = SOME[3].base64()
BODIES = json.loads(
    Path(__file__).with_name("bodies.json").read_text().replace("<picture>", PICTURE)
)
DRAWING = ("txt2img", "img2img")
DEFAULTS = OVERRIDABLE | PICTURE_OPTIONS


def sent(route, body, catalog, options=()):
    """What the worker sends to A1111 for this body, and the job's notes."""
    job, notes = to_job(route, body, dict(options))
    request = check(json.loads(json.dumps(job)), TASKS[job["task"]].input)
    brought = None
    if route == "img2img":
        brought = init_images.read(request, dict.fromkeys(request.images, SOME[3]))
    model = ModelFile("checkpoint", Path("/store/x.safetensors"), "x", 1)
    models = Models(
        checkpoint=request.checkpoint and model,
        refiner=request.refiner_checkpoint and model,
        hr_checkpoint=request.second_pass and request.second_pass.hr_checkpoint_name and model,
        vae=request.vae and model,
    )
    return build(request, engine_names(request, catalog), models, brought=brought).body, notes


NOT_DRAWN = {
    *("sampler_index", "image_cfg_scale", "comments", "send_images", "save_images", "init_images"),
    *("do_not_save_samples", "do_not_save_grid", "force_task_id", "include_init_images", "mask"),
    *("override_settings_restore_afterwards", "mask_blur"),
    "disable_extra_networks",  # the worker leaves the tags out itself
    "hr_checkpoint_name",  # the worker sends the name of the file that it found
}
SIDES = {"mask_blur_x", "mask_blur_y"}
OF_MASK = SIDES | {"mask_round", "inpainting_fill", "inpaint_full_res", "inpainting_mask_invert"}
OF_MASK |= {"inpaint_full_res_padding"}


def drawn(route, body, catalog):
    """What decides the picture in the request that A1111 reads, in one spelling."""
    params, defaults = read_request(body, route), read_request({}, route)
    found = {name: defaults[name] if one is None else one for name, one in params.items()}
    name = blank(params["sampler_name"]) or params["sampler_index"] or "Euler"
    word = (found["scheduler"] or "").casefold()  # see the notes
    scheduler = {"normal": "Uniform", "automatic": "Automatic"}.get(word, found["scheduler"])
    found["sampler_name"], found["scheduler"] = catalog.sampler(name, scheduler)
    if found.get("enable_hr") and found["hr_sampler_name"]:
        name, scheduler = found["hr_sampler_name"], found["hr_scheduler"]
        found["hr_sampler_name"], found["hr_scheduler"] = catalog.sampler(name, scheduler, "hr_")
    found["override_settings"] = dict(changed_options(body, found["override_settings"] or {}))
    found["styles"] = [one for one in found["styles"] or [] if blank(one)]
    found["width"], found["height"] = found["width"] // 8 * 8, found["height"] // 8 * 8
    if found.get("mask_blur") is not None:
        found |= dict.fromkeys(SIDES, found["mask_blur"])
    for name in {"prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt"} & found.keys():
        found[name] = without_comments(found[name] or "").strip()
    idle = ({}, {"args": []}, None)
    scripts = found["alwayson_scripts"].items()
    found["alwayson_scripts"] = {name: one for name, one in scripts if one not in idle}
    return {name: one or None for name, one in found.items() if name not in unread(found)}


def blank(text):
    """Nothing for an empty text and for the word of A1111's dropdowns."""
    return None if (text or "").strip() in {"", "None"} else text


def changed_options(body, options):
    if body.get("clip_skip") not in (None, "", 0, "0"):  # a field of other servers
        options = {"CLIP_stop_at_last_layers": int(float(body["clip_skip"])), **options}
    for name, given in options.items():
        is_number = isinstance(given, str) and re.fullmatch(r"-?\d+(\.\d+)?", given.strip())
        value = float(given) if is_number else given
        if name in DEFAULTS and value not in (None, "", DEFAULTS[name]):
            yield name, value


def unread(found):
    """The fields that A1111 does not read beside the others."""
    names = set(NOT_DRAWN)
    if blank(found["refiner_checkpoint"]) is None:
        names |= {"refiner_checkpoint", "refiner_switch_at"}
    if blank(found["script_name"]) is None:
        names |= {"script_name", "script_args"}
    if not found.get("enable_hr"):
        names |= {one for one in found if one.startswith(("hr_", "firstphase_"))}
    return names | (set() if found.get("mask") else OF_MASK)


def tables(test):
    rows = [row for row in BODIES if row["route"] in DRAWING]
    ids = [f"{row['client']}-{row['route']}" for row in rows]
    return pytest.mark.parametrize("row", rows, ids=ids)(test)


@tables
def test_a1111_draws_the_same_for_the_job_as_for_each_clients_body(row, catalog):
    route, body = row["route"], row["body"]
    ours, _ = sent(route, body, catalog)
    assert drawn(route, ours, catalog) == drawn(route, body, catalog)


@pytest.mark.parametrize("row", [row for row in BODIES if row["route"] not in DRAWING], ids=str)
def test_what_clients_send_to_the_other_routes_is_accepted(row):
    job, notes = to_job(row["route"], row["body"])
    request = check(job, TASKS[job["task"]].input)
    unknown = ["upscaling_resize_crop has no effect: A1111 v1.9.3 does not have this field."]
    assert notes == (unknown if row["client"] == "stable-diffusion-api" else [])
    if job["task"] == "upscale":
        assert (request.upscaling_resize, request.by_size) == (2, False)
        assert request.used == ["Lanczos"]


HIRES = {"enable_hr": True, "denoising_strength": 0.5}
OF, CLIP = "override_settings", "CLIP_stop_at_last_layers"
FIELDS = [
    # body, what is left of it in the job, words of the note ("": none)
    ({"negative_prompt": "", "seed": None, "styles": [], "prompt": ""}, {"prompt": ""}, ""),
    ({"foo": 1, "num_inference_steps": 9}, {}, "foo has no effect: A1111 v1.9.3 does not have"),
    ({"foo": [], "bar": None, "baz": False, "task": ""}, {}, ""),
    ({"task": "upscale"}, {}, "task has no effect"),
    ({"auth": "me:hunter2"}, {}, "auth has no effect"),
    ({"override_settings_restore_afterwards": False}, {}, "do not reach the next one"),
    ({"send_images": False}, {}, "send_images has no effect"),
    ({"do_not_save_samples": True, "do_not_save_grid": True, "comments": {}}, {}, ""),
    ({"force_task_id": "a", "comments": {"a": "b"}}, {}, "a job has an id of its own"),
    ({"firstphase_width": 0, "firstphase_height": 0.0}, {}, ""),
    ({"firstphase_width": 256}, {"firstphase_width": 256}, ""),
    ({"hr_scale": 1.5}, {"hr_scale": 1.5}, ""),  # a template may have a second pass
    ({"enable_hr": False, "hr_upscaler": "x"}, {"enable_hr": False}, "hr_upscaler: no effect"),
    ({"enable_hr": "false"}, {"enable_hr": False}, ""),
    ({"tiling": 1, "enable_hr": "on"}, {"tiling": True, "enable_hr": True}, ""),
    ({"refiner_switch_at": 0.8}, {}, "no effect without refiner_checkpoint"),
    ({"sampler_index": "DDIM"}, {"sampler_name": "DDIM"}, ""),
    ({"sampler_name": "DDIM", "sampler_index": "Euler"}, {"sampler_name": "DDIM"}, ""),
    ({"sampler_name": "DDIM", "sampler_index": "Heun"}, {"sampler_name": "DDIM"}, "'Heun' has no"),
    ({"scheduler": "normal"}, {"scheduler": "Uniform"}, "'normal' was read as 'Uniform'"),
    ({"steps": "20.9"}, {"steps": 20}, "is not a whole number: 20 was used"),
    ({"steps": 20.9, "cfg_scale": "7.5"}, {"steps": 20, "cfg_scale": 7.5}, "20 was used"),
    ({"seed": "9007199254740993"}, {"seed": "9007199254740993"}, ""),
    ({"script_args": [1]}, {}, "script_args has no effect without script_name"),
    ({"script_name": "None", "script_args": []}, {}, ""),
    ({"alwayson_scripts": {"x": {"args": []}}}, {"alwayson_scripts": {}}, "'x' has no effect"),
    ({OF: {"outdir_samples": "/"}}, {}, "outdir_samples has no effect on the picture"),
    ({OF: {"sd_lora": "None", "tiling": False, "return_grid": True}}, {}, "return_grid has"),
    ({OF: {"sd_vae": "x", "tiling": True}}, {OF: {"sd_vae": "x", "tiling": True}}, ""),
    ({OF: {"lora_functional": 0}}, {OF: {"lora_functional": 0}}, ""),  # 0 is no false
    ({"clip_skip": 2, OF: {CLIP: 1}}, {OF: {CLIP: 1}}, "clip_skip has no effect beside"),
    ({OF: {"sd_model_checkpoint": "a [0123456789]"}}, {"checkpoint": "a [0123456789]"}, ""),
    ({OF: {"sd_model_checkpoint": "a" * 600}}, {"checkpoint": {"url": "a" * 600}}, ""),
    ({OF: {"sd_model_checkpoint": " Demo shapes"}}, {"template": "demo-shapes"}, ""),
    ({OF: {"sd_model_checkpoint": "demo shapes"}}, {"checkpoint": "demo shapes"}, ""),  # a file
    ({"checkpoint": "b", OF: {"sd_model_checkpoint": "a"}}, None, ""),
    ({OF: {"sd_model_checkpoint": 5}}, {OF: {"sd_model_checkpoint": 5}}, ""),
    ({OF: "x"}, {OF: "x"}, ""),
]  # fmt: skip
NAMED = {"Demo shapes": "demo-shapes"}


@pytest.mark.parametrize(("body", "left", "note"), FIELDS, ids=str)
def test_a_field_is_left_out_with_a_note_or_stays(body, left, note):
    job, notes = to_job("txt2img", body, {}, NAMED)
    assert job == {"task": "txt2img"} | (body if left is None else left)
    assert note in " ".join(notes)
    assert bool(notes) == bool(note)
    assert "hunter2" not in str(notes)


NEVER_DROPPED = [
    # body, the refusal's words (None: accepted)
    (HIRES, None),
    ({"tiling": True, "restore_faces": True, "subseed_strength": 0.5, "styles": ["film"]}, None),
    ({"refiner_checkpoint": "x", "refiner_switch_at": 0.8}, None),
    ({"script_name": "x/y/z plot", "script_args": [1]}, None),
    ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, None),
    ({"adetailer": [{"ad_model": "x"}]}, "adetailer belongs to an extension"),
    ({"controlnet_units": [{"model": "x"}]}, "controlnet_units belongs to an extension"),
    ({"infotext": "Steps: 5"}, "infotext = 'Steps: 5'"),
    ({"firstphase_width": 256}, "firstphase_width = 256"),
    ({"scheduler": "use same scheduler"}, "scheduler"),
    ({OF: {"img2img_background_color": "#000000"}}, "img2img_background_color is not a known"),
    ({OF: {"img2img_color_correction": True}}, "img2img_color_correction belongs to the task"),
    ({"enable_hr": "maybe"}, "enable_hr = 'maybe'"),
    ({"steps": "many"}, "steps = 'many'"),
]


@pytest.mark.parametrize(("body", "refusal"), NEVER_DROPPED, ids=str)
def test_what_changes_the_picture_stays_or_is_refused_by_name(body, refusal):
    job, notes = to_job("txt2img", body)
    assert {"task": "txt2img"} | body == job
    assert notes == []
    if refusal is None:
        check(job, TASKS["txt2img"].input)
        return
    with pytest.raises(InvalidInput, match=re.escape(refusal)):
        check(job, TASKS["txt2img"].input)


OPTIONS = {"sd_model_checkpoint": "a", "sd_vae": "v", "CLIP_stop_at_last_layers": 2, "font": "x"}
BOTH, OTHER, VAE = {"sd_vae": "v", CLIP: 2}, {"checkpoint": "b", "clip_skip": 1}, {"vae": "w"}


@pytest.mark.parametrize(
    ("body", "job"),
    [
        ({}, {"checkpoint": "a", OF: BOTH}),
        (OTHER, OTHER | {OF: {"sd_vae": "v"}}),
        (VAE | {"template": "t"}, VAE | {"template": "t", OF: {CLIP: 2}}),
        ({OF: {"sd_vae": "w"}}, {"checkpoint": "a", OF: BOTH | {"sd_vae": "w"}}),
        ({OF: {"sd_model_checkpoint": "b"}}, {"checkpoint": "b", OF: BOTH}),
    ],
)  # fmt: skip
def test_remembered_options_are_used_where_the_body_names_nothing_else(body, job):
    assert to_job("txt2img", body, OPTIONS) == ({"task": "txt2img", **job}, [])


def test_img2img_has_the_sizes_of_a1111_and_one_blur():
    body = {"init_images": [PICTURE], "mask": PICTURE, "mask_blur": 4, "mask_blur_x": 9}
    job, notes = to_job("img2img", body | {"enable_hr": True})
    assert (job["width"], job["height"]) == (512, 512)
    assert "mask_blur_x" not in job
    assert [note.split()[0] for note in notes] == ["enable_hr", "mask_blur_x"]


W, ONE = "upscaling_resize_w", {"resize_mode": 1}
EXTRAS = [
    (ONE | {W: 900}, ONE | {W: 900, "upscaling_resize_h": 512}, ""),
    ({W: 900}, {"resize_mode": 0, W: 900}, "has no effect with resize_mode 0"),
    ({"resize_mode": "0", "upscaling_crop": "no"}, {"resize_mode": 0, "upscaling_crop": False}, ""),
    ({"upscale_first": True, "show_extras_results": False}, {"resize_mode": 0}, ""),
    ({"prompt": "x"}, {"resize_mode": 0}, "prompt has no effect"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "job", "note"), EXTRAS)
def test_extras_have_the_size_that_a1111_reads(body, job, note):
    found, notes = to_job("extra-single-image", body)
    assert found == {"task": "upscale", **job}
    assert note in " ".join(notes)
    assert bool(notes) == bool(note)


def test_a_route_without_a_task_and_many_unknown_fields():
    with pytest.raises(InvalidInput, match="'train' is no route"):
        to_job("train", {})
    with pytest.raises(InvalidInput, match="has more than 2,000 keys"):
        to_job("txt2img", {f"f{n}": 1 for n in range(2_001)})
    _, notes = to_job("png-info", {f"f{n}": 1 for n in range(100)})
    assert len(notes) == MOST_NOTES + 1
    assert notes[-1] == "70 further fields have no effect."


def test_the_options_of_pictures_are_a1111s_with_its_defaults():
    defaults = recorded("get_options")
    assert {name: defaults[name] for name in PICTURE_OPTIONS} == PICTURE_OPTIONS
    assert not PICTURE_OPTIONS.keys() & OverrideSettings.model_fields.keys()
    assert defaults.keys() & Img2ImgOptions.model_fields.keys() >= OVERRIDABLE.keys()


class BodyDraw(Draw):
    """Draws bodies of A1111's API: its fields, ours, and others, with good and odd values."""

    def body(self, route):
        model = TASKS[route].input
        fields = self.choices(
            [*SCHEMAS[route], "foo", "checkpoint", "clip_skip"], k=self.randint(0, 9)
        )
        drawn = {}
        for field in fields:
            known = field in model.model_fields
            good = self.good(field, model) if known else self.scalar()
            odd = self.value(field, model) if known else self.anything()
            drawn[field] = self.choice([good, good, good, str(good), odd, None, ""])
        pair = self.choice([{}, {}, HIRES, {"refiner_checkpoint": "x", "refiner_switch_at": 0.5}])
        options = {OF: self.a1111_options()} if self.random() < 0.3 else {}
        needed = {"init_images": [PICTURE]} if route == "img2img" else {}
        masked = {"mask": self.choice([PICTURE, None])} if route == "img2img" else {}
        return drawn | pair | options | needed | masked

    def a1111_options(self):
        names = self.choices([*PICTURE_OPTIONS, *OVERRIDABLE, "font", "nope"], k=self.randint(0, 4))
        return {n: self.choice([DEFAULTS.get(n), DEFAULTS.get(n), self.scalar()]) for n in names}


def compare(route, body, catalog):
    """How the body ends; where A1111 and the worker both draw, they must draw the same."""
    try:
        ours, _ = sent(route, body, catalog)
    except InvalidInput as refused:
        json.dumps(str(refused)).encode()
        return "refused"
    try:
        theirs = drawn(route, body, catalog)
    except (ApiError, InvalidInput):
        return "more than A1111"
    assert drawn(route, ours, catalog) == theirs
    return "same"


@pytest.mark.parametrize("bodies", [2_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_any_body_is_refused_or_drawn_as_a1111_would(catalog, bodies):
    seed = 1 if bodies == 2_000 else random.SystemRandom().getrandbits(32)
    draw, ends = BodyDraw(seed), {}
    for _ in range(bodies):
        route = draw.choice(DRAWING)
        body = draw.body(route)
        try:
            end = compare(route, body, catalog)
        except Exception as problem:
            raise AssertionError(f"seed {seed}: {route} {body!r}") from problem
        ends[end] = ends.get(end, 0) + 1
    assert min(ends["same"], ends["refused"]) > bodies / 20, ends
