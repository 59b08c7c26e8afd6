"""Rewrites a LoRA file under other tensor names, and proves that it stayed the same LoRA.

The tensors are copied byte by byte, in blocks, so that memory does not grow with the file. Then the
new file is opened again: each tensor must have the values of its source, and each layer must give
the same delta in float64 as the layer of the source that a second reading of the names finds.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from worker.errors import InternalError, ModelNotSupported
from worker.files import storage_error
from worker.formats.json_metadata import metadata_fault
from worker.formats.lora_names import ADAPTER_METADATA, Renaming
from worker.formats.safetensors_header import Tensor
from worker.models.merge.float_formats import FORMATS
from worker.models.merge.lora_deltas import ALPHA, PARTS, Layer, make_delta, read_layers
from worker.models.merge.tensor_file import TensorFile, open_tensors

_BLOCK = 1 << 22  # bytes that are copied at once
_ALIGNMENT = 8  # bytes; safetensors aligns the data to it
_ROWS = 16  # in each of three blocks of a delta; all parts are compared completely
_SAME = 1e-6  # relative; an alpha from the metadata is rounded to float32
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16}
# Hashes of the source's own bytes; A1111 would report them instead of the new file's.
_OUTDATED = {"sshs_model_hash", "sshs_legacy_hash", ADAPTER_METADATA}

# The parts of a layer as every tool ends their names: a second, independent reading of the source.
_ENDS = re.compile(
    r"[._](?:lora_down|lora_A(?:\.\w{1,64})?|lora\.down|lora_linear_layer\.down)\.(?P<down>weight)\Z"
    r"|[._](?:lora_up|lora_B(?:\.\w{1,64})?|lora\.up|lora_linear_layer\.up)\.(?P<up>weight)\Z"
    r"|[._](?P<same>lora_mid\.weight|hada_\w{1,4}|lokr_\w{1,4})\Z"
    r"|(?:[._]lora|\.lora_linear_layer)?\.(?P<alpha>alpha)\Z"
)


def rewrite(source: TensorFile, renaming: Renaming, target: Path, added: Mapping[str, str]) -> None:
    """Write `target` and sync it to the disk; after a failure nothing is left of it.

    Args:
        source: the open LoRA.
        renaming: its new names.
        target: a path without a file.
        added: metadata of the new file beside those of the source.

    Raises:
        ModelFileInvalid: the source cannot be read.
        ModelNotSupported: a tensor that A1111 cannot apply has other values than 0.
        StoreFull, StoreNotWritable: see `worker.files.storage_error`.
    """
    _check_dtypes(source, renaming)
    for name in renaming.zeros:
        if source.floats(name).any():
            raise ModelNotSupported(
                f"{source.name!r} changes {name!r}, which A1111 v1.9.3 would not apply.",
                hint="Use a LoRA in kohya's naming (`lora_unet_...`).",
                model=source.name,
            )
    order = _order(source, renaming)
    alphas = {name: np.float32(alpha).tobytes() for name, alpha in renaming.alphas.items()}
    header = _header(source, renaming, order, added)
    try:
        with ExitStack() as on_failure, target.open("xb") as file:
            on_failure.callback(target.unlink, missing_ok=True)
            file.write(header)
            for name in order:
                if name in alphas:
                    file.write(alphas[name])
                elif name in renaming.factors:
                    file.write(_multiplied(source, renaming, name).tobytes())
                else:
                    file.writelines(_data(source, source.header.tensors[name]))
            file.flush()
            os.fsync(file.fileno())
            on_failure.pop_all()
    except OSError as error:
        raise storage_error(error) from error


def _order(source: TensorFile, renaming: Renaming) -> list[str]:
    """The tensors, by their names in the source or those of new alphas; the widest numbers first.

    So each tensor begins at a multiple of its number's size, which torch requires.
    """
    tensors = source.header.tensors
    bits = {name: _BITS.get(tensors[name].dtype, 8) for name in renaming.keys}
    bits |= dict.fromkeys(renaming.factors, _BITS["F32"])
    kept = sorted(renaming.keys, key=lambda name: (-bits[name], tensors[name].begin))
    wide = [name for name in kept if bits[name] > _BITS["F32"]]
    return [*wide, *renaming.alphas, *kept[len(wide) :]]


def _header(
    source: TensorFile, renaming: Renaming, order: Sequence[str], added: Mapping[str, str]
) -> bytes:
    document: dict[str, object] = {
        "__metadata__": {**strict_metadata(source.header.metadata), **added}
    }
    position = 0
    for name in order:
        is_new = name in renaming.alphas
        tensor = Tensor("F32", (), 0, 4) if is_new else source.header.tensors[name]
        if name in renaming.factors:
            tensor = Tensor("F32", tensor.shape, 0, 4 * math.prod(tensor.shape))
        end = position + tensor.end - tensor.begin
        document[renaming.keys.get(name, name)] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _multiplied(source: TensorFile, renaming: Renaming, name: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = source.floats(name) * np.float32(renaming.factors[name])
    return values


def strict_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata that A1111 can send as JSON, without hashes of the source's bytes."""
    kept = {key: value for key, value in metadata.items() if key not in _OUTDATED}
    return {key: value for key, value in kept.items() if not metadata_fault({key: value})}


def _data(source: TensorFile, tensor: Tensor) -> Iterator[memoryview]:
    for begin in range(tensor.begin, tensor.end, _BLOCK):
        block = np.empty(min(_BLOCK, tensor.end - begin), np.uint8)
        source.read(begin, block)
        yield block.data


# The proof ---------------------------------------------------------------------------------------


def verify(source: TensorFile, renaming: Renaming, target: Path) -> None:
    """Compare the written file with its source, tensor by tensor and layer by layer.

    Raises:
        InternalError: it is not the same LoRA; it must not be used.
        ModelFileInvalid: a file cannot be read, or has infinite or NaN values.
        ModelNotSupported: a kind of number that cannot be compared.
    """
    with open_tensors(target, source.name) as written:
        new = written.header.tensors
        if set(new) != {*renaming.keys.values(), *renaming.alphas}:
            raise _differs(source, "the list of its tensors")
        for old_name, name in renaming.keys.items():
            if old_name in renaming.factors:  # the delta must still be the same
                if not np.array_equal(
                    _multiplied(source, renaming, old_name), written.floats(name)
                ):
                    raise _differs(source, f"the values of {name!r}")
                continue
            old = source.header.tensors[old_name]
            if (old.dtype, old.shape) != (new[name].dtype, new[name].shape):
                raise _differs(source, f"the shape of {name!r}")
            blocks = zip(_data(source, old), _data(written, new[name]), strict=True)
            if any(one.tobytes() != other.tobytes() for one, other in blocks):
                raise _differs(source, f"the values of {name!r}")
        with threadpool_limits(1, "blas"):  # the products are small: threads would wait longer
            _compare_deltas(source, written, renaming)


def _compare_deltas(source: TensorFile, written: TensorFile, renaming: Renaming) -> None:
    parts = _source_parts(source, renaming)
    layers = {layer.name: layer for layer in read_layers(source.name, _of_pairs(written))}
    if set(layers) != set(parts):
        raise _differs(source, "the list of its layers")
    for name, layer in layers.items():
        mine = {part: f"{name}.{part}" for part in (*layer.parts, *([ALPHA] * layer.has_alpha))}
        others = dict(parts[name])
        alpha = others.pop(ALPHA, None)
        if set(others) != set(layer.parts):
            raise _differs(source, f"the layer {name!r}")
        strength = _strength(written, layer, mine.get(ALPHA))
        if alpha is None and f"{name}.{ALPHA}" in renaming.alphas:
            expected = layer.scale(renaming.alphas[f"{name}.{ALPHA}"])
        else:
            expected = _strength(source, layer, alpha)
        one = _delta(written, layer, mine, strength)
        other = _delta(source, layer, others, expected)
        size = max(np.abs(other).max(initial=0.0), np.finfo(np.float64).tiny)
        if not np.abs(one - other).max(initial=0.0) <= _SAME * size:
            raise _differs(source, f"the delta of the layer {name!r}")


def _of_pairs(written: TensorFile) -> dict[str, Tensor]:
    """The tensors of layers that have a formula; for the others, equal values are all there is."""
    tensors = written.header.tensors
    split = {key: key.partition(".") for key in tensors}
    layers = {layer for layer, _, part in split.values() if part in PARTS - {ALPHA}}
    return {
        key: tensors[key]
        for key, (layer, _, part) in split.items()
        if part in PARTS and layer in layers
    }


def _source_parts(source: TensorFile, renaming: Renaming) -> dict[str, dict[str, str]]:
    """New name of each layer -> part -> the tensor's name in the source.

    The parts are found by the ends of the source's names, not by the renaming; only which layer is
    meant by which name is taken from it.
    """
    kohya = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": ALPHA}
    found: dict[str, dict[str, str]] = {}
    places = {**renaming.keys, **renaming.folded}
    for name in source.header.tensors:
        match = _ENDS.search(name)
        if match and match.lastgroup and name in places:
            layer = places[name].partition(".")[0]
            part = kohya.get(match.lastgroup) or match["same"]
            found.setdefault(layer, {})[part] = name
    # An alpha may also belong to a kind of layer that has no such delta.
    return {layer: parts for layer, parts in found.items() if set(parts) - {ALPHA}}


def _strength(file: TensorFile, layer: Layer, alpha: str | None) -> float:
    return 1.0 if alpha is None else layer.scale(file.number(alpha))


def _delta(
    file: TensorFile, layer: Layer, names: Mapping[str, str], strength: float
) -> NDArray[np.float64]:
    """Rows of the layer's delta in float64: at its beginning, in its middle, and at its end."""
    parts: dict[str, Any] = {
        part: file.floats(names[part]).astype(np.float64) for part in layer.parts
    }
    delta = make_delta(layer, parts, 1.0)
    rows, columns = layer.shape[0], math.prod(layer.shape[1:])
    count = min(_ROWS, rows)
    out: Any = np.empty((3, count, columns), np.float64)
    for block, first in zip(out, (0, (rows - count) // 2, rows - count), strict=True):
        delta.write(first, first + count, block)
    scaled: NDArray[np.float64] = out * strength
    return scaled


def _check_dtypes(source: TensorFile, renaming: Renaming) -> None:
    tensors = source.header.tensors
    for name in (*renaming.keys, *renaming.folded, *renaming.zeros):
        is_number = name.endswith((".alpha", ".on_input")) and tensors[name].dtype in {"I32", "I64"}
        if tensors[name].dtype not in FORMATS and not is_number:
            raise ModelNotSupported(
                f"{source.name!r} has {name!r} of dtype {tensors[name].dtype}, which cannot be"
                " converted.",
                hint="Use a LoRA in half or single precision.",
                model=source.name,
            )


def _differs(source: TensorFile, what: str) -> InternalError:
    return InternalError(f"{source.name!r} was converted wrongly: {what} differs. It is not used.")
