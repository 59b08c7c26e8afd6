"""What units a job may have, and what A1111 gets of them."""

import base64
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from fakes.model_files import safetensors

from worker.errors import InvalidInput, ModelNotFound, UnitNotApplied
from worker.extensions import proof, scripts
from worker.extensions.preprocessors import ANNOTATORS, BY_NAME
from worker.formats.model_file import ModelFile
from worker.generation.catalog import Catalog
from worker.job.txt2img import parse
from worker.models.finder import check_annotators

PICTURE = base64.b64encode(b"a picture's bytes").decode()
CANNY = {"module": "canny", "model": "edges", "image": PICTURE}
FACE = {"ad_model": "mediapipe_face_full"}
BOTH = Catalog(
    {"euler": "Euler"},
    {"karras": "Karras"},
    scripts={"txt2img": frozenset({"controlnet", "adetailer"})},
    detectors=frozenset({"mediapipe_face_full", "own.pt"}),
)


def of(*units, name="ControlNet"):
    return parse({"alwayson_scripts": {name: {"args": list(units)}}}).alwayson_scripts


def checked(job, **more):
    scripts.check(job, BOTH, "txt2img", **more)
    return scripts.read(job)


def sent(job, files=None):
    units = checked(job)
    return scripts.body(units, files or {}, units.pictures())


def test_a_controlnet_unit_reaches_a1111_with_its_model_its_picture_and_its_map():
    mask = {"input_image": PICTURE, "module": "inpaint", "model": "edges", "mask_image": PICTURE}
    job = of(CANNY | {"enabled": False}, CANNY | {"weight": 0.5}, mask)
    units = checked(job)
    assert list(units.wanted()) == [("controlnet", 0), ("controlnet", 1)]
    assert {wanted.ref.name for wanted in units.wanted().values()} == {"edges"}
    assert [*units.pictures()] == [
        f"alwayson_scripts.ControlNet.args.{field}" for field in ("1.image", "2.image", "2.mask")
    ]
    always = {"enabled": True, "save_detected_map": True, "image": PICTURE}
    assert sent(job, {0: "edges [01234567]", 1: "b [1]"})["ControlNet"]["args"] == [
        {"module": "canny", "weight": 0.5, "model": "edges [01234567]", **always},
        {"module": "inpaint", "model": "b [1]", "mask": PICTURE, **always},
    ]


@pytest.mark.parametrize("args", [[FACE], [True, FACE], [True, False, FACE]])
def test_a_detailer_gets_every_argument_because_defaults_would_detail_too(args):
    off = {"ad_model": "None"}
    unused = FACE | {"ad_tab_enable": False}
    job = of(*args, unused, off, name="adetailer")
    assert sent(job) == {"ADetailer": {"args": [True, False, FACE, off, off, off]}}


@pytest.mark.parametrize("args", [[], [False, FACE], [True, False, {"ad_model": "None"}]])
def test_without_an_enabled_unit_a1111_gets_no_extension(args):
    job = of(*args, name="ADetailer")
    assert sent(job) == {}
    assert proof.expected(scripts.read(job), {}, second_pass=False) is None


PAGE = {  # what clients copy from A1111's page
    "ad_use_checkpoint": False,
    "ad_checkpoint": "Use same checkpoint",
    "ad_vae": None,
    "ad_controlnet_model": "None",
    "ad_controlnet_module": "None",
    "ad_restore_face": False,
}


def test_fields_of_a1111s_page_that_have_no_effect_are_accepted():
    (detailer,) = (x for x in sent(of(FACE | PAGE, name="ADetailer"))["ADetailer"]["args"][2:3])
    assert detailer.keys() & {"ad_checkpoint", "ad_vae", "ad_controlnet_module"} == set()


REFUSED = [
    ("ControlNet", {"module": "cany"}, "args.0.module = 'cany': .*did you mean 'canny'"),
    ("ControlNet", {"module": "depth_anything"}, "not a preprocessor of this image"),
    ("ControlNet", {"weight": 3}, r"args.0.weight = 3: must be at most 2"),
    ("ControlNet", {"wieght": 1}, r"args.0.wieght is not a known field \(did you mean `weight`"),
    ("ControlNet", {"resize_mode": 1}, "args.0.resize_mode = 1: must be 'Just Resize'"),
    ("ControlNet", {"image": {"image": PICTURE}}, "args.0.image = .*: must be a text"),
    ("ControlNet", {"image": "/etc/passwd.png"}, "is not a picture; send base64"),
    ("ControlNet", {"image": None}, "args.0.image is missing"),
    ("ControlNet", {"mask": PICTURE}, "args.0.mask has no effect with the module canny"),
    ("ControlNet", {"model": "None"}, "args.0.model is missing"),
    ("ControlNet", {"module": "reference_only"}, "args.0.model has no effect with reference_only"),
    ("ControlNet", {"threshold_a": 999}, "threshold_a is 999, but canny takes 1 to 255"),
    ("ControlNet", {"processor_res": 8}, "processor_res is 8, but canny takes 64 to 2048"),
    ("ControlNet", {"guidance_start": 0.9, "guidance_end": 0.1}, "is larger than guidance_end"),
    ("ControlNet", {"ipadapter_input": ["x"]}, "ipadapter_input is not a .*field"),
    ("ADetailer", {"ad_model": "face.pt"}, "ad_model is 'face.pt', which .*ALLOW_PICKLES=true"),
    ("ADetailer", {"ad_model": "mediapipe_face_ful"}, r"\(did you mean 'mediapipe_face_full'\?\)"),
    ("ADetailer", {"ad_confidence": 3}, "args.0.ad_confidence = 3: must be at most 1"),
    ("ADetailer", {"ad_foo": 1}, "args.0.ad_foo is not a .*field"),
    ("ADetailer", {"ad_prompt": "<lora:x:1>"}, "ad_prompt has the tag '<lora:x:1>': LoRAs belong"),
    ("ADetailer", {"ad_prompt": "(a:1.2.3)"}, "ad_prompt"),
    ("ADetailer", {"ad_use_checkpoint": True}, "ad_use_checkpoint .* can only be False"),
    ("ADetailer", {"ad_controlnet_model": "x"}, "can only be 'None' here"),
    ("ADetailer", {"ad_use_sampler": True, "ad_sampler": "nope"}, "does not know sampler_name"),
    ("ADetailer", {"ad_use_sampler": True, "ad_sampler": "Euler Karras"},
     "write 'Euler', and ad_scheduler 'Karras'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "unit", "message"), REFUSED)
def test_a_unit_that_would_have_no_effect_is_refused_before_the_gpu(name, unit, message):
    good = CANNY if name == "ControlNet" else FACE
    with pytest.raises(InvalidInput, match=message):
        checked(of(good | unit, name=name))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (of("x"), "args.0 = 'x'"),
        (of(*[CANNY] * 4), "4 enabled units; at most 3"),
        (of(*[FACE] * 5, name="ADetailer"), "5 enabled units; at most 4"),
        (of(CANNY) | of(CANNY, name="controlnet"), "one extension twice"),
    ],
)
def test_arguments_that_a1111_would_drop_are_refused(job, message):
    with pytest.raises(InvalidInput, match=message):
        checked(job)


def test_controlnet_beside_a_script_cannot_be_proven():
    with pytest.raises(InvalidInput, match="beside script_name 'x/y/z plot'"):
        checked(of(CANNY), script_name="x/y/z plot")


def test_the_picture_of_an_img2img_job_stands_in_for_that_of_a_unit():
    checked(of({"module": "canny", "model": "edges"}), has_picture=True)


@pytest.mark.parametrize("name", ["ControlNet", "adetailer"])
def test_an_extension_that_is_not_installed_is_named_with_its_build_argument(name):
    with pytest.raises(InvalidInput, match="does not have the extension") as raised:
        scripts.check(of(CANNY, name=name), SimpleNamespace(scripts={}), "txt2img")
    assert f"--build-arg WITH_{name.upper()}=1" in raised.value.hint


def test_the_hash_in_a1111s_name_of_a_model_must_be_the_files(tmp_path):
    path = tmp_path / "edges.safetensors"
    path.write_bytes(safetensors(size=2 << 20))
    file = ModelFile("controlnet", path, "edges", path.stat().st_size)
    name = file.listed_name()
    for written in ("edges", name):
        units = scripts.read(of(CANNY | {"model": written}))
        assert scripts.model_names(units, {0: file}) == {0: name}
        assert units.wanted()["controlnet", 0].ref.name == "edges"
    with pytest.raises(InvalidInput, match=r"the store has 'edges \["):
        scripts.model_names(scripts.read(of(CANNY | {"model": "edges [00000000]"})), {0: file})


@pytest.mark.parametrize("pickles", [False, True])
def test_a_preprocessor_with_weights_needs_them_in_the_store(tmp_path, pickles):
    job = parse({"alwayson_scripts": {"ControlNet": {"args": [CANNY | {"module": "openpose"}]}}})
    names = BY_NAME["openpose"].weights
    for missing in names[::-1]:
        with pytest.raises(ModelNotFound, match=missing):
            check_annotators(job, tmp_path / ANNOTATORS, pickles=pickles)
        (tmp_path / ANNOTATORS / missing).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ANNOTATORS / missing).touch()
    with nullcontext() if pickles else pytest.raises(ModelNotFound):
        check_annotators(job, tmp_path / ANNOTATORS, pickles=pickles)


# Proof ------------------------------------------------------------------------------------------

UNITS = scripts.Units(
    {("args", 0): SimpleNamespace(module="canny", weight=0.5)},
    {("args", 1): SimpleNamespace(ad_model="a.pt"), ("args", 2): SimpleNamespace(ad_model="b.pt")},
)
REPORTED = {
    "ControlNet 0": "Module: canny, Model: edges [01], Weight: 0.5, Resize Mode: Just Resize",
    "ADetailer model": "a.pt",
    "ADetailer model 2nd": "b.pt",
}


def prove(reported, *, second_pass=False, returned=2):
    expected = proof.expected(UNITS, {0: "edges [01]"}, second_pass=second_pass)
    proof.check({"extra_generation_params": reported}, returned, 1, expected)
    return expected.maps


def test_units_in_the_infotext_with_a_map_for_each_pass_are_proven():
    assert prove(REPORTED) == 1
    assert prove(REPORTED, second_pass=True) == 2


@pytest.mark.parametrize(
    ("reported", "returned", "message"),
    [
        ({}, 2, "expected ControlNet 0 with Module 'canny', but the engine reports None"),
        (REPORTED | {"ControlNet 0": "Module: canny"}, 2, "with Model 'edges"),
        (REPORTED | {"ControlNet 0": REPORTED["ControlNet 0"].replace("0.5", "1.0")}, 2, "Weight"),
        (REPORTED | {"ADetailer model 2nd": "c.pt"}, 2, "ADetailer model 2nd .*'b.pt'.*'c.pt'"),
        (REPORTED | {"ADetailer error": "ValueError"}, 2, "ADetailer error: ValueError"),
        (REPORTED | {"ControlNet error": "x" * 999}, 2, r"ControlNet error: x{200}\. "),
        (REPORTED, 1, "none of 1 maps"),  # what A1111 does without a picture or a model
    ],
)
def test_a_unit_that_is_not_proven_is_an_error(reported, returned, message):
    with pytest.raises(UnitNotApplied, match=message):
        prove(reported, returned=returned)
