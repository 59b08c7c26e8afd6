"""The demo model's networks: Stable Diffusion 1's own classes at a fraction of its width."""

import json
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from engine.models import ldm

WIDTH = 32  # of the text encoder, and of what the UNet attends to
UNET_CHANNELS = (32, 64, 80, 80)
VAE_CHANNELS = (16, 32, 48, 48)
LAYERS = 1
LATENT_FACTOR = 8  # picture pixels to a latent pixel
SCALING = 0.18215  # SD1's
# not visible in a checkpoint's shapes; the engine reads them from the file's metadata
OPTIONS: dict[str, dict[str, Any]] = {
    "unet": {"norm_num_groups": 8, "attention_head_dim": 4},  # diffusers means 4 heads
    "vae": {"norm_num_groups": 4},
    "text_encoder": {"num_attention_heads": 4},
}
METADATA = {
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.prediction_type": "v",
    "prediction_type": "v_prediction",
    "engine.config": json.dumps(OPTIONS),
}


def vae() -> Any:
    """An autoencoder with SD1's blocks, 4 latent channels."""
    levels = len(VAE_CHANNELS)
    return AutoencoderKL(  # type: ignore[no-untyped-call]
        block_out_channels=VAE_CHANNELS,
        layers_per_block=LAYERS,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=SCALING,
        **OPTIONS["vae"],
    )


def unet() -> Any:
    """A UNet that attends to the text at a half and a quarter of the latent's resolution."""
    plain, attending = "DownBlock2D", "CrossAttnDownBlock2D"
    down = (plain, attending, attending, plain)
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=32,
        block_out_channels=UNET_CHANNELS,
        layers_per_block=LAYERS,
        cross_attention_dim=WIDTH,
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in down[::-1]),
        **OPTIONS["unet"],
    )


def text_encoder() -> Any:
    """A CLIP text encoder of three layers with the whole vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            bos_token_id=49406,
            eos_token_id=49407,
            **OPTIONS["text_encoder"],
        )
    )


def checkpoint(text_encoder: Any, vae: Any, unet: Any) -> ldm.StateDict:
    """The three networks as one checkpoint with the original keys, in half precision."""
    state = ldm.export_unet(unet.state_dict(), LAYERS)
    state |= ldm.export_vae(vae.state_dict(), len(VAE_CHANNELS))
    state |= ldm.export_clip(text_encoder.state_dict())
    return {key: value.half().contiguous() for key, value in state.items()}
