"""Several checkpoints in memory: which ones are kept, and that the pictures stay the same."""

import os
import weakref

import numpy as np
import pytest
from fakes import tiny_models

from engine.api.loaded_models import LoadedModels
from engine.models.checkpoints import Checkpoints
from engine.models.embeddings import Embeddings
from engine.models.loaded_model import LoadedModel

A, B, XL = "alpha", "beta", "xl"


@pytest.fixture
def loads(monkeypatch):
    """The names of the checkpoints that were really loaded, in order."""
    names, load = [], LoadedModel.load

    def counted(checkpoint, sha256):
        names.append(checkpoint.name)
        return load(checkpoint, sha256)

    monkeypatch.setattr(LoadedModel, "load", counted)
    return names


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "checkpoints"
    for seed, name in enumerate("abc"):
        state = tiny_models.make_checkpoint(seed)
        tiny_models.write(state, folder / f"{name}.safetensors")
    return LoadedModels(Checkpoints(folder), Embeddings(tmp_path / "embeddings"))


def use(models, name, limit):
    return models.use(models._checkpoints.find(name), limit)


@pytest.mark.parametrize(
    ("used", "limit", "loaded"),
    [
        ("abab", 1, "abab"),
        ("aabb", 1, "ab"),
        ("abab", 2, "ab"),
        ("abcab", 2, "abcab"),  # each time the one that is needed next was the oldest
        ("abcbcb", 2, "abc"),
        ("abacab", 2, "abcb"),  # b was used before a
        ("abcabc", 3, "abc"),
    ],
)
def test_the_least_recently_used_checkpoint_is_freed(models, loads, used, limit, loaded):
    for name in used:
        assert use(models, name, limit).checkpoint.stem == name
    assert loads == [f"{name}.safetensors" for name in loaded]


def test_a_file_that_was_replaced_is_loaded_again_although_it_was_kept(models, loads):
    first = use(models, "a", 3)
    use(models, "b", 3)
    path = first.checkpoint.path
    tiny_models.write(tiny_models.make_checkpoint(7), path)
    os.utime(path, (1, 1))

    again = use(models, "a", 3)

    assert again is not first
    assert again.sha256 != first.sha256
    assert loads == ["a.safetensors", "b.safetensors", "a.safetensors"]
    assert first not in models._kept


def test_a_checkpoint_that_cannot_be_loaded_leaves_the_kept_ones(models, loads):
    use(models, "a", 2)
    broken = models._checkpoints.find("b")
    broken.path.write_bytes(b"no model" * 100)
    with pytest.raises(RuntimeError):
        models.use(broken, 2)
    use(models, "a", 2)
    assert loads == ["a.safetensors", "b.safetensors"]


def test_a_lower_limit_frees_memory_at_once(models):
    kept = [weakref.ref(use(models, name, 3)) for name in "abc"]
    models.keep(1)
    assert [reference() is not None for reference in kept] == [False, False, True]


def test_pictures_are_the_same_whether_checkpoints_are_kept_or_loaded(client, loads):
    jobs = [
        {"override_settings": {"sd_model_checkpoint": name}, "prompt": prompt}
        for name, prompt in [
            (A, "a cat <lora:style.v1:1>"),
            (B, "a cat"),
            (A, "a cat"),
            (XL, "a cat"),
            (A, "a cat <lora:style.v1:1>"),
        ]
    ]
    made = {}
    for limit in (1, 3):
        assert client.post("options", sd_checkpoints_limit=limit).ok
        loads.clear()
        made[limit] = [client.picture(**job) for job in jobs]
        made[limit, "loads"] = len(loads)
    assert client.post("options", sd_checkpoints_limit=1).ok
    assert all(map(np.array_equal, made[1], made[3]))
    assert not np.array_equal(made[3][0], made[3][2])  # the LoRA is not left in a kept one
    assert not np.array_equal(made[3][1], made[3][2])
    assert made[1, "loads"] >= 4
    assert made[3, "loads"] == 2  # the first job found its own from before


@pytest.mark.parametrize("limit", [0, 11, "2", 1.5])
def test_a_limit_that_a1111_does_not_have_is_refused(client, limit):
    assert client.post("options", sd_checkpoints_limit=limit).status_code == 500
