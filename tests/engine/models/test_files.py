"""Checkpoint and LoRA files: their names and hashes, without loading one."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import Unsupported
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
MODEL = "My Model v1.5"


def write(path, content=b"{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    files = {f"sub/{MODEL}/{name}.safetensors": content for name, content in WEIGHTS.items()}
    files |= {f"sub/{MODEL}/model_index.json": b"{}"}
    files |= {"top.safetensors": b"top", "sub/x.safetensors": b"x", "old.ckpt": b"a pickle"}
    files["model_index.json"] = b"{}"  # does not make all of this one checkpoint
    for name, content in files.items():
        write(tmp_path / name, content)
    return tmp_path / "sub" / MODEL


@pytest.fixture
def checkpoints(folder):
    return Checkpoints(folder.parents[1])


def test_list_is_sorted_and_has_no_hashes_at_first(checkpoints, folder):
    entries = checkpoints.describe()
    assert [(entry["title"], entry["model_name"]) for entry in entries] == [
        ("top.safetensors", "top"),
        (f"sub/{MODEL}", f"sub_{MODEL}"),
        ("sub/x.safetensors", "sub_x"),
    ]
    assert [(entry["hash"], entry["sha256"]) for entry in entries] == [(None, None)] * 3
    assert entries[1]["filename"] == str(folder)
    assert [c.stem for c in checkpoints.all] == ["top", MODEL, "x"]


def test_names_are_known_at_once_and_hashes_once_computed(checkpoints):
    hashes = [X, X[:10], f"sub/x.safetensors [{X[:10]}]", f"x [{X[:10]}]"]
    assert [checkpoints.find(alias) for alias in hashes] == [None] * 4
    x = checkpoints.find("x")
    assert checkpoints.sha256(x) == X
    for alias in ("sub/x.safetensors", "x", "sub_x", *hashes):
        assert checkpoints.find(alias) == x
    for alias in ("", "X", "x.safetensors", "sub/x", " x", "x ", "top.ckpt", "x [0000000000]"):
        assert checkpoints.find(alias) is None


def test_hash_of_a_folder_is_that_of_the_list_of_its_weights(checkpoints, folder, tmp_path):
    lines = [f"{n}.safetensors {hashlib.sha256(c).hexdigest()}\n" for n, c in WEIGHTS.items()]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    checkpoint = checkpoints.find(MODEL)
    assert checkpoint.old_hash == hashlib.sha256(b"unet").hexdigest()[:8]
    assert checkpoints.sha256(checkpoint) == checkpoints.known_sha256(checkpoint) == expected
    title = f"sub/{MODEL} [{expected[:10]}]"
    aliases = [title, f"sub_{MODEL}", expected[:10], expected, checkpoint.old_hash]
    assert all(checkpoints.find(alias) == checkpoint for alias in aliases)
    assert checkpoints.describe()[1]["title"] == title
    folder.rename(tmp_path / "elsewhere")
    assert checkpoints.known_sha256(checkpoint) is None
    with pytest.raises(FileNotFoundError):
        checkpoints.sha256(checkpoint)


def test_changed_files_are_hashed_again(checkpoints, folder, tmp_path):
    for changed in ("x.safetensors", f"{MODEL}/{UNET}.safetensors", f"{MODEL}/vae/new.safetensors"):
        checkpoint = checkpoints.find("x" if changed[0] == "x" else MODEL)
        before = checkpoints.sha256(checkpoint)
        write(folder.parent / changed, b"longer than before")
        assert checkpoints.known_sha256(checkpoint) is None
        assert checkpoints.sha256(checkpoint) != before
    # the old hash is of the half-precision UNet if there are two
    write(folder / f"{UNET}.fp16.safetensors", b"0" * 0x100000 + b"half")
    assert Checkpoints(tmp_path).all[1].old_hash == hashlib.sha256(b"half").hexdigest()[:8]
    for file in (folder / "unet").iterdir():
        file.unlink()
    assert Checkpoints(tmp_path).all[1].old_hash == "NOFILE"


def test_a_link_to_a_converted_folder_has_the_name_of_the_link_and_the_hash_of_its_file(tmp_path):
    """`bake --diffusers` uses the hash as the folder's name; the worker compares file hashes."""
    sha256, models = "0123456789abcdef" * 4, tmp_path / "models"
    (models / "sub").mkdir(parents=True)
    (models / "sub/circle").symlink_to(models)
    (models / "sub/gone").symlink_to("nowhere")
    for name in (sha256, "by hand"):
        write(tmp_path / name / "model_index.json")
        (models / f"sub/fox of {name[:2]}").symlink_to(tmp_path / name)
    checkpoints = Checkpoints(models)
    converted, by_hand = checkpoints.all
    assert (converted.name, converted.stem) == ("sub/fox of 01", "fox of 01")
    assert converted.is_folder
    assert checkpoints.sha256(converted) == sha256
    assert checkpoints.sha256(by_hand) not in {sha256, "by hand"}
    for alias in ("sub_fox of 01", "fox of 01", sha256):
        assert checkpoints.find(alias) == converted


@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_a_blob_has_the_hash_in_its_name_and_another_file_that_of_its_bytes(tmp_path, suffix):
    """The model store and a Hugging Face cache name a blob by its verified hash."""
    sha256, models = "0123456789abcdef" * 4, tmp_path / "models"
    models.mkdir()
    for name, folder in (("blob", "blobs"), ("other", "others")):
        write(tmp_path / folder / f"{sha256}{suffix}", b"bytes")
        (models / f"{name}.safetensors").symlink_to(tmp_path / folder / f"{sha256}{suffix}")
    blob, other = Checkpoints(models).all
    assert Checkpoints(models).sha256(blob) == sha256
    assert Checkpoints(models).sha256(other) == hashlib.sha256(b"bytes").hexdigest()


@pytest.fixture
def lora(tmp_path):
    def lora(name, alias=None):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({"a": torch.ones(2)}, path, {"ss_output_name": alias} if alias else None)

    return lora


def test_lora_is_found_by_stem_or_by_an_alias_that_only_it_has(lora, tmp_path):
    lora("sub/a.b", alias="style")
    loras = Loras(tmp_path)
    assert loras.find("a.b") == loras.find("style")
    assert [loras.find(name) for name in ("A.B", "sub/a.b", "a.b.safetensors")] == [None] * 3
    lora("b", alias="style")
    assert Loras(tmp_path).find("style") is None
    # the hash is of the bytes after the header
    expected = hashlib.sha256(torch.ones(2).numpy().tobytes()).hexdigest()[:12]
    lora("c")
    assert {found.hash() for found in Loras(tmp_path).all} == {expected}


def test_unknown_tag_refreshes_the_list(lora, tmp_path):
    loras = Loras(tmp_path)
    lora("late")
    uses = loras.resolve([LoraTag("late", 1, 0.5), LoraTag("nope", 1, 1), LoraTag("late", 1, 1, 4)])
    assert [(use.lora.name, use.te, use.unet, use.dyn) for use in uses] == [("late", 1, 1, 4)] * 2
    with pytest.raises(Unsupported, match="101 LoRAs"):
        loras.resolve([LoraTag("late", 1, 1)] * 101)
