"""The tensors of Stable Diffusion's families, made from the rules of their architecture. Pure.

The names and shapes are those of the original code (ldm for SD1 and SD2, sgm for SDXL), which are
also those of A1111 v1.9.3. `tests/formats/test_stable_diffusion.py` holds the numbers that the
original classes gave. A tensor that has no effect on a picture is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # the same object for all callers, so it cannot be changed

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP_LENGTH, CLIP_WORDS = 77, 49408  # tokens of a prompt, and of the vocabulary
_VAE_WIDTHS = (128, 256, 512, 512)


@dataclass(frozen=True)
class UNet:
    """A UNet's measures.

    Attributes:
        width: channels of the first level.
        levels: for each level, its channels as a multiple of `width`.
        depths: for each level, the transformers behind each of its residual blocks.
        middle: the transformers in the middle.
        context: width of the text encoder's output.
        linear: whether the projections around a transformer are matrices, not convolutions.
        added: width of the vector that is added to the time embedding (SDXL); 0 for none.
    """

    width: int
    levels: tuple[int, ...]
    depths: tuple[int, ...]
    middle: int
    context: int
    linear: bool = True
    added: int = 0


@dataclass(frozen=True)
class Family:
    """A UNet, a VAE's widths, and the text encoders by the prefix of their names.

    A text encoder is (kind, width, layers, used layers).
    """

    unet: UNet
    text: dict[str, tuple[str, int, int, int]]
    vae: tuple[int, ...] = _VAE_WIDTHS


# SD2 and SDXL use the output of the last layer but one, except for SDXL's pooled vector. Files of
# SD2 often leave out the layer that is not used.
_FAMILIES = {
    "SD1": Family(
        UNet(320, (1, 2, 4, 4), (1, 1, 1, 0), 1, 768, linear=False),
        {"cond_stage_model.transformer.": ("CLIP", 768, 12, 12)},
    ),
    "SD2": Family(
        UNet(320, (1, 2, 4, 4), (1, 1, 1, 0), 1, 1024),
        {"cond_stage_model.model.": ("OpenCLIP", 1024, 24, 23)},
    ),
    "SDXL": Family(
        UNet(320, (1, 2, 4), (0, 2, 10), 10, 2048, added=2816),
        {
            "conditioner.embedders.0.transformer.": ("CLIP", 768, 12, 11),
            "conditioner.embedders.1.model.": ("OpenCLIP", 1280, 32, 32),
        },
    ),
    "SDXL refiner": Family(
        UNet(384, (1, 2, 4, 4), (0, 4, 4, 0), 4, 1280, added=2560),
        {"conditioner.embedders.0.model.": ("OpenCLIP", 1280, 32, 32)},
    ),
}
FAMILIES = tuple(_FAMILIES)
TEXT_ENCODERS = {family: tuple(one.text) for family, one in _FAMILIES.items()}


@cache
def unet(family: str) -> Shapes:
    """The UNet's tensors, for a latent of four channels."""
    return MappingProxyType(dict(_unet(_FAMILIES[family].unet)))


@cache
def text_encoders(family: str, *, used: bool = True) -> Shapes:
    """The tensors of the text encoders; with `used`, only those that a picture depends on."""
    return MappingProxyType(dict(_text_encoders(_FAMILIES[family], used=used)))


@cache
def vae() -> Shapes:
    """The tensors of the autoencoder that SD1, SD2 and SDXL share, without a prefix."""
    return MappingProxyType(dict(_vae(_VAE_WIDTHS)))


def checkpoint(family: str | Family) -> Shapes:
    """All tensors of a checkpoint; a `Family` of your own gives a smaller one."""
    made = _FAMILIES[family] if isinstance(family, str) else family
    parts = dict(_unet(made.unet)) | dict(_text_encoders(made, used=False))
    return parts | {VAE + name: shape for name, shape in _vae(made.vae)}


@cache
def network(family: str) -> Shapes:
    """UNet and text encoders: what a LoRA can change."""
    return MappingProxyType({**unet(family), **text_encoders(family, used=False)})


def _module(name: str, *shape: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def _text_encoders(family: Family, *, used: bool) -> Iterator[tuple[str, Shape]]:
    for prefix, (kind, width, layers, needed) in family.text.items():
        count, is_pooled = needed if used else layers, "conditioner" in prefix
        made = _clip(width, count) if kind == "CLIP" else _openclip(width, count, is_pooled)
        yield from ((prefix + name, shape) for name, shape in made)


def _unet(net: UNet) -> Iterator[tuple[str, Shape]]:
    time = 4 * net.width
    yield from _module(f"{UNET}time_embed.0", time, net.width)
    yield from _module(f"{UNET}time_embed.2", time, time)
    if net.added:
        yield from _module(f"{UNET}label_emb.0.0", time, net.added)
        yield from _module(f"{UNET}label_emb.0.2", time, time)
    yield from _module(f"{UNET}input_blocks.0.0", net.width, 4, 3, 3)
    number, channels, skips = 1, net.width, [net.width]
    for level, (multiple, depth) in enumerate(zip(net.levels, net.depths, strict=True)):
        for _ in range(2):
            block, out = f"{UNET}input_blocks.{number}.", multiple * net.width
            yield from _residual(f"{block}0.", channels, out, time)
            yield from _transformer(f"{block}1.", out, depth, net)
            number, channels = number + 1, out
            skips.append(channels)
        if level < len(net.levels) - 1:
            yield from _module(f"{UNET}input_blocks.{number}.0.op", channels, channels, 3, 3)
            number += 1
            skips.append(channels)
    yield from _residual(f"{UNET}middle_block.0.", channels, channels, time)
    yield from _transformer(f"{UNET}middle_block.1.", channels, net.middle, net)
    yield from _residual(f"{UNET}middle_block.2.", channels, channels, time)
    yield from _outputs(net, channels, skips)
    yield from _module(f"{UNET}out.0", net.width)
    yield from _module(f"{UNET}out.2", 4, net.width, 3, 3)


def _outputs(net: UNet, channels: int, skips: list[int]) -> Iterator[tuple[str, Shape]]:
    """The way up: three blocks a level, each with the output of its block on the way down."""
    number = 0
    for level in range(len(net.levels) - 1, -1, -1):
        depth, out = net.depths[level], net.levels[level] * net.width
        for place in range(3):
            block = f"{UNET}output_blocks.{number}."
            yield from _residual(f"{block}0.", channels + skips.pop(), out, 4 * net.width)
            yield from _transformer(f"{block}1.", out, depth, net)
            number, channels = number + 1, out
            if level and place == 2:  # noqa: PLR2004 - the last block of the level
                yield from _module(f"{block}{2 if depth else 1}.conv", out, out, 3, 3)


def _residual(prefix: str, given: int, out: int, time: int) -> Iterator[tuple[str, Shape]]:
    yield from _module(f"{prefix}in_layers.0", given)
    yield from _module(f"{prefix}in_layers.2", out, given, 3, 3)
    yield from _module(f"{prefix}emb_layers.1", out, time)
    yield from _module(f"{prefix}out_layers.0", out)
    yield from _module(f"{prefix}out_layers.3", out, out, 3, 3)
    if given != out:
        yield from _module(f"{prefix}skip_connection", out, given, 1, 1)


def _transformer(prefix: str, width: int, depth: int, net: UNet) -> Iterator[tuple[str, Shape]]:
    if not depth:
        return
    size = () if net.linear else (1, 1)
    yield from _module(f"{prefix}norm", width)
    yield from _module(f"{prefix}proj_in", width, width, *size)
    for block in (f"{prefix}transformer_blocks.{number}." for number in range(depth)):
        for attention, context in (("attn1", width), ("attn2", net.context)):
            for part, given in (("to_q", width), ("to_k", context), ("to_v", context)):
                yield from _module(f"{block}{attention}.{part}", width, given, bias=False)
            yield from _module(f"{block}{attention}.to_out.0", width, width)
        yield from _module(f"{block}ff.net.0.proj", 8 * width, width)
        yield from _module(f"{block}ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _module(block + norm, width)
    yield from _module(f"{prefix}proj_out", width, width, *size)


def _clip(width: int, layers: int) -> Iterator[tuple[str, Shape]]:
    """CLIP as the transformers library names it."""
    words = "text_model.embeddings."
    yield f"{words}token_embedding.weight", (CLIP_WORDS, width)
    yield f"{words}position_embedding.weight", (CLIP_LENGTH, width)
    for layer in (f"text_model.encoder.layers.{number}." for number in range(layers)):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _module(f"{layer}self_attn.{part}", width, width)
        yield from _module(f"{layer}layer_norm1", width)
        yield from _module(f"{layer}mlp.fc1", 4 * width, width)
        yield from _module(f"{layer}mlp.fc2", width, 4 * width)
        yield from _module(f"{layer}layer_norm2", width)
    yield from _module("text_model.final_layer_norm", width)


def _openclip(width: int, layers: int, is_pooled: bool) -> Iterator[tuple[str, Shape]]:
    yield "token_embedding.weight", (CLIP_WORDS, width)
    yield "positional_embedding", (CLIP_LENGTH, width)
    if is_pooled:
        yield "text_projection", (width, width)
    for layer in (f"transformer.resblocks.{number}." for number in range(layers)):
        yield f"{layer}attn.in_proj_weight", (3 * width, width)
        yield f"{layer}attn.in_proj_bias", (3 * width,)
        yield from _module(f"{layer}attn.out_proj", width, width)
        yield from _module(f"{layer}ln_1", width)
        yield from _module(f"{layer}mlp.c_fc", 4 * width, width)
        yield from _module(f"{layer}mlp.c_proj", width, 4 * width)
        yield from _module(f"{layer}ln_2", width)
    yield from _module("ln_final", width)


def _vae(widths: tuple[int, ...]) -> Iterator[tuple[str, Shape]]:
    top = widths[-1]
    yield from _module("encoder.conv_in", widths[0], 3, 3, 3)
    channels = widths[0]
    for level, width in enumerate(widths):
        for place in range(2):
            yield from _vae_block(f"encoder.down.{level}.block.{place}.", channels, width)
            channels = width
        if level < len(widths) - 1:
            yield from _module(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from _vae_middle("encoder.", top)
    yield from _module("encoder.norm_out", top)
    yield from _module("encoder.conv_out", 8, top, 3, 3)
    yield from _module("quant_conv", 8, 8, 1, 1)
    yield from _module("post_quant_conv", 4, 4, 1, 1)
    yield from _module("decoder.conv_in", top, 4, 3, 3)
    yield from _vae_middle("decoder.", top)
    for level in range(len(widths) - 1, -1, -1):
        for place in range(3):
            yield from _vae_block(f"decoder.up.{level}.block.{place}.", channels, widths[level])
            channels = widths[level]
        if level:
            yield from _module(f"decoder.up.{level}.upsample.conv", channels, channels, 3, 3)
    yield from _module("decoder.norm_out", channels)
    yield from _module("decoder.conv_out", 3, channels, 3, 3)


def _vae_block(prefix: str, given: int, out: int) -> Iterator[tuple[str, Shape]]:
    yield from _module(f"{prefix}norm1", given)
    yield from _module(f"{prefix}conv1", out, given, 3, 3)
    yield from _module(f"{prefix}norm2", out)
    yield from _module(f"{prefix}conv2", out, out, 3, 3)
    if given != out:
        yield from _module(f"{prefix}nin_shortcut", out, given, 1, 1)


def _vae_middle(side: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _vae_block(f"{side}mid.block_1.", width, width)
    yield from _module(f"{side}mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _module(f"{side}mid.attn_1.{part}", width, width, 1, 1)
    yield from _vae_block(f"{side}mid.block_2.", width, width)
