"""What A1111 v1.9.3 does with a LoRA's layers, by names and shapes.

The verdicts are A1111's own: its `networks.py` and `network_*.py` ran on single layers of torch
with these shapes (28 November 2026, torch 2.1.2). `used`: the delta has the layer's shape and is
added. `misfit`: a RuntimeError, which A1111 only counts. `broken`: an error that stops the whole
file or picture, or a delta that is added in a wrong shape without an error.
"""

import pytest

from worker.formats.lora_layers import Fit, family_layers, find, fit, layers_of
from worker.formats.lora_modules import Broken, Layer, Misfit, check_module
from worker.formats.stable_diffusion import FAMILIES, network, unet, vae

LINEAR, CONV, CONV_1X1, NORM = (24, 16), (24, 8, 3, 3), (24, 8, 1, 1), (24,)
PAIR = "lora_down.weight:4x{0} lora_up.weight:24x4"
HADA = "hada_w1_a:24x4 hada_w1_b:4x{0} hada_w2_a:24x4 hada_w2_b:4x{0}"
TUCKER = "hada_t{0}:4x4x{1} hada_w{0}_a:4x24 hada_w{0}_b:4x8"
GLORA = "a1.weight:4x{0} a2.weight:{0}x4 b1.weight:4x{0} b2.weight:24x4 alpha:"

# Verdict, the layer's weight, parts as `name:shape`.
PARTS = [
    ("used", LINEAR, PAIR.format(16) + " alpha:"),
    ("used", LINEAR, PAIR.format("16x1x1")),
    ("misfit", LINEAR, PAIR.format(20)),
    ("misfit", LINEAR, PAIR.format("8x3x3")),
    ("misfit", LINEAR, "lora_down.weight:4x16 lora_up.weight:20x4"),
    ("misfit", LINEAR, "lora_down.weight:3x16 lora_up.weight:24x4"),
    ("misfit", LINEAR, PAIR.format(16) + " lora_mid.weight:4x4x1x1"),
    ("broken", LINEAR, PAIR.format(1)),  # repeated for each input
    ("broken", LINEAR, "lora_down.weight:4x16 lora_up.weight:1x4"),
    ("broken", LINEAR, PAIR.format(16) + " alpha:2"),
    ("broken", LINEAR, "lora_A.weight:4x16 lora_B.weight:24x4"),
    ("broken", LINEAR, "alpha:"),
    ("broken", LINEAR, "lora_up.weight:24x4"),
    ("used", CONV, PAIR.format("8x3x3")),
    ("used", CONV, PAIR.format(72)),  # the same numbers in a matrix
    ("used", CONV_1X1, PAIR.format("8x1x1")),
    ("used", CONV_1X1, PAIR.format(8)),
    ("broken", CONV, PAIR.format("8x1x1")),  # repeated for each tap
    ("broken", CONV_1X1, PAIR.format("8x3x3")),
    ("broken", CONV, "lora_down.weight:4x8x3x3 lora_up.weight:24x4x3x3"),
    ("used", CONV, "lora_down.weight:4x8x1x1 lora_mid.weight:4x4x3x3 lora_up.weight:24x4x1x1"),
    ("broken", CONV, "lora_down.weight:4x8x1x1 lora_mid.weight:4x4x1x1 lora_up.weight:24x4x1x1"),
    ("broken", NORM, PAIR.format(16)),
    ("used", LINEAR, HADA.format(16)),
    ("used", CONV, HADA.format(72)),
    ("misfit", CONV, HADA.format(73)),
    ("used", CONV, f"{TUCKER.format(1, '3x3')} {TUCKER.format(2, '3x3')}"),
    ("broken", NORM, HADA.format(1)),
    ("used", LINEAR, "weight:1x16 on_input:"),
    ("used", CONV, "weight:1x8x1x1 on_input:"),
    ("misfit", LINEAR, "weight:5 on_input:"),
    ("misfit", CONV, "weight:1x24x1x1 on_input:"),
    ("broken", LINEAR, "weight:24"),
    ("broken", NORM, "weight:24 on_input:"),
    ("used", LINEAR, "lokr_w1:4x2 lokr_w2:6x8"),
    ("used", CONV, "lokr_w1:4x2 lokr_w2:6x4x3x3"),
    ("used", CONV, "lokr_w1_a:4x4 lokr_w1_b:4x2 lokr_w2_a:6x4 lokr_w2_b:4x36"),
    ("used", CONV, "lokr_w1:4x2 lokr_t2:4x4x3x3 lokr_w2_a:4x6 lokr_w2_b:4x4"),
    ("misfit", LINEAR, "lokr_w1:4x2 lokr_w2:7x8"),
    ("used", LINEAR, "diff:24x16 diff_b:24"),
    ("used", CONV, "diff:24x72"),
    ("used", NORM, "diff:24 diff_b:24"),
    ("broken", LINEAR, "diff:24x16 diff_b:20"),  # the weight is changed, the bias is not
    ("broken", LINEAR, "diff:16x24"),  # reshaped
    ("broken", LINEAR, "diff_b:24"),
    ("used", NORM, "w_norm:24 b_norm:24"),
    ("misfit", NORM, "w_norm:20 b_norm:20"),
    ("broken", NORM, "w_norm:24 b_norm:20"),
    ("broken", NORM, "w_norm:24"),
    ("used", LINEAR, GLORA.format(16)),
    ("misfit", CONV, GLORA.format(72)),
    ("misfit", LINEAR, "a1.weight:16x4 a2.weight:4x16 b1.weight:24x4 b2.weight:4x16 alpha:"),
    ("used", LINEAR, "oft_blocks:4x6x6 alpha:"),
    ("used", CONV, "oft_diag:4x6x6"),
    ("used", LINEAR, "oft_blocks:2x4x6x6 rescale:24x1"),  # BOFT
    ("misfit", LINEAR, "oft_blocks:4x5x5"),
    ("broken", NORM, "oft_blocks:4x6x6"),
    ("used", LINEAR, PAIR.format(16) + " dora_scale:1x16"),
    ("used", CONV, PAIR.format("8x3x3") + " dora_scale:1x8x1x1"),
    # LyCORIS since April 2025: A1111 adds a delta that is wrong by up to 1.01 of the weight
    ("broken", LINEAR, PAIR.format(16) + " dora_scale:24x1"),
    ("broken", CONV, PAIR.format("8x3x3") + " dora_scale:24x1x1x1"),
]  # fmt: skip


def shapes(text):
    """`name:4x16 other:` -> {name: (4, 16), other: ()}."""
    pairs = (word.rpartition(":") for word in text.split())
    return {name: tuple(map(int, shape.split("x"))) if shape else () for name, _, shape in pairs}


@pytest.mark.parametrize(("verdict", "weight", "parts"), PARTS)
def test_a_layer_is_judged_as_a1111_treats_it(verdict, weight, parts):
    errors = {"misfit": Misfit, "broken": Broken}
    if verdict == "used":
        assert check_module(shapes(parts), Layer(weight)) == set()
    else:
        with pytest.raises(errors[verdict]):
            check_module(shapes(parts), Layer(weight))


def test_parts_that_a1111_does_not_read_are_found():
    parts = shapes(PAIR.format(16) + " diff_b:24 lora_up.bias:24")
    assert check_module(parts, Layer(LINEAR)) == {"diff_b", "lora_up.bias"}


# The name in a LoRA, and A1111's name in each family that has it; compared with A1111's
# `convert_diffusers_name_to_compvis` for 147,184 pairs of a name and a family.
UNET_NAME = "diffusion_model_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
NAMES = [
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
     dict.fromkeys(FAMILIES, UNET_NAME)),
    ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
     dict.fromkeys(FAMILIES, UNET_NAME)),
    ("lora_unet_conv_in", dict.fromkeys(FAMILIES, "diffusion_model_input_blocks_0_0")),
    ("lora_unet_time_embedding_linear_2", dict.fromkeys(FAMILIES, "diffusion_model_time_embed_2")),
    ("lora_unet_mid_block_resnets_1_conv1",
     dict.fromkeys(FAMILIES, "diffusion_model_middle_block_2_in_layers_2")),
    ("lora_unet_up_blocks_0_upsamplers_0_conv",
     dict.fromkeys(("SD1", "SD2", "SDXL refiner"), "diffusion_model_output_blocks_2_1_conv")),
    ("lora_unet_up_blocks_1_upsamplers_0_conv",
     dict.fromkeys(FAMILIES, "diffusion_model_output_blocks_5_2_conv")),
    ("oft_unet_out_2", dict.fromkeys(FAMILIES, "diffusion_model_out_2")),
    ("oft_unet_down_blocks_1_attentions_0_proj_in", {}),
    ("lora_te_text_model_encoder_layers_3_mlp_fc1", {
        "SD1": "transformer_text_model_encoder_layers_3_mlp_fc1",
        "SD2": "model_transformer_resblocks_3_mlp_c_fc"}),
    ("lora_te1_text_model_encoder_layers_3_mlp_fc1", {
        "SD1": "transformer_text_model_encoder_layers_3_mlp_fc1",
        "SDXL": "0_transformer_text_model_encoder_layers_3_mlp_fc1"}),
    ("lora_te2_text_model_encoder_layers_3_self_attn_q_proj", {
        "SDXL": "1_model_transformer_resblocks_3_attn_q_proj"}),
    ("lora_te3_text_model_encoder_layers_3_mlp_fc1", {}),
    ("unet", {}), ("down_blocks", {}), ("lycoris_down_blocks_1_attentions_0_proj_in", {}),
    ("lora_unet_double_blocks_0_img_attn_qkv", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), NAMES)
def test_a_layer_has_the_name_that_a1111_gives_it(name, expected):
    found = {family: find(name, family_layers(family)) for family in FAMILIES}
    assert {family: layer for family, layer in found.items() if layer} == expected


def pair(name, out, given, rank=4):
    return {f"{name}.lora_down.weight": (rank, given), f"{name}.lora_up.weight": (out, rank)}


TE2 = "lora_te2_text_model_encoder_layers_0_self_attn_{}_proj"


def test_q_k_v_and_out_of_openclip_have_an_effect_only_together():
    whole = {
        k: v
        for part in ("q", "k", "v", "out")
        for k, v in pair(TE2.format(part), 1280, 1280).items()
    }
    assert fit(whole, family_layers("SDXL")).used == 4
    found = fit({k: v for k, v in whole.items() if "out_proj" not in k}, family_layers("SDXL"))
    assert (found.known, found.used, bool(found.misfit)) == (3, 0, True)


def test_norms_of_openclip_are_not_changed_and_those_of_the_unet_are():
    sizes = {"1_model_transformer_resblocks_0_ln_1": (1280,), "diffusion_model_out_0": (320,)}
    lora = {
        f"{layer}.{part}": size for layer, size in sizes.items() for part in ("w_norm", "b_norm")
    }
    found = fit(lora, family_layers("SDXL"))
    assert (found.layers, found.known, found.used) == (2, 2, 1)


FAILS = [
    ("SD1", UNET_NAME.replace("diffusion_model", "lora_unet").replace("to_q", "to_out")),
    ("SD1", "lora_te1_text_model_embeddings_token_embedding"),
    ("SD1", "lora_te1_text_model_embeddings_position_embedding"),
    ("SD2", "model_token_embedding"),
]


@pytest.mark.parametrize(("family", "name"), FAILS)
def test_a_name_on_which_a1111_fails_is_broken(family, name):
    """It raises for a module without a weight, and for an embedding, and loads nothing."""
    good = pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 640, 640)
    found = fit(good | pair(name, 640, 640), family_layers(family))
    assert found.used == 1
    assert name in found.broken


def test_one_layer_under_two_names_is_broken_because_a1111_keeps_only_one():
    names = NAMES[0][0], NAMES[1][0]
    found = fit(pair(names[0], 640, 640) | pair(names[1], 640, 640), family_layers("SDXL"))
    assert "are the same layer" in found.broken


def test_the_layers_of_a_checkpoint_are_those_of_its_family_in_older_and_turbo_names():
    def layers(renamed):
        return layers_of(renamed | {f"first_stage_model.{k}": v for k, v in vae().items()})

    for family in FAMILIES:
        assert layers(network(family)) == family_layers(family)
    old = {
        k.replace("transformer.text_model.", "transformer."): v for k, v in network("SD1").items()
    }
    assert layers(old) == family_layers("SD1")
    start = "cond_stage_model."
    turbo = {k.replace(start, "conditioner.embedders.0."): v for k, v in network("SD2").items()}
    assert layers(turbo) == family_layers("SD2")


def test_a_lora_for_four_channels_fits_an_inpainting_checkpoint():
    first = "model.diffusion_model.input_blocks.0.0.weight"
    layers = layers_of(unet("SD1") | {first: (320, 9, 3, 3)})
    lora = {
        "lora_unet_conv_in.lora_down.weight": (4, 4, 3, 3),
        "lora_unet_conv_in.lora_up.weight": (320, 4, 1, 1),
    }
    assert fit(lora, layers) == Fit(1, 1, 1)
