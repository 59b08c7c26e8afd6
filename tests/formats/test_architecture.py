"""What a model file is, by the names and shapes of its tensors, and where it can be used.

A row of a table names tensors as `name:8x768`; `$U` and the like stand for long parts of names, a
word in capitals for the tensors of `PARTS`.
"""

from typing import get_args

import pytest
from fakes.model_files import entries, framed

from worker.errors import ModelMismatch, ModelNotSupported
from worker.formats.architecture import (
    Architecture,
    check_match,
    check_naming,
    check_usable,
    detect,
)
from worker.formats.control_models import ROLES
from worker.formats.names import Kind
from worker.formats.safetensors_header import Header, Tensor, parse_header

SHORT = {
    "$UI": "$U.input_blocks",
    "$U": "model.diffusion_model",
    "$DU": "unet.down_blocks",
    "$K": "transformer_blocks.0.attn2.to_k",
    "$D": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0",
    "$X": "lora_unet_input_blocks_4_1_transformer_blocks",
    "$P": "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",
    "$T": "text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "$E": "conditioner.embedders",
    "$C": "cond_stage_model",
    "$L": "lora_down.weight",
}
PARTS = {
    "SD1_UNET": "$UI.0.0.weight:320x4x3x3 $UI.1.1.proj_in.weight:320x320x1x1"
    " $UI.1.1.$K.weight:320x768 $U.out.2.weight:4x320x3x3",
    "SD2_UNET": "SD1_UNET $UI.1.1.proj_in.weight:320x320 $UI.1.1.$K.weight:320x1024",
    "XL_UNET": "$UI.0.0.weight:320x4x3x3 $UI.4.1.$K.weight:640x2048 $U.label_emb.0.0.weight:9x9"
    " $UI.4.1.transformer_blocks.1.attn2.to_k.weight:640x2048",
    "SSD": "$UI.0.0.weight:320x4x3x3 $UI.4.1.$K.weight:640x2048 $UI.8.1.norm.weight:1280"
    " $U.middle_block.0.in_layers.2.weight:1280x1280x3x3"
    " $UI.4.1.transformer_blocks.1.attn2.to_k.weight:640x2048",
    "REFINER_UNET": "$UI.0.0.weight:384x4x3x3 $UI.4.1.$K.weight:768x1280"
    " $UI.4.1.transformer_blocks.3.attn2.to_k.weight:768x1280",
    "VAE": "encoder.conv_in.weight:128x3x3x3 decoder.conv_in.weight:512x4x3x3"
    " decoder.up.0.block.0.conv1.weight:128x256x3x3",
    "FIRST_STAGE": "first_stage_model.encoder.conv_in.weight:128x3x3x3"
    " first_stage_model.decoder.conv_in.weight:512x4x3x3",
    "SD1_TEXT": "$C.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight:768x768",
    "SD2_TEXT": "$C.model.transformer.resblocks.0.attn.in_proj_weight:3072x1024",
    "XL_TEXT": "$E.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight:3072x768"
    " $E.1.model.ln_final.weight:1280",
    "REFINER_TEXT": "$E.0.model.ln_final.weight:1280",
    "SD1": "SD1_UNET FIRST_STAGE SD1_TEXT",
    "SDXL": "XL_UNET FIRST_STAGE XL_TEXT",
}
ALONE = "diffusion model without text encoder and VAE"
NO_TEXT = "diffusion model without text encoder"
DIFFUSERS = "model in diffusers naming"

MODELS = [
    ("checkpoint", "SD1", "SD1"),
    ("checkpoint", "SD1", "SD1_UNET SD1_TEXT"),
    (NO_TEXT, "SD1", "SD1_UNET FIRST_STAGE"),  # A1111 has the text encoder
    ("checkpoint", "SD1", "SD1_UNET $C.transformer.embeddings.token_embedding.weight:49408x768"),
    ("checkpoint", "SD1", "SD1_UNET $C.roberta.embeddings.word_embeddings.weight:250002x1024"),
    ("checkpoint", "SD2", "SD2_UNET FIRST_STAGE SD2_TEXT"),
    ("checkpoint", "SD2", "SD2_UNET FIRST_STAGE $E.0.model.ln_final.weight:1024"),  # SD-Turbo
    ("checkpoint", "SDXL", "SDXL"),
    ("checkpoint", "SDXL refiner", "REFINER_UNET FIRST_STAGE REFINER_TEXT"),
    (NO_TEXT, "SDXL", "XL_UNET FIRST_STAGE"),
    (ALONE, "SD1", "SD1_UNET"),
    (ALONE, "SD2", "SD2_UNET"),
    (ALONE, "SDXL", "XL_UNET"),
    (ALONE, "SDXL refiner", "REFINER_UNET"),
    (ALONE, "SDXL", "input_blocks.0.0.weight:320x4x3x3 input_blocks.4.1.$K.weight:640x2048"),
    (ALONE, "SD1", "SD1_UNET $UI.1.1.$K.weight:320x64"),  # a cut-down width
    (ALONE, "SDXL", "XL_UNET $UI.4.1.$K.weight:640x768"),
    (DIFFUSERS, "SD1", ("down_blocks.0.resnets.0.conv1.weight:9x9x3x3"
     " down_blocks.0.attentions.0.$K.weight:320x768")),
    (DIFFUSERS, "SDXL", ("$DU.0.resnets.0.conv1.weight:9x9x3x3"
     " $DU.1.attentions.0.$K.weight:640x2048"
     " $DU.1.attentions.0.transformer_blocks.1.attn1.to_q.weight:640x640"
     " text_encoder.text_model.encoder.layers.0.mlp.fc1.weight:3072x768")),
    (ALONE, "Flux", "double_blocks.0.img_attn.norm.key_norm.scale:128 img_in.weight:3072x64"),
    ("checkpoint", "Flux", ("$U.double_blocks.0.img_attn.norm.key_norm.scale:128"
     " text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight:1x768"
     " vae.decoder.conv_in.weight:512x16x3x3")),
    (ALONE, "Chroma", "distilled_guidance_layer.norms.0.scale:5120 double_blocks.0.scale:128"),
    (NO_TEXT, "SD3", ("$U.joint_blocks.0.context_block.attn.qkv.weight:4608x1536"
     " first_stage_model.decoder.conv_in.weight:512x16x3x3")),
    (ALONE, "AuraFlow", "$U.double_layers.0.attn.w1q.weight:3072x3072"),
    (ALONE, "PixArt", "t_block.1.weight:6912x1152 y_embedder.y_embedding:1"),
    (ALONE, "HunyuanDiT", "mlp_t5.0.weight:8192x2048 blocks.0.norm1.weight:1408"),
    (ALONE, "HunyuanVideo", ("txt_in.individual_token_refiner.blocks.0.norm1.weight:3072"
     " double_blocks.0.img_attn_qkv.weight:9216x3072")),
    (ALONE, "Lumina", ("cap_embedder.1.weight:2304x2304"
     " context_refiner.0.attention.k_norm.weight:96")),
    (ALONE, "Z-Image", ("cap_embedder.1.weight:3840x2560"
     " context_refiner.0.attention.k_norm.weight:128")),
    (ALONE, "Wan", "head.modulation:1x2x5120 blocks.0.self_attn.q.weight:5120x5120"),
    (ALONE, "Qwen-Image", "txt_norm.weight:9 transformer_blocks.0.img_mod.1.weight:18432x3072"),
    (ALONE, "LTX", ("$U.adaln_single.emb.timestep_embedder.linear_1.bias:2048"
     " $U.patchify_proj.weight:2048x128")),
    (ALONE, "Stable Cascade", "clf.1.weight:64x2048x1x1 clip_txt_mapper.weight:2048x1280"),
    (ALONE, "Stable Video Diffusion", "XL_UNET $UI.1.1.time_stack.0.attn1.to_q.weight:320x320"),
]  # fmt: skip

LORAS = [
    ("SD1", "$D_attn2_to_k.$L:8x768"),
    ("SD2", "$D_attn2_to_k.$L:8x1024"),
    ("SDXL", "$X_0_attn2_to_k.$L:8x2048"),
    ("SDXL", "$X_1_attn1_to_q.$L:8x640"),  # self-attention only
    ("SDXL", "lora_unet_input_blocks_1_0_in_layers_2.hada_w1_b:8x2880"),  # convolutions only
    ("SDXL refiner", "$X_0_attn2_to_k.$L:8x1280 $X_3_attn1_to_q.$L:8x768"),
    ("SD1", "lora_te_$T:8x768"),
    ("SD2", "lora_te_$T:8x1024"),
    ("SDXL", "lora_te1_$T:8x768 lora_te2_$T:8x768"),
    (None, "lora_te1_$T:8x768"),
    (None, "$D_attn2_to_k.$L:4x64"),
    ("SD1", ("$D_attn2_to_k.$L:8x768 lora_unet_down_blocks_0_resnets_0_conv1.$L:8x320x3x3"
     " lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight:8x8x3x3")),
    ("SD1", "$D_attn2_to_k.hada_w1_a:640x8 $D_attn2_to_k.hada_w1_b:8x768"),
    ("SDXL", "$X_0_attn2_to_v.hada_w1_a:640x8 $X_0_attn2_to_v.hada_w1_b:8x2048"),
    ("SD2", ("$D_attn2_to_k.lokr_w1:16x16 $D_attn2_to_k.lokr_w2_a:40x8"
     " $D_attn2_to_k.lokr_w2_b:8x64")),
    ("SD1", "$D_attn2_to_k.lokr_w1:16x16 $D_attn2_to_k.lokr_w2:40x48"),
    # matrices for convolutions, and no attention to the text (not SD2)
    (None, ("lora_unet_down_blocks_0_attentions_0_proj_in.hada_w1_a:320x8"
     " lora_unet_down_blocks_0_attentions_0_proj_in.hada_w1_b:8x320"
     " lora_unet_down_blocks_0_attentions_0_proj_in.hada_w2_a:320x8"
     " lora_unet_down_blocks_0_attentions_0_proj_in.hada_w2_b:8x320")),
    ("SD1", ("lora_unet_down_blocks_0_attentions_0_proj_in.$L:8x320x1x1"
     " lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight:320x8x1x1"
     " lora_te_$T:8x768 lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight:3072x8")),
    (None, "bundle_emb.fox.emb_params:4x768"),
    ("SDXL", "$X_1_attn2_to_k.oft_blocks:4x160x160"),
    ("SDXL", "oft_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.oft_blocks:4x160x160"),
    ("SD1", "$D_attn2_to_k.diff:640x768"),
    (None, "$D_attn2_to_k.weight:640 $D_attn2_to_k.on_input:"),
    ("Flux", "lora_unet_double_blocks_0_img_attn_qkv.$L:8x3072"),
    ("Flux", "lora_unet_single_blocks_7_linear2.$L:8x1"),
    ("Flux", "lora_te1_$T:8x768 lora_unet_single_blocks_7_linear2.$L:8x1"),
    ("Flux", "lora_transformer_single_transformer_blocks_0_attn_to_q.$L:8x3072"),
    ("SD3", "lora_unet_joint_blocks_0_x_block_attn_qkv.$L:8x1"),
    ("Stable Cascade", "lora_prior_unet_down_blocks_0_1_kv_mapper_1.$L:8x1"),
    ("Cosmos", "lora_unet_blocks_0_self_attn_q_proj.$L:8x2048"),  # Anima
    ("Wan", "diffusion_model.blocks.0.self_attn.q.lora_A.weight:8x5120"),
    ("Z-Image", "diffusion_model.layers.0.attention.to_q.lora_A.weight:8x3840"),
]  # fmt: skip
DIFFUSERS_LORAS = [
    ("SDXL", "$DU.1.attentions.0.transformer_blocks.1.attn1.to_q.lora_A.weight:8x640"),
    ("SD1", ("$DU.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight:8x320"
     " $DU.0.attentions.0.proj_in.lora_A.weight:8x320x1x1")),
    ("SD1", "$P.lora_A.weight:8x768 $P.lora_B.weight:640x8"),
    ("SDXL", "$P.lora_A.default.weight:8x2048"),  # with the name of PEFT's adapter
    ("SD1", "$DU.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight:4x768"),
    ("SD2", "$DU.0.attentions.0.$K.lora.down.weight:4x1024"),
    ("SDXL", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight:8x1280"),
    # convolutions alone: only SDXL's third level up has this size
    ("SDXL", ("unet.up_blocks.2.resnets.0.conv1.lora_A.weight:8x960x3x3"
     " unet.up_blocks.2.resnets.0.conv1.lora_B.weight:320x8x1x1")),
    ("Flux", "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight:8x3072"),
    ("SD3", "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight:8x1536"),
    ("Qwen-Image", "transformer.transformer_blocks.0.img_mod.1.lora_A.weight:8x3072"),
    ("DiT", "transformer.transformer_blocks.0.attn1.to_k.lora_A.weight:8x1152"),
]  # fmt: skip

OTHERS = [
    ("vae", None, "VAE"),
    ("vae", "Flux or SD3", "VAE decoder.conv_in.weight:512x16x3x3"),
    ("vae", "Wan", "decoder.middle.0.residual.0.gamma:384x1x1x1"),
    ("vae", "a model of 8 latent channels", "VAE decoder.conv_in.weight:512x8x3x3"),
    ("VAE with prefixed names", None, "FIRST_STAGE"),
    ("VAE in diffusers naming", None, ("decoder.conv_in.weight:512x4x3x3"
     " decoder.up_blocks.0.resnets.0.conv1.weight:512x512x3x3")),
    ("embedding", "SD1", "emb_params:4x768"),
    ("embedding", "SD2", "emb_params:4x1024"),
    ("embedding", None, "emb_params:4x64"),
    ("embedding", "SD1", "<cat-toy>:768"),
    ("embedding", "SDXL", "clip_l:2x768 clip_g:2x1280"),
    ("embedding", "SD3", "clip_l:2x768 clip_g:2x1280 t5xxl:2x4096"),
    ("ControlNet", None, ("control_model.input_hint_block.0.weight:16x3x3x3"
     " control_model.input_blocks.0.0.weight:320x4x3x3")),
    ("ControlNet", None, ("controlnet_cond_embedding.conv_in.weight:16x3x3x3"
     " down_blocks.0.resnets.0.conv1.weight:320x320x3x3")),
    ("ControlNet", "SDXL", "control_model.label_emb.0.0.weight:1280x2816"),
    ("ControlNet", "SDXL",
     "controlnet_cond_embedding.conv_in.weight:16x3x3x3 add_embedding.linear_1.weight:1280x2816"),
    *(("ControlNet", family, ("input_hint_block.0.weight:16x3x3x3"
       f" input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight:640x{width}"))
      for family, width in (("SD1", 768), ("SD2", 1024), (None, 64))),
    *(("T2I-Adapter", family, (f"{prefix}conv_in.weight:320x{width}x3x3"
       f" {prefix}body.0.block1.weight:320x320x3x3"))
      for prefix in ("", "adapter.") for family, width in (("SDXL", 768), (None, 192))),
    ("ControlNet", None, "lora_controlnet: $K.down:8x1"),
    ("ControlNet", None,
     "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight:8x1"),
    ("IP-Adapter", None, "image_proj.proj.weight:3072x1024 ip_adapter.1.to_k_ip.weight:320x768"),
    ("IP-Adapter", None, "ip_adapter.0.to_q_lora.down.weight:128x320"),
    ("AnimateDiff motion module", None,
     "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight:320x320"),
    ("T2I-Adapter", None, "body.0.block1.weight:320x320x3x3"),
    ("upscaler", None, "model.1.sub.0.RDB1.conv1.0.weight:32x64x3x3"),
    ("upscaler", None, "body.0.rdb1.conv1.weight:32x64x3x3 a:"),
    ("upscaler", None, "layers.0.residual_group.blocks.0.attn.qkv.weight:540x180"),
    ("hypernetwork", None, "768.0.linear.0.weight:1536x768 768.1.linear.0.weight:1536x768"),
    ("text encoder", None, "text_model.encoder.layers.0.self_attn.q_proj.weight:2x2"),
    ("text encoder", None, "encoder.block.0.layer.0.SelfAttention.k.weight:4096x4096"),
    ("image encoder", None, "vision_model.encoder.layers.0.self_attn.q_proj.weight:1280x1280"),
    (None, None, "w:1"),
    (None, None, "w:2x768 v:1"),
    (None, None, ""),
    (None, None, "step:"),
]  # fmt: skip


def tensors(text):
    """A row of a table as {name: shape}; a later tensor replaces one of the same name."""
    shapes = {}
    for word in text.split():
        if word in PARTS:
            shapes |= tensors(PARTS[word])
            continue
        for abbreviation, name in SHORT.items():
            word = word.replace(abbreviation, name)  # noqa: PLW2901
        name, _, shape = word.rpartition(":")
        shapes[name] = tuple(map(int, shape.split("x"))) if shape else ()
    return shapes


def found(text, metadata=None, dtype="F16"):
    document = entries(tensors(text), dtype) | ({"__metadata__": metadata} if metadata else {})
    return detect(parse_header(framed(document)))


@pytest.mark.parametrize(("role", "family", "text"), MODELS + OTHERS)
def test_a_file_is_recognised(role, family, text):
    assert found(text) == Architecture(role, family)


@pytest.mark.parametrize(
    ("family", "text", "details"),
    [(*row, ()) for row in LORAS] + [(*row, ("diffusers naming",)) for row in DIFFUSERS_LORAS],
)
def test_a_lora_is_recognised_with_its_naming(family, text, details):
    assert found(text) == Architecture("lora", family, details)


@pytest.mark.parametrize("family", ["SD1", "SDXL"])
def test_more_input_channels_are_a_detail(family):
    for channels, detail in ((9, "inpainting"), (8, "instruct-pix2pix"), (5, "depth")):
        architecture = found(f"{family} $UI.0.0.weight:320x{channels}x3x3")
        assert architecture == Architecture("checkpoint", family, (detail,))


@pytest.mark.parametrize(
    ("text", "metadata", "family", "details"),
    [
        ("SDXL v_pred: ztsnr:0", {}, "SDXL", ("v-prediction", "zero-terminal-SNR")),
        ("SDXL", {"modelspec.prediction_type": "v"}, "SDXL", ("v-prediction",)),
        ("SDXL", {"modelspec.prediction_type": "epsilon"}, "SDXL", ()),
        ("SD2_UNET FIRST_STAGE SD2_TEXT", {"modelspec.architecture": "stable-diffusion-v2-768-v"},
         "SD2", ("v-prediction",)),
        ("SSD FIRST_STAGE XL_TEXT", {}, "SDXL", ("SSD",)),
        ("SSD FIRST_STAGE XL_TEXT $U.middle_block.1.norm.weight:9", {}, "SDXL", ()),
        # some trainers leave the text encoder's LoRA in the checkpoint that they merged it into
        ("SD1 lora_te_text_model_encoder_layers_0_mlp_fc1.alpha:", {}, "SD1", ()),
    ],
)  # fmt: skip
def test_what_a1111_must_be_told_about_a_checkpoint_is_a_detail(text, metadata, family, details):
    assert found(text, metadata) == Architecture("checkpoint", family, details)


def test_one_tensor_of_bytes_is_not_an_embedding():
    assert found("w:768", dtype="U8") == Architecture()


METADATA = [
    *(("$D_attn1_to_q.$L:8x640", metadata, "lora", family) for metadata, family in [
        ({"ss_base_model_version": "sd_v1"}, "SD1"),
        ({"ss_base_model_version": "sd_v2_768_v"}, "SD2"),
        ({"ss_v2": "True", "ss_base_model_version": "sd_v1"}, "SD2"),
        ({"ss_v2": "False"}, None),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_base_model_version": "flux1"}, "Flux"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD1"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "SD2"),
        ({"modelspec.architecture": "Flux-1-dev/lora"}, "Flux"),
        ({"modelspec.architecture": "something new"}, None),
    ]),
    ("$D_attn2_to_k.$L:8x768", {"ss_base_model_version": "sdxl_"}, "lora", "SD1"),
    ("SD1", {"modelspec.architecture": "flux-1-dev"}, "checkpoint", "SD1"),
    ("w:1", {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "lora", "SDXL"),
    ("w:1", {"ss_network_module": "networks.lora"}, "lora", None),
    ("w:1", {"modelspec.title": "x"}, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "metadata", "role", "family"), METADATA)
def test_metadata_decides_only_what_the_tensors_do_not(text, metadata, role, family):
    assert found(text, metadata) == Architecture(role, family)


def test_the_embedded_engines_own_models_are_sd1_by_their_structure():
    tiny_models = pytest.importorskip(
        "fakes.tiny_models", reason="the engine's packages are not installed"
    )

    def detected(state):
        shapes = {name: Tensor("F16", tuple(value.shape)) for name, value in state.items()}
        return detect(Header(shapes, {}, 8, 8))

    checkpoint, lora = detected(tiny_models.make_checkpoint()), detected(tiny_models.make_lora())

    assert checkpoint == Architecture("checkpoint", "SD1")
    assert lora == Architecture("lora", None)
    check_usable("tiny", "checkpoint", checkpoint)
    check_match("tiny", checkpoint, "lora", lora)


@pytest.mark.parametrize("wanted", get_args(Kind))
def test_the_wanted_role_and_an_unknown_one_are_accepted(wanted):
    roles = ROLES if wanted == "controlnet" else (wanted,)
    for family in (None, "SD1", "SD2", "SDXL", "SDXL refiner"):
        for role in (*roles, None):
            check_usable("x", wanted, Architecture(role, family))


@pytest.mark.parametrize(
    ("wanted", "role", "family", "message", "hint"),
    [
        ("checkpoint", "lora", "SDXL", "'x' is a LoRA for SDXL; ", "`loras`"),
        ("lora", "checkpoint", "SD1", "'x' is a checkpoint for SD1; ", "`checkpoint`"),
        ("lora", "vae", None, "'x' is a VAE; .* as a LoRA", "`vae`"),
        ("lora", "embedding", "SD1", "'x' is an embedding for SD1", "`embeddings`"),
        ("vae", "checkpoint", "SD1", "cannot use it as a VAE", "`checkpoint`"),
        ("vae", "VAE in diffusers naming", None, "is a VAE in diffusers naming", "another"),
        ("checkpoint", "ControlNet", None, "is a ControlNet", "`alwayson_scripts.C"),
        ("controlnet", "lora", "SD1", "cannot use it as a ControlNet", "`loras`"),
        ("controlnet", "IP-Adapter", None, "is an IP-Adapter", "another file"),
        ("checkpoint", "IP-Adapter", None, "is an IP-Adapter", "another file"),
        ("checkpoint", ALONE, "Flux", f"is a {ALONE} for Flux", "Stable Diffusion 1"),
        ("checkpoint", "checkpoint", "SD3", "checkpoint for SD3", "Stable Diffusion"),
        ("lora", "lora", "Flux", "is a LoRA for Flux", "Stable Diffusion 1"),
        ("lora", None, "Flux", "is a model for Flux", "Stable Diffusion 1"),
    ],
)
def test_an_unusable_file_is_rejected_with_a_hint(wanted, role, family, message, hint):
    with pytest.raises(ModelNotSupported, match=message) as raised:
        check_usable("x", wanted, Architecture(role, family))
    assert hint in raised.value.hint
    details = {"model": "x", "wanted": wanted, "role": role, "family": family}
    assert raised.value.details == details


def test_only_a_lora_in_diffusers_naming_is_rejected_for_its_naming():
    check_naming("x", found("$D_attn2_to_k.$L:8x768"))
    check_naming("x", Architecture("checkpoint", "SD1", ("diffusers naming",)))
    with pytest.raises(ModelNotSupported, match="tensor names of another tool"):
        check_naming("x", found("$P.lora_A.weight:8x768"))


def test_only_two_different_families_do_not_match():
    for ours, theirs in (("SD1", "SD1"), ("SDXL", None), (None, "SDXL"), (None, None)):
        check_match("c", Architecture("checkpoint", ours), "l", Architecture("lora", theirs))
    words = {"lora": "a LoRA", "embedding": "an embedding"}
    for ours, theirs in (
        ("SD1", "SDXL"),
        ("SDXL", "SD1"),
        ("SD1", "SD2"),
        ("SDXL refiner", "SDXL"),
    ):
        for role, word in words.items():
            with pytest.raises(ModelMismatch) as raised:
                check_match("c", Architecture("checkpoint", ours), "l", Architecture(role, theirs))
            message = f"'l' is {word} for {theirs}, but the checkpoint 'c' is {ours}."
            assert raised.value.message == message
            assert word in raised.value.hint
            expected = {"checkpoint": "c", "checkpoint_family": ours}
            assert raised.value.details == expected | {"model": "l", "model_family": theirs}
