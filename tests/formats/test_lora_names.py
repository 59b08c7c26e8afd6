"""The names of other tools' LoRAs, and the ones that A1111 reads instead."""

import json

import pytest

from worker.errors import ModelNotSupported
from worker.formats.lora_names import find_renaming
from worker.formats.safetensors_header import Header, Tensor

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
SD1 = f"lora_unet_{ATTENTION.replace('.', '_')}"
ORIGINAL = "input_blocks.4.1.transformer_blocks.0.attn2"
XL = f"lora_unet_{ORIGINAL.replace('.', '_')}"
LAYER = "text_model.encoder.layers.0"
TEXT = f"_{LAYER.replace('.', '_')}"
DOWN, UP = "lora_down.weight", "lora_up.weight"


def header(*names, shape=(4, 8), **metadata):
    return Header({name: Tensor("F16", shape) for name in names}, metadata, 0, 0)


# The name in the file, whose it is, and its names for SD1 and SDXL ("" if only the other has it).
NAMES = [
    (f"{ATTENTION}.processor.to_k_lora.down.weight", "diffusers", f"{SD1}_to_k.{DOWN}", XL),
    (f"{ATTENTION}.processor.to_out_lora.up.weight", "diffusers", f"{SD1}_to_out_0.{UP}", XL),
    (f"unet.{ATTENTION}.to_v.lora.down.weight", "diffusers", f"{SD1}_to_v.{DOWN}", XL),
    (f"unet.{ATTENTION}.to_v.lora.alpha", "diffusers", f"{SD1}_to_v.alpha", XL),
    (f"unet.{ATTENTION}.to_k.lora_linear_layer.up.weight", "diffusers", f"{SD1}_to_k.{UP}", XL),
    (f"text_encoder.{LAYER}.self_attn.to_q_lora.up.weight", "diffusers",
     f"lora_te{TEXT}_self_attn_q_proj.{UP}", "lora_te1"),
    ("text_encoder.encoder.layers.0.mlp.fc1.lora.up.weight", "diffusers",
     f"lora_te{TEXT}_mlp_fc1.{UP}", "lora_te1"),
    (f"unet.{ATTENTION}.to_k.lora_A.weight", "peft", f"{SD1}_to_k.{DOWN}", XL),
    (f"{ATTENTION}.to_k.lora_B.weight", "peft", f"{SD1}_to_k.{UP}", XL),
    (f"base_model.model.{ATTENTION}.to_out.0.lora_B.default.weight", "peft",
     f"{SD1}_to_out_0.{UP}", XL),
    (f"base_model.model.{LAYER}.mlp.fc2.lora_A.weight", "peft",
     f"lora_te{TEXT}_mlp_fc2.{DOWN}", "lora_te1"),
    (f"diffusion_model.{ORIGINAL}.to_k.lora_up.weight", "ComfyUI", f"{SD1}_to_k.{UP}", XL),
    (f"diffusion_model.{ORIGINAL}.to_k.diff", "ComfyUI", f"{SD1}_to_k.diff", XL),
    (f"text_encoders.clip_l.transformer.{LAYER}.self_attn.out_proj.lora_up.weight", "ComfyUI",
     f"lora_te{TEXT}_self_attn_out_proj.{UP}", "lora_te1"),
    (f"unet.{ORIGINAL}.to_k.dora_scale", "OneTrainer", f"{SD1}_to_k.dora_scale", XL),
    (f"clip_l.{LAYER}.mlp.fc1.alpha", "OneTrainer", f"lora_te{TEXT}_mlp_fc1.alpha", "lora_te1"),
    (f"lora_unet.{ATTENTION}.to_k.lora_down.weight", "OneTrainer", f"{SD1}_to_k.{DOWN}", XL),
    (f"lora_te1.{LAYER}.mlp.fc1.lora_up.weight", "OneTrainer",
     f"lora_te{TEXT}_mlp_fc1.{UP}", "lora_te1"),
    (f"lycoris_{ATTENTION.replace('.', '_')}_to_k.lokr_w1", "LyCORIS", f"{SD1}_to_k.lokr_w1", XL),
    (f"lycoris_{ATTENTION.replace('.', '_')}_to_k.weight", "LyCORIS", f"{SD1}_to_k.weight", XL),
    ("unet.down_blocks.1.resnets.1.time_emb_proj.lora_A.weight", "peft",
     f"lora_unet_down_blocks_1_resnets_1_time_emb_proj.{DOWN}",
     f"lora_unet_input_blocks_5_0_emb_layers_1.{DOWN}"),
    ("lycoris_mid_block_resnets_1_conv1.hada_w1_a", "LyCORIS",
     "lora_unet_mid_block_resnets_1_conv1.hada_w1_a",
     "lora_unet_middle_block_2_in_layers_2.hada_w1_a"),
    ("unet.up_blocks.0.upsamplers.0.conv.lora.up.weight", "diffusers",
     f"lora_unet_up_blocks_0_upsamplers_0_conv.{UP}", f"lora_unet_output_blocks_2_2_conv.{UP}"),
    # OneTrainer gives SD1's layer this name; SD1's own is output_blocks.2.1.conv
    ("unet.output_blocks.2.2.conv.lora_up.weight", "OneTrainer",
     f"lora_unet_up_blocks_0_upsamplers_0_conv.{UP}", f"lora_unet_output_blocks_2_2_conv.{UP}"),
    ("unet.out.2.lora_up.weight", "OneTrainer",
     f"lora_unet_conv_out.{UP}", f"lora_unet_out_2.{UP}"),
    ("unet.time_embedding.linear_2.lora.up.weight", "diffusers",
     f"lora_unet_time_embedding_linear_2.{UP}", f"lora_unet_time_embed_2.{UP}"),
    ("unet.add_embedding.linear_2.lora.up.weight", "diffusers",
     "", f"lora_unet_label_emb_0_2.{UP}"),
    (f"text_encoder_2.{LAYER}.mlp.fc1.lora_A.weight", "peft", "", f"lora_te2{TEXT}_mlp_fc1.{DOWN}"),
    (f"text_encoders.clip_g.transformer.{LAYER}.mlp.fc1.lora_up.weight", "ComfyUI",
     "", f"lora_te2{TEXT}_mlp_fc1.{UP}"),
    (f"clip_g.{LAYER}.mlp.fc1.lora_up.weight", "OneTrainer", "", f"lora_te2{TEXT}_mlp_fc1.{UP}"),
    ("lora_unet_add_embedding_linear_1.alpha", "kohya", "", "lora_unet_label_emb_0_0.alpha"),
]  # fmt: skip


def for_xl(sd1, given):
    """The whole name for SDXL: `given` replaces the beginning of SD1's that differs."""
    if "." in given:
        return given
    return sd1.replace(SD1, given) if given == XL else sd1.replace("lora_te_", f"{given}_")


@pytest.mark.parametrize(("name", "naming", "sd1", "xl"), NAMES)
def test_each_name_becomes_the_one_that_a1111_reads(name, naming, sd1, xl):
    shape = (1, 8) if name.endswith("dora_scale") else (4, 8)
    found = find_renaming("fox", header(name, shape=shape), "SDXL")
    assert (found.naming, found.keys) == (naming, {name: for_xl(sd1, xl)})
    if sd1:
        assert find_renaming("fox", header(name, shape=shape), "SD1").keys == {name: sd1}


@pytest.mark.parametrize(
    ("family", "name", "new"),
    [
        ("SDXL", f"lora_te{TEXT}_mlp_fc1.alpha", f"lora_te1{TEXT}_mlp_fc1.alpha"),
        ("SD2", f"lora_te1{TEXT}_mlp_fc1.alpha", f"lora_te{TEXT}_mlp_fc1.alpha"),
        (None, f"text_encoder.{LAYER}.mlp.fc1.lora.alpha", f"lora_te1{TEXT}_mlp_fc1.alpha"),
    ],
)
def test_the_prefix_of_a_text_encoder_depends_on_the_family(family, name, new):
    assert find_renaming("fox", header(name), family).keys == {name: new}


@pytest.mark.parametrize(
    "names",
    [
        [f"{SD1}_to_k.{DOWN}", f"lora_te{TEXT}_mlp_fc1.alpha"],
        [f"{XL}_to_k.lokr_w1", "bundle_emb.fox.string_to_param.*"],
        [f"lora_te1{TEXT}_mlp_fc1.alpha"],
        ["double_blocks.0.img_attn.qkv.lora_A.weight", "strange"],
        [],
    ],
)
def test_a_file_that_a1111_reads_and_one_of_another_model_are_left_alone(names):
    assert find_renaming("fox", header(*names), "SD1") is None


def test_a_file_with_names_of_two_tools_becomes_one_and_keeps_what_is_right():
    right = f"lora_te{TEXT}_mlp_fc1.alpha"
    names = [f"unet.{ATTENTION}.to_k.lora_A.weight", f"clip_l.{LAYER}.mlp.fc2.alpha", right]
    found = find_renaming("fox", header(*names, "bundle_emb.fox.clip_l"), "SD1")
    assert found.naming == "OneTrainer+peft"
    assert found.keys[right] == right
    assert found.keys["bundle_emb.fox.clip_l"] == "bundle_emb.fox.clip_l"


EMBEDDINGS = "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding"


@pytest.mark.parametrize(
    ("name", "zeros"),
    [
        (f"{EMBEDDINGS}.lora_up.weight", 1),
        (f"{EMBEDDINGS}.lora_down.weight", 0),
        (f"diffusion_model.{ORIGINAL}.to_k.diff_b", 1),
    ],
)
def test_what_a1111_cannot_apply_is_left_out_if_it_changes_nothing(name, zeros):
    others = [f"{EMBEDDINGS}.lora_up.weight", f"diffusion_model.{ORIGINAL}.to_k.lora_up.weight"]
    found = find_renaming("fox", header(name, *others), "SD1")
    assert list(found.keys) == others[1:]
    assert (name in found.zeros) == bool(zeros)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([f"unet.{ATTENTION}.to_k.lora_A.weight", "unet.x.lora_magnitude_vector"], "1 of its"),
        ([f"unet.{ATTENTION}.to_k.lora_A.weight", "transformer.x.lora_A.weight"], "1 of its"),
        (["unet.down_blocks.7.resnets.0.conv1.hada_w1_a"], "cannot apply its layer"),
        ([f"lycoris_{ATTENTION.replace('.', '_')}_to_k.dora_scale"], "it is a DoRA"),
        ([f"unet.{ATTENTION}.to_k.lora_A.weight", f"{SD1}_to_k.{DOWN}"], "the same tensor"),
        ([f"unet.{ATTENTION}.to_k.lora_A.weight", f"unet.{'x' * 500}.lora_A.weight"], "1 of its"),
    ],
)
def test_other_files_are_refused_with_the_reason(names, reason):
    with pytest.raises(ModelNotSupported, match=reason) as raised:
        find_renaming("fox", header(*names), "SD1")
    assert "would ignore silently" in raised.value.message


def alphas(options, name=f"unet.{ATTENTION}.to_k.lora_A.weight", *more):
    text = options if isinstance(options, str) else json.dumps(options)
    found = find_renaming("fox", header(name, *more, lora_adapter_metadata=text), "SD1")
    return list(found.alphas.values())


PATTERN = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_k": 2}}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),  # A1111 takes the rank
        ({"unet.lora_alpha": 8}, [8.0]),
        ({"text_encoder.lora_alpha": 8}, []),
        (PATTERN, [2.0]),
        ({**PATTERN, "unet.alpha_pattern": {"to_kk": 2, "^to_k": 3, "n2.to_k": 4}}, [8.0]),
        ({**PATTERN, "unet.alpha_pattern": {f"^{ATTENTION}.to_k$": 3, "to_k": 5}}, [3.0]),
        ({**PATTERN, "unet.alpha_pattern": {r"attn2\.to_k": 5, "to_k": 3}}, [5.0]),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, [16.0]),  # 8 / sqrt(4) = 16 / 4
    ],
)
def test_an_alpha_comes_from_the_metadata_of_diffusers(options, expected):
    assert alphas(options) == expected
    assert alphas(options, f"unet.{ATTENTION}.to_k.lora.down.weight") == expected
    if expected:
        own = f"unet.{ATTENTION}.to_k.alpha"
        assert alphas(options, f"unet.{ATTENTION}.to_k.lora_A.weight", own) == []


@pytest.mark.parametrize(
    "options",
    [
        "[",
        "[1]",
        {"unet.lora_alpha": "8"},
        {"unet.lora_alpha": True},
        '{"unet.lora_alpha": NaN}',
        '{"unet.lora_alpha": 1e99}',
        {"unet.lora_alpha": 8, "unet.alpha_pattern": [1]},
        {"unet.lora_alpha": 8, "unet.alpha_pattern": {"(a+)+$": 1}},
    ],
)
def test_metadata_that_do_not_give_an_alpha_are_refused(options):
    with pytest.raises(ModelNotSupported, match="its metadata"):
        alphas(options)
