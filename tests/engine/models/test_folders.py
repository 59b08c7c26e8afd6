"""Diffusers folders as checkpoints, used for real pictures."""

import json
import shutil
import weakref

import pytest
import torch
from fakes import tiny_models

from engine.api.generation import Engine
from engine.api.options import Options
from engine.api.request import Txt2Img
from engine.errors import Unsupported
from engine.models.loading import read_pipeline

PLAIN, HALF = "plain v1.0", "sub/half v1.0"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """One file, two folders with the same weights, and folders that are damaged."""
    data = tmp_path_factory.mktemp("data")
    models = data / "models/Stable-diffusion"
    tiny_models.write(tiny_models.make_checkpoint(), models / "file.safetensors")
    pipe = read_pipeline(models / "file.safetensors")
    pipe.save_pretrained(models / PLAIN)
    pipe.to(torch.float16).save_pretrained(models / HALF, variant="fp16")
    for name in ("damaged", "without text", "other kind", "no json", "masked"):
        shutil.copytree(models / HALF, models / name)
    next((models / "damaged/unet").glob("*.safetensors")).write_bytes(b"<html>404</html>")
    shutil.rmtree(models / "without text/text_encoder")
    (models / "no json/model_index.json").write_text("<html>")
    shutil.rmtree(models / "masked/unet")
    tiny_models.unet(in_channels=9).half().save_pretrained(models / "masked/unet", variant="fp16")
    engine = Engine(data, Options(data / "config.json"), threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def draw(engine, decode):
    """The picture of the checkpoint with this name, and the answer's `info`."""

    def draw(alias):
        request = Txt2Img(prompt="a cat", seed=1, steps=1, width=64, height=64)
        request.override_settings = {"sd_model_checkpoint": alias}
        answer = engine.txt2img(request)
        return decode(answer["images"][0]), json.loads(answer["info"])

    return draw


@pytest.mark.parametrize("name", [PLAIN, HALF])
def test_folder_and_file_give_the_same_picture(engine, draw, name):
    picture, _ = draw(name)
    # the alignment of the weights in memory selects the CPU's kernels: the last bit may differ
    difference = picture - draw("file")[0]
    assert abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.001
    stem = name.rpartition("/")[2]
    entry = next(e for e in engine.checkpoints.describe() if e["title"].startswith(name))
    for alias in (entry["title"], entry["hash"], entry["sha256"], stem):
        info = draw(alias)[1]
        assert (info["sd_model_name"], info["sd_model_hash"]) == (stem, entry["hash"])


def test_a_checkpoint_is_freed_before_the_next_one_is_read(engine, draw, monkeypatch):
    """The memory of a GPU or of the machine may hold one checkpoint, but not two."""
    draw(PLAIN)
    before, alive = weakref.ref(engine._models._active.pipe.unet), []

    def read(path):
        alive.append(before() is not None)
        return read_pipeline(path)

    monkeypatch.setattr("engine.models.loaded_model.read_pipeline", read)
    draw(HALF)
    assert alive == [False]


def test_damaged_folders_are_short_errors_and_leave_no_trace(draw):
    before = draw(PLAIN)[0]
    for name in ("damaged", "without text", "no json"):
        with pytest.raises(RuntimeError, match=f"^cannot load checkpoint {name!r}: ") as caught:
            draw(name)
        assert len(str(caught.value)) < 300
    assert (draw(PLAIN)[0] == before).all()


def test_folders_of_another_pipeline_are_refused_and_inpainting_ones_drawn(engine, draw):
    index = engine.checkpoints.folder / "other kind/model_index.json"
    for kind in ("StableDiffusionUpscalePipeline", "FluxPipeline", "my_own.Pipeline"):
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": kind}))
        with pytest.raises(Unsupported) as caught:
            draw("other kind")
        expected = (
            f"the embedded engine does not support checkpoints of the kind {kind}: 'other kind'"
        )
        assert str(caught.value) == expected
    assert draw("masked")[0].std() > 1
