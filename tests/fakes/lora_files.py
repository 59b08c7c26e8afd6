"""Small checkpoints with the layers that LoRAs change, and LoRAs of every kind with their formulas.

The formulas: shared knowledge of A1111 v1.9.3 (extensions-builtin/Lora/network_*.py), kohya's
sd-scripts and LyCORIS. The values are computed in float64, from the formulas alone.
"""

import numpy as np
from safetensors.numpy import save_file

UNET = "model.diffusion_model."
ATTENTION = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
ATTENTION_NAMES = [
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
]
CONV = f"{UNET}input_blocks.4.0.in_layers.2.weight"
EMBEDDERS = "conditioner.embedders."
WIDTHS = {"SD1": 768, "SDXL": 2048}
OUT, RANK = 24, 4

# Layer -> (tensor, its rows or None for all of them, names in LoRA files).
LAYERS = {
    "SD1": {
        "attention": (ATTENTION, None, ATTENTION_NAMES),
        "conv": (CONV, None, ["lora_unet_down_blocks_1_resnets_0_conv1"]),
        "conv 1x1": (f"{UNET}input_blocks.4.1.proj_in.weight", None, [
            "lora_unet_down_blocks_1_attentions_0_proj_in"]),
        "text": ("cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight", None, [
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
            "lora_te1_text_model_encoder_layers_0_mlp_fc1"]),
    },
    "SDXL": {
        "attention": (ATTENTION, None, ATTENTION_NAMES),
        "conv": (CONV, None, ["lora_unet_input_blocks_4_0_in_layers_2"]),
        "text": (f"{EMBEDDERS}0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
                 None, ["lora_te1_text_model_encoder_layers_0_mlp_fc1"]),
        "text 2": (f"{EMBEDDERS}1.model.transformer.resblocks.0.mlp.c_fc.weight", None,
                   ["lora_te2_text_model_encoder_layers_0_mlp_fc1"]),
        "text 2 keys": (f"{EMBEDDERS}1.model.transformer.resblocks.0.attn.in_proj_weight",
            slice(OUT, 2 * OUT), ["lora_te2_text_model_encoder_layers_0_self_attn_k_proj"]),
    },
}  # fmt: skip
INNER = {"conv": (8, 3, 3), "conv 1x1": (8, 1, 1)}
TEXT = {"text", "text 2", "text 2 keys"}


def inner(family, layer):
    """Shape of the inputs of one output: their number, and the size of a convolution."""
    return INNER.get(layer, (WIDTHS[family] if layer == "attention" else 16,))


def base(family, dtype):
    numbers = np.random.default_rng(0)
    tensors = {
        f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
        f"{UNET}input_blocks.3.0.op.weight": (8, 8, 3, 3),
        f"{UNET}input_blocks.1.0.in_layers.2.weight": (8, 8, 3, 3),
        f"{UNET}input_blocks.2.0.in_layers.2.weight": (8, 8, 3, 3),
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    }
    if family == "SDXL":
        tensors[f"{EMBEDDERS}1.model.ln_final.weight"] = (8,)
    for layer, (key, rows, _) in LAYERS[family].items():
        tensors[key] = (OUT if rows is None else 3 * OUT, *inner(family, layer))
    return {k: (numbers.normal(size=shape) * 0.05).astype(dtype) for k, shape in tensors.items()}


def random(shapes):
    numbers = np.random.default_rng(len(shapes))
    return {k: (numbers.normal(size=s) * 0.3).astype(np.float16) for k, s in shapes.items()}


def lora(shape):
    ones = [1] * (len(shape) - 1)
    return random({"lora_down.weight": (RANK, *shape), "lora_up.weight": (OUT, RANK, *ones)})


def lora_value(p, _=None):
    down, up = (p[f"lora_{name}.weight"].astype(float) for name in ("down", "up"))
    return up.reshape(OUT, -1) @ down.reshape(RANK, -1)


def locon(shape):
    """Three factors: 1x1 down, the core, 1x1 up."""
    shapes = {"down": (RANK, shape[0], 1, 1), "mid": (RANK, RANK, *(shape[1:] or (1, 1)))}
    shapes["up"] = (OUT, RANK, 1, 1)
    return random({f"lora_{name}.weight": value for name, value in shapes.items()})


def locon_value(p, _):
    mid, down, up = (p[f"lora_{name}.weight"].astype(float) for name in ("mid", "down", "up"))
    return np.einsum("mnkl,im,nj->ijkl", mid, up[:, :, 0, 0], down[:, :, 0, 0]).reshape(OUT, -1)


def loha(shape):
    columns = int(np.prod(shape))
    pairs = {"1_a": (OUT, RANK), "2_a": (OUT, RANK), "1_b": (RANK, columns), "2_b": (RANK, columns)}
    return random({f"hada_w{name}": shape for name, shape in pairs.items()})


def loha_value(p, _):
    a1, b1, a2, b2 = (p[f"hada_w{name}"].astype(float) for name in ("1_a", "1_b", "2_a", "2_b"))
    return (a1 @ b1) * (a2 @ b2)


def loha_tucker(shape):
    size, shapes = shape[1:] or (1, 1), {}
    for n in (1, 2):
        shapes |= {f"hada_t{n}": (RANK, RANK, *size), f"hada_w{n}_a": (RANK, OUT)}
        shapes |= {f"hada_w{n}_b": (RANK, shape[0])}
    return random(shapes)


def loha_tucker_value(p, _):
    def one(n):
        t, a, b = (p[f"hada_{w}"].astype(float) for w in (f"t{n}", f"w{n}_a", f"w{n}_b"))
        return np.einsum("rskl,ro,si->oikl", t, a, b)

    return (one(1) * one(2)).reshape(OUT, -1)


def lokr(shape, *, left="whole", right="pair"):
    (rows, columns), second = (4, 2), (OUT // 4, shape[0] // 2, *shape[1:])
    pair = {"lokr_w1_a": (rows, RANK), "lokr_w1_b": (RANK, columns)}
    rights = {
        "whole": {"lokr_w2": second},
        "pair": {"lokr_w2_a": (second[0], RANK), "lokr_w2_b": (RANK, int(np.prod(second[1:])))},
        "tucker": {
            "lokr_t2": (RANK, RANK, *(shape[1:] or (1, 1))),
            "lokr_w2_a": (RANK, second[0]),
            "lokr_w2_b": (RANK, second[1]),
        },
    }
    return random((pair if left == "pair" else {"lokr_w1": (rows, columns)}) | rights[right])


def lokr_value(p, shape):
    p = {k: v.astype(float) for k, v in p.items()}
    first = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if "lokr_w2" in p:
        second = p["lokr_w2"]
    elif "lokr_t2" in p:
        second = np.einsum("rskl,ro,si->oikl", p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
    else:
        second = p["lokr_w2_a"] @ p["lokr_w2_b"]
    second = second.reshape(OUT // 4, shape[0] // 2, *shape[1:])
    full = np.kron(first.reshape(*first.shape, *[1] * (len(shape) - 1)), second)
    return full.reshape(OUT, -1)


# Kind -> (parts for a shape, value of the delta, whether alpha has an effect).
KINDS = {
    "LoRA": (lora, lora_value, True),
    "LoCon in three factors": (locon, locon_value, True),
    "LoHa": (loha, loha_value, True),
    "LoHa, Tucker": (loha_tucker, loha_tucker_value, True),
    "LoKr": (lokr, lokr_value, True),
    "LoKr, both whole": (lambda shape: lokr(shape, right="whole"), lokr_value, False),
    "LoKr, both pairs": (lambda shape: lokr(shape, left="pair"), lokr_value, True),
    "LoKr, Tucker": (lambda shape: lokr(shape, right="tucker"), lokr_value, True),
}


def write(path, name, parts, alpha=None):
    tensors = {f"{name}.{part}": value for part, value in parts.items()}
    if alpha is not None:
        tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    save_file(tensors, path)
    return path
