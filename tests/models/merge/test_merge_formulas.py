"""Merged numbers are those of the formulas: see `fakes.lora_files`.

A base in half precision must be the reference's nearest half, except for ties that float32 cannot
distinguish.
"""

import numpy as np
import pytest
from fakes import lora_files
from fakes.lora_files import INNER, KINDS, LAYERS, OUT, RANK, base, inner, lora, write
from safetensors.numpy import load_file, save_file

from worker.models.merge.merge import merge
from worker.models.merge.merge_key import LoraToMerge


def merged(tmp_path, tensors, *loras):
    save_file(tensors, tmp_path / "base.safetensors")
    target = tmp_path / f"merged-{'-'.join(lora.name for lora in loras)}.safetensors"
    assert not merge(tmp_path / "base.safetensors", loras, target, {"a": "b"}).unmatched
    return load_file(target)


def differs_by(result, expected, dtype):
    """The difference in units of the last place, in the result's precision."""
    nearest = expected.astype(dtype)
    return np.abs(result.astype(float) - nearest.astype(float)) / np.spacing(np.abs(nearest))


CASES = [
    (family, layer, kind, name)
    for family, layers in LAYERS.items()
    for layer, (_, _, names) in layers.items()
    for kind in KINDS
    for name in names
    if ("Tucker" not in kind and "three" not in kind) or layer in INNER
]


@pytest.mark.parametrize(("family", "layer", "kind", "name"), CASES)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_each_kind_is_its_formula(tmp_path, family, layer, kind, name, alpha):
    make, value, has_rank = KINDS[kind]
    shape, (key, rows, _) = inner(family, layer), LAYERS[family][layer]
    parts = make(shape)
    path = write(tmp_path / "lora.safetensors", name, parts, alpha)
    before = base(family, np.float16)
    weights = {"te": 0.75, "unet": -0.5}
    after = merged(tmp_path, before, LoraToMerge(path, "lora", "ab", **weights))
    scale = alpha / RANK if alpha and has_rank else 1.0
    weight = weights["te" if layer in lora_files.TEXT else "unet"]
    expected = before[key].astype(float).reshape(len(before[key]), -1)
    part = slice(None) if rows is None else rows
    expected[part] += weight * scale * value(parts, shape)
    ulps = differs_by(after[key].reshape(expected.shape), expected, np.float16)
    assert ulps.max() <= 1
    assert (ulps > 0).sum() <= max(3, 0.005 * ulps.size), "ties that float32 cannot distinguish"
    for other in before.keys() - {key}:
        assert after[other].tobytes() == before[other].tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_several_are_summed_in_any_order_before_they_are_rounded(tmp_path, dtype):
    """Each alone is less than half a unit in the last place and would be rounded away."""
    key, _, (name, *_) = LAYERS["SD1"]["attention"]
    shape = inner("SD1", "attention")
    before = base("SD1", dtype)
    before[key][:] = 1.0
    ones = {"lora_down.weight": np.ones((1, *shape)), "lora_up.weight": np.ones((OUT, 1))}
    small = {part: value.astype(np.float32) for part, value in ones.items()}
    loras = []
    for number, weight in enumerate((0.0002, 0.0004, 0.0003)):
        path = write(tmp_path / f"{number}.safetensors", name, small)
        loras.append(LoraToMerge(path, f"{number}", f"{number}" * 2, 1, weight))
    after = merged(tmp_path, before, *loras)[key]
    turned = merged(tmp_path, before, *loras[::-1])[key]
    nearest = max(float(np.spacing(dtype(1))) / 2, 1e-6)
    assert np.abs(after.astype(float) - 1.0009).max() <= nearest
    assert after.tobytes() == turned.tobytes()
    assert (after != 1.0).all()


def test_bfloat16_is_rounded_to_the_nearest(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    key, _, (name, *_) = LAYERS["SD1"]["attention"]
    before = {k: torch.from_numpy(v).bfloat16() for k, v in base("SD1", np.float32).items()}
    save_torch(before, tmp_path / "base.safetensors")
    parts = lora(inner("SD1", "attention"))
    path = write(tmp_path / "lora.safetensors", name, parts)
    merge(tmp_path / "base.safetensors", [LoraToMerge(path, "x", "ab")], tmp_path / "out", {})
    expected = before[key].double() + torch.from_numpy(lora_files.lora_value(parts))
    after = load_torch(tmp_path / "out")[key]
    assert after.dtype == torch.bfloat16
    assert (after != expected.float().bfloat16()).double().mean() < 0.005
