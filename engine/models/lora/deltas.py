"""What each kind of LoRA adds to the weight of a layer, as A1111 v1.9.3 computes it.

    LoRA, LoCon      up x down, with a third factor between them for convolutions (Tucker)
    LoHa             the product, element by element, of two products
    LoKr             a Kronecker product
    IA3              the weight, times a factor for each input or each output
    weight difference, norms        the difference itself, also of the bias
    GLoRA            b2 b1 + weight a2 a1
    OFT, BOFT        the weight with its outputs rotated, see `rotations`

A DoRA is any of them: the sum of weight and delta gets other lengths. lycoris-lora has the same
formulas, but not A1111's rules for alpha, OFT's limit and GLoRA's order, which change the picture.
A1111 computes in half precision; here all is in single precision, and is rounded once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from engine.models.lora import rotations

Parts = Mapping[str, torch.Tensor]  # of one layer, under kohya's names without the layer's
Formula = Callable[[Parts, torch.Tensor, int | None], torch.Tensor]

MATRIX, CONVOLUTION = 2, 4  # axes of a weight
INPAINTING, LATENT = 9, 4  # inputs of a UNet for inpainting; LoRAs change the first ones


class Misfit(ValueError):
    """The file cannot be applied completely; the message gives the reason."""


@dataclass(frozen=True)
class Delta:
    """What is added to a layer at weight 1."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Kind:
    """A kind of LoRA: `needs` are sets of parts of which one must be there, `may` further parts.

    `ranks` are the parts whose first axis is the rank; an alpha counts only with one of them.
    """

    name: str
    needs: tuple[str, ...]
    formula: Formula
    may: str = ""
    ranks: tuple[str, ...] = ()

    def accepts(self, names: set[str]) -> bool:
        """Whether a layer with these parts is of this kind."""
        return any(set(one.split()) <= names for one in self.needs)

    def reads(self) -> set[str]:
        """All parts that count."""
        return COMMON.union(self.may.split(), *(one.split() for one in self.needs))


COMMON = {"alpha", "scale", "bias", "dora_scale"}


def find_kind(names: set[str]) -> Kind:
    """The kind of a layer with these parts. Raises Misfit."""
    kind = next((kind for kind in KINDS if kind.accepts(names)), None)
    if kind is None:
        raise Misfit(f"no kind of LoRA has only the parts {', '.join(sorted(names))}")
    if unread := names - kind.reads():
        raise Misfit(f"it is a {kind.name}, which has no part {min(unread)}")
    return kind


def delta(parts: Parts, weight: torch.Tensor, dyn: int | None = None) -> Delta:
    """The delta of a layer that has this weight now; `dyn` cuts off the higher ranks of a LoRA.

    Raises Misfit, or RuntimeError from torch, for tensors whose shapes do not fit.
    """
    kind = find_kind(set(parts))
    is_for_inpainting = weight.ndim == CONVOLUTION and weight.shape[1] == INPAINTING
    given = weight[:, :LATENT] if is_for_inpainting else weight
    change = _fitted(kind.formula(parts, given, dyn), given)
    if "bias" in parts:
        change = change + parts["bias"].reshape(given.shape)
    change = change * _scale(kind, parts)
    if "dora_scale" in parts:
        change = _with_lengths(given + change, parts["dora_scale"]) - given
    if is_for_inpainting:
        change = torch.cat([change, torch.zeros_like(weight[:, LATENT:])], 1)
    return Delta(change, parts.get("diff_b", parts.get("b_norm")))


def _fitted(change: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In the weight's shape: files store convolutions also as matrices, and without the ones."""
    if change.ndim > 1 and change.flatten(1).shape == (len(weight), weight[0].numel()):
        return change.reshape(weight.shape)
    if change.shape != weight.shape:
        raise Misfit(f"its delta has the shape {[*change.shape]}")
    return change


def _scale(kind: Kind, parts: Parts) -> float:
    if "scale" in parts:
        return float(parts["scale"])
    ranks = [parts[name].shape[0] for name in kind.ranks if name in parts]
    return float(parts["alpha"]) / ranks[0] if ranks and "alpha" in parts else 1.0


def _with_lengths(merged: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """DoRA: one length for each input (or each output), over all other axes.

    A1111 multiplies by alpha / rank at the end instead of before; the worker changes such files for
    it, so that its pictures are those of this formula.
    """
    lengths = lengths[None] if lengths.ndim == 1 else lengths
    lengths = lengths.reshape(*lengths.shape, *[1] * (merged.ndim - lengths.ndim))
    axes = [axis for axis, length in enumerate(lengths.shape) if length == 1]
    if merged.ndim < MATRIX or lengths.numel() not in merged.shape[:2] or not axes:
        raise Misfit(f"its dora_scale has the shape {[*lengths.shape]}")
    norms: torch.Tensor = torch.linalg.vector_norm(merged, dim=axes, keepdim=True)
    return merged * (lengths / norms)


# The kinds ------------------------------------------------------------------------------------


def _tucker(core: torch.Tensor, outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """A core (a, b, kernel) between matrices (a, outputs) and (b, inputs)."""
    return torch.einsum("abhw,ao,bi->oihw", core, outer, inner)


def _lora(parts: Parts, weight: torch.Tensor, dyn: int | None) -> torch.Tensor:
    if weight.ndim < MATRIX:
        raise Misfit("a LoRA cannot change a norm")
    up, down = parts["lora_up.weight"].flatten(1), parts["lora_down.weight"]
    if (mid := parts.get("lora_mid.weight")) is not None:
        return _tucker(mid, up.T, down.flatten(1))
    return (up[:, :dyn] @ down.flatten(1)[:dyn]).reshape(-1, *down.shape[1:])


def _loha(parts: Parts, _weight: torch.Tensor, _dyn: int | None) -> torch.Tensor:
    first, second = (
        _tucker(parts[f"hada_t{number}"], a, b)
        if f"hada_t{number}" in parts
        else a.flatten(1) @ b.flatten(1)
        for number in "12"
        for a, b in [(parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"])]
    )
    if first.flatten(1).shape != second.flatten(1).shape:
        raise Misfit(f"its two products are {[*first.shape]} and {[*second.shape]}")
    return first * second.reshape(first.shape)


def _lokr(parts: Parts, _weight: torch.Tensor, _dyn: int | None) -> torch.Tensor:
    first = parts.get("lokr_w1")
    first = parts["lokr_w1_a"] @ parts["lokr_w1_b"] if first is None else first
    second = parts.get("lokr_w2")
    if second is None:
        a, b = parts["lokr_w2_a"], parts["lokr_w2_b"]
        second = _tucker(parts["lokr_t2"], a, b) if "lokr_t2" in parts else a @ b
    first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
    return torch.kron(first, second.contiguous())


def _ia3(parts: Parts, weight: torch.Tensor, _dyn: int | None) -> torch.Tensor:
    factors = parts["weight"].flatten()
    axis = 1 if bool(parts["on_input"]) else 0
    is_possible = weight.ndim == MATRIX or (axis and weight.ndim == CONVOLUTION)
    if not is_possible or len(factors) != weight.shape[axis]:
        raise Misfit(f"IA3 has {len(factors)} factors for {'inputs' if axis else 'outputs'}")
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight * factors.reshape(shape)


def _difference(parts: Parts, weight: torch.Tensor, _dyn: int | None) -> torch.Tensor:
    change = parts.get("diff")
    change = parts["w_norm"] if change is None else change
    bias = parts.get("diff_b", parts.get("b_norm"))
    if bias is not None and bias.shape != weight.shape[:1]:
        raise Misfit(f"its bias has the shape {[*bias.shape]}")
    return change


def _glora(parts: Parts, weight: torch.Tensor, _dyn: int | None) -> torch.Tensor:
    a1, a2, b1, b2 = (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    if b2.shape[1:] != b1.shape[:1]:
        raise Misfit("it is a GLoRA of LyCORIS 3, which A1111 v1.9.3 cannot apply")
    if weight.ndim != MATRIX:
        raise Misfit("A1111 v1.9.3 applies a GLoRA only to matrices")
    return b2 @ b1 + weight @ a2 @ a1


def _oft(parts: Parts, weight: torch.Tensor, _dyn: int | None) -> torch.Tensor:
    if weight.ndim < MATRIX:
        raise Misfit("an OFT cannot rotate a norm")
    if "oft_blocks" in parts:
        blocks = rotations.from_skew(parts["oft_blocks"], parts.get("alpha"), len(weight))
    else:
        blocks = parts["oft_diag"]
    number, *size = blocks.shape[-3:] if blocks.ndim in {3, 4} else (0, 0, 0)
    if size[0] != size[1] or number * size[0] != len(weight):
        raise Misfit(f"its rotations have the shape {[*blocks.shape]}")
    rotate = rotations.butterfly if blocks.ndim == CONVOLUTION else rotations.rotate
    turned = rotate(blocks, weight)
    if (rescale := parts.get("rescale")) is not None:
        if rescale.numel() not in {1, len(weight)}:
            raise Misfit(f"its rescale has the shape {[*rescale.shape]}")
        turned = turned * rescale.reshape(-1, *[1] * (weight.ndim - 1))
    return turned - weight


_LOKR = tuple(
    f"{first} {second}"
    for first in ("lokr_w1", "lokr_w1_a lokr_w1_b")
    for second in ("lokr_w2", "lokr_w2_a lokr_w2_b")
)

# In A1111's order: the first that accepts the parts decides.
KINDS = (
    Kind(
        "LoRA",
        ("lora_up.weight lora_down.weight",),
        _lora,
        "lora_mid.weight",
        ("lora_down.weight",),
    ),
    Kind(
        "LoHa",
        ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b",),
        _loha,
        "hada_t1 hada_t2",
        ("hada_w1_b",),
    ),
    Kind("IA3", ("weight on_input",), _ia3),
    Kind("LoKr", _LOKR, _lokr, "lokr_t2", ("lokr_w2_b", "lokr_w1_b")),
    Kind("weight difference", ("diff",), _difference, "diff_b"),
    Kind("LoRA of norms", ("w_norm b_norm",), _difference),
    Kind("GLoRA", ("a1.weight a2.weight alpha b1.weight b2.weight",), _glora),
    Kind("OFT", ("oft_blocks", "oft_diag"), _oft, "rescale"),
)
