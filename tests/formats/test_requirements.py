"""What A1111 v1.9.3 needs of a file, on headers with the tensors and sizes of real files.

Each row names what A1111 does with such a file; "read" means in its code, "run" in its code on
small stand-ins.
"""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import JobError, ModelNotSupported
from worker.formats import stable_diffusion
from worker.formats.architecture import Architecture, check_config, detect
from worker.formats.json_metadata import metadata_fault
from worker.formats.lora_layers import family_layers
from worker.formats.lora_use import check_fit
from worker.formats.requirements import File, check
from worker.formats.safetensors_header import Header, Tensor
from worker.formats.stable_diffusion import UNET, VAE

FIRST = f"{UNET}input_blocks.0.0.weight"
MIDDLE = f"{UNET}middle_block.1."
FLAT = {VAE + name: shape for name, shape in stable_diffusion.vae().items()}


def header(shapes, metadata=(), dtype="F16"):
    return Header({n: Tensor(dtype, tuple(s)) for n, s in shapes.items()}, dict(metadata), 8, 8)


def whole(family):
    return stable_diffusion.network(family) | FLAT


def without(shapes, *parts):
    return {name: shape for name, shape in shapes.items() if not any(p in name for p in parts)}


def renamed(shapes, old, new):
    return {name.replace(old, new): shape for name, shape in shapes.items()}


def problem(kind, shapes, metadata=(), dtype="F16", **beside):
    """The message of the refusal; None if the file is accepted."""
    read = header(shapes, metadata, dtype)
    try:
        check("x", kind, File(read, detect(read), **beside))
    except ModelNotSupported as error:
        return error.message
    return None


SD1, SD2, SDXL = (whole(family) for family in ("SD1", "SD2", "SDXL"))
LAST_OF_CLIP = "text_model.encoder.layers.11."
LORA_KEY = "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"
REFUSED = {
    # run: `load_state_dict(strict=False)` takes nothing; the weights of the model before stay
    "one tensor": ({"a": (1,)}, "has no tensor `model.diffusion_model.input_blocks.0.0.weight`"),
    "an empty file": ({}, "has no tensor"),
    "Sana": ({"x_embedder.proj.weight": (2240, 32, 1, 1)}, "has no tensor"),
    "an upscaler": ({"model.0.weight": (64, 3, 3, 3)}, "has no tensor"),
    "only averaged weights": (renamed(SD1, UNET, "model_ema.diffusion_model"), "has no tensor"),
    # read: what is missing keeps random weights, or those of the model before
    "one layer is missing": (without(SD1, "output_blocks.11.0.out_layers.3.weight"),
                             "lacks 1 of the 686 tensors of the UNet of SD1"),
    "a smaller UNet (small-sd)": (without(SD1, "middle_block.1"), "lacks 26 of the 686 tensors"),
    "no text encoder": (without(SD1, "cond_stage_model"), "without text encoder"),
    "one of two text encoders": (without(SDXL, "embedders.0."), "has no text encoder of SDXL"),
    "half a text encoder": (without(SD1, "encoder.layers.7."), "the text encoder of SD1"),
    "AltDiffusion": (renamed(SD1, "_model.transformer.", "_model.roberta."), "no text encoder of"),
    "SD1 in SDXL's naming": (renamed(SD1, "cond_stage_model.", "conditioner.embedders.0."),
                             "text encoder"),
    "no VAE": (without(SDXL, VAE), "has no VAE .*Name a VAE in the job's field `vae`"),
    "half a VAE": (without(SDXL, f"{VAE}encoder"), "tensors of the VAE"),
    "a VAE whose attention is a matrix": (SD1 | {f"{VAE}decoder.mid.attn_1.q.weight": (512, 512)},
                                          "other shapes than the VAE"),
    # read: the picture that belongs to the text is missing; another number of channels is an error
    "instruct-pix2pix": (SD1 | {FIRST: (320, 8, 3, 3)}, "is a model for instruct-pix2pix"),
    "depth": (SD2 | {FIRST: (320, 5, 3, 3)}, "is a model for depth"),
    # read: A1111 does not know these names, and computes with eps or v, and without scales
    "Playground v2.5": (SDXL | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)}, "EDM noise"),
    "CosXL": (SDXL | {"edm_vpred.sigma_max": ()}, r"\(CosXL\)"),
    "scaled fp8": (SDXL | {"scaled_fp8": (2,)}, "scaled 8-bit floats"),
    "scaled fp8, one scale": (SDXL | {f"{MIDDLE}proj_in.scale_weight": ()}, "scaled 8-bit"),
    "ComfyUI's quantisation": (SDXL | {f"{MIDDLE}proj_in.comfy_quant": (9,)}, "by ComfyUI"),
    "bitsandbytes' nf4": (SDXL | {f"{MIDDLE}proj_in.weight.absmax": (9,)}, "by bitsandbytes"),
}  # fmt: skip
ACCEPTED = {
    "SD1": SD1,
    "SD2": SD2,
    "SD2 with 23 layers": without(SD2, "resblocks.23."),
    "SD-Turbo": renamed(SD2, "cond_stage_model.", "conditioner.embedders.0."),
    "SDXL": SDXL,
    "SDXL without its unused layer": without(SDXL, LAST_OF_CLIP),
    "SDXL refiner": whole("SDXL refiner"),
    "SD1 in the older naming": renamed(SD1, "transformer.text_model.", "transformer."),
    "SD1 for inpainting": SD1 | {FIRST: (320, 9, 3, 3)},
    "SDXL for inpainting": SDXL | {FIRST: (320, 9, 3, 3)},
    "with averaged weights": SD1 | {"model_ema.decay": (), "model_ema.x": (1,)},
    "with a LoRA's left-overs": SD1 | {LORA_KEY: ()},
    "a small model for tests": {
        FIRST: (32, 4, 3, 3),
        "cond_stage_model.transformer.x": (1,),
        f"{VAE}decoder.conv_in.weight": (32, 4, 3, 3),
    },
}


@pytest.mark.parametrize("row", REFUSED)
def test_a_checkpoint_that_a1111_would_not_draw_with_is_refused(row):
    shapes, message = REFUSED[row]
    with pytest.raises(ModelNotSupported, match=message):
        check("x", "checkpoint", File(header(shapes), detect(header(shapes))))


@pytest.mark.parametrize("row", ACCEPTED)
def test_a_checkpoint_that_a1111_can_draw_with_is_accepted(row):
    assert problem("checkpoint", ACCEPTED[row]) is None
    assert problem("checkpoint", ACCEPTED[row], dtype="F8_E4M3") is None


def test_numbers_that_are_no_weights_are_refused():
    assert "packed" in problem("checkpoint", SD1, dtype="I8")
    assert "no floating-point" in problem("vae", stable_diffusion.vae(), dtype="I8")


def test_the_jobs_vae_replaces_a_missing_one_and_a_configuration_decides_the_structure():
    assert problem("checkpoint", without(SDXL, VAE), has_vae=True) is None
    smaller = without(SDXL, "middle_block.1.", "output_blocks.0.1.")
    assert problem(
        "checkpoint", smaller | {MIDDLE + "transformer_blocks.0.attn1.to_q.weight": (9, 9)}
    )
    assert problem("checkpoint", smaller, has_config=True) is None


@pytest.mark.parametrize(
    ("family", "details", "refused"),
    [
        ("SDXL", ("inpainting", "v-prediction"), True),
        ("SD1", ("depth", "v-prediction"), True),
        ("SD2", ("inpainting", "v-prediction"), False),  # A1111 finds it out by drawing
        ("SDXL", ("v-prediction",), False),  # the worker has a `.yaml` for these
        ("SDXL", ("inpainting",), False),
    ],
)
def test_a_model_that_needs_a_configuration_is_refused_without_one(family, details, refused):
    found = Architecture("checkpoint", family, details)
    check_config("x", found, has_config=True)
    if refused:
        with pytest.raises(ModelNotSupported, match="without a configuration"):
            check_config("x", found, has_config=False)
    else:
        check_config("x", found, has_config=False)


SSD = without(SDXL, "middle_block.1.", *(f"8.1.transformer_blocks.{n}." for n in range(4, 10)))


def test_a_model_that_lacks_whole_blocks_has_the_others_whole():
    assert detect(header(SSD)).details == ("SSD",)
    assert problem("checkpoint", SSD) is None
    assert "lacks 1 of" in problem(
        "checkpoint", without(SSD, "8.1.transformer_blocks.3.norm1.bias")
    )
    koala = without(SDXL, "middle_block.1.", "input_blocks.2.", "input_blocks.8.")
    assert "lacks" in problem("checkpoint", koala)


ALL = stable_diffusion.vae()
VAES = {
    "kl-f8": (ALL, None),
    "with the training's tensors": (ALL | {"loss.logvar": (), "model_ema.decay": (),
                                           "model_ema.num_updates": ()}, None),
    # run: RuntimeError after `load_state_dict` has replaced what matched
    "the decoder alone": (without(ALL, "encoder", "quant_conv"), "is a VAE in|lacks"),
    "no quant_conv": (without(ALL, "quant_conv.weight", "quant_conv.bias"), "lacks 4 of the 248"),
    "with averaged weights": (ALL | {"model_ema.decoderconv_inweight": (1,)}, "1 tensors that no"),
    "a matrix in it": (ALL | {"decoder.mid.attn_1.q.weight": (512, 512)}, "other shapes"),
    "a consistency decoder": ({"embed_image.conv.weight": (9, 9), "up.0.x": (1,)}, "lacks 248"),
    "TAESD": ({"decoder.layers.0.weight": (64, 4, 3, 3), "1.weight": (1,)}, "lacks 248"),
    "with a prefix": (FLAT, "VAE with prefixed names"),
}  # fmt: skip


@pytest.mark.parametrize("row", VAES)
def test_a_vae_must_have_exactly_a1111s_names_and_shapes(row):
    shapes, message = VAES[row]
    if message is None:
        assert problem("vae", shapes) is None
    else:
        with pytest.raises(ModelNotSupported, match=message):
            check("x", "vae", File(header(shapes), detect(header(shapes))))


EMBEDDINGS = {
    "SD1": ({"emb_params": (4, 768)}, None),
    "SD2": ({"emb_params": (4, 1024)}, None),
    "one vector": ({"<fox>": (768,)}, None),
    "SDXL": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, None),
    # run: an error in `create_embedding_from_data`, or another width than the text encoder's, so
    # that A1111 skips the file; with unequal halves or three axes the picture fails or is wrong
    "half of SDXL's": ({"clip_g": (2, 1280)}, "has only `clip_g`"),
    "unequal halves": ({"clip_l": (2, 768), "clip_g": (3, 1280)}, "as many vectors"),
    "two terms": ({"<fox>": (1, 768), "<cat>": (1, 768)}, "has 2 tensors"),
    "three axes": ({"emb_params": (1, 4, 768)}, "no list of vectors"),
    "nothing": ({}, "has 0 tensors"),
}


@pytest.mark.parametrize("row", EMBEDDINGS)
def test_an_embedding_has_one_tensor_or_sdxls_two(row):
    shapes, message = EMBEDDINGS[row]
    found = problem("embedding", shapes)
    assert found is None if message is None else message in found


LORA = {
    "lora_unet_out_2.lora_down.weight": (4, 320, 3, 3),
    "lora_unet_out_2.lora_up.weight": (4, 4, 1, 1),
}
DOWN, UP = ".lora_down.weight", ".lora_up.weight"
LORAS = {
    "kohya": (LORA, None),
    "only an embedding": ({"bundle_emb.fox.emb_params": (4, 768)}, None),
    "ComfyUI's names, to be renamed": ({
        "diffusion_model.input_blocks.4.1.proj_in.lora_down.weight": (4, 640),
        "diffusion_model.input_blocks.4.1.proj_in.lora_up.weight": (640, 4)}, None),
    "diffusers' names, to be renamed": ({
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_k_lora.down.weight":
        (4, 640)}, None),
    "parts of peft, to be renamed": ({
        "lora_unet_out_2.lora_A.weight": (4, 320, 3, 3),
        "lora_unet_out_2.lora_B.weight": (4, 4, 1, 1)}, None),
    # run: no layer is found; the picture is drawn without it
    "nothing": ({}, "has no layers"),
    "another model": ({"lora_unet_blocks_0_attn.lora_down.weight": (4, 9),
                       "lora_unet_blocks_0_attn.lora_up.weight": (9, 4)}, "no layer of SD1"),
    # run: an AssertionError; nothing of the file is loaded
    "half a layer": ({k: v for k, v in LORA.items() if "down" in k}, "reads no kind of LoRA"),
    "only biases": (LORA | {"lora_unet_out_0.diff_b": (320,)}, "reads no kind of LoRA"),
    "an embedding in two parts": (
        LORA | {"bundle_emb.fox.emb_params": (4, 768), "bundle_emb.fox.emb_params_out": (4, 768)},
        "the embedding 'fox', which has 2 tensors"),
    "an embedding without a name": (LORA | {"bundle_emb.fox": (4, 768)}, "without a name"),
    "embeddings as tools write them": (LORA | {
        "bundle_emb.controlnet.clip_l": (2, 768), "bundle_emb.controlnet.clip_g": (2, 1280),
        "bundle_emb.double_blocks_.string_to_param.*": (2, 768)}, None),
    "DoRA of outputs": (LORA | {"lora_unet_out_2.dora_scale": (4, 1, 1, 1)}, "is a DoRA"),
}  # fmt: skip


@pytest.mark.parametrize("row", LORAS)
def test_a_lora_has_layers_that_a1111_reads_or_that_can_be_renamed(row):
    shapes, message = LORAS[row]
    found = problem("lora", shapes)
    assert found is None if message is None else message in found


DIFF = {"lora_unet_out_0.diff": (320,), "lora_unet_out_0.diff_b": (320,)}
NUMBERS = [
    # run: each kind on a layer of torch 2.1.2
    (LORA, "F8_E4M3", None),
    (LORA, "BF16", None),
    (DIFF, "F64", None),
    (DIFF, "F8_E4M3", "weights of the type F8_E4M3"),  # "mul" not implemented
    (LORA, "I8", "weights of the type I8"),  # integers are copied as numbers
    ({"lora_unet_out_2.alpha": ()}, "I64", "reads no kind of LoRA"),
]


@pytest.mark.parametrize(("shapes", "dtype", "message"), NUMBERS)
def test_a_loras_numbers_must_be_of_a_type_that_a1111_computes_with(shapes, dtype, message):
    found = problem("lora", shapes, dtype=dtype)
    assert found is None if message is None else message in found


def nested(depth):
    return '{"a": ' * depth + "1" + "}" * depth


# run (network.NetworkOnDisk, FastAPI's encoder): `GET /sdapi/v1/loras` answers 500, or A1111 cannot
# list its LoRAs at all
METADATA = [
    ({"ss_bucket_info": '{"buckets": {"0": {"count": NaN}}}'}, "has nan in its metadata"),
    ({"a": '{"x": [1, -Infinity]}'}, "has -inf"),
    ({"a": '{"x": 1e999}'}, "has inf"),
    ({"a": '{"x": "\\ud800"}'}, "lone surrogate"),
    ({"a": '{"\\udfff": 1}'}, "lone surrogate"),
    ({"a": nested(900)}, "more than 500 levels"),
    ({"ss_output_name": '{"a": 1}'}, "an object instead of a text"),
    ({"sshs_model_hash": '{"a": 1}'}, "an object instead of a text"),
    ({"a": '{"x": NaN'}, None),  # no JSON: sent as the text that it is
    ({"a": "NaN", "b": '["NaN"]', "c": "[NaN]"}, None),
    ({"a": '{"x": "\\ud83e\\udd8a", "y": [1.5, null, true]}'}, None),
    ({"a": nested(20)}, None),
    ({"ss_output_name": "{fox}"}, None),
]


@pytest.mark.parametrize(("metadata", "message"), METADATA)
def test_metadata_that_strict_json_cannot_hold_are_named(metadata, message):
    found = metadata_fault(metadata)
    assert found is None if message is None else message in found


ODD_LAYERS = """
lora_unet_out_2 lora_unet_out_0 lora_te2_text_model_encoder_layers_0_self_attn_q_proj bundle_emb x
model.diffusion_model.input_blocks.0.0 decoder.conv_in clip_l
"""
ODD_PARTS = """
lora_up.weight lora_down.weight lora_mid.weight lora_A.weight alpha bias dora_scale weight on_input
lokr_w1 lokr_w2_a lokr_w2_b lokr_t2 diff diff_b hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1
w_norm b_norm oft_blocks oft_diag rescale a1.weight a2.weight b1.weight b2.weight
"""
odd_names = st.builds(
    "{}.{}".format, st.sampled_from(ODD_LAYERS.split()), st.sampled_from(ODD_PARTS.split())
)
odd_shapes = st.lists(st.sampled_from([0, 1, 3, 4, 9, 320, 1280]), max_size=5).map(tuple)


@given(st.dictionaries(odd_names, odd_shapes, max_size=12), st.sampled_from(["F16", "I8"]))
def test_any_tensors_are_judged_or_refused_with_one_of_our_errors(shapes, dtype):
    for kind in ("checkpoint", "lora", "vae", "embedding"):
        problem(kind, shapes, dtype=dtype)
    for family in stable_diffusion.FAMILIES:
        with contextlib.suppress(JobError):
            check_fit("x", header(shapes), "c", family_layers(family), family)
