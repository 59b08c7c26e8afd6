"""Checkpoint and LoRA files: their names and hashes, without loading one."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from engine.models.checkpoints import Checkpoints
from engine.models.loras import Loras
from engine.prompt.syntax import LoraTag

X = hashlib.sha256(b"x").hexdigest()
UNET = "unet/diffusion_pytorch_model"
# a diffusers folder, as far as lists and hashes read it
WEIGHTS = {
    "text_encoder/model": b"text",
    UNET: b"0" * 0x100000 + b"unet",
    "vae/diffusion_pytorch_model": b"vae",
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "sub/My Model v1.5"
    files = {f"{name}.safetensors": content for name, content in WEIGHTS.items()}
    for name, content in ({"model_index.json": b"{}"} | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def checkpoints(folder, tmp_path):
    (tmp_path / "top.safetensors").write_bytes(b"top")
    (folder.parent / "x.safetensors").write_bytes(b"x")
    (tmp_path / "old.ckpt").write_bytes(b"a pickle is not loaded")
    (tmp_path / "model_index.json").write_text("{}")  # does not make all of this one checkpoint
    return Checkpoints(tmp_path)


def test_list_is_sorted_and_has_no_hashes_at_first(checkpoints, folder):
    entries = checkpoints.describe()
    names = ["sub/My Model v1.5", "sub/x.safetensors", "top.safetensors"]
    assert [entry["title"] for entry in entries] == names
    assert [entry["model_name"] for entry in entries] == ["sub_My Model v1.5", "sub_x", "top"]
    assert [(entry["hash"], entry["sha256"]) for entry in entries] == [(None, None)] * 3
    assert entries[0]["filename"] == str(folder)
    assert [c.stem for c in checkpoints.all] == ["My Model v1.5", "x", "top"]


def test_names_are_known_at_once_and_hashes_once_computed(checkpoints):
    hashes = [X, X[:10], f"sub/x.safetensors [{X[:10]}]", f"x [{X[:10]}]"]
    assert [checkpoints.find(alias) for alias in hashes] == [None] * 4
    x = checkpoints.find("x")
    assert checkpoints.sha256(x) == X
    for alias in ("sub/x.safetensors", "x", "sub_x", *hashes):
        assert checkpoints.find(alias) == x
    for alias in ("", "X", "x.safetensors", "sub/x", " x", "x ", "top.ckpt", "x [0000000000]"):
        assert checkpoints.find(alias) is None


def test_hash_of_a_folder_is_that_of_the_list_of_its_weights(checkpoints):
    lines = [f"{n}.safetensors {hashlib.sha256(c).hexdigest()}\n" for n, c in WEIGHTS.items()]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    checkpoint = checkpoints.find("My Model v1.5")
    assert checkpoint.old_hash == hashlib.sha256(b"unet").hexdigest()[:8]
    assert checkpoints.sha256(checkpoint) == checkpoints.known_sha256(checkpoint) == expected
    title = f"sub/My Model v1.5 [{expected[:10]}]"
    aliases = [title, "sub_My Model v1.5", expected[:10], expected, checkpoint.old_hash]
    assert all(checkpoints.find(alias) == checkpoint for alias in aliases)
    assert checkpoints.describe()[0]["title"] == title


@pytest.mark.parametrize(
    ("alias", "changed"),
    [
        ("x", "sub/x.safetensors"),
        ("My Model v1.5", f"sub/My Model v1.5/{UNET}.safetensors"),
        ("My Model v1.5", "sub/My Model v1.5/vae/other.safetensors"),
    ],
)
def test_changed_files_are_hashed_again(checkpoints, tmp_path, alias, changed):
    checkpoint = checkpoints.find(alias)
    before = checkpoints.sha256(checkpoint)
    (tmp_path / changed).write_bytes(b"longer than before")
    assert checkpoints.known_sha256(checkpoint) is None
    assert checkpoints.sha256(checkpoint) != before


def test_old_hash_is_of_the_half_precision_unet_if_there_are_two(folder, tmp_path):
    (folder / f"{UNET}.fp16.safetensors").write_bytes(b"0" * 0x100000 + b"half")
    assert Checkpoints(tmp_path).all[0].old_hash == hashlib.sha256(b"half").hexdigest()[:8]


def test_folder_without_a_unet_is_listed(folder, tmp_path):
    next((folder / "unet").iterdir()).unlink()
    assert Checkpoints(tmp_path).all[0].old_hash == "NOFILE"


def test_deleted_folder_is_an_error(checkpoints, folder, tmp_path):
    checkpoint = checkpoints.find("My Model v1.5")
    folder.rename(tmp_path / "elsewhere")
    assert checkpoints.known_sha256(checkpoint) is None
    with pytest.raises(FileNotFoundError):
        checkpoints.sha256(checkpoint)


def lora(path, alias=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.ones(2)}, path, metadata={"ss_output_name": alias} if alias else None)


def test_lora_is_found_by_stem_or_alias_in_any_folder(tmp_path):
    lora(tmp_path / "sub/a.b.safetensors", alias="style")
    loras = Loras(tmp_path)
    assert loras.find("a.b") == loras.find("style")
    assert [loras.find(name) for name in ("A.B", "sub/a.b", "a.b.safetensors")] == [None] * 3


def test_an_alias_of_two_loras_finds_none(tmp_path):
    for stem in "ab":
        lora(tmp_path / f"{stem}.safetensors", alias="style")
    assert Loras(tmp_path).find("style") is None


def test_lora_hash_is_of_the_bytes_after_the_header(tmp_path):
    expected = hashlib.sha256(torch.ones(2).numpy().tobytes()).hexdigest()[:12]
    lora(tmp_path / "a.safetensors")
    lora(tmp_path / "b.safetensors", alias="another header")
    assert {found.hash() for found in Loras(tmp_path).all} == {expected}


def test_unknown_tag_refreshes_the_list(tmp_path):
    loras = Loras(tmp_path)
    lora(tmp_path / "late.safetensors")
    uses = loras.resolve([LoraTag("late", 1, 0.5), LoraTag("nope", 1, 1), LoraTag("late", 1, 1)])
    assert [(use.lora.name, use.te, use.unet) for use in uses] == [("late", 2, 1.5)]
