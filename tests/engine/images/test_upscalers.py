"""Upscalers: their list, the sizes of their pictures, their tiles, and files that are no models."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from benchmarks.parity import files as parity_files
from engine.errors import TooLarge
from engine.images.tiles import Tiling
from engine.images.upscalers import Upscalers, wanted_size

PICTURE = Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3))


def never():
    return False


@pytest.fixture
def models(tmp_path):
    Upscalers(tmp_path)
    save_file(parity_files.upscaler(), tmp_path / "ESRGAN/good.safetensors")
    torch.save(parity_files.upscaler(), tmp_path / "ESRGAN/Also good.pth")
    torch.save(
        {"params_ema": parity_files.upscaler()}, tmp_path / "RealESRGAN/RealESRGAN_x2plus.pth"
    )
    (tmp_path / "RealESRGAN/other.pth").write_bytes(b"")
    (tmp_path / "ESRGAN/notes.txt").write_text("no model")
    return tmp_path


def test_list_has_those_without_a_model_first_and_the_files_by_name(models):
    found = [one.describe() for one in Upscalers(models).all()]
    names = ["None", "Lanczos", "Nearest", "Also good", "good", "R-ESRGAN 2x+"]
    assert [one["name"] for one in found] == names
    assert [one["scale"] for one in found] == [4.0] * 5 + [2.0]
    assert found[0]["model_path"] is None
    assert found[4]["model_path"] == str(models / "ESRGAN/good.safetensors")


@pytest.mark.parametrize("name", ["good", "Also good", "R-ESRGAN 2x+"])
def test_a_model_gives_the_same_picture_from_every_kind_of_file(models, name):
    found, expected = (
        Upscalers(models).upscale(PICTURE, 2, one, Tiling(), never) for one in (name, "good")
    )
    assert found.size == (56, 40)  # cut to multiples of 8
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_a_replaced_file_is_read_again(models):
    upscalers = Upscalers(models)
    before = np.asarray(upscalers.upscale(PICTURE, 2, "good", Tiling(), never))
    darker = {name: tensor * 0.5 for name, tensor in parity_files.upscaler().items()}
    save_file(darker, models / "ESRGAN/good.safetensors")
    after = np.asarray(upscalers.upscale(PICTURE, 2, "good", Tiling(), never))
    assert not np.array_equal(before, after)


def pickled(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


class Code:
    def __reduce__(self):
        return (print, ("this must never run",))


BAD = {
    "empty": (b"", "EOFError"),
    "html": (b"<html>404</html>", "Unpickling"),
    "code": (pickled({"model.0.weight": Code()}), "Unpickling"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_model_is_an_error_with_its_name(models, name, capsys):
    content, cause = BAD[name]
    (models / f"ESRGAN/{name}.pth").write_bytes(content)
    with pytest.raises(RuntimeError, match=f"cannot load upscaler '{name}': .*{cause}"):
        Upscalers(models).upscale(PICTURE, 2, name, Tiling(), never)
    assert capsys.readouterr().out == ""


def test_a_model_of_another_kind_is_an_error(models):
    save_file({"a": torch.zeros(1)}, models / "ESRGAN/other.safetensors")
    with pytest.raises(RuntimeError, match="cannot load upscaler 'other'"):
        Upscalers(models).upscale(PICTURE, 2, "other", Tiling(), never)


def test_unknown_names_and_sizes_out_of_bounds(models):
    upscalers = Upscalers(models)
    with pytest.raises(LookupError, match=r"named 'nope'. Known: None, Lanczos, Nearest"):
        upscalers.find("nope")
    with pytest.raises(LookupError, match=r"needs RealESRGAN_x4plus.pth in models/RealESRGAN"):
        upscalers.find("R-ESRGAN 4x+")
    for scale, error in ((0.1, ValueError), (1e9, TooLarge), (float(8200 / 20), TooLarge)):
        with pytest.raises(error, match="each side must be 8 to 8192"):
            wanted_size(PICTURE.size, scale)


def test_a_stop_leaves_the_rest_to_lanczos(models):
    calls = iter([False, False, False, True, True, True, True])
    found = Upscalers(models).upscale(
        Image.new("RGB", (300, 300)), 2, "good", Tiling(), lambda: next(calls)
    )
    assert found.size == (600, 600)


@given(st.integers(12, 70), st.integers(12, 70), st.integers(8, 12), st.integers(0, 5))
def test_tiles_join_to_the_whole_picture(width, height, side, overlap):
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(noise)

    def double(tile):
        return tile.resize((2 * tile.width, 2 * tile.height), Image.Resampling.NEAREST)

    found = Tiling(side, overlap).enlarge(picture, double, never)
    difference = np.abs(np.asarray(found, int) - np.asarray(double(picture), int))
    assert difference.max() <= 1  # Pillow rounds where tiles fade into each other


def test_tiles_must_be_larger_than_their_overlap():
    with pytest.raises(ValueError, match="must exceed"):
        Tiling(16, 16)
