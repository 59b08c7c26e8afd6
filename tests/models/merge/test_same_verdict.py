"""Kinds of LoRAs x layers: what the merge computes, and what the check says that A1111 applies."""

import pytest
from fakes import lora_files

from worker.formats.lora_layers import fit, layers_of
from worker.formats.safetensors_header import Tensor
from worker.models.merge.lora_deltas import read_layers

# A1111 v1.9.3 does not apply these, though they can be merged.
ONLY_MERGED = {
    "a part of OpenCLIP's attention": lambda layer, _: layer == "text 2 keys",
    "three factors for a matrix": lambda layer, kind: "three" in kind and "conv" not in layer,
}
ROWS = [
    (family, layer, kind)
    for family, layers in lora_files.LAYERS.items()
    for layer in layers
    for kind in lora_files.KINDS
]


@pytest.mark.parametrize(("family", "layer", "kind"), ROWS)
def test_every_kind_that_can_be_merged_is_judged_for_a1111(family, layer, kind):
    make, (name, *_) = lora_files.KINDS[kind][0], lora_files.LAYERS[family][layer][2]
    parts = make(lora_files.inner(family, layer))
    shapes = {f"{name}.{part}": value.shape for part, value in parts.items()}
    base = lora_files.base(family, "float16")
    found = fit(shapes, layers_of({key: value.shape for key, value in base.items()}))
    assert [one.name for one in read_layers("x", {k: Tensor("F16", s) for k, s in shapes.items()})]
    is_only_merged = any(rule(layer, kind) for rule in ONLY_MERGED.values())
    assert (found.known, found.used, found.broken) == (1, 0 if is_only_merged else 1, None)
