"""What a safetensors header says about its file, from headers made by hand."""

import contextlib
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from worker.errors import (
    JobError,
    ModelFileInvalid,
    ModelMismatch,
    ModelNotSupported,
    ModelUnsafe,
)
from worker.formats.architecture import (
    Architecture,
    check_match,
    check_usable,
    detect,
)
from worker.formats.safetensors_header import (
    Header,
    Tensor,
    check_pickle,
    header_length,
    parse_header,
    refuse_foreign,
)

BITS = {"F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U8": 8, "F8_E4M3": 8, "F4": 4, "F6_E2M3": 6}

UNET = "model.diffusion_model."
BLOCK = "transformer_blocks.0.attn2.to_k.weight"
SD1_UNET = {
    UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
    UNET + "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    UNET + f"input_blocks.1.1.{BLOCK}": (320, 768),
    UNET + "out.2.weight": (4, 320, 3, 3),
}
SD2_UNET = SD1_UNET | {
    UNET + "input_blocks.1.1.proj_in.weight": (320, 320),
    UNET + f"input_blocks.1.1.{BLOCK}": (320, 1024),
}
SDXL_UNET = {
    UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
    UNET + f"input_blocks.4.1.{BLOCK}": (640, 2048),
    UNET + "input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
    UNET + "label_emb.0.0.weight": (1280, 2816),
}
REFINER_UNET = {
    UNET + "input_blocks.0.0.weight": (384, 4, 3, 3),
    UNET + f"input_blocks.4.1.{BLOCK}": (768, 1280),
    UNET + "input_blocks.4.1.transformer_blocks.3.attn2.to_k.weight": (768, 1280),
    UNET + "label_emb.0.0.weight": (1280, 2560),
}
VAE = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "decoder.mid.block_1.norm1.weight": (512,),
    "decoder.up.0.block.0.conv1.weight": (128, 256, 3, 3),
}
FIRST_STAGE = {f"first_stage_model.{name}": shape for name, shape in VAE.items()}
SD1_TEXT = {
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768),
}
SD2_TEXT = {
    "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": (3072, 1024),
    "cond_stage_model.model.ln_final.weight": (1024,),
}
SDXL_TEXT = {
    "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
    "conditioner.embedders.1.model.ln_final.weight": (1280,),
}
REFINER_TEXT = {"conditioner.embedders.0.model.ln_final.weight": (1280,)}
TURBO_TEXT = {"conditioner.embedders.0.model.ln_final.weight": (1024,)}
ALONE = "diffusion model without text encoder and VAE"

SD1_FILE = SD1_UNET | FIRST_STAGE | SD1_TEXT
SDXL_FILE = SDXL_UNET | FIRST_STAGE | SDXL_TEXT

CHECKPOINTS = {
    "sd1": (SD1_FILE, "checkpoint", "SD1"),
    "sd1 without its VAE": (SD1_UNET | SD1_TEXT, "checkpoint", "SD1"),
    "sd1 whose text encoder A1111 brings": (SD1_UNET | FIRST_STAGE, "checkpoint", "SD1"),
    "sd1 in old naming": (
        SD1_UNET | {"cond_stage_model.transformer.embeddings.token_embedding.weight": (49408, 768)},
        "checkpoint",
        "SD1",
    ),
    "alt-diffusion": (
        SD1_UNET | {"cond_stage_model.roberta.embeddings.word_embeddings.weight": (250002, 1024)},
        "checkpoint",
        "SD1",
    ),
    "sd2": (SD2_UNET | FIRST_STAGE | SD2_TEXT, "checkpoint", "SD2"),
    "sd-turbo": (SD2_UNET | FIRST_STAGE | TURBO_TEXT, "checkpoint", "SD2"),
    "sdxl": (SDXL_FILE, "checkpoint", "SDXL"),
    "refiner": (REFINER_UNET | FIRST_STAGE | REFINER_TEXT, "checkpoint", "SDXL refiner"),
    "sdxl without text": (
        SDXL_UNET | FIRST_STAGE,
        "diffusion model without text encoder",
        "SDXL",
    ),
    "sd1 unet": (SD1_UNET, ALONE, "SD1"),
    "sd2 unet": (SD2_UNET, ALONE, "SD2"),
    "sdxl unet": (SDXL_UNET, ALONE, "SDXL"),
    "refiner unet": (REFINER_UNET, ALONE, "SDXL refiner"),
    "sdxl unet, bare": ({k.removeprefix(UNET): v for k, v in SDXL_UNET.items()}, ALONE, "SDXL"),
    "sd1 unet of unknown width": (
        SD1_UNET | {UNET + f"input_blocks.1.1.{BLOCK}": (320, 64)},
        ALONE,
        "SD1",
    ),
    "sdxl unet of another width": (
        SDXL_UNET | {UNET + f"input_blocks.4.1.{BLOCK}": (640, 768)},
        ALONE,
        "SDXL",
    ),
    "diffusers sd1": (
        {
            "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3),
            f"down_blocks.0.attentions.0.{BLOCK}": (320, 768),
        },
        "model in diffusers naming",
        "SD1",
    ),
    "diffusers sdxl": (
        {
            "unet.down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3),
            f"unet.down_blocks.1.attentions.0.{BLOCK}": (640, 2048),
            "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.weight": (640, 640),
            "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
        },
        "model in diffusers naming",
        "SDXL",
    ),
    "flux": (
        {
            "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
            "img_in.weight": (3072, 64),
            "single_blocks.0.linear1.weight": (21504, 3072),
        },
        ALONE,
        "Flux",
    ),
    "flux, all in one": (
        {
            UNET + "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (1, 768),
            "vae.decoder.conv_in.weight": (512, 16, 3, 3),
        },
        "checkpoint",
        "Flux",
    ),
    "chroma": (
        {
            "distilled_guidance_layer.norms.0.scale": (5120,),
            "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        },
        ALONE,
        "Chroma",
    ),
    "sd3": (
        {
            UNET + "joint_blocks.0.context_block.attn.qkv.weight": (4608, 1536),
            UNET + "x_embedder.proj.weight": (1536, 16, 2, 2),
            "first_stage_model.decoder.conv_in.weight": (512, 16, 3, 3),
        },
        "diffusion model without text encoder",
        "SD3",
    ),
    "auraflow": (
        {
            UNET + "double_layers.0.attn.w1q.weight": (3072, 3072),
            UNET + "positional_encoding": (1, 9216, 3072),
        },
        ALONE,
        "AuraFlow",
    ),
    "pixart": ({"t_block.1.weight": (6912, 1152), "y_embedder.y_embedding": (1,)}, ALONE, "PixArt"),
    "hunyuan-dit": (
        {"mlp_t5.0.weight": (8192, 2048), "blocks.0.norm1.weight": (1408,)},
        ALONE,
        "HunyuanDiT",
    ),
    "hunyuan-video": (
        {
            "txt_in.individual_token_refiner.blocks.0.norm1.weight": (3072,),
            "double_blocks.0.img_attn_qkv.weight": (9216, 3072),
        },
        ALONE,
        "HunyuanVideo",
    ),
    "lumina 2": (
        {
            "cap_embedder.1.weight": (2304, 2304),
            "noise_refiner.0.attention.k_norm.weight": (96,),
            "context_refiner.0.attention.k_norm.weight": (96,),
        },
        ALONE,
        "Lumina",
    ),
    "z-image": (
        {
            "cap_embedder.1.weight": (3840, 2560),
            "context_refiner.0.attention.k_norm.weight": (128,),
        },
        ALONE,
        "Z-Image",
    ),
    "wan": (
        {"head.modulation": (1, 2, 5120), "blocks.0.self_attn.q.weight": (5120, 5120)},
        ALONE,
        "Wan",
    ),
    "qwen-image": (
        {"txt_norm.weight": (3584,), "transformer_blocks.0.img_mod.1.weight": (18432, 3072)},
        ALONE,
        "Qwen-Image",
    ),
    "ltx": (
        {
            UNET + "adaln_single.emb.timestep_embedder.linear_1.bias": (2048,),
            UNET + "patchify_proj.weight": (2048, 128),
        },
        ALONE,
        "LTX",
    ),
    "cascade": (
        {"clf.1.weight": (64, 2048, 1, 1), "clip_txt_mapper.weight": (2048, 1280)},
        ALONE,
        "Stable Cascade",
    ),
    "video": (
        SDXL_UNET | {UNET + "input_blocks.1.1.time_stack.0.attn1.to_q.weight": (320, 320)},
        ALONE,
        "Stable Video Diffusion",
    ),
}
DOWN = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_"
XL_DOWN = "lora_unet_input_blocks_4_1_transformer_blocks_"
DEEP = "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.lora_A.weight"
FLAT = "unet.down_blocks.0.attentions.0.transformer_blocks.0."
PEFT = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v."
TEXT = "text_model_encoder_layers_0_mlp_fc1.lora_down.weight"

LORAS = {
    "kohya sd1": ({DOWN + "attn2_to_k.lora_down.weight": (8, 768)}, "SD1"),
    "kohya sd2": ({DOWN + "attn2_to_k.lora_down.weight": (8, 1024)}, "SD2"),
    "kohya sdxl": ({XL_DOWN + "0_attn2_to_k.lora_down.weight": (8, 2048)}, "SDXL"),
    "kohya sdxl, self-attention": ({XL_DOWN + "1_attn1_to_q.lora_down.weight": (8, 640)}, "SDXL"),
    "kohya sdxl, convolutions only": (
        {"lora_unet_input_blocks_1_0_in_layers_2.hada_w1_b": (8, 2880)},
        "SDXL",
    ),
    "kohya refiner": (
        {
            XL_DOWN + "0_attn2_to_k.lora_down.weight": (8, 1280),
            XL_DOWN + "3_attn1_to_q.lora_down.weight": (8, 768),
        },
        "SDXL refiner",
    ),
    "sd1, text encoder only": ({f"lora_te_{TEXT}": (8, 768)}, "SD1"),
    "sd2, text encoder only": ({f"lora_te_{TEXT}": (8, 1024)}, "SD2"),
    "sdxl, text encoders only": ({f"lora_te{n}_{TEXT}": (8, 768) for n in (1, 2)}, "SDXL"),
    "te1 only says nothing": ({f"lora_te1_{TEXT}": (8, 768)}, None),
    "unknown width says nothing": ({DOWN + "attn2_to_k.lora_down.weight": (4, 64)}, None),
    "locon": (
        {
            DOWN + "attn2_to_k.lora_down.weight": (8, 768),
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": (8, 320, 3, 3),
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight": (8, 8, 3, 3),
        },
        "SD1",
    ),
    "loha": (
        {DOWN + "attn2_to_k.hada_w1_a": (640, 8), DOWN + "attn2_to_k.hada_w1_b": (8, 768)},
        "SD1",
    ),
    "loha sdxl": (
        {
            XL_DOWN + "0_attn2_to_v.hada_w1_a": (640, 8),
            XL_DOWN + "0_attn2_to_v.hada_w1_b": (8, 2048),
        },
        "SDXL",
    ),
    "lokr": (
        {
            DOWN + "attn2_to_k.lokr_w1": (16, 16),
            DOWN + "attn2_to_k.lokr_w2_a": (40, 8),
            DOWN + "attn2_to_k.lokr_w2_b": (8, 64),
        },
        "SD2",
    ),
    "lokr, both whole": (
        {DOWN + "attn2_to_k.lokr_w1": (16, 16), DOWN + "attn2_to_k.lokr_w2": (40, 48)},
        "SD1",
    ),
    "oft": ({XL_DOWN + "1_attn2_to_k.oft_blocks": (4, 160, 160)}, "SDXL"),
    "kohya's oft": (
        {"oft_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.oft_blocks": (4, 160, 160)},
        "SDXL",
    ),
    "full difference": ({DOWN + "attn2_to_k.diff": (640, 768)}, "SD1"),
    "ia3": ({DOWN + "attn2_to_k.weight": (640,), DOWN + "attn2_to_k.on_input": ()}, None),
    "diffusers sdxl": ({DEEP: (8, 640)}, "SDXL"),
    "diffusers, projection is a convolution": (
        {
            FLAT + "attn1.to_q.lora_A.weight": (8, 320),
            "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (8, 320, 1, 1),
        },
        "SD1",
    ),
    "peft sd1": ({PEFT + "lora_A.weight": (8, 768), PEFT + "lora_B.weight": (640, 8)}, "SD1"),
    "peft with its adapter's name": ({PEFT + "lora_A.default.weight": (8, 2048)}, "SDXL"),
    "old diffusers": (
        {FLAT + "attn2.processor.to_k_lora.down.weight": (4, 768)},
        "SD1",
    ),
    "diffusers' dotted": ({FLAT + "attn2.to_k.lora.down.weight": (4, 1024)}, "SD2"),
    "diffusers, two text encoders": (
        {"text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": (8, 1280)},
        "SDXL",
    ),
    "kohya flux": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (8, 3072)}, "Flux"),
    "one block of flux": ({"lora_unet_single_blocks_7_linear2.lora_down.weight": (8, 1)}, "Flux"),
    "flux with te1": (
        {
            f"lora_te1_{TEXT}": (8, 768),
            "lora_unet_single_blocks_7_linear2.lora_down.weight": (8, 1),
        },
        "Flux",
    ),
    "diffusers flux": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (8, 3072)},
        "Flux",
    ),
    "onetrainer flux": (
        {"lora_transformer_single_transformer_blocks_0_attn_to_q.lora_down.weight": (8, 3072)},
        "Flux",
    ),
    "kohya sd3": ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (8, 1)}, "SD3"),
    "diffusers sd3": (
        {"transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": (8, 1536)},
        "SD3",
    ),
    "cascade": (
        {"lora_prior_unet_down_blocks_0_1_kv_mapper_1.lora_down.weight": (8, 1)},
        "Stable Cascade",
    ),
    "wan": ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (8, 5120)}, "Wan"),
    "anima": ({"lora_unet_blocks_0_self_attn_q_proj.lora_down.weight": (8, 2048)}, "Cosmos"),
    "qwen-image": (
        {"transformer.transformer_blocks.0.img_mod.1.lora_A.weight": (8, 3072)},
        "Qwen-Image",
    ),
    "z-image": (
        {"diffusion_model.layers.0.attention.to_q.lora_A.weight": (8, 3840)},
        "Z-Image",
    ),
    "some other transformer": (
        {"transformer.transformer_blocks.0.attn1.to_k.lora_A.weight": (8, 1152)},
        "DiT",
    ),
}

OTHERS = {
    "vae": (VAE, "vae", None),
    "flux's vae": (VAE | {"decoder.conv_in.weight": (512, 16, 3, 3)}, "vae", "Flux or SD3"),
    "wan's vae": ({"decoder.middle.0.residual.0.gamma": (384, 1, 1, 1)}, "vae", "Wan"),
    "strange vae": (
        VAE | {"decoder.conv_in.weight": (512, 8, 3, 3)},
        "vae",
        "a model of 8 latent channels",
    ),
    "vae with prefix": (FIRST_STAGE, "VAE with prefixed names", None),
    "diffusers vae": (
        {
            "decoder.conv_in.weight": (512, 4, 3, 3),
            "decoder.up_blocks.0.resnets.0.conv1.weight": (512, 512, 3, 3),
            "encoder.down_blocks.0.resnets.0.conv1.weight": (128, 128, 3, 3),
        },
        "VAE in diffusers naming",
        None,
    ),
    "embedding sd1": ({"emb_params": (4, 768)}, "embedding", "SD1"),
    "embedding sd2": ({"emb_params": (4, 1024)}, "embedding", "SD2"),
    "embedding of unknown width": ({"emb_params": (4, 64)}, "embedding", None),
    "diffusers embedding": ({"<cat-toy>": (768,)}, "embedding", "SD1"),
    "embedding sdxl": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding", "SDXL"),
    "embedding sd3": (
        {"clip_l": (2, 768), "clip_g": (2, 1280), "t5xxl": (2, 4096)},
        "embedding",
        "SD3",
    ),
    "controlnet": (
        {"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}
        | {f"control_model.{k.removeprefix(UNET)}": v for k, v in SD1_UNET.items()},
        "ControlNet",
        None,
    ),
    "diffusers controlnet": (
        {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}
        | {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
        "ControlNet",
        None,
    ),
    "control-lora": ({"lora_controlnet": (), f"{BLOCK[:-7]}.down": (8, 1)}, "ControlNet", None),
    "control-lllite": (
        {"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight": (8, 1)},
        "ControlNet",
        None,
    ),
    "ip-adapter": (
        {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)},
        "IP-Adapter",
        None,
    ),
    "ip-adapter with a lora": (
        {"ip_adapter.0.to_q_lora.down.weight": (128, 320)},
        "IP-Adapter",
        None,
    ),
    "animatediff": (
        {
            "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,),
            "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight": (320, 320),
        },
        "AnimateDiff motion module",
        None,
    ),
    "t2i-adapter": ({"body.0.block1.weight": (320, 320, 3, 3)}, "T2I-Adapter", None),
    "esrgan": ({"model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)}, "upscaler", None),
    "realesrgan": ({"body.0.rdb1.conv1.weight": (32, 64, 3, 3), "a": ()}, "upscaler", None),
    "swinir": (
        {"layers.0.residual_group.blocks.0.attn.qkv.weight": (540, 180)},
        "upscaler",
        None,
    ),
    "hypernetwork": (
        {"768.0.linear.0.weight": (1536, 768), "768.1.linear.0.weight": (1536, 768)},
        "hypernetwork",
        None,
    ),
    "clip": ({"text_model.encoder.layers.0.self_attn.q_proj.weight": (2, 2)}, "text encoder", None),
    "t5": (
        {"encoder.block.0.layer.0.SelfAttention.k.weight": (4096, 4096), "shared.weight": (1, 1)},
        "text encoder",
        None,
    ),
    "clip vision": (
        {
            "vision_model.encoder.layers.0.self_attn.q_proj.weight": (1280, 1280),
            "vision_model.embeddings.class_embedding": (1280,),
        },
        "image encoder",
        None,
    ),
    "stand-in": ({"w": (1,)}, None, None),
    "stand-in of two": ({"w": (2, 768), "v": (1,)}, None, None),
    "no tensors": ({}, None, None),
    "a number": ({"step": ()}, None, None),
}


def entries(shapes, dtype="F16"):
    """{name: shape} -> the header's object, with the data end to end."""
    placed, position = {}, 0
    for name, shape in shapes.items():
        end = position + math.prod(shape) * BITS[dtype] // 8
        placed[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    return placed


def framed(document):
    """The first bytes of a file: the length and the header, given as an object or as bytes."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text


def found(shapes, metadata=None, dtype="F16"):
    document = entries(shapes, dtype) | ({"__metadata__": metadata} if metadata else {})
    return detect(parse_header(framed(document)))


def said(value):
    """A parameter's part of its test's name: bytes would fill the screen."""
    return value if isinstance(value, str) else ""


def damaged(**changes):
    return framed({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes})


# --- the header -------------------------------------------------------------------------------


def test_a_header_gives_shapes_metadata_and_the_size_that_the_file_must_have():
    start = framed(entries({"a": (2, 3), "b": ()}, "F32") | {"__metadata__": {"k": "v"}})

    header = parse_header(start + b"data that is not looked at")

    assert header == Header(
        {"a": Tensor("F32", (2, 3)), "b": Tensor("F32", ())},
        {"k": "v"},
        len(start),
        len(start) + 28,
    )


def test_the_length_of_the_header_is_known_from_eight_bytes():
    start = framed(entries({"w": (1,)}))

    assert header_length(start[:7]) is None
    assert header_length(start[:8]) == header_length(start) == len(start)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "BF16", "F8_E4M3", "I64"])
def test_dtypes_have_their_size_below_one_byte_too(dtype):
    header = parse_header(framed(entries({"w": (4, 8)}, dtype)))

    assert header.size - header.data_start == 32 * BITS[dtype] // 8


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"", "empty"),
        (b"\x10\x00\x00", "ends inside its header"),
        (framed({})[:-1], "ends inside its header"),
        (struct.pack("<Q", 100_000_001) + b"{}", "no header has that length"),
        (struct.pack("<Q", 2**63) + b"{}", "no header has that length"),
        (framed(b"{nonsense"), "not JSON"),
        (framed(b'{"a": NaN}'), "not JSON"),
        (framed(b'{"\xff": {}}'), "not JSON"),
        (framed(b"[" * 100_000), "not JSON"),
        (framed(b"[]"), "not an object"),
        (framed(b'{"__metadata__": {"a": "1", "a": "2"}}'), "twice"),
        (framed({"__metadata__": []}), "metadata are not an object"),
        (framed({"__metadata__": {"a": 1}}), "not all text"),
        (framed({"w": []}), "'w' is not a tensor"),
        (framed({"w": {"dtype": "F32", "shape": [1]}}), "'w' is not a tensor"),
        (damaged(data_offsets=[0]), "'w' is not a tensor"),
        (damaged(shape="2"), "'w' is not a tensor"),
        (damaged(dtype="F31"), "unknown dtype"),
        (damaged(shape=[2.0]), "unknown dtype, shape"),
        (damaged(shape=[True, 2]), "unknown dtype, shape"),
        (damaged(shape=[-1, -2]), "unknown dtype, shape"),
        (damaged(shape=[2**64, 0], data_offsets=[0, 0]), "unknown dtype, shape"),
        (damaged(shape=[2**40, 2**40]), "too large"),
        (damaged(shape=[1]), "not that of its shape"),
        (damaged(shape=[3]), "not that of its shape"),
        (damaged(data_offsets=[8, 0]), "not that of its shape"),
        (damaged(dtype="F4", shape=[3], data_offsets=[0, 1]), "not that of its shape"),
        (damaged(data_offsets=[8, 16]), "does not begin where"),
        (framed({name: entries({"w": (2,)})["w"] for name in "ab"}), "'b' does not begin where"),
    ],
    ids=said,
)
def test_a_damaged_header_is_refused_with_the_place(start, says):
    with pytest.raises(ModelFileInvalid, match=says):
        parse_header(start)


PICKLES = [
    b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94",
    b"\x80\x05\x95\x10\x01\x00\x00\x00\x00\x00\x00}\x94",
]


@pytest.mark.parametrize(
    ("start", "error", "says"),
    [
        (
            b"<!DOCTYPE html>\n<html><head><title>Sign in &amp; go\n on</title></head>",
            ModelFileInvalid,
            "is a web page, not a model: 'Sign in & go on'",
        ),
        (b"<html><body>Not here</body>", ModelFileInvalid, "'<html><body>Not here</body>'"),
        (b"\xef\xbb\xbf\r\n <html><title> </title>", ModelFileInvalid, "is a web page"),
        ("<html><title>Zugriff für äöü</title>".encode(), ModelFileInvalid, "für äöü"),
        (b'{"error":"Unauthorized"}', ModelFileInvalid, "is a JSON text, .*Unauthorized"),
        (b"version https://git-lfs.github.com/spec/v1\n", ModelFileInvalid, "is a text, .*git-lfs"),
        (b"Entry not found", ModelFileInvalid, "is a text, .*Entry not found"),
        *((start, ModelUnsafe, "pickle") for start in PICKLES),
        (b"GGUF\x03\x00\x00\x00\x10\x00", ModelNotSupported, "GGUF"),
    ],
    ids=said,
)
def test_another_format_is_refused_by_name_before_the_header_is_whole(start, error, says):
    for look in (refuse_foreign, header_length, parse_header):
        with pytest.raises(error, match=says):
            look(start)


@pytest.mark.parametrize("start", PICKLES)
def test_what_pytorch_writes_begins_as_a_pickle(start):
    check_pickle(start)


@pytest.mark.parametrize(
    ("start", "error", "says"),
    [
        (b"", ModelFileInvalid, "empty"),
        (b"<!DOCTYPE html><title>Log in</title>", ModelFileInvalid, "web page, .*'Log in'"),
        (b"GGUF\x03\x00\x00\x00", ModelNotSupported, "GGUF"),
        (b"\x80\x02\0\0\0\0\0\0{}", ModelFileInvalid, "no PyTorch pickle"),
        (b"\x80\x06\0\0\xff\0", ModelFileInvalid, "no PyTorch pickle"),
        (b"\x80", ModelFileInvalid, "no PyTorch pickle"),
        (b"PK\x05\x06" + bytes(18), ModelFileInvalid, "no PyTorch pickle"),
    ],
    ids=said,
)
def test_what_does_not_begin_as_a_pickle_is_none(start, error, says):
    with pytest.raises(error, match=says):
        check_pickle(start)


def test_a_page_of_which_little_has_come_is_a_page():
    with pytest.raises(ModelFileInvalid, match="web page"):
        refuse_foreign(b"<html>")


@pytest.mark.parametrize("length", [0x3C, 0x5B, 0x7B, 0x0280, 0x0380, 0x0480, 0x0580, 0x2020])
def test_a_length_that_begins_like_another_format_is_a_length(length):
    text = json.dumps(entries({"w": (1,)})).encode()
    start = framed(text.ljust(length) if len(text) <= length else b"{}".ljust(length))

    for known in range(1, len(start)):
        refuse_foreign(start[:known])
    assert header_length(start) == 8 + length
    parse_header(start)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_one_of_our_errors(start):
    for look in (parse_header, header_length, refuse_foreign):
        with contextlib.suppress(JobError):
            look(start)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
odd_entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*BITS, "X", 1]),
        "shape": st.lists(st.integers(-1, 9) | st.sampled_from([2**40, 2**64, 1.0]), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 20), min_size=1, max_size=3),
        "more": json_values,
    },
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), odd_entries | json_values))
def test_any_object_is_a_header_or_one_of_our_errors(document):
    try:
        header = parse_header(framed(document))
    except ModelFileInvalid:
        return
    assert detect(header).role in {None, "embedding"}


# --- as safetensors reads it ------------------------------------------------------------------


def files(smallest):
    """Files as safetensors writes them, whose axes have `smallest` or more elements."""
    axes = st.lists(st.integers(smallest, 3), max_size=3)
    dtypes = st.sampled_from(["float32", "float16", "int64", "uint8", "bool"])
    arrays = st.builds(np.zeros, axes, dtypes)
    tensors = st.dictionaries(st.text(max_size=4), arrays, max_size=4)
    metadata = st.dictionaries(st.text(max_size=3), st.text(max_size=3), min_size=1, max_size=1)
    return st.builds(save, tensors, st.none() | metadata)


def our_verdict(data):
    try:
        header = parse_header(data)
    except JobError:
        return None
    if header.size != len(data):
        return None
    return {name: tensor.shape for name, tensor in header.tensors.items()}, header.metadata


def their_verdict(path):
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return shapes, file.metadata() or {}
    except SafetensorError:
        return None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=files(smallest=0))
def test_a_file_that_safetensors_writes_is_read_alike(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)

    assert our_verdict(data) == their_verdict(path)
    assert our_verdict(data) is not None


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)
@given(
    # Without empty tensors a name that the change doubles leaves a hole, which both refuse.
    data=files(smallest=1),
    place=st.integers(0, 300),
    new=st.binary(max_size=2),
    cut=st.integers(0, 2),
)
def test_a_changed_file_is_refused_where_safetensors_refuses_it(tmp_path, data, place, new, cut):
    place %= len(data) + 1
    changed = data[:place] + new + data[place + cut :]
    path = tmp_path / "model.safetensors"
    path.write_bytes(changed)
    if changed:
        assert our_verdict(changed) == their_verdict(path)


@pytest.mark.parametrize(
    "document",
    [
        {},
        b' {"w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}  ',
        {"__metadata__": None},
        {"__metadata__": {}},
        {"__metadata__": {"a": 1}},
        {"w": {"dtype": "U8", "shape": [], "data_offsets": [0, 1], "more": [1]}},
        {"w": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}},
        {"w": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}},
        {"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}},
        {"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}},
        {"w": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}},
        {"w": {"dtype": "U8", "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}},
        {"w": {"dtype": "U8", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}},
        {"w": {"dtype": "U8", "shape": [0, 2**64], "data_offsets": [0, 0]}},
        {"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}},
        {
            "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
        },
    ],
)
def test_odd_headers_are_judged_as_safetensors_judges_them(tmp_path, document):
    path = tmp_path / "model.safetensors"
    data = framed(document)
    ends = [v["data_offsets"][1] for k, v in parsed(document).items() if k != "__metadata__"]
    path.write_bytes(data + bytes(max(ends, default=0)))

    assert our_verdict(path.read_bytes()) == their_verdict(path)


def parsed(document):
    return json.loads(document) if isinstance(document, bytes) else document


# --- what the file is -------------------------------------------------------------------------


@pytest.mark.parametrize(("shapes", "role", "family"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_model_is_recognised(shapes, role, family):
    assert found(shapes) == Architecture(role, family)


@pytest.mark.parametrize(("shapes", "family"), LORAS.values(), ids=LORAS)
def test_a_lora_is_recognised(shapes, family):
    architecture = found(shapes)

    assert (architecture.role, architecture.family) == ("lora", family)


@pytest.mark.parametrize(("shapes", "role", "family"), OTHERS.values(), ids=OTHERS)
def test_other_files_are_recognised(shapes, role, family):
    assert found(shapes) == Architecture(role, family)


def test_a_stand_in_of_bytes_is_no_embedding_whatever_its_length():
    assert found({"w": (768,)}, dtype="U8") == Architecture()


@pytest.mark.parametrize(
    ("channels", "detail"),
    [(9, "inpainting"), (8, "instruct-pix2pix"), (5, "depth")],
)
@pytest.mark.parametrize(("file", "family"), [(SD1_FILE, "SD1"), (SDXL_FILE, "SDXL")])
def test_further_inputs_are_a_detail(file, family, channels, detail):
    shapes = file | {UNET + "input_blocks.0.0.weight": (320, channels, 3, 3)}

    assert found(shapes) == Architecture("checkpoint", family, (detail,))


def test_v_prediction_is_a_detail():
    marked = found(SDXL_FILE | {"v_pred": ()})
    declared = found(SDXL_FILE, {"modelspec.prediction_type": "v"})

    assert marked == declared == Architecture("checkpoint", "SDXL", ("v-prediction",))


def test_naming_that_a1111_does_not_map_is_a_detail():
    assert found(LORAS["peft sd1"][0]).details == ("diffusers naming",)
    assert found(LORAS["diffusers flux"][0]).details == ("diffusers naming",)
    assert found(LORAS["kohya sdxl"][0]).details == ()


UNTOLD = {DOWN + "attn1_to_q.lora_down.weight": (8, 640)}


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sd_v1"}, "SD1"),
        ({"ss_base_model_version": "sd_v2_768_v"}, "SD2"),
        ({"ss_v2": "True", "ss_base_model_version": "sd_v1"}, "SD2"),
        ({"ss_v2": "False"}, None),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_base_model_version": "flux1"}, "Flux"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD1"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "SD2"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
        ({"modelspec.architecture": "Flux-1-dev/lora"}, "Flux"),
        ({"modelspec.architecture": "something new"}, None),
    ],
)
def test_metadata_speak_where_the_tensors_do_not(metadata, family):
    assert found(UNTOLD, metadata).family == family


def test_metadata_do_not_overrule_the_tensors():
    assert found(LORAS["kohya sd1"][0], {"ss_base_model_version": "sdxl_"}).family == "SD1"
    assert found(SD1_FILE, {"modelspec.architecture": "flux-1-dev"}).family == "SD1"


def test_metadata_alone_tell_a_lora():
    architecture = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}

    assert found({"w": (1,)}, architecture) == Architecture("lora", "SDXL")
    assert found({"w": (1,)}, {"ss_network_module": "networks.lora"}) == Architecture("lora")
    assert found({"w": (1,)}, {"modelspec.title": "x"}) == Architecture()


def test_the_embedded_engines_own_models_are_sd1_by_their_structure():
    tiny_models = pytest.importorskip(
        "fakes.tiny_models", reason="the engine's packages are not installed"
    )

    def header(state):
        return Header({k: Tensor("F16", tuple(v.shape)) for k, v in state.items()}, {}, 8, 8)

    checkpoint = detect(header(tiny_models.make_checkpoint()))
    lora = detect(header(tiny_models.make_lora()))

    assert checkpoint == Architecture("checkpoint", "SD1")
    assert lora == Architecture("lora", None)
    check_usable("tiny", "checkpoint", checkpoint)
    check_match("tiny", checkpoint, "lora", lora)


# --- whether it can be used -------------------------------------------------------------------


@pytest.mark.parametrize("family", [None, "SD1", "SD2", "SDXL", "SDXL refiner"])
@pytest.mark.parametrize("role", ["checkpoint", "lora", "vae", "embedding"])
def test_what_is_wanted_or_not_recognised_passes(role, family):
    check_usable("x", role, Architecture(role, family))
    check_usable("x", role, Architecture(None, family))


@pytest.mark.parametrize(
    ("wanted", "is_", "says", "hint"),
    [
        ("checkpoint", Architecture("lora", "SDXL"), "'x' is a LoRA for SDXL; ", "`loras`"),
        (
            "lora",
            Architecture("checkpoint", "SD1"),
            "'x' is a checkpoint for SD1; ",
            "`checkpoint`",
        ),
        ("lora", Architecture("vae"), "'x' is a VAE; .* as a LoRA", "`vae`"),
        ("lora", Architecture("embedding", "SD1"), "'x' is an embedding for SD1", "`embeddings`"),
        ("vae", Architecture("checkpoint", "SD1"), "cannot use it as a VAE", "`checkpoint`"),
        ("vae", Architecture("VAE in diffusers naming"), "is a VAE in diffusers naming", "another"),
        ("checkpoint", Architecture("ControlNet"), "is a ControlNet", "another file"),
        ("checkpoint", Architecture("IP-Adapter"), "is an IP-Adapter", "another file"),
        ("checkpoint", Architecture(ALONE, "Flux"), f"is a {ALONE} for Flux", "Stable Diffusion 1"),
        ("checkpoint", Architecture("checkpoint", "SD3"), "checkpoint for SD3", "Stable Diffusion"),
        ("lora", Architecture("lora", "Flux"), "is a LoRA for Flux", "Stable Diffusion 1"),
        ("lora", Architecture(None, "Flux"), "is a model for Flux", "Stable Diffusion 1"),
        ("checkpoint", Architecture("lora", "Flux"), "LoRA for Flux", "Stable Diffusion 1"),
    ],
)
def test_what_is_of_no_use_is_refused_with_the_cure(wanted, is_, says, hint):
    with pytest.raises(ModelNotSupported, match=says) as caught:
        check_usable("x", wanted, is_)

    assert hint in caught.value.hint
    assert caught.value.details == {
        "model": "x",
        "wanted": wanted,
        "role": is_.role,
        "family": is_.family,
    }


@pytest.mark.parametrize(
    ("checkpoint", "lora"),
    [("SD1", "SD1"), ("SDXL", None), (None, "SDXL"), (None, None)],
)
def test_one_family_or_an_unknown_one_matches(checkpoint, lora):
    check_match("c", Architecture("checkpoint", checkpoint), "l", Architecture("lora", lora))


@pytest.mark.parametrize(
    ("checkpoint", "lora"),
    [("SD1", "SDXL"), ("SDXL", "SD1"), ("SD1", "SD2"), ("SDXL refiner", "SDXL")],
)
@pytest.mark.parametrize(("role", "word"), [("lora", "a LoRA"), ("embedding", "an embedding")])
def test_two_families_do_not_match(role, word, checkpoint, lora):
    says = f"'l' is {word} for {lora}, but the checkpoint 'c' is {checkpoint}."
    with pytest.raises(ModelMismatch) as caught:
        check_match("c", Architecture("checkpoint", checkpoint), "l", Architecture(role, lora))

    assert caught.value.message == says
    assert word in caught.value.hint
    assert caught.value.details == {
        "checkpoint": "c",
        "checkpoint_family": checkpoint,
        "model": "l",
        "model_family": lora,
    }
