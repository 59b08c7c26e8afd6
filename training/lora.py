"""Train the demo model's LoRA: the same scenes, filled with diagonal stripes.

Attention alone cannot make stripes narrower than a few latent pixels, so the convolutions are
adapted too (a "LoCon"). Saved with kohya's names, like LoRAs from CivitAI.
"""

import logging
import math
import random
from typing import Any

import torch
from torch import nn

from engine.models import ldm
from engine.prompt import tokenizer
from training import diffusion, parallel
from training.diffusion import Pool

log = logging.getLogger(__name__)

STEPS = 400
SCENES, BATCH, SIDE = 800, 12, 256  # for each process
RATE = 2e-3
RANK = 8
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
METADATA = {
    "ss_output_name": "striped",
    "ss_network_module": "networks.lora",
    "ss_network_dim": str(RANK),
    "ss_network_alpha": str(RANK),
    "modelspec.title": "striped",
}


def train(
    text_encoder: Any, unet: Any, vae: Any, scale: float = 1, seed: int = 0
) -> dict[str, Any]:
    """In each process: the LoRA's tensors under kohya's names, in half precision."""
    torch.manual_seed(seed)  # every process begins with the same weights
    adapters = {
        name: adapt(layer) for name, layer in unet.named_modules() if name.endswith(ADAPTED)
    }
    trained = [layer.weight for pair in adapters.values() for layer in pair]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0)
    torch.manual_seed(seed + 1 + parallel.rank())
    rng = random.Random(seed + 1 + parallel.rank())
    pool = Pool(vae, SIDE, max(BATCH, round(SCENES * scale)), rng, striped=True)
    read, mean, steps = tokenizer.build(), 0.0, max(1, round(STEPS * scale))
    for step in range(steps):
        cosine = 0.5 + 0.5 * math.cos(step / steps * math.pi)
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 50) * (0.02 + 0.98 * cosine)
        loss = diffusion.v_loss(text_encoder, unet, read, *pool.batch(BATCH, rng))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parallel.share_gradients(trained)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        mean += max(0.02, 1 / (step + 1)) * (loss.item() - mean)
        if (step + 1) % 100 == 0:
            log.info("LoRA %d/%d: loss %.4f", step + 1, steps, mean)
    return kohya(adapters)


def adapt(layer: nn.Linear | nn.Conv2d) -> tuple[Any, Any]:
    """Two small layers in sequence; their result, at first 0, is added to the layer's."""
    down: Any
    up: Any
    if isinstance(layer, nn.Linear):
        down = nn.Linear(layer.in_features, RANK, bias=False)
        up = nn.Linear(RANK, layer.out_features, bias=False)
    else:
        down = nn.Conv2d(layer.in_channels, RANK, 3, padding=1, bias=False)
        up = nn.Conv2d(RANK, layer.out_channels, 1, bias=False)
    nn.init.zeros_(up.weight)
    layer.register_forward_hook(lambda _layer, given, result: result + up(down(given[0])))
    return down, up


def kohya(adapters: dict[str, tuple[Any, Any]]) -> ldm.StateDict:
    """The trained weights under kohya's names, in half precision."""
    tensors: ldm.StateDict = {}
    for name, (down, up) in adapters.items():
        key = "lora_unet_" + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = down.weight.detach().half().contiguous()
        tensors[f"{key}.lora_up.weight"] = up.weight.detach().half().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(RANK)).half()
    return tensors
