"""A file that A1111 recognizes as Stable Diffusion 1: every tensor, with random numbers."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from engine.models import ldm

CROSS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
LAYERS = 2


def write_checkpoint(path: Path) -> Path:
    """Write the file: 1,066 million numbers in half precision."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        cross_attention_dim=768,
        attention_head_dim=8,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=LAYERS,
        down_block_types=CROSS,
        up_block_types=tuple(name.replace("Down", "Up") for name in CROSS[::-1]),
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=LAYERS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_attention_heads=12, vocab_size=49408
        )
    )
    # Zero in a new model. With it the mean of A1111's text encoding is 0, and A1111 divides by it.
    torch.nn.init.normal_(text_encoder.final_layer_norm.bias, std=0.1)
    state = ldm.export_unet(unet.state_dict(), LAYERS)
    state |= ldm.export_vae(vae.state_dict(), 4)
    state |= ldm.export_clip(text_encoder.state_dict())
    save_file({key: value.half().contiguous() for key, value in state.items()}, path)
    return path
