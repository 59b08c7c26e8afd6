"""Embedding files: what is listed, what is read, what is left out."""

import logging
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.models.embeddings import Embeddings, merged, take_bundled
from engine.models.files import Unreadable


def rows(count, width, start=0.0):
    return start + torch.arange(count * width, dtype=torch.float32).reshape(count, width)


def a1111(vectors, **more):
    return (
        more
        | {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": vectors},
            "name": "other",
        }
        | more
    )


SAFE, PICKLED = save_file, torch.save
OLD = torch.nn.ParameterDict({"*": rows(2, 768)})
MORE = {"step": 500, "sd_checkpoint": "abc", "sd_checkpoint_name": "base"}
GOOD = {
    "emb_params": (SAFE, "a.safetensors", {"emb_params": rows(2, 768)}, 768),
    "any name, one vector": (SAFE, "a.safetensors", {"x": rows(1, 768)[0]}, 768),
    "half precision": (SAFE, "A.SAFETENSORS", {"x": rows(2, 8).half()}, 8),
    "SD2": (SAFE, "a.safetensors", {"emb_params": rows(3, 1024)}, 1024),
    "SDXL": (SAFE, "a.safetensors", {"clip_l": rows(2, 768), "clip_g": rows(2, 1280)}, 2048),
    "A1111": (PICKLED, "a.pt", a1111(rows(2, 768), **MORE), 768),
    "an old A1111": (PICKLED, "a.pt", a1111(0, string_to_param=OLD), 768),
    "with gradients": (PICKLED, "a.pt", a1111(torch.nn.Parameter(rows(2, 768))), 768),
    "a concept of diffusers": (PICKLED, "a.bin", {"<cat>": rows(1, 768)[0]}, 768),
}


@pytest.mark.parametrize("case", GOOD)
def test_vectors_of_every_kind_of_file(tmp_path, case):
    save, name, data, shape = GOOD[case]
    save(data, tmp_path / name)
    (one,) = Embeddings(tmp_path).all
    assert (one.name.lower(), one.shape, len(one.hash)) == ("a", shape, 64)
    expected = next(iter(data["string_to_param"].values())) if "string_to_param" in data else None
    expected = {"l": next(iter(data.values())) if expected is None else expected, "g": None}
    if "clip_g" in data:
        expected = {"l": data["clip_l"], "g": data["clip_g"]}
    for part, vectors in one.vectors.items():
        own = expected[part]
        assert (vectors is None) == (own is None)
        assert own is None or torch.equal(vectors, own.float().reshape(-1, own.shape[-1]))
    told = {key: data.get(key) for key in MORE}
    assert one.describe() == {"shape": shape, "vectors": one.count} | told


def packed(count, path):
    """A file that is small only as long as it is packed."""
    torch.save(a1111(torch.zeros(count)), path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, part in parts.items():
            file.writestr(name, part)


def damaged(word, path):
    """An old pickle with another byte before a word: torch fails with an AssertionError."""
    torch.save(a1111(rows(2, 8)), path, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    data[data.index(word) - 10] = 7
    path.write_bytes(data)


def other_numbers(kind, path):
    header = f'{{"x": {{"dtype": "{kind}", "shape": [2, 4], "data_offsets": [0, 6]}}}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(6))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("made-by-an-embedding",)


PLAIN = lambda data, path: path.write_bytes(pickle.dumps(data, 2))  # noqa: E731
BAD = {
    "code": (PICKLED, "a.pt", a1111(Bomb()), "more than tensors"),
    "code of another kind": (PLAIN, "a.bin", Bomb(), "more than tensors"),
    "a page": (lambda d, p: p.write_text(d), "a.pt", "<html>", "it is damaged"),
    "a cut file": (lambda d, p: p.write_text(d), "a.safetensors", "{" * 99, "it is cut off"),
    "a list": (PICKLED, "a.pt", [rows(1, 4)], "it holds a list"),
    "a LoRA": (SAFE, "a.safetensors", {"x": rows(1, 4), "y": rows(1, 4)}, "exactly one tensor"),
    "half of SDXL": (SAFE, "a.safetensors", {"clip_l": rows(1, 4), "y": rows(1, 4)}, "exactly one"),
    "SD3": (
        SAFE,
        "a.safetensors",
        {"clip_l": rows(1, 4), "clip_g": rows(2, 4)},
        "it has 1 vec",
    ),
    "an image": (SAFE, "a.safetensors", {"x": rows(4, 4).reshape(1, 4, 4)}, "no list of vectors"),
    "no numbers": (SAFE, "a.safetensors", {"x": rows(0, 4)}, "no list of vectors"),
    "text": (PICKLED, "a.pt", a1111("text"), "no list of vectors"),
    "NaN": (SAFE, "a.safetensors", {"x": rows(1, 4) * float("nan")}, "NaN or infinity"),
    "two words": (
        PICKLED,
        "a.pt",
        {"string_to_param": {"a": rows(1, 4), "b": rows(1, 4)}},
        "exactly",
    ),
    "numbers of 6 bits": (other_numbers, "a.safetensors", "F6_E2M3", "cannot be read"),
    "sparse": (PICKLED, "a.pt", a1111(torch.eye(4).to_sparse()), "no list of vectors"),
    "without numbers": (PICKLED, "a.pt", a1111(rows(1, 4).to("meta")), "no list of vectors"),
    "one number, repeated": (
        PICKLED,
        "a.pt",
        a1111(torch.zeros(1, 1).expand(10**12, 4)),
        "it has 4000000000000 numbers",
    ),
    "another byte": (damaged, "a.pt", b"cpu", "it is damaged"),
    "packed": (packed, "a.pt", 2**24, "bytes unpacked"),
    "too large": (lambda d, p: p.write_bytes(bytes(d)), "a.pt", 2**26 + 1, "at most"),
}


@pytest.mark.parametrize("case", BAD)
def test_other_files_are_left_out_with_a_line_in_the_log(tmp_path, caplog, case):
    save, name, data, cause = BAD[case]
    save(data, tmp_path / name)
    save_file({"x": rows(1, 4)}, tmp_path / "good.safetensors")
    with caplog.at_level(logging.WARNING):
        assert [one.name for one in Embeddings(tmp_path).all] == ["good"]
    assert f"left out embedding '{name}': " in caplog.text
    assert cause in caplog.text
    assert not Path("made-by-an-embedding").exists()


def test_the_list_by_name_width_and_refresh(tmp_path):
    for path, width in (("b", 8), ("A", 4), ("sub/c", 8), ("sub/b", 8), ("x.txt", 8)):
        file = tmp_path / f"{path}{'' if '.' in path else '.safetensors'}"
        file.parent.mkdir(exist_ok=True)
        save_file({"x": rows(1, width, start=len(path))}, file)
    (tmp_path / "empty.pt").touch()
    found = Embeddings(tmp_path)
    assert [one.name for one in found.all] == ["A", "b", "c"]
    assert found.find("b").path == tmp_path / "sub/b.safetensors"
    found.fit(8)
    assert ([one.name for one in found.all], found.find("A")) == (["b", "c"], None)
    assert {k: [*v] for k, v in found.describe().items()} == {
        "loaded": ["b", "c"],
        "skipped": ["A"],
    }
    before = found.find("c")
    save_file({"x": rows(2, 8)}, tmp_path / "new.safetensors")
    (tmp_path / "sub/b.safetensors").unlink()
    found.refresh()
    assert [one.name for one in found.all] == ["b", "c", "new"]
    assert found.find("b").path == tmp_path / "b.safetensors"
    assert found.find("c") is before


def test_embeddings_in_a_lora(tmp_path):
    state = {
        "bundle_emb.dog.string_to_param.*": rows(2, 8),
        "bundle_emb.cat.clip_l": rows(1, 4),
        "bundle_emb.cat.clip_g": rows(1, 8),
        "lora_unet_x.alpha": torch.ones(1),
    }
    bundled, others = take_bundled(state, tmp_path / "style.safetensors")
    assert {one.name: (one.shape, one.count, one.hash) for one in bundled} == {
        "dog": (8, 2, ""),
        "cat": (12, 1, ""),
    }
    assert others.keys() == {"lora_unet_x.alpha"}
    save_file({"x": rows(1, 8)}, tmp_path / "cat.safetensors")
    both = {one.name: one for one in merged(Embeddings(tmp_path).all, bundled)}
    assert (both["cat"].shape, both["dog"]) == (8, bundled[0])
    with pytest.raises(Unreadable, match="without a name"):
        take_bundled({"bundle_emb.x": rows(1, 8)}, tmp_path)
