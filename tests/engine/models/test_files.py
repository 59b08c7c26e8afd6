"""Checkpoint and LoRA files: their names and hashes, without loading one."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from engine.models.checkpoints import Checkpoints
from engine.models.loras import Loras
from engine.prompt.syntax import LoraTag


@pytest.fixture
def checkpoints(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "top.safetensors").write_bytes(b"top")
    (tmp_path / "sub/x.safetensors").write_bytes(b"x")
    (tmp_path / "old.ckpt").write_bytes(b"a pickle is not loaded")
    return Checkpoints(tmp_path)


def test_checkpoints_are_sorted_and_untitled_until_hashed(checkpoints):
    entries = checkpoints.describe()
    assert [entry["title"] for entry in entries] == ["sub/x.safetensors", "top.safetensors"]
    assert [entry["model_name"] for entry in entries] == ["sub_x", "top"]
    assert [(entry["hash"], entry["sha256"]) for entry in entries] == [(None, None)] * 2


X = hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize("alias", ["sub/x.safetensors", "x", "sub_x"])
def test_names_are_known_at_once(checkpoints, alias):
    assert checkpoints.find(alias).stem == "x"


@pytest.mark.parametrize(
    "alias", [X, X[:10], f"sub/x.safetensors [{X[:10]}]", f"x [{X[:10]}]"], ids=len
)
def test_hash_names_are_known_once_hashed(checkpoints, alias):
    assert checkpoints.find(alias) is None
    assert checkpoints.sha256(checkpoints.find("x")) == X
    assert checkpoints.find(alias).stem == "x"


@pytest.mark.parametrize(
    "alias", ["", "X", "x.safetensors", "sub/x", " x", "x ", "top.ckpt", "x [0000000000]"]
)
def test_nothing_else_is_a_name(checkpoints, alias):
    checkpoints.sha256(checkpoints.find("x"))
    assert checkpoints.find(alias) is None


def test_a_replaced_file_is_hashed_again(checkpoints):
    checkpoint = checkpoints.find("x")
    before = checkpoints.sha256(checkpoint)
    checkpoint.path.write_bytes(b"longer than before")
    assert checkpoints.verified_sha256(checkpoint) is None
    assert checkpoints.sha256(checkpoint) != before


def lora(path, alias=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.ones(2)}, path, metadata={"ss_output_name": alias} if alias else None)
    return path


def test_lora_is_found_by_stem_or_alias_in_any_folder(tmp_path):
    lora(tmp_path / "sub/a.b.safetensors", alias="style")
    loras = Loras(tmp_path)
    assert loras.find("a.b") == loras.find("style")
    assert [loras.find(name) for name in ("A.B", "sub/a.b", "a.b.safetensors")] == [None] * 3


def test_a_shared_alias_names_none(tmp_path):
    for stem in "ab":
        lora(tmp_path / f"{stem}.safetensors", alias="style")
    assert Loras(tmp_path).find("style") is None


def test_lora_hash_is_of_the_bytes_after_the_header(tmp_path):
    expected = hashlib.sha256(torch.ones(2).numpy().tobytes()).hexdigest()[:12]
    lora(tmp_path / "a.safetensors")
    lora(tmp_path / "b.safetensors", alias="another header")
    assert {found.hash() for found in Loras(tmp_path).all} == {expected}


def test_an_unknown_tag_looks_again(tmp_path):
    loras = Loras(tmp_path)
    lora(tmp_path / "late.safetensors")
    uses = loras.resolve([LoraTag("late", 1, 0.5), LoraTag("nope", 1, 1), LoraTag("late", 1, 1)])
    assert [(use.lora.name, use.te, use.unet) for use in uses] == [("late", 2, 1.5)]


# ------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """A diffusers folder as far as lists and hashes look at it."""
    folder = tmp_path / "sub/My Model v1.5"
    for name, content in {
        "model_index.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": b"vae",
        "unet/diffusion_pytorch_model.safetensors": b"0" * 0x100000 + b"unet",
        "text_encoder/model.safetensors": b"text",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (tmp_path / "x.safetensors").write_bytes(b"x")
    return folder


def test_a_folder_is_one_checkpoint(folder, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert [checkpoint.name for checkpoint in checkpoints.all] == [
        "sub/My Model v1.5",
        "x.safetensors",
    ]
    entry = checkpoints.describe()[0]
    assert (entry["title"], entry["model_name"]) == ("sub/My Model v1.5", "sub_My Model v1.5")
    assert entry["filename"] == str(folder)
    assert checkpoints.all[0].stem == "My Model v1.5"


def test_a_folders_hash_is_that_of_its_list_of_weights(folder, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    names = {"text_encoder/model": b"text", "unet/diffusion_pytorch_model": b"0" * 2**20 + b"unet"}
    names["vae/diffusion_pytorch_model"] = b"vae"
    lines = [f"{n}.safetensors {hashlib.sha256(c).hexdigest()}\n" for n, c in names.items()]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    checkpoint = checkpoints.find("My Model v1.5")
    assert checkpoint.old_hash == hashlib.sha256(b"unet").hexdigest()[:8]
    assert checkpoints.sha256(checkpoint) == checkpoints.verified_sha256(checkpoint) == expected
    title = f"sub/My Model v1.5 [{expected[:10]}]"
    aliases = [title, "sub_My Model v1.5", expected[:10], expected, checkpoint.old_hash]
    assert all(checkpoints.find(alias) == checkpoint for alias in aliases)
    assert checkpoints.describe()[0]["title"] == title
    assert folder.is_dir()


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/other"])
def test_a_folder_with_other_weights_is_hashed_again(folder, tmp_path, part):
    checkpoints = Checkpoints(tmp_path)
    checkpoint = checkpoints.all[0]
    before = checkpoints.sha256(checkpoint)
    (folder / f"{part}.safetensors").write_bytes(b"another")
    assert checkpoints.verified_sha256(checkpoint) is None
    assert checkpoints.sha256(checkpoint) != before


def test_of_a_unet_in_two_precisions_the_half_one_counts(folder, tmp_path):
    half = folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    half.write_bytes(b"0" * 0x100000 + b"half")
    assert Checkpoints(tmp_path).all[0].old_hash == hashlib.sha256(b"half").hexdigest()[:8]


def test_a_folder_without_a_unet_is_listed(folder, tmp_path):
    next((folder / "unet").iterdir()).unlink()
    assert Checkpoints(tmp_path).all[0].old_hash == "NOFILE"


def test_a_folder_that_is_gone_is_an_error(folder, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    folder.rename(tmp_path / "elsewhere")
    checkpoint = checkpoints.all[0]
    assert checkpoints.verified_sha256(checkpoint) is None
    with pytest.raises(FileNotFoundError):
        checkpoints.sha256(checkpoint)


def test_the_whole_folder_of_models_is_no_checkpoint(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    assert [checkpoint.name for checkpoint in Checkpoints(tmp_path).all] == ["x.safetensors"]
