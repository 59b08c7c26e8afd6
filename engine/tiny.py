"""`python -m engine.tiny DIR`: a random Stable Diffusion 1 model of 14 MB, made by code.

It has SD1's architecture and key names at a fraction of its width, so that everything runs for
real in seconds; what it draws is noise that depends on prompt, seed and LoRA. The same seed
gives the same file.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from engine import ldm

NAME = "tiny-sd15"
WIDTH = 64  # of the text encoder, and of what the UNet attends to
UNET_CHANNELS = (32, 64, 64, 64)
VAE_CHANNELS = (32, 32, 32, 32)
LORA_RANK = 4
# LoRAs train the attention's and the feed-forward's projections
_UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


def unet() -> Any:  # noqa: ANN401 - diffusers
    """A UNet with SD1's blocks, with torch's current random state."""
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=8, block_out_channels=UNET_CHANNELS, cross_attention_dim=WIDTH
    )


def vae() -> Any:  # noqa: ANN401 - diffusers
    """An autoencoder with SD1's blocks; factor 8 between picture and latent."""
    levels = len(VAE_CHANNELS)
    return AutoencoderKL(  # type: ignore[no-untyped-call]
        block_out_channels=VAE_CHANNELS,
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )


def text_encoder() -> Any:  # noqa: ANN401 - transformers
    """A CLIP text encoder of two layers with the whole vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=1,
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )


def make_checkpoint(seed: int = 0) -> ldm.StateDict:
    """A checkpoint in original key naming, half precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = ldm.export_unet(unet().state_dict(), layers_per_block=2)
        state |= ldm.export_vae(vae().state_dict(), len(VAE_CHANNELS))
        state |= ldm.export_clip(text_encoder().state_dict())
    return {key: value.half().contiguous() for key, value in state.items()}


def make_lora(seed: int = 0, strength: float = 1.0) -> ldm.StateDict:
    """A LoRA in kohya's naming for every checkpoint of `make_checkpoint`, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    state: ldm.StateDict = {}
    for name, module in _lora_targets():
        down = torch.randn(LORA_RANK, module.in_features, generator=generator)
        up = torch.randn(module.out_features, LORA_RANK, generator=generator)
        state[f"{name}.lora_down.weight"] = down / module.in_features**0.5
        state[f"{name}.lora_up.weight"] = up * strength
        state[f"{name}.alpha"] = torch.tensor(float(LORA_RANK))
    return state


def _lora_targets() -> list[tuple[str, torch.nn.Linear]]:
    """The linear layers by their kohya name; on the meta device, which holds no weights."""
    with torch.device("meta"):
        networks = {"lora_unet_": unet(), "lora_te_text_model_": text_encoder()}
    return [
        (prefix + name.removeprefix("text_model.").replace(".", "_"), module)
        for prefix, network in networks.items()
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and _is_lora_target(name)
    ]


def _is_lora_target(name: str) -> bool:
    in_unet = "transformer_blocks" in name and name.endswith(_UNET_TARGETS)
    return in_unet or "encoder.layers" in name


def write(state: ldm.StateDict, path: Path) -> None:
    """Write a safetensors file; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".incomplete")
    save_file(state, unfinished, metadata={"modelspec.title": path.stem})
    unfinished.replace(path)


if __name__ == "__main__":
    write(make_checkpoint(), Path(sys.argv[1]) / f"{NAME}.safetensors")
