"""Merges LoRAs into a checkpoint, which then acts as if their tags were in every prompt.

The result has the checkpoint's tensors, dtypes and offsets; only the weights of the layers that
the LoRAs change differ. The additions of all LoRAs to one layer are summed before the layer is
rounded, once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from worker.errors import ModelMismatch, ModelNotSupported
from worker.formats import architecture
from worker.formats.architecture import Architecture
from worker.formats.safetensors_header import Header, Tensor
from worker.models.merge import writer
from worker.models.merge.checkpoint_layers import CheckpointLayer, find_layers
from worker.models.merge.float_formats import FORMATS
from worker.models.merge.lora_deltas import Layer, read_layers
from worker.models.merge.merge_key import LoraToMerge, each_once
from worker.models.merge.tensor_file import TensorFile, open_tensors
from worker.models.merge.writer import DEFAULT_SIZES, BlockSizes, Patch, PatchSource

FAMILIES = ("SD1", "SDXL")

_ALIGNMENT = 8  # bytes; safetensors aligns the data to it


@dataclass(frozen=True)
class MergeResult:
    """What a merge changed.

    Attributes:
        layers: number of the checkpoint's tensors that were changed.
        unmatched: LoRA's name -> its layers that the checkpoint does not have; only LoRAs that
            have such layers.
    """

    layers: int
    unmatched: Mapping[str, tuple[str, ...]]


def merge(
    base: Path,
    loras: Sequence[LoraToMerge],
    target: Path,
    metadata: Mapping[str, str],
    sizes: BlockSizes = DEFAULT_SIZES,
) -> MergeResult:
    """Write `target`, the checkpoint with the LoRAs merged in, and sync it to the disk.

    Args:
        base: an SD1 or SDXL checkpoint, safetensors in the original naming.
        loras: in any order; the weights of a LoRA that is given twice add up.
        target: a path without a file. After a failure nothing is left there.
        metadata: added to the checkpoint's own in the header.
        sizes: how much is read and written at once.

    Raises:
        ModelFileInvalid: a file is damaged.
        ModelNotSupported: the checkpoint or a LoRA is of a kind that cannot be merged, or the
            result is too large for the checkpoint's dtype.
        ModelMismatch: a LoRA is for another family of checkpoints.
        ModelUnsafe: a file is a pickle.
        StoreFull, StoreNotWritable: `target` cannot be written.
    """
    with ExitStack() as files:
        checkpoint = _Checkpoint.read(files.enter_context(open_tensors(base, base.name)))
        sources: dict[CheckpointLayer, list[PatchSource]] = {}
        unmatched = {}
        for lora in each_once(loras):
            file = files.enter_context(open_tensors(lora.path, lora.name))
            matched, missing = checkpoint.match(file)
            for layer, target_layer in matched:
                if weight := lora.te if target_layer.in_text_encoder else lora.unet:
                    source = PatchSource(file, layer, weight)
                    sources.setdefault(target_layer, []).append(source)
            if missing:
                unmatched[lora.name] = missing
        patches = [checkpoint.patch(layer, added) for layer, added in sources.items()]
        header = _header(checkpoint.file.header, metadata)
        writer.write(checkpoint.file, patches, header, target, sizes)
    return MergeResult(len({patch.key for patch in patches}), unmatched)


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint that LoRAs can be merged into."""

    file: TensorFile
    found: Architecture
    layers: Mapping[str, CheckpointLayer]

    @classmethod
    def read(cls, file: TensorFile) -> _Checkpoint:
        """The checkpoint in a file, or ModelNotSupported."""
        found = architecture.detect(file.header)
        if found.role != "checkpoint" or found.family not in FAMILIES:
            what = f"a {found.role} for {found.family}" if found.role else "not recognised"
            raise ModelNotSupported(
                f"{file.name!r} is {what}; LoRAs can be merged into checkpoints for"
                f" {' and '.join(FAMILIES)} only.",
                hint="Leave the LoRAs out of the merge: they then act as tags in the prompt.",
                model=file.name,
            )
        return cls(file, found, find_layers(file.header.tensors))

    def match(
        self, lora: TensorFile
    ) -> tuple[list[tuple[Layer, CheckpointLayer]], tuple[str, ...]]:
        """A LoRA's layers with the checkpoint's, and the names of those it does not have."""
        found = architecture.detect(lora.header)
        architecture.check_usable(lora.name, "lora", found)
        architecture.check_match(self.file.name, self.found, lora.name, found)
        layers = read_layers(lora.name, lora.header.tensors)
        matched = [
            (layer, self.layers[layer.name]) for layer in layers if layer.name in self.layers
        ]
        if not matched:
            raise ModelMismatch(
                f"{lora.name!r} and the checkpoint {self.file.name!r} have no layer in common.",
                model=lora.name,
            )
        for layer, target in matched:
            self._check(lora.name, layer, target)
        return matched, tuple(one.name for one in layers if one.name not in self.layers)

    def _check(self, lora: str, layer: Layer, target: CheckpointLayer) -> None:
        """Reject a layer of another shape, and a target whose dtype cannot be summed."""
        tensor = self.file.header.tensors[target.key]
        wanted = (target.end - target.first, *tensor.shape[1:])
        flat = (wanted[0], math.prod(wanted[1:]))
        if _trimmed(layer.shape) not in {_trimmed(wanted), flat}:
            raise ModelMismatch(
                f"the layer {layer.name!r} of {lora!r} has the shape {list(layer.shape)}, but"
                f" {target.key!r} of {self.file.name!r} needs {list(wanted)}.",
                model=lora,
                layer=layer.name,
            )
        if tensor.dtype not in FORMATS:
            raise ModelNotSupported(
                f"{target.key!r} of {self.file.name!r} is {tensor.dtype}; LoRAs can be merged into"
                f" {', '.join(FORMATS)} only.",
                hint="Use the checkpoint's fp16 version.",
                model=self.file.name,
            )

    def patch(self, target: CheckpointLayer, sources: Sequence[PatchSource]) -> Patch:
        """The change of one layer."""
        tensor = self.file.header.tensors[target.key]
        columns = math.prod(tensor.shape[1:])
        row = columns * FORMATS[tensor.dtype].storage.itemsize
        return Patch(
            target.key,
            tensor.dtype,
            tensor.begin + target.first * row,
            target.end - target.first,
            columns,
            tuple(sources),
        )


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a 1x1 convolution as a matrix; files use either shape for the same layer."""
    while len(shape) > 2 and shape[-1] == 1:  # noqa: PLR2004 - a matrix
        shape = shape[:-1]
    return shape


def _header(header: Header, metadata: Mapping[str, str]) -> bytes:
    """The header of a file with the same tensors and with `metadata` added."""

    def entry(tensor: Tensor) -> dict[str, object]:
        offsets = [tensor.begin, tensor.end]
        return {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}

    document = {"__metadata__": {**header.metadata, **metadata}}
    tensors = {name: entry(tensor) for name, tensor in header.tensors.items()}
    text = json.dumps(document | tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
