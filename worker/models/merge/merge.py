"""LoRAs merged into a checkpoint, which then acts as if they were always in the prompt.

The result is the checkpoint with other numbers in the layers that the LoRAs change: same tensors,
same dtypes, same places. What LoRAs add to one layer is summed before it is rounded, once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from worker.errors import ModelMismatch, ModelNotSupported
from worker.formats import architecture
from worker.formats.architecture import Architecture
from worker.formats.safetensors_header import Header, Tensor
from worker.models.merge import writer
from worker.models.merge.checkpoint_layers import CheckpointLayer, find_layers
from worker.models.merge.float_formats import FORMATS
from worker.models.merge.lora_deltas import Layer, read_layers
from worker.models.merge.tensor_file import TensorFile, open_tensors
from worker.models.merge.writer import Patch, PatchSource

ALGORITHM = 1  # part of the key: raised whenever results change
FAMILIES = ("SD1", "SDXL")

_ALIGNMENT = 8  # safetensors begins data at such places


@dataclass(frozen=True)
class Ingredient:
    """A LoRA to merge.

    Attributes:
        name: for messages.
        sha256: of the file, hex.
        te: its weight in text encoders, `unet` that in the UNet.
    """

    path: Path
    name: str
    sha256: str
    te: float = 1.0
    unet: float = 1.0


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        layers: how many of the checkpoint's tensors were changed.
        unmatched: by the name of each LoRA that has some, its layers for which the checkpoint
            has no place.
    """

    layers: int
    unmatched: Mapping[str, tuple[str, ...]]


def merge_key(base_sha256: str, loras: Sequence[Ingredient]) -> str:
    """What the result depends on, as 64 hex digits; not on the order of the LoRAs."""
    mixed = [[lora.sha256, lora.te, lora.unet] for lora in _mixed(loras)]
    document = json.dumps([ALGORITHM, base_sha256.lower(), mixed])
    return sha256(document.encode()).hexdigest()


def merge(
    base: Path, loras: Sequence[Ingredient], target: Path, metadata: Mapping[str, str]
) -> Merged:
    """Write `target`, the checkpoint with the LoRAs in it, and bring it to the disk.

    Args:
        base: an SD1 or SDXL checkpoint, safetensors in the original naming.
        loras: their order does not matter; the weights of one named twice add up.
        target: where no file is yet. Nothing is left there on failure.
        metadata: written into the header, beside the checkpoint's own.

    Raises:
        ModelFileInvalid: a file is damaged.
        ModelNotSupported: the checkpoint or a LoRA is of a kind that cannot be merged, or the
            result is too large for the checkpoint's numbers.
        ModelMismatch: a LoRA is for other checkpoints.
        ModelUnsafe: a file is a pickle.
        StoreFull, StoreNotWritable: `target` cannot be written.
    """
    with ExitStack() as files:
        checkpoint = _Checkpoint.read(files.enter_context(open_tensors(base, base.name)))
        sources: dict[CheckpointLayer, list[PatchSource]] = {}
        unmatched = {}
        for lora in _mixed(loras):
            file = files.enter_context(open_tensors(lora.path, lora.name))
            matched, missing = checkpoint.match(file)
            for layer, place in matched:
                if weight := lora.te if place.in_text_encoder else lora.unet:
                    sources.setdefault(place, []).append(PatchSource(file, layer, weight))
            if missing:
                unmatched[lora.name] = missing
        patches = [checkpoint.patch(place, added) for place, added in sources.items()]
        header = _header(checkpoint.file.header, metadata)
        writer.write(checkpoint.file, patches, header, target)
    return Merged(len({patch.key for patch in patches}), unmatched)


def _mixed(loras: Iterable[Ingredient]) -> list[Ingredient]:
    """Each LoRA once, in an order that depends on nothing but the files."""
    by_hash: dict[str, list[Ingredient]] = {}
    for lora in loras:
        by_hash.setdefault(lora.sha256.lower(), []).append(lora)
    return [
        Ingredient(same[0].path, same[0].name, digest, *_weights(same))
        for digest, same in sorted(by_hash.items())
    ]


def _weights(same: Sequence[Ingredient]) -> tuple[float, float]:
    """Their sums as floats, whatever the order; never -0.0."""
    return math.fsum(lora.te for lora in same) + 0.0, math.fsum(lora.unet for lora in same) + 0.0


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint that LoRAs can be merged into."""

    file: TensorFile
    found: Architecture
    places: Mapping[str, CheckpointLayer]

    @classmethod
    def read(cls, file: TensorFile) -> _Checkpoint:
        """The checkpoint in a file, or ModelNotSupported."""
        found = architecture.detect(file.header)
        if found.role != "checkpoint" or found.family not in FAMILIES:
            what = f"a {found.role} for {found.family}" if found.role else "not recognised"
            raise ModelNotSupported(
                f"{file.name!r} is {what}; LoRAs are merged into checkpoints for"
                f" {' and '.join(FAMILIES)} only.",
                hint="Leave the LoRAs out of the merge: they then act as tags in the prompt.",
                model=file.name,
            )
        return cls(file, found, find_layers(file.header.tensors))

    def match(
        self, lora: TensorFile
    ) -> tuple[list[tuple[Layer, CheckpointLayer]], tuple[str, ...]]:
        """A LoRA's layers with their places, and the names of those that have none."""
        found = architecture.detect(lora.header)
        architecture.check_usable(lora.name, "lora", found)
        architecture.check_match(self.file.name, self.found, lora.name, found)
        layers = read_layers(lora.name, lora.header.tensors)
        matched = [
            (layer, self.places[layer.name]) for layer in layers if layer.name in self.places
        ]
        if not matched:
            raise ModelMismatch(
                f"{lora.name!r} has no layer that the checkpoint {self.file.name!r} has.",
                model=lora.name,
            )
        for layer, place in matched:
            self._check(lora.name, layer, place)
        return matched, tuple(one.name for one in layers if one.name not in self.places)

    def _check(self, lora: str, layer: Layer, place: CheckpointLayer) -> None:
        """Refuse a layer that does not fit, or whose place cannot be added to."""
        tensor = self.file.header.tensors[place.key]
        wanted = (place.end - place.first, *tensor.shape[1:])
        flat = (wanted[0], math.prod(wanted[1:]))
        if _trimmed(layer.shape) not in {_trimmed(wanted), flat}:
            raise ModelMismatch(
                f"the layer {layer.name!r} of {lora!r} has the shape {list(layer.shape)}, but"
                f" {place.key!r} of {self.file.name!r} takes {list(wanted)}.",
                model=lora,
                layer=layer.name,
            )
        if tensor.dtype not in FORMATS:
            raise ModelNotSupported(
                f"{place.key!r} of {self.file.name!r} is {tensor.dtype}; LoRAs are merged into"
                f" {', '.join(FORMATS)} only.",
                hint="Use the checkpoint's fp16 version.",
                model=self.file.name,
            )

    def patch(self, place: CheckpointLayer, sources: Sequence[PatchSource]) -> Patch:
        """What is done at a place."""
        tensor = self.file.header.tensors[place.key]
        columns = math.prod(tensor.shape[1:])
        row = columns * FORMATS[tensor.dtype].storage.itemsize
        return Patch(
            place.key,
            tensor.dtype,
            tensor.begin + place.first * row,
            place.end - place.first,
            columns,
            tuple(sources),
        )


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without what a 1x1 convolution has more than a matrix: files have either for both."""
    while len(shape) > 2 and shape[-1] == 1:  # noqa: PLR2004 - a matrix
        shape = shape[:-1]
    return shape


def _header(header: Header, metadata: Mapping[str, str]) -> bytes:
    """The header of a file with the same tensors, and `metadata` beside its own."""

    def entry(tensor: Tensor) -> dict[str, object]:
        offsets = [tensor.begin, tensor.end]
        return {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}

    document = {"__metadata__": {**header.metadata, **metadata}}
    tensors = {name: entry(tensor) for name, tensor in header.tensors.items()}
    text = json.dumps(document | tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
