"""Checkpoint and LoRA files: their names and hashes, without loading one."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoints import Checkpoints
from engine.loras import Loras
from engine.prompt import LoraTag


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
    assert checkpoints.known_sha256(checkpoint) is None
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
