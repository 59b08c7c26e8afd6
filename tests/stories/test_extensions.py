"""Jobs with ControlNet and ADetailer: from the job's references to the proof of each unit."""

import base64
import json

import pytest
from fakes import model_files
from fakes.a1111.picture import png
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import SMALL, completed, failed, png_size, running_worker

from worker.formats.model_file import ModelFile

EDGES = {
    "control_model.input_hint_block.0.weight": (1, 3, 3, 3),
    f"control_model.input_blocks.5.1.{model_files.CROSS}": (1, 768),
}
FOR_SDXL = EDGES | {"control_model.label_emb.0.0.weight": (1, 1)}
PICTURE = base64.b64encode(png(64, 64, b"\0\0\0", "")).decode()
CANNY = {"module": "canny", "image": f"data:image/png;base64,{PICTURE}"}
DETAILER = {"ADetailer": {"args": [{"ad_model": "mediapipe_face_full"}]}}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    store = folder / "models/ControlNet"
    store.mkdir(parents=True)
    for name, shapes in (("edges_sd15", EDGES), ("edges_xl", FOR_SDXL)):
        (store / f"{name}.safetensors").write_bytes(model_files.safetensors(shapes))
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(folder, plane, FAKE_A1111_EXTENSIONS="1") as running,
    ):
        yield running


def control(**unit):
    return SMALL | {"alwayson_scripts": {"ControlNet": {"args": [CANNY | unit]}}}


def test_units_are_drawn_and_proven_and_only_the_pictures_are_returned(worker):
    job = control(model="edges_sd15", weight=0.5) | {"batch_size": 2}
    job["alwayson_scripts"] |= DETAILER
    output = completed(worker.run(job))
    assert [png_size(image) for image in output["images"]] == [(64, 64)] * 2
    reported = json.loads(output["info"])["extra_generation_params"]
    path = worker.store / "ControlNet/edges_sd15.safetensors"
    name = ModelFile("controlnet", path, "edges_sd15", 0).listed_name()
    assert reported["ControlNet 0"] == f"Module: canny, Model: {name}, Weight: 0.5"
    assert reported.keys() >= {"ADetailer model"}
    assert "ADetailer model 2nd" not in reported  # A1111's default
    assert [(m["kind"], m["name"]) for m in output["models"][1:]] == [("controlnet", "edges_sd15")]
    sent = worker.requests()[-1]["body"]["alwayson_scripts"]["ControlNet"]["args"]
    assert [unit["image"] for unit in sent] == [PICTURE]


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (control(model="nope"), "MODEL_NOT_FOUND"),
        (control(model="edges_xl") | {"checkpoint": "second"}, "MODEL_MISMATCH"),
        (control(model="edges_sd15", image="AAAA"), "INVALID_INPUT"),
        (control(model="edges_sd15", weight=9), "INVALID_INPUT"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_the_engine_draws(worker, job, code):
    before = len(worker.requests())
    failed(worker.run(job), code)
    assert len(worker.requests()) == before
