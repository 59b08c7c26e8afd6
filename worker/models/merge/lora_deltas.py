"""What a LoRA file adds to a checkpoint's layers: kinds of layers, shapes and formulas. Pure.

    LoRA, LoCon   up @ down; with `lora_mid` (Tucker) the core is multiplied with down first
    LoHa          the elementwise product of two such products
    LoKr          the Kronecker product of two matrices, each stored whole or as such a pair

Each is multiplied by alpha / rank, as A1111 v1.9.3 and LyCORIS define it. Other kinds change more
than a layer's weights, or need all weights at once; they are rejected by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from worker.errors import ModelFileInvalid, ModelNotSupported
from worker.formats.safetensors_header import Tensor
from worker.models.merge.float_formats import FORMATS, Float32

ALPHA = "alpha"
_WHOLE_ALPHAS = {(ALPHA, "I64"), (ALPHA, "I32")}  # some trainers store alpha as an integer
_LEAVE_OUT = "Leave it out of the merge: it then works as a tag in the prompt."
_CONVERT = "Convert it to kohya's naming (`lora_unet_...`)."

# Kinds that cannot be merged -> pattern of their keys.
_DIFFUSERS = "LoRA in the naming of diffusers or PEFT"
_REFUSED = {
    "DoRA": r"\.(dora_scale|lora_magnitude_vector)\b",
    _DIFFUSERS: r"^(unet|text_encoder(_2)?|transformer|base_model)\.|[._]lora_[AB]\."
    r"|[._]lora(_linear_layer)?\.(down|up)\.",
    "GLoRA": r"\.[ab][12]\.weight$",
    "OFT": r"\.oft_|^oft_",
    "BOFT": r"\.boft_",
    "IA3": r"\.on_input$",
    "LoRA of norms": r"\.[wb]_norm$",
    "weight difference": r"\.diff(_b)?$",
    "LoRA with biases": r"\.lora_\w+\.bias$|\.bias(_\w+)?$",
    "LoRA with an embedding": r"^bundle_emb\.",
}


@dataclass(frozen=True)
class _Pair:
    """A matrix that a file stores as two factors; the attributes are names of tensors.

    Attributes:
        outer: (outputs, rank); if `transposed`, (rank, outputs).
        inner: (rank, inputs, ...).
        core: (rank, rank, height, width), the Tucker core between the two.
    """

    outer: str
    inner: str
    core: str | None = None
    transposed: bool = False

    @property
    def parts(self) -> set[str]:
        """The parts' names."""
        return {self.outer, self.inner} | ({self.core} if self.core else set())


@dataclass(frozen=True)
class _Whole:
    """A matrix that a file stores as one tensor."""

    name: str

    @property
    def parts(self) -> set[str]:
        """The part's name."""
        return {self.name}


@dataclass(frozen=True)
class Form:
    """A kind of layer: its matrices and how they are combined."""

    kind: Literal["product", "hadamard", "kronecker"]
    matrices: tuple[_Pair | _Whole, ...]

    @property
    def rank_part(self) -> str | None:
        """The part whose first axis is the rank; None if alpha has no effect."""
        pairs = [matrix for matrix in self.matrices if isinstance(matrix, _Pair)]
        return pairs[-1].inner if pairs else None


def _forms() -> dict[frozenset[str], Form]:
    """All forms, by the set of their parts."""
    w = "hada_w{}_{}"
    loha = [_Pair(w.format(n, "a"), w.format(n, "b")) for n in (1, 2)]
    tucker = [_Pair(p.outer, p.inner, f"hada_t{n}", transposed=True) for n, p in enumerate(loha, 1)]
    first: list[_Pair | _Whole] = [_Whole("lokr_w1"), _Pair("lokr_w1_a", "lokr_w1_b")]
    second: list[_Pair | _Whole] = [
        _Whole("lokr_w2"),
        _Pair("lokr_w2_a", "lokr_w2_b"),
        _Pair("lokr_w2_a", "lokr_w2_b", "lokr_t2", transposed=True),
    ]
    up, down = "lora_up.weight", "lora_down.weight"
    forms = [
        Form("product", (_Pair(up, down),)),
        Form("product", (_Pair(up, down, "lora_mid.weight"),)),
        Form("hadamard", tuple(loha)),
        Form("hadamard", tuple(tucker)),
        *(Form("kronecker", (left, right)) for left in first for right in second),
    ]
    return {frozenset().union(*(m.parts for m in form.matrices)): form for form in forms}


_FORMS = _forms()
PARTS = frozenset().union(*_FORMS) | {ALPHA}  # all parts that the forms have


@dataclass(frozen=True)
class Layer:
    """One layer of a LoRA file.

    Attributes:
        name: of the layer, without a part's name.
        parts: part's name -> shape of its tensor; without alpha.
        shape: of the delta; a convolution's may be flattened to (outputs, rest).
        has_alpha: if False, the scale is 1.
    """

    name: str
    form: Form
    parts: Mapping[str, tuple[int, ...]]
    shape: tuple[int, ...]
    has_alpha: bool

    def scale(self, alpha: float) -> float:
        """The factor of the formula's result."""
        part = self.form.rank_part
        return alpha / self.parts[part][0] if part else 1.0


def read_layers(name: str, tensors: Mapping[str, Tensor]) -> list[Layer]:
    """The layers of a LoRA file from its header.

    Args:
        name: of the LoRA, for messages.
        tensors: name in the file -> tensor.

    Raises:
        ModelNotSupported: the file contains a kind that cannot be merged.
        ModelFileInvalid: a layer is incomplete, or the shapes of its parts do not match.
    """
    for key in tensors:
        _refuse(name, key)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.partition(".")
        if part not in PARTS:
            raise _unknown(name, f"the key {key!r}")
        if tensor.dtype not in FORMATS and (part, tensor.dtype) not in _WHOLE_ALPHAS:
            raise _unknown(name, f"{key!r} of dtype {tensor.dtype}")
        layers.setdefault(layer, {})[part] = tensor
    return [_layer(name, layer, parts) for layer, parts in layers.items()]


def _refuse(name: str, key: str) -> None:
    for kind, pattern in _REFUSED.items():
        if re.search(pattern, key):
            raise ModelNotSupported(
                f"{name!r} cannot be merged: its kind is {kind} ({key!r}).",
                hint=_CONVERT if kind == _DIFFUSERS else _LEAVE_OUT,
                model=name,
                kind=kind,
            )


def _unknown(name: str, what: str) -> ModelNotSupported:
    return ModelNotSupported(
        f"{name!r} has {what}, which cannot be merged: it is not a known part of a LoRA.",
        hint=_LEAVE_OUT,
        model=name,
    )


def _layer(name: str, layer: str, tensors: Mapping[str, Tensor]) -> Layer:
    parts = {part: tensor.shape for part, tensor in tensors.items() if part != ALPHA}
    form = _FORMS.get(frozenset(parts))
    if form is None:
        has = ", ".join(sorted(tensors))
        raise _damaged(name, f"the layer {layer!r} is incomplete: it has only {has}")
    if ALPHA in tensors and math.prod(tensors[ALPHA].shape) != 1:
        raise _damaged(name, f"the alpha of layer {layer!r} is not a single number")
    try:
        shape = _combined(form, [_shape(matrix, parts) for matrix in form.matrices])
    except ValueError as error:
        raise _damaged(name, f"the shapes of the parts of layer {layer!r} do not match") from error
    return Layer(layer, form, parts, shape, ALPHA in tensors)


def _damaged(name: str, what: str) -> ModelFileInvalid:
    return ModelFileInvalid(f"{name!r} cannot be used: {what}.", model=name)


def _shape(matrix: _Pair | _Whole, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a matrix; ValueError if the shapes of its parts do not match."""
    if isinstance(matrix, _Whole):
        return _axes(parts[matrix.name])
    outer, inner = _axes(parts[matrix.outer]), _axes(parts[matrix.inner])
    outer = outer[::-1] if matrix.transposed else outer
    columns, core = inner[1:], inner[:1] * 2
    if matrix.core:
        core = _axes(parts[matrix.core])
        columns = (math.prod(columns), *core[2:])
    if not inner[0] or core[:2] != (math.prod(outer[1:]), inner[0]):
        raise ValueError(outer, inner)
    return outer[0], *columns


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) < 2:  # noqa: PLR2004 - a matrix
        raise ValueError(shape)
    return shape


def _combined(form: Form, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the combined matrices; ValueError if their shapes do not match."""
    first, second = shapes[0], shapes[-1]
    if form.kind == "kronecker":
        rows, columns = first
        return rows * second[0], columns * second[1], *second[2:]
    if math.prod(first[1:]) != math.prod(second[1:]) or first[0] != second[0]:
        raise ValueError(shapes)
    return first


class Delta(Protocol):
    """The addition to a layer, as a matrix (outputs, product of the other axes)."""

    def write(self, first: int, end: int, out: Float32) -> None:
        """Fill `out` (end - first, columns) with the rows `first` to `end` (exclusive)."""


@dataclass(frozen=True)
class Product:
    """`outer` (rows, rank) @ `inner` (rank, columns)."""

    outer: Float32
    inner: Float32

    def write(self, first: int, end: int, out: Float32) -> None:
        """See `Delta`."""
        np.matmul(self.outer[first:end], self.inner, out=out)


@dataclass(frozen=True)
class Hadamard:
    """The elementwise product of two matrices."""

    left: Product
    right: Product

    def write(self, first: int, end: int, out: Float32) -> None:
        """See `Delta`."""
        self.left.write(first, end, out)
        out *= self.right.outer[first:end] @ self.right.inner


@dataclass(frozen=True)
class Kronecker:
    """The Kronecker product of `left` and `right`."""

    left: Float32
    right: Float32

    def write(self, first: int, end: int, out: Float32) -> None:
        """See `Delta`."""
        rows = np.arange(first, end)
        left = self.left[rows // len(self.right), :, None]
        right = self.right[rows % len(self.right), None, :]
        np.multiply(left, right, out=out.reshape(len(rows), left.shape[1], right.shape[2]))


def make_delta(layer: Layer, parts: Mapping[str, Float32], strength: float) -> Delta:
    """The layer's delta, computed from the values of its parts, times `strength`."""
    matrices = [_value(matrix, parts) for matrix in layer.form.matrices]
    if layer.form.kind == "kronecker":
        left, right = (m.outer @ m.inner if isinstance(m, Product) else m for m in matrices)
        return Kronecker(left * np.float32(strength), right)
    first, *others = (m for m in matrices if isinstance(m, Product))
    first = Product(first.outer * np.float32(strength), first.inner)
    return Hadamard(first, others[0]) if others else first


def _value(matrix: _Pair | _Whole, parts: Mapping[str, Float32]) -> Product | Float32:
    if isinstance(matrix, _Whole):
        return _flat(parts[matrix.name])
    outer, inner = _flat(parts[matrix.outer]), _flat(parts[matrix.inner])
    if matrix.core:
        inner = _flat(np.einsum("nm...,mj->nj...", parts[matrix.core], inner, optimize=True))
    return Product(outer.T if matrix.transposed else outer, inner)


def _flat(values: Float32) -> Float32:
    return values.reshape(len(values), -1)


def join(deltas: Sequence[Delta]) -> list[Delta]:
    """Fewer deltas with the same sum: all products become one, whose rank is the sum of ranks."""
    products = [delta for delta in deltas if isinstance(delta, Product)]
    if len(products) < 2:  # noqa: PLR2004 - nothing to join
        return list(deltas)
    outer = np.concatenate([product.outer for product in products], axis=1)
    inner = np.concatenate([product.inner for product in products])
    return [Product(outer, inner), *(d for d in deltas if not isinstance(d, Product))]
