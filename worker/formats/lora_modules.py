"""The kinds of deltas that A1111 v1.9.3 reads from a LoRA, and the shape that each gives. Pure.

For each kind: the parts by which A1111 recognises it (`module_types` in its `networks.py`, in the
same order), and the shape of the delta that its `network_*.py` computes. Shapes are enough to tell
whether A1111 can use a layer; no tensor is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
Parts = Mapping[str, Shape]

_MATRIX, _CONVOLUTION = 2, 4  # axes of a weight
# Parts as peft and diffusers name them; A1111 does not read them.
FOREIGN_PARTS = ("lora_A.", "lora_B.", "lora.down.", "lora.up.", "lora_linear_layer.")
# Read for every kind: a factor for the delta, a matrix to add to it, DoRA's magnitudes.
_COMMON = {"alpha", "scale", "bias", "dora_scale"}


class Misfit(ValueError):
    """A1111 leaves the layer as it is, because the delta does not fit; the message says why."""


class Broken(ValueError):
    """A1111 loads nothing of the file, or computes a wrong delta; the message says why."""


@dataclass(frozen=True)
class Layer:
    """A layer of a model.

    Attributes:
        shape: of its weight.
        is_attention: OpenCLIP's attention, whose q, k and v are one matrix; `shape` is that of one.
        is_fixed: A1111 does not change such a layer: the positions, or a norm of OpenCLIP, whose
            own `forward` passes A1111's patch by.
        is_group: it has no weight of its own, such as `to_out`, which contains `to_out.0`, or A1111
            has wrapped it; A1111 fails on such a name.
    """

    shape: Shape
    is_attention: bool = False
    is_fixed: bool = False
    is_group: bool = False


def check_module(parts: Parts, layer: Layer) -> set[str]:
    """The parts that A1111 does not read, of a layer that it can use.

    Args:
        parts: the layer's tensors in the LoRA: name behind the layer's name -> shape.
        layer: the layer of the model.

    Raises:
        Misfit, Broken: A1111 cannot use it.
    """
    kind = next((kind for kind in _KINDS if kind.accepts(parts)), None)
    if kind is None:
        raise Broken(_unknown(parts))
    for single in ("alpha", "scale"):
        if single in parts and math.prod(parts[single]) != 1:
            raise Broken(f"its {single} is not a single number")
    delta = kind.delta(parts, layer.shape)
    if layer.is_fixed:
        if kind.delta in {_lora, _oft}:
            raise Broken("A1111 can apply it only to a matrix or a convolution")
        raise Misfit("A1111 changes no layer of this kind")
    _check_delta(delta, layer.shape, parts)
    return set(parts) - _COMMON - kind.reads


def parts_fault(parts: Parts) -> str | None:
    """Why A1111 cannot use a layer with these parts in any model; None if it may."""
    kind = next((kind for kind in _KINDS if kind.accepts(parts)), None)
    if kind is None:
        return _unknown(parts)
    if kind.delta is _glora and _is_lycoris_3(parts):
        return _LYCORIS_3
    scale = parts.get("dora_scale", ())
    return _dora_words(scale) if len(scale) >= _MATRIX and scale[0] > 1 else None


def _unknown(parts: Parts) -> str:
    shown = ", ".join(part[:60] for part in sorted(parts)[:6])
    return f"A1111 reads no kind of LoRA with the parts {shown}"


def _check_delta(delta: Shape, weight: Shape, parts: Parts) -> None:
    """The delta must have the weight's shape; a 1x1 convolution may be written as a matrix."""
    if _plain(delta) != _plain(weight):
        words = f"its delta is {_shown(delta)}, the layer {_shown(weight)}"
        # torch would reshape or repeat it without an error: another delta than the trained one
        if math.prod(delta) == math.prod(weight) or _repeats(delta, weight):
            raise Broken(f"{words}; A1111 would apply it in a wrong shape")
        raise Misfit(words)
    if "bias" in parts and math.prod(parts["bias"]) != math.prod(weight):
        raise Misfit(f"its bias is {_shown(parts['bias'])}, the layer {_shown(weight)}")
    if "dora_scale" in parts:
        _check_dora(parts["dora_scale"], weight)


def _check_dora(scale: Shape, weight: Shape) -> None:
    """A1111 v1.9.3 divides by the norm of each input, so it needs one magnitude for each."""
    padded = (1,) * (len(weight) - len(scale)) + scale
    if padded != (1, weight[1], *(1 for _ in weight[2:])):
        raise Broken(_dora_words(scale))


def _dora_words(scale: Shape) -> str:
    return (
        f"it is a DoRA with one magnitude for each output ({_shown(scale)}); A1111 v1.9.3"
        " computes a wrong delta from it and needs one for each input"
    )


def _plain(shape: Shape) -> Shape:
    """Without the ones behind a matrix."""
    shown = list(shape)
    while len(shown) > _MATRIX and shown[-1] == 1:
        shown.pop()
    return tuple(shown)


def _repeats(delta: Shape, weight: Shape) -> bool:
    """Whether torch repeats the delta along some axes to get the weight's shape."""
    pairs = zip(reversed(delta), reversed(weight), strict=False)
    return len(delta) <= len(weight) and all(one in {1, other} for one, other in pairs)


def _shown(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"


# The kinds ------------------------------------------------------------------------------------


def _product(left: Shape, right: Shape) -> tuple[int, int]:
    """The shape of a matrix product, of which only the first axes count."""
    if not left or not right or math.prod(left[1:]) != right[0]:
        raise Misfit(f"its factors {_shown(left)} and {_shown(right)} cannot be multiplied")
    return left[0], math.prod(right[1:])


def _lora(parts: Parts, weight: Shape) -> Shape:
    """Two factors; a convolution's can have a third one with the kernel between them."""
    up, down = parts["lora_up.weight"], parts["lora_down.weight"]
    mid = parts.get("lora_mid.weight")
    if len(weight) == _MATRIX and mid is None:
        return _product(up, down)
    if len(weight) == _MATRIX:
        raise Misfit("it has three factors, but the layer is a matrix")
    if len(weight) != _CONVOLUTION or not up or not down:
        raise Broken("A1111 can apply a LoRA only to a matrix or a convolution")
    if any(one != 1 for one in up[_MATRIX:]):
        raise Broken(f"its upper factor is {_shown(up)}, not a 1x1 convolution")
    return _convolution(up, down, weight) if mid is None else _locon(up, mid, down, weight)


def _convolution(up: Shape, down: Shape, weight: Shape) -> Shape:
    if any(one != 1 for one in down[_MATRIX:]):
        _check_kernel(down, weight)
    _product((up[0], math.prod(up[1:])), down[:1])
    return _filled((up[0], *down[1:]), weight)


def _locon(up: Shape, mid: Shape, down: Shape, weight: Shape) -> Shape:
    _check_kernel(mid, weight)
    factors = (up[0], math.prod(up[1:])), (down[0], math.prod(down[1:]))
    if (factors[0][1], factors[1][0]) != mid[:_MATRIX]:
        raise Misfit(f"its three factors {_shown(up)}, {_shown(mid)}, {_shown(down)} do not fit")
    return (up[0], factors[1][1], *mid[_MATRIX:])


def _check_kernel(factor: Shape, weight: Shape) -> None:
    if len(factor) != _CONVOLUTION or factor[_MATRIX:] != weight[_MATRIX:]:
        raise Broken(f"its kernel is {_shown(factor[2:])}, the layer's {_shown(weight[2:])}")


def _tucker(core: Shape, outer: Shape, inner: Shape) -> Shape:
    """A core of shape (a, b, kernel), with a matrix (a, outputs) and a matrix (b, inputs)."""
    fits = len(core) == _CONVOLUTION and len(outer) == len(inner) == _MATRIX
    if not fits or core[:_MATRIX] != (outer[0], inner[0]):
        raise Misfit(f"its factors {_shown(core)}, {_shown(outer)}, {_shown(inner)} do not fit")
    return (outer[1], inner[1], *core[_MATRIX:])


def _hada(parts: Parts, weight: Shape) -> Shape:
    """The product, element by element, of two products of matrices."""
    deltas = []
    for number in (1, 2):
        a, b = (parts[f"hada_w{number}_{side}"] for side in "ab")
        core = parts.get(f"hada_t{number}")
        if core is None:
            _product(a, b)
            deltas.append((a[0], *b[1:]))
        else:
            deltas.append(_tucker(core, a, b))
    if _plain(deltas[0]) != _plain(deltas[1]):
        raise Misfit(f"its two products are {_shown(deltas[0])} and {_shown(deltas[1])}")
    return _filled(deltas[0], weight)


def _filled(delta: Shape, weight: Shape) -> Shape:
    """A matrix (outputs, inputs times kernel) as the convolution that it stands for."""
    is_flat = len(delta) == _MATRIX and len(weight) == _CONVOLUTION
    return weight if is_flat and delta == (weight[0], math.prod(weight[1:])) else delta


def _ia3(parts: Parts, weight: Shape) -> Shape:
    """A factor for each input or each output; which of them is the value of `on_input`."""
    if "on_input" not in parts:
        raise Broken("it has no on_input")
    if len(weight) < _MATRIX:
        raise Broken("A1111 cannot apply an IA3 to a norm")
    # A1111 multiplies the outputs of a matrix only
    ends = weight[:_MATRIX] if len(weight) == _MATRIX else weight[1:_MATRIX]
    if math.prod(parts["weight"]) not in ends:
        raise Misfit(f"it has {math.prod(parts['weight'])} factors, the layer {_shown(weight)}")
    return weight


def _lokr(parts: Parts, weight: Shape) -> Shape:
    """A Kronecker product."""
    first = _kronecker_factor(parts, "1")
    second = _kronecker_factor(parts, "2")
    if len(first) != _MATRIX or len(second) not in {_MATRIX, _CONVOLUTION}:
        raise Misfit(f"its factors are {_shown(first)} and {_shown(second)}")
    delta = (first[0] * second[0], first[1] * second[1], *second[_MATRIX:])
    return _filled(delta, weight)


def _kronecker_factor(parts: Parts, number: str) -> Shape:
    whole = parts.get(f"lokr_w{number}")
    if whole is not None:
        return whole
    a, b = (parts[f"lokr_w{number}_{side}"] for side in "ab")
    core = parts.get(f"lokr_t{number}")
    if core is not None and number == "2":
        return _tucker(core, a, b)
    if len(a) != _MATRIX or len(b) != _MATRIX:
        raise Misfit(f"its factors are {_shown(a)} and {_shown(b)}")
    return _product(a, b)


def _full(parts: Parts, weight: Shape) -> Shape:
    """The difference of the weights, and perhaps of the biases."""
    bias = parts.get("diff_b")
    if bias is not None and math.prod(bias) != weight[0]:
        raise Broken(f"its bias has {math.prod(bias)} elements, the layer's {weight[0]}")
    return _filled(parts["diff"], weight)


def _norm(parts: Parts, weight: Shape) -> Shape:
    if parts["b_norm"] != weight[:1]:
        if _plain(parts["w_norm"]) == weight:
            raise Broken(f"its bias is {_shown(parts['b_norm'])}, the layer {_shown(weight)}")
        raise Misfit(f"it is {_shown(parts['w_norm'])}, the layer {_shown(weight)}")
    return parts["w_norm"]


def _glora(parts: Parts, weight: Shape) -> Shape:
    """b2 b1 + weight a2 a1, all matrices; LyCORIS 3 swapped the factors of the first product."""
    a1, a2, b1, b2 = (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    if any(len(one) != _MATRIX for one in (a1, a2, b1, b2, weight)):
        raise Misfit("A1111 v1.9.3 applies a GLoRA only to matrices")
    if _is_lycoris_3(parts):
        raise Misfit(_LYCORIS_3)
    if a2[0] != weight[1] or (b2[0], b1[1]) != weight:
        raise Misfit(f"its factors do not fit the layer {_shown(weight)}")
    return (weight[0], a1[1])


_LYCORIS_3 = "it is a GLoRA of LyCORIS 3, whose factors A1111 v1.9.3 cannot multiply"


def _is_lycoris_3(parts: Parts) -> bool:
    a1, a2, b1, b2 = (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    return b2[1:] != b1[:1] or a2[1:] != a1[:1]


def _oft(parts: Parts, weight: Shape) -> Shape:
    """A rotation in blocks of the outputs: (blocks, size, size), or BOFT with one axis more."""
    if len(weight) < _MATRIX:
        raise Broken("A1111 cannot apply an OFT to a norm")
    blocks = parts["oft_blocks"] if "oft_blocks" in parts else parts["oft_diag"]
    number, *size = blocks[-3:] if len(blocks) in {3, 4} else (0, 0, 0)
    if size[0] != size[1] or number * size[0] != weight[0]:
        raise Misfit(f"its blocks are {_shown(blocks)}, the layer {_shown(weight)}")
    if math.prod(parts.get("rescale", (weight[0],))) not in {1, weight[0]}:
        raise Misfit(f"its rescale is {_shown(parts['rescale'])}, the layer {_shown(weight)}")
    return weight


@dataclass(frozen=True)
class _Kind:
    """One of A1111's module types.

    Attributes:
        needs: each of these sets is enough to recognise it.
        may: further parts that it reads.
        delta: (parts, the weight's shape) -> the delta's shape.
    """

    needs: tuple[frozenset[str], ...]
    may: frozenset[str]
    delta: Callable[[Parts, Shape], Shape]

    def accepts(self, parts: Parts) -> bool:
        """Whether A1111 takes the layer for this kind."""
        return any(needed <= parts.keys() for needed in self.needs)

    @property
    def reads(self) -> frozenset[str]:
        """The parts that it reads, without those that every kind reads."""
        return self.may.union(*self.needs)


def _kind(delta: Callable[[Parts, Shape], Shape], *needs: str, may: str = "") -> _Kind:
    return _Kind(tuple(frozenset(one.split()) for one in needs), frozenset(may.split()), delta)


_LOKR = [f"{first} {second}" for first in ("lokr_w1", "lokr_w1_a lokr_w1_b")
         for second in ("lokr_w2", "lokr_w2_a lokr_w2_b")]  # fmt: skip

# In A1111's order: the first that accepts the parts decides.
_KINDS = (
    _kind(_lora, "lora_up.weight lora_down.weight", may="lora_mid.weight"),
    _kind(_hada, "hada_w1_a hada_w1_b hada_w2_a hada_w2_b", may="hada_t1 hada_t2"),
    _kind(_ia3, "weight", may="on_input"),
    _kind(_lokr, *_LOKR, may="lokr_t2"),
    _kind(_full, "diff", may="diff_b"),
    _kind(_norm, "w_norm b_norm"),
    _kind(_glora, "a1.weight a2.weight alpha b1.weight b2.weight"),
    _kind(_oft, "oft_blocks", "oft_diag", may="rescale"),
)
