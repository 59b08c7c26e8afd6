"""Models of templates: a checkpoint that LoRAs can be merged into, LoRAs, and templates.json."""

import json

import numpy as np
from safetensors.numpy import save

WIDTH = 768  # SD1's
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def checkpoint(seed=0, filler=0):
    """An SD1 checkpoint with one layer that LoRAs can change, and `filler` more bytes."""
    numbers = np.random.default_rng(seed)
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        KEY: (16, WIDTH),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (8, WIDTH),
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    }
    tensors = {k: numbers.normal(size=shape).astype(np.float16) for k, shape in shapes.items()}
    if filler:
        tensors["filler"] = numbers.integers(0, 255, filler, np.uint8)
    return save(tensors)


def lora(seed=0, *layers):
    """A LoRA with these layers; by default the one that `checkpoint` has."""
    layers = layers or ("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",)
    numbers = np.random.default_rng(seed)
    parts = {"lora_down": (4, WIDTH), "lora_up": (16, 4)}
    keys = [(f"lora_unet_{layer}.{p}.weight", parts[p]) for layer in layers for p in parts]
    return save({key: numbers.normal(size=size).astype(np.float16) for key, size in keys})


def named(number, **more):
    """A model of a template, by the id of its CivitAI version."""
    url = f"https://civitai.com/api/download/models/{number}"
    return {"name": f"Model {number}", "url": url, **more}


def write(file, templates, **more):
    file.write_text(json.dumps({"templates": templates, **more}))
    return file
