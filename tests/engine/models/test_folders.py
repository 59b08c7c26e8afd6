"""Diffusers folders as checkpoints, each drawn from for real."""

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
from engine.models.checkpoints import Checkpoints
from engine.models.loading import read_pipeline

# diffusers' schedulers; the engine's own process shows no such warnings
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

PLAIN, HALF = "plain v1.0", "sub/half v1.0"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """One file, and two folders with the very same weights."""
    data = tmp_path_factory.mktemp("data")
    models = data / "models/Stable-diffusion"
    tiny_models.write(tiny_models.make_checkpoint(), models / "file.safetensors")
    pipe = read_pipeline(models / "file.safetensors")
    pipe.save_pretrained(models / PLAIN)
    pipe.to(torch.float16).save_pretrained(models / HALF, variant="fp16")
    for name in ("damaged", "without text", "other kind", "no json"):
        shutil.copytree(models / HALF, models / name)
    next((models / "damaged/unet").glob("*.safetensors")).write_bytes(b"<html>404</html>")
    shutil.rmtree(models / "without text/text_encoder")
    (models / "no json/model_index.json").write_text("<html>")
    engine = Engine(data, Options(data / "config.json"), threads=1)
    yield engine
    engine.close()


def draw(engine, alias):
    """The picture's text (a PNG in base64 without its metadata) and the answer's `info`."""
    settings = {"sd_model_checkpoint": alias}
    request = Txt2Img(prompt="a cat", seed=1, steps=1, width=64, height=64)
    answer = engine.txt2img(request.model_copy(update={"override_settings": settings}))
    return answer["images"][0], json.loads(answer["info"])


@pytest.mark.parametrize("name", [PLAIN, HALF])
def test_a_folder_draws_what_the_file_draws(engine, decode, name):
    picture, info = draw(engine, name)
    assert info["sd_model_name"] == name.rpartition("/")[2]
    # Where the weights lie in memory decides which kernels a CPU takes: the last bit may differ.
    difference = decode(picture).astype(int) - decode(draw(engine, "file")[0])
    assert abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.001


def test_a_folder_is_found_by_title_and_hash(engine):
    draw(engine, HALF)  # hashes it
    entry = next(e for e in engine.checkpoints.describe() if e["title"].startswith(HALF))
    for alias in (entry["title"], entry["hash"], entry["sha256"], "half v1.0", "sub_half v1.0"):
        info = draw(engine, alias)[1]
        assert (info["sd_model_name"], info["sd_model_hash"]) == ("half v1.0", entry["hash"])


def test_a_folder_that_was_made_of_a_file_has_the_files_hash(tmp_path):
    """`bake --diffusers` names it so, and the worker proves pictures by the file's hash."""
    sha256 = "0123456789abcdef" * 4
    models = tmp_path / "models/Stable-diffusion"
    models.mkdir(parents=True)
    for name in (sha256, "by hand"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text("{}")
        (models / f"fox of {name[:2]}").symlink_to(tmp_path / name)
    checkpoints = Checkpoints(models)

    by_hand, made = checkpoints.all[1], checkpoints.all[0]
    assert checkpoints.sha256(made) == sha256
    assert checkpoints.sha256(by_hand) not in {sha256, "by hand"}


def test_a_checkpoint_is_given_up_before_the_next_one_is_read(engine, monkeypatch):
    """A card, or a machine, has memory for one that fits it, and not for two."""
    draw(engine, PLAIN)
    before, alive = weakref.ref(engine._model.pipe.unet), []

    def read(path):
        alive.append(before() is not None)
        return read_pipeline(path)

    monkeypatch.setattr("engine.models.loaded_model.read_pipeline", read)
    draw(engine, HALF)
    assert alive == [False]


@pytest.mark.parametrize("name", ["damaged", "without text", "no json"])
def test_a_damaged_folder_is_a_short_error_and_does_not_poison(engine, decode, name):
    before = draw(engine, PLAIN)[0]
    with pytest.raises(RuntimeError) as caught:
        draw(engine, name)
    assert str(caught.value).startswith(f"cannot load checkpoint {name!r}: ")
    assert len(str(caught.value)) < 300
    assert (decode(draw(engine, PLAIN)[0]) == decode(before)).all()


@pytest.mark.parametrize(
    "kind", ["StableDiffusionInpaintPipeline", "FluxPipeline", "my_own.Pipeline"]
)
def test_a_folder_of_another_pipeline_is_refused_in_one_sentence(engine, kind):
    index = engine.checkpoints.folder / "other kind/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": kind}))
    with pytest.raises(Unsupported) as caught:
        draw(engine, "other kind")
    expected = f"the embedded engine does not support checkpoints of the kind {kind}"
    assert str(caught.value) == expected


def test_a_folder_whose_unet_takes_a_mask_is_refused(engine):
    model = engine.checkpoints.folder / "masked"
    shutil.copytree(engine.checkpoints.folder / PLAIN, model)
    unet = tiny_models.unet(in_channels=9)
    unet.save_pretrained(model / "unet")
    engine.refresh_checkpoints()
    with pytest.raises(Unsupported, match="inpainting"):
        draw(engine, "masked")
