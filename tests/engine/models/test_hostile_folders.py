"""Models folders with entries that nobody should put there: the other files stay usable."""

import json
import os
import socket

import numpy as np
import pytest
import torch
from fakes import tiny_models
from safetensors.torch import save_file

from engine.api.generation import Engine
from engine.api.options import Options
from engine.api.request import Txt2Img
from engine.models import files
from engine.models.checkpoints import Checkpoint, Checkpoints
from engine.models.loaded_model import LoadedModel
from engine.models.loras import Loras, LoraUse

KINDS = {"checkpoints": Checkpoints, "LoRAs": Loras}


def touch(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def pipe(path):
    os.mkfifo(path)


def socket_file(path):
    # the name of a socket has 107 bytes at most
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


ENTRIES = {
    "pipe": pipe,
    "socket": socket_file,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to the folder above": lambda path: path.symlink_to(path.parent),
    "folder": lambda path: path.mkdir(),
    "name that is not UTF-8": lambda path: touch(path.parent / os.fsdecode(b"\xff.safetensors")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_that_is_no_file_is_left_out(tmp_path, kind, entry):
    touch(tmp_path / "sub/good.safetensors", b"x")
    ENTRIES[entry](tmp_path / "sub/bad.safetensors")
    found = KINDS[kind](tmp_path)
    assert [file.path for file in found.all] == [tmp_path / "sub/good.safetensors"]
    assert json.dumps(found.find("good").path.as_posix()).encode()


@pytest.fixture
def deep(tmp_path):
    """The first of 1,500 folders in each other; pytest itself could not remove them."""
    folders = [tmp_path]
    for _ in range(1500):
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    yield folders[1]
    for folder in reversed(folders[1:]):
        for file in folder.glob("*.safetensors"):
            file.unlink()
        folder.rmdir()


@pytest.mark.parametrize("kind", KINDS)
def test_folders_in_circles_and_without_end(tmp_path, kind, monkeypatch, deep):
    """1,500 folders in each other, and two folders that contain each other."""
    touch(tmp_path / "good.safetensors", b"x")
    for one, other in ("ab", "ba"):
        (tmp_path / one).mkdir()
        (tmp_path / one / other).symlink_to(tmp_path / other)
    touch(tmp_path / "a/in a.safetensors", b"x")
    touch(deep / "d/d/deep.safetensors", b"x")
    names = [file.path.relative_to(tmp_path).as_posix() for file in KINDS[kind](tmp_path).all]
    # A1111 lists a file under each path to it, too
    assert names == [
        *("good.safetensors", "a/in a.safetensors", "b/a/in a.safetensors"),
        "d/d/d/deep.safetensors",
    ]
    monkeypatch.setattr(files, "MAX_FOLDERS", 3)
    assert KINDS[kind](tmp_path).find("good")


def test_order_of_files_is_that_of_a1111(tmp_path):
    """The folder itself is first, numbers are numbers; of two with one name the last counts."""
    for name in ("a10/x", "a2/x", "B/x", "z2", "Z10", "x"):
        touch(tmp_path / f"{name}.safetensors", name.encode())
    touch(tmp_path / "upper.SafeTensors", b"x")
    listed = [
        path.relative_to(tmp_path).with_suffix("").as_posix() for path in files.find(tmp_path)
    ]
    assert listed == ["upper", "x", "z2", "Z10", "a2/x", "a10/x", "B/x"]
    assert Loras(tmp_path).find("x").path == tmp_path / "B/x.safetensors"
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.find("x").name == "B/x.safetensors"
    assert checkpoints.find("upper").stem == "upper"


ODD_NAMES = ["a,b:c", "[x] (y:1.2)", "日本 é", "a\nb", "-rf *", "x.vae", "'\"`$(ls)", "a" * 243]


def test_odd_names_are_listed_and_found(tmp_path):
    for name in ODD_NAMES:
        touch(tmp_path / f"{name}.safetensors", name.encode())
    loras, checkpoints = Loras(tmp_path), Checkpoints(tmp_path)
    assert {lora.name for lora in loras.all} == {*ODD_NAMES}
    # as A1111, which takes `x.vae` for a VAE
    assert {checkpoint.stem for checkpoint in checkpoints.all} == {*ODD_NAMES} - {"x.vae"}
    for name in {*ODD_NAMES} - {"x.vae"}:
        assert loras.find(name).path == checkpoints.find(name).path
    assert json.dumps([*checkpoints.describe(), *(lora.describe() for lora in loras.all)])


# ----------------------------------------------------------------------------- metadata of LoRAs

METADATA = {
    "NaN": '{"mean": NaN}',
    "Infinity": '{"a": [-Infinity]}',
    "too large": '{"a": 1e999}',
    "half a surrogate pair": '{"a": "\\ud800"}',
    "nested": '{"a":' * 20_000,
    "digits": '{"a": ' + "9" * 5000 + "}",
    "cut off": '{"a": ',
}


def test_metadata_that_no_answer_can_hold_stay_text(tmp_path):
    good = {"ss_tag_frequency": '{"cat": 3}'}
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", METADATA | good)
    (lora,) = Loras(tmp_path).all
    assert lora.metadata == METADATA | {"ss_tag_frequency": {"cat": 3}}
    assert json.dumps(lora.describe(), allow_nan=False, ensure_ascii=False).encode()


# ------------------------------------------------------------- files that change while in use


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Two checkpoints of one size, in single precision as the engine computes on a CPU."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in (0, 1):
        state = {k: v.float() for k, v in tiny_models.make_checkpoint(seed).items()}
        save_file(state, folder / f"{seed}.safetensors")
    return [(folder / f"{seed}.safetensors").read_bytes() for seed in (0, 1)]


def change(path, content, how):
    if how == "in place":
        path.write_bytes(content)
    elif how == "by rename":
        path.with_suffix(".new").write_bytes(content)
        path.with_suffix(".new").replace(path)
    else:
        path.with_suffix(".new").write_bytes(content)
        path.unlink()
        path.symlink_to(path.with_suffix(".new"))


@pytest.mark.parametrize("how", ["in place", "by rename", "as a link"])
def test_replaced_checkpoint_is_loaded_again_and_a_deleted_one_stays(
    weights, tmp_path, decode, how
):
    path = tmp_path / "models/Stable-diffusion/x.safetensors"
    touch(path, weights[0])
    engine = Engine(tmp_path, Options(tmp_path / "config.json"), threads=1)

    def draw():
        answer = engine.txt2img(Txt2Img(prompt="a cat", seed=1, steps=1, width=64, height=64))
        return decode(answer["images"][0]), json.loads(answer["info"])["sd_model_hash"]

    first, hashed = draw()
    assert np.array_equal(draw()[0], first)
    change(path, weights[1], how)
    second, other_hash = draw()
    assert other_hash != hashed
    assert not np.array_equal(second, first)
    loaded = engine._models._active
    path.unlink()
    assert np.array_equal(draw()[0], second)
    assert engine._models._active is loaded
    engine.close()


def test_a_loaded_checkpoint_does_not_depend_on_its_file(weights, tmp_path):
    """A file that is cut off while it is mapped would end the process."""
    path = tmp_path / "x.safetensors"
    touch(path, weights[0])
    model = LoadedModel.load(Checkpoint(path, path.name, ""), "")
    before = tiny_models.draw(model)
    path.write_bytes(b"")
    assert np.array_equal(tiny_models.draw(model), before)


def test_a_checkpoint_replaced_while_it_is_read_is_an_error(weights, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    touch(path, weights[0])
    monkeypatch.setattr(
        "engine.models.loaded_model.read_pipeline",
        lambda path: change(path, weights[1], "by rename"),
    )
    os.utime(path, ns=(0, 0))
    with pytest.raises(RuntimeError, match="it was replaced while it was being read: try again"):
        LoadedModel.load(Checkpoint(path, path.name, ""), "")


def test_replaced_lora_is_used_with_its_new_tensors_and_metadata(data_dir, tmp_path):
    model = tiny_models.load(data_dir / "models/Stable-diffusion/alpha.safetensors")
    path = tmp_path / "x.safetensors"
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    peft = {f"{layer}.lora_{part}.weight": torch.ones(32, 32) / 9 for part in "AB"}
    pictures = []
    save_file(peft, path)
    (listed,) = Loras(tmp_path).all
    for alpha in (4, 40):
        options = json.dumps({"unet.lora_alpha": alpha})
        save_file(peft, path, {"lora_adapter_metadata": options})
        (fresh,) = Loras(tmp_path).all
        now, new = (tiny_models.draw(model, LoraUse(lora, 1, 1)) for lora in (listed, fresh))
        assert np.array_equal(now, new)
        pictures.append(now)
    assert not np.array_equal(*pictures)


def test_lora_that_becomes_a_pipe_is_an_error(data_dir, tmp_path):
    model = tiny_models.load(data_dir / "models/Stable-diffusion/alpha.safetensors")
    path = tmp_path / "x.safetensors"
    save_file(tiny_models.make_lora(), path)
    (lora,) = Loras(tmp_path).all
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RuntimeError, match=r"LoRA 'x' .*: it is not a regular file"):
        tiny_models.draw(model, LoraUse(lora, 1, 1))
