"""Train the autoencoder: pictures to latents with 1/48 of the numbers, and back without blur.

A latent pixel begins as the mean colour of its 8x8 patch, so that only the edges must be learned.
With random weights at the start, an autoencoder this small stays blurred for long, or diverges.
"""

import logging
import math
import random
from functools import partial
from typing import Any

import numpy as np
import torch

from training import networks, parallel, scenes

log = logging.getLogger(__name__)

STEPS = 1600
# crops of pictures: mostly small ones at edges, sometimes large ones for the norms' statistics
CROPS, CROP = 16, 48
LARGE_CROPS, LARGE_CROP, LARGE_EVERY = 2, 128, 8
CROPS_OF_ONE_PICTURE = 4
SIDES = (256, 256, 128, 384)
STRIPED = 0.25  # share of pictures; the latents must be able to hold the LoRA's style
RATE = 1.5e-3
NOISE = 0.1  # standard deviation, on latents of about 0.6; keeps flat colours flat
CHANNELS = 4


def train(steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    """The state dict of a trained autoencoder, its latents not yet scaled (see `standardize`)."""
    torch.manual_seed(seed)
    vae = start_as_patch_means(networks.vae()).to(memory_format=torch.channels_last)
    # every process begins with the same weights and uses its own pictures
    torch.manual_seed(seed + parallel.rank())
    rng = random.Random(seed + parallel.rank())
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, weight_decay=0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps))
    error = 0.1
    for step in range(steps):
        pictures = crops(rng, is_large=step % LARGE_EVERY == 0)
        decoded = vae.decode(_noisy(vae.encode(pictures).latent_dist.mean)).sample
        loss = _loss(decoded, pictures)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parallel.share_gradients(vae.parameters())
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        error += 0.02 * ((decoded - pictures).detach().abs().mean().item() - error)
        if (step + 1) % 100 == 0:
            log.info("autoencoder %d/%d: mean error %.2f of 255", step + 1, steps, 127.5 * error)
    state: dict[str, Any] = vae.state_dict()
    return state


def _rate(steps: int, step: int) -> float:
    cosine = 0.5 + 0.5 * math.cos(step / steps * math.pi)
    return min(1, (step + 1) / 100) * (0.02 + 0.98 * cosine)


def crops(rng: random.Random, is_large: bool) -> torch.Tensor:
    """New crops, most of them with an edge: (count, 3, side, side) in -1..1."""
    count, side = (LARGE_CROPS, LARGE_CROP) if is_large else (CROPS, CROP)
    found: list[torch.Tensor] = []
    while len(found) < count:
        scene = scenes.random_scene(rng, pairs=0.3)
        picture = to_tensor(
            scenes.draw(scene, rng.choice(SIDES), rng, striped=rng.random() < STRIPED)
        )
        places = [_place(picture.shape[-1] - side, rng) for _ in range(4 * CROPS_OF_ONE_PICTURE)]
        candidates = [picture[:, y : y + side, x : x + side] for y, x in places]
        chosen = [c for c in candidates if rng.random() < 0.1 or _has_edge(c)]
        found += chosen[:CROPS_OF_ONE_PICTURE]
    return torch.stack(found[:count]).contiguous(memory_format=torch.channels_last)


def _place(room: int, rng: random.Random) -> tuple[int, int]:
    return rng.randint(0, room), rng.randint(0, room)


def _has_edge(crop: torch.Tensor) -> bool:
    return bool((crop - crop[:, :1, :1]).abs().max() > 0.1)


def to_tensor(picture: Any) -> torch.Tensor:
    """(3, height, width) in -1..1 of an RGB picture."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def _noisy(latents: torch.Tensor) -> torch.Tensor:
    return latents + NOISE * torch.randn_like(latents)


def _loss(decoded: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """The error of the colours, and of the edges."""
    error = decoded - pictures
    # edges are rare: pixels that differ from the median colour have four times the weight
    median = pictures.flatten(2).median(2).values[..., None, None]
    weight = 1 + 3 * ((pictures - median).abs().amax(1, keepdim=True) > 0.2).float()
    edges = (error.diff(dim=-1)).abs().mean() + (error.diff(dim=-2)).abs().mean()
    return (weight * (error.abs() + 0.5 * error.square())).mean() + 0.3 * edges


@torch.no_grad()
def standardize(vae: Any, latents: torch.Tensor) -> None:
    """Include each channel's mean and scale in the weights: with SD1's fixed factor, the latents
    then have mean 0 and standard deviation 1.

    `latents` are raw ones, (count, 4, height, width).
    """
    mean = latents.mean((0, 2, 3))
    scale = 1 / (latents.std((0, 2, 3)) * networks.SCALING)
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    bias[:CHANNELS] = (bias[:CHANNELS] - mean) * scale
    weight[:CHANNELS] *= scale[:, None, None, None]
    bias[CHANNELS:] += 2 * scale.log()  # the encoder's log variances
    decode = vae.post_quant_conv
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight /= scale[None, :, None, None]


# ------------------------------------------------------------------------------ the starting point
#
# A colour c is stored as the pair (c, -c) next to the constants (K, -K): the group's norm then
# hardly depends on the picture, and with silu(x) - silu(-x) = x a norm, a silu and a convolution
# are linear.

K = 4.0


@torch.no_grad()
def start_as_patch_means(vae: Any) -> Any:
    """Set the weights so that a latent is its patch's mean colour, and the decoder repeats it."""
    for part, blocks in (
        (vae.encoder, vae.encoder.down_blocks),
        (vae.decoder, vae.decoder.up_blocks),
    ):
        for block in [*blocks, part.mid_block]:
            for resnet in block.resnets:
                _pass_through(resnet)
        attention = part.mid_block.attentions[0].to_out[0]
        attention.weight.mul_(0.05)
        attention.bias.zero_()
        _to_pairs(part.conv_in, 3)
    for block in vae.encoder.down_blocks[:-1]:
        # padded on the right and below: taps 0 and 1 cover the 2x2 patch
        _diagonal(block.downsamplers[0].conv, slice(0, 2), 0.25)
    for block in vae.decoder.up_blocks[:-1]:
        _diagonal(block.upsamplers[0].conv, slice(1, 2), 1.0)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        torch.nn.init.dirac_(conv.weight)
        conv.bias.zero_()
    _read_latent(vae.encoder.conv_out)
    _read_picture(vae.decoder)
    return vae


def _pass_through(resnet: Any) -> None:
    resnet.conv2.weight.mul_(0.05)
    resnet.conv2.bias.zero_()
    if resnet.conv_shortcut is None:
        return
    weight = resnet.conv_shortcut.weight
    outputs, inputs = weight.shape[:2]
    torch.nn.init.dirac_(weight)
    resnet.conv_shortcut.bias.zero_()
    if outputs > inputs:  # the new channels begin as mixtures
        weight[inputs:, :, 0, 0] = torch.randn(outputs - inputs, inputs) * 0.2


def _diagonal(conv: Any, taps: slice, value: float) -> None:
    conv.weight.mul_(0.05)
    conv.bias.zero_()
    for channel in range(conv.weight.shape[0]):
        conv.weight[channel, channel, taps, taps] = value


def _to_pairs(conv: Any, colors: int) -> None:
    conv.weight[:8] = 0
    conv.bias[:8] = 0
    for color in range(colors):
        conv.weight[2 * color, color, 1, 1] = 1
        conv.weight[2 * color + 1, color, 1, 1] = -1
    conv.bias[6], conv.bias[7] = K, -K


def _read_latent(conv: Any) -> None:
    weight, gain = conv.weight, math.sqrt((2 * K * K + 3) / 16)
    weight[:, :8] = 0
    weight[:CHANNELS] *= 0.3
    weight[CHANNELS:] *= 0.1
    conv.bias[CHANNELS:] = -6.0  # log variance
    for color in range(3):
        weight[color, 2 * color, 1, 1] = gain
        weight[color, 2 * color + 1, 1, 1] = -gain


def _read_picture(decoder: Any) -> None:
    # the last level's groups of four become (R, -R, K, -K), (G, -G, K, -K), (B, -B, K, -K)
    shortcut = decoder.up_blocks[-1].resnets[0].conv_shortcut.weight
    shortcut[:12] = 0
    for output, source in enumerate((0, 1, 6, 7, 2, 3, 6, 7, 4, 5, 6, 7)):
        shortcut[output, source, 0, 0] = 1
    weight = decoder.conv_out.weight
    weight.mul_(0.05)
    weight[:, :12] = 0
    decoder.conv_out.bias.zero_()
    for color in range(3):
        weight[color, 4 * color, 1, 1] = K / math.sqrt(2)
        weight[color, 4 * color + 1, 1, 1] = -K / math.sqrt(2)
