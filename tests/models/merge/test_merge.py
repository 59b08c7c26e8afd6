"""Merging: what is rejected, what stays unchanged, what is reported. For numbers: the formulas."""

import errno
import os
import struct

import numpy as np
import pytest
from fakes.lora_files import KINDS, LAYERS, OUT, base, inner, lora, write
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from worker.errors import (
    ModelFileInvalid,
    ModelMismatch,
    ModelNotSupported,
    ModelUnsafe,
    StoreFull,
    StoreNotWritable,
)
from worker.formats.model_file import ModelFile
from worker.models.merge.merge import merge
from worker.models.merge.merge_key import ALGORITHM, LoraToMerge, merge_key
from worker.models.merge.writer import DEFAULT_SIZES, BlockSizes

KEY, _, (NAME, *_) = LAYERS["SD1"]["attention"]
TEXT, _, (TEXT_NAME, *_) = LAYERS["SD1"]["text"]
SHAPE = inner("SD1", "attention")
A, B = "a" * 64, "b" * 64


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "base.safetensors"
    save_file(base("SD1", np.float16), path, {"prediction_type": "epsilon"})
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "merged.safetensors"


@pytest.fixture
def try_to(tmp_path, checkpoint, target):
    """Merge these tensors of a LoRA into the checkpoint; returns the report and the target."""

    def try_to(tensors, base=checkpoint, sizes=DEFAULT_SIZES, **weights):
        path = tmp_path / "lora.safetensors"
        if isinstance(tensors, bytes):
            path.write_bytes(tensors)
        else:
            save_file(tensors, path)
        target.unlink(missing_ok=True)
        done = merge(base, [LoraToMerge(path, "a LoRA", A, **weights)], target, {"b": "2"}, sizes)
        return done, target

    return try_to


@pytest.fixture
def refused(try_to, target):
    """Merging must raise the error, and leave nothing."""

    def refused(error, message, tensors, **options):
        with pytest.raises(error, match=message):
            try_to(tensors, **options)
        assert not target.exists()

    return refused


def parts(name=NAME, shape=SHAPE, **more):
    return {f"{name}.{part}": value for part, value in (lora(shape) | more).items()}


def half(*shape, value=0.5):
    return np.full(shape, value, np.float16)


def test_the_result_is_a_checkpoint_like_the_base(try_to, checkpoint):
    """Layers that the base lacks are reported, and the others merged."""
    done, target = try_to(parts() | parts("lora_unet_nowhere") | parts("lora_te2_nowhere"))
    assert done.layers == 1
    assert sorted(done.unmatched["a LoRA"]) == ["lora_te2_nowhere", "lora_unet_nowhere"]
    file = ModelFile("checkpoint", target, "merged", target.stat().st_size)
    file.check()
    assert file.architecture().family == "SD1"
    with safe_open(checkpoint, "np") as before, safe_open(target, "np") as after:
        assert after.metadata() == before.metadata() | {"b": "2"}
        assert list(after.keys()) == list(before.keys())
        assert after.offset_keys() == before.offset_keys()
    assert struct.unpack("<Q", target.read_bytes()[:8])[0] % 8 == 0
    integer, number = (parts(alpha=np.array(2, dtype)) for dtype in (np.int64, np.float32))
    assert try_to(integer)[1].read_bytes() == try_to(number)[1].read_bytes()


WEIGHTS = [({"te": 0.0}, [KEY]), ({"unet": 0.0}, [TEXT]), ({"te": 0.0, "unet": 0.0}, [])]


@pytest.mark.parametrize(("weights", "changed"), [*WEIGHTS, ({}, [KEY, TEXT])], ids=str)
def test_a_weight_of_0_leaves_every_byte(try_to, checkpoint, weights, changed):
    both = parts() | parts(TEXT_NAME, inner("SD1", "text"))
    before, after = load_file(checkpoint), load_file(try_to(both, **weights)[1])
    assert {key for key in before if before[key].tobytes() != after[key].tobytes()} == set(changed)


def test_the_weights_of_a_lora_that_is_given_twice_add_up(tmp_path, checkpoint):
    path = write(tmp_path / "lora.safetensors", NAME, lora(SHAPE))

    def merged(name, *weights):
        merge(checkpoint, [LoraToMerge(path, "x", A, 1, w) for w in weights], tmp_path / name, {})
        return (tmp_path / name).read_bytes()

    assert merged("twice", 0.25, 0.5) == merged("once", 0.75)


REFUSED = [
    ("DoRA", parts(dora_scale=half(1, *SHAPE)), "kind is DoRA"),
    ("DoRA of peft", parts() | {f"{NAME}.lora_magnitude_vector": half(OUT)}, "kind is DoRA"),
    ("GLoRA", {f"{NAME}.{p}.weight": half(4, 4) for p in ("a1", "a2", "b1")}, "kind is GLoRA"),
    ("OFT", {f"{NAME}.oft_blocks": half(2, 4, 4), **parts()}, "kind is OFT"),
    ("IA3", {f"{NAME}.on_input": half(1), f"{NAME}.weight": half(OUT), **parts()}, "kind is IA3"),
    ("norms", parts(w_norm=half(OUT), b_norm=half(OUT)), "kind is LoRA of norms"),
    ("difference", parts(diff=half(OUT, *SHAPE)), "kind is weight difference"),
    ("biases", parts(**{"lora_up.bias": half(OUT)}), "kind is LoRA with biases"),
    ("embedding", parts() | {"bundle_emb.x.string_to_param": half(1, 4)}, "with an embedding"),
    ("diffusers", {"unet.x.to_k.lora_A.weight": half(4, 768),
                   "unet.x.to_k.lora_B.weight": half(8, 4)}, "naming of diffusers"),
    ("unknown", parts(wonder=half(2, 2)), f"'{NAME}.wonder'"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "part"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_other_kinds_are_rejected_by_name(refused, tensors, part):
    refused(ModelNotSupported, f"'a LoRA'.*{part}", tensors)


def test_a_file_of_the_wrong_size_is_rejected(refused, tmp_path, checkpoint):
    path = write(tmp_path / "x", NAME, lora(SHAPE))
    short = path.read_bytes()[:-3]
    for damaged in (short, short + bytes(4)):
        refused(ModelFileInvalid, r"'a LoRA' .* its header requires", damaged)
    refused(ModelUnsafe, "pickle", b"PK\x03\x04" + bytes(100))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    refused(ModelFileInvalid, r"'base.safetensors' .* its header requires", parts())
    refused(ModelFileInvalid, "cannot be read: No such file", parts(), base=tmp_path / "none")


DAMAGED = [
    ({f"{NAME}.lora_up.weight": half(OUT, 4)}, "is incomplete"),
    (parts(alpha=half(3)), "is not a single number"),
    (parts(**{"lora_up.weight": half(OUT, 5)}), "do not match"),
    (parts(**{"lora_up.weight": half(OUT, 4, value=np.nan)}), "infinite or NaN"),
    (parts(**{"lora_down.weight": half(4, *SHAPE, value=np.inf)}), "infinite or NaN"),
    (b"<html>", "web page"),
]


@pytest.mark.parametrize(("tensors", "message"), DAMAGED)
def test_a_damaged_lora_is_rejected(refused, tensors, message):
    refused(ModelFileInvalid, message, tensors)


def test_a_lora_that_does_not_fit_the_checkpoint_is_rejected(refused):
    sdxl = parts(LAYERS["SDXL"]["attention"][2][0], (2048,))
    refused(ModelMismatch, "is a LoRA for SDXL", sdxl)
    refused(ModelMismatch, "have no layer in common", parts("lora_unet_nowhere"))
    shapes = rf"has the shape \[{OUT}, 20\].*needs \[{OUT}, 16\]"
    refused(ModelMismatch, shapes, parts(TEXT_NAME, (20,)))
    # A sum that half precision cannot hold:
    refused(ModelNotSupported, "attn2.* has values too large for F16", parts(), unet=1e6)


def bases(family, dtype):
    tensors = base("SD1", np.float16)
    if family == "lora":
        return parts()
    if family == "SD2":
        key = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
        return {key: half(6, 2)} | {k: v for k, v in tensors.items() if "cond_stage" not in k}
    tensors[KEY] = tensors[KEY].astype(dtype)
    return tensors


@pytest.mark.parametrize(
    ("family", "dtype", "message"),
    [("lora", None, "is a lora"), ("SD2", None, "for SD2"), ("SD1", np.int8, "is I8")],
)
def test_other_bases_are_rejected(refused, tmp_path, family, dtype, message):
    save_file(bases(family, dtype), tmp_path / "other.safetensors")
    refused(ModelNotSupported, message, parts(), base=tmp_path / "other.safetensors")


def test_an_existing_file_is_not_overwritten(tmp_path, checkpoint, target):
    target.write_bytes(b"precious")
    path = write(tmp_path / "lora.safetensors", NAME, lora(SHAPE))
    with pytest.raises(StoreNotWritable):
        merge(checkpoint, [LoraToMerge(path, "x", A)], target, {})
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("sizes", [DEFAULT_SIZES, BlockSizes(block=1)])
def test_without_a_copy_in_the_kernel_the_data_are_read_and_written(try_to, monkeypatch, sizes):
    expected = try_to(parts())[1].read_bytes()

    def cannot(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.copy_file_range", cannot)
    assert try_to(parts(), sizes=sizes)[1].read_bytes() == expected
    monkeypatch.delattr("os.copy_file_range")
    assert try_to(parts(), sizes=sizes)[1].read_bytes() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 2000])
def test_the_size_of_the_blocks_does_not_matter(try_to, kind, block):
    layer = "conv" if "Tucker" in kind or "three" in kind else "attention"
    make, *_ = KINDS[kind]
    name = LAYERS["SD1"][layer][2][0]
    tensors = {f"{name}.{part}": v for part, v in make(inner("SD1", layer)).items()}
    expected = load_file(try_to(tensors)[1])
    result = load_file(try_to(tensors, sizes=BlockSizes(span=100, block=block))[1])
    for key, value in expected.items():
        # BLAS may add up in another order
        assert (np.abs(result[key].astype(float) - value) <= np.spacing(np.abs(value))).all()
        assert (result[key] != value).sum() <= max(3, 0.005 * value.size)


@pytest.mark.parametrize("call", ["pwrite", "copy_file_range", "fsync"])
def test_a_full_disk_is_an_error_and_leaves_nothing(refused, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    refused(StoreFull, "disk", parts())


def key(*loras, checkpoint=B, **options):
    to_merge = [LoraToMerge(None, name, sha256, *weights) for name, sha256, *weights in loras]
    return merge_key(checkpoint, to_merge, **options)


def test_the_key_depends_on_the_inputs_and_on_nothing_else():
    x, y = ("x", A, 1.0, 0.5), ("y", B, 1, 1)
    same = key(x, y)
    assert len(same) == 64
    assert key(("other name", A, 1, 0.5), ("y", B, 1.0, 1.0)) == same
    assert key(y, ("x", A.upper(), 1, 0.5)) == same
    assert key(y, ("x", A, 0.25, 0.25), ("x", A, 0.75, 0.25)) == same
    assert key(("z", A, -0.0, 1)) == key(("z", A, 0, 1))
    others = [
        key(("x", A, 1.0, 0.6), y),
        key(("x", A, 0.5, 1.0), y),
        key(x),
        key(x, y, checkpoint=A),
        key(("x", B, 1.0, 0.5), ("y", A, 1, 1)),
        key(x, y, algorithm=ALGORITHM + 1),
    ]
    assert len({same, *others}) == len(others) + 1
