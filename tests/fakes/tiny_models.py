"""Random Stable Diffusion models and LoRAs, made by code.

They have the real architectures and key names at a fraction of the width, so that a real picture
takes a tenth of a second. The pictures are noise that depends on prompt, seed and LoRA. The same
seed gives the same file.
"""

import re

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from engine.models import ldm
from engine.models.checkpoints import Checkpoint
from engine.models.loaded_model import LoadedModel, plain_settings
from engine.prompt.encoding import TextOptions

WIDTH = 64  # of SD1's text encoder, and of what the UNet attends to
UNET_CHANNELS = (32, 64, 64, 64)
VAE_CHANNELS = (32, 32, 32, 32)
XL_WIDTHS = (32, 64)  # of SDXL's text encoders (diffusers needs two); its UNet has the sum
LORA_RANK = 4
LATENT_CHANNELS = 4
# LoRAs train the attention's and the feed-forward's projections
_UNET_TARGETS = r"to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2"
_TARGET = re.compile(rf"encoder\.layers|transformer_blocks.*({_UNET_TARGETS})$")


def unet(**options):
    """A UNet with SD1's blocks and random weights."""
    defaults = {"block_out_channels": UNET_CHANNELS, "cross_attention_dim": WIDTH}
    return UNet2DConditionModel(**{"sample_size": 8} | defaults | options)


def xl_unet(**options):
    """A UNet with SDXL's blocks: no attention in level 1, linear projections, two embeddings."""
    defaults = {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        # transformers in a block; SDXL's first level has none, its last has 10
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (1, 1, 1),
        "use_linear_projection": True,
        "cross_attention_dim": sum(XL_WIDTHS),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": XL_WIDTHS[1] + 6 * 256,
    }
    return unet(**defaults | options)


def vae(channels=VAE_CHANNELS):
    """An autoencoder with SD1's and SDXL's blocks; factor 8 between picture and latent."""
    return AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    )


def _text_config(width, layers, activation):
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=1,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
    )


def text_encoder(width=WIDTH):
    """A CLIP text encoder of two layers with the whole vocabulary."""
    return CLIPTextModel(_text_config(width, 2, "quick_gelu"))


def second_text_encoder():
    """OpenCLIP's text encoder, with the projection for SDXL's pooled vector."""
    return CLIPTextModelWithProjection(_text_config(XL_WIDTHS[1], 3, "gelu"))


def make_checkpoint(seed=0, xl=False):
    """An SD1 or SDXL checkpoint in original key naming, half precision; 14 or 19 MB."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = ldm.export_unet((xl_unet if xl else unet)().state_dict(), layers_per_block=2)
        state |= ldm.export_vae(vae().state_dict(), len(VAE_CHANNELS))
        if xl:
            state |= ldm.export_clip(text_encoder(XL_WIDTHS[0]).state_dict(), ldm.CLIP_XL)
            state |= ldm.export_openclip(second_text_encoder().state_dict())
        else:
            state |= ldm.export_clip(text_encoder().state_dict())
    return {key: value.half().contiguous() for key, value in state.items()}


SSD_DEPTHS = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": (1, (2, 2), (2, 1)),
    "reverse_transformer_layers_per_block": ((1, 2, 3), (2, 1, 1), 1),
}
# SSD-1B's own depths; the others are shorter in the tests
SSD_WHOLE_DEPTHS = SSD_DEPTHS | {
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
}
REFINER_UNET = {
    "block_out_channels": UNET_CHANNELS,
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    "transformer_layers_per_block": 2,
    "attention_head_dim": (1, 1, 1, 1),
    "cross_attention_dim": XL_WIDTHS[1],
    "projection_class_embeddings_input_dim": XL_WIDTHS[1] + 5 * 256,
}
# The other kinds of checkpoints: UNet, and the text encoders by their prefix in the file. SD2's
# file has one layer more than is used.
KINDS = {
    "inpainting": (lambda: unet(in_channels=9), {ldm.CLIP: text_encoder}),
    "SD2": (
        lambda: unet(use_linear_projection=True, attention_head_dim=(1, 1, 1, 1)),
        {ldm.OPENCLIP_SD2: lambda: CLIPTextModel(_text_config(WIDTH, 3, "gelu"))},
    ),
    "refiner": (
        lambda: xl_unet(**REFINER_UNET),
        {ldm.OPENCLIP_REFINER: second_text_encoder},
    ),
    "SSD-1B": (
        lambda: xl_unet(**SSD_DEPTHS),
        {
            ldm.CLIP_XL: lambda: text_encoder(XL_WIDTHS[0]),
            ldm.OPENCLIP_XL: second_text_encoder,
        },
    ),
}

KINDS |= {
    "SD1": (unet, {ldm.CLIP: text_encoder}),
    "SDXL": (xl_unet, KINDS["SSD-1B"][1]),
    "SSD-1B, whole depth": (lambda: xl_unet(**SSD_WHOLE_DEPTHS), KINDS["SSD-1B"][1]),
}


def make_kind(kind, seed=0):
    """The networks of one of KINDS: {prefix in the file: network}."""
    make_unet, texts = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {ldm.UNET: make_unet(), ldm.VAE: vae()}
        return networks | {prefix: make() for prefix, make in texts.items()}


def export(networks):
    """The networks of `make_kind` as a checkpoint in original key naming, half precision."""
    state = {}
    for prefix, network in networks.items():
        own = network.state_dict()
        if prefix == ldm.UNET:
            state |= ldm.export_unet(own, layers_per_block=2)
        elif prefix == ldm.VAE:
            state |= ldm.export_vae(own, len(VAE_CHANNELS))
        else:
            is_clip = prefix in (ldm.CLIP, ldm.CLIP_XL)
            state |= (ldm.export_clip if is_clip else ldm.export_openclip)(own, prefix)
    return {key: value.half().contiguous() for key, value in state.items()}


def make_lora(seed=0, xl=False, sgm=False):
    """A LoRA in kohya's naming for every SD1 or SDXL checkpoint, with random weights.

    `sgm`: the UNet's layers have Stability AI's names instead of diffusers'.
    """
    with torch.device("meta"):  # allocates no weights
        network, text = xl_unet() if xl else unet(), text_encoder(XL_WIDTHS[0] if xl else WIDTH)
        layers = _kohya("lora_te1_text_model_" if xl else "lora_te_text_model_", text)
        layers |= _kohya("lora_te2_text_model_", second_text_encoder()) if xl else {}
        layers |= _kohya("lora_unet_", network, sgm_names(network) if sgm else {})
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, module in layers.items():
        down, up = random_factors(module, generator)
        state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"] = down, up
        state[f"{name}.alpha"] = torch.tensor(float(LORA_RANK))
    return state


def sgm_names(network):
    """The layers of a UNet: {path in diffusers: path in the original}."""
    exported = ldm.export_unet({key: key for key in network.state_dict()}, layers_per_block=2)
    return {
        path.removesuffix(".weight"): name.removeprefix(ldm.UNET).removesuffix(".weight")
        for name, path in exported.items()
        if path.endswith(".weight")
    }


def _kohya(prefix, network, names=()):
    """{kohya's name: layer} of the linear layers that LoRAs usually train."""
    names = dict(names)
    return {
        prefix + names.get(name, name).removeprefix("text_model.").replace(".", "_"): module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and _TARGET.search(name)
    }


def random_factors(module, generator, rank=LORA_RANK):
    """A LoRA's two matrices for a linear layer or a convolution."""
    out, *inner = module.weight.shape
    down = torch.randn(rank, *inner, generator=generator)
    up = torch.randn(out, rank, *(1 for _ in inner[1:]), generator=generator)
    return down / down[0].numel() ** 0.5, up


def write(state, path):
    """Write a safetensors file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".incomplete")
    save_file(state, unfinished, metadata={"modelspec.title": path.stem})
    unfinished.replace(path)


def load(path):
    """The checkpoint as the engine loads it."""
    return LoadedModel.load(Checkpoint(path, path.name, ""), "")


def draw(model, *uses):
    """A picture of the loaded model with these LoRAs: (64, 64, 3) integers."""
    encoder = model.text_encoder(TextOptions())
    with model.with_loras(uses):
        conditioning = encoder.conditioning("a (red:1.2) cat", "a dog", 2)
        settings = plain_settings("Euler", 2, 1, (64, 64), 7)
        return np.asarray(model.picture(conditioning, settings), dtype=int)
