"""Architectures inferred from shapes, and the export to original key names."""

import json

import pytest
import torch
from fakes import tiny_models
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from engine.models import architecture, ldm
from engine.models.loading import read_pipeline
from worker.formats import stable_diffusion


def exported(unet, vae, text):
    """The original names and shapes of a UNet, a VAE, and the state of the text encoders."""
    state = ldm.export_unet(unet.state_dict(), layers_per_block=2)
    state |= ldm.export_vae(vae.state_dict(), 4) | text
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.fixture(scope="module")
def sd1():
    """The shapes of Stable Diffusion 1.5, with a small text encoder; no weights."""
    with torch.device("meta"):
        unet = tiny_models.unet(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768)
        text = ldm.export_clip(tiny_models.text_encoder(768).state_dict())
        return exported(unet, tiny_models.vae((128, 256, 512, 512)), text)


def test_sd1_and_its_original_keys(sd1):
    unet = architecture.infer(sd1, {}).components["unet"]
    assert unet["block_out_channels"] == [320, 640, 1280, 1280]
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert (unet["layers_per_block"], unet["cross_attention_dim"]) == (2, 768)
    assert (unet["attention_head_dim"], unet["use_linear_projection"]) == (8, False)
    # the names in the published v1-5-pruned-emaonly.safetensors
    assert len([key for key in sd1 if key.startswith(ldm.UNET)]) == 686
    assert len([key for key in sd1 if key.startswith(ldm.VAE)]) == 248
    assert {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.middle_block.2.out_layers.3.bias",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
    } <= sd1.keys()


def test_sdxl():
    """SDXL's UNet and second text encoder in their real layout, but narrower."""
    with torch.device("meta"):
        depths, heads = (1, 2, 10), (1, 2, 4)
        unet = tiny_models.xl_unet(
            block_out_channels=(64, 128, 256),
            cross_attention_dim=192,
            transformer_layers_per_block=depths,
            attention_head_dim=heads,
        )
        config = CLIPTextConfig(
            vocab_size=49408, hidden_size=128, num_hidden_layers=3, projection_dim=96
        )
        text = ldm.export_clip(tiny_models.text_encoder().state_dict(), ldm.CLIP_XL)
        text |= ldm.export_openclip(CLIPTextModelWithProjection(config).state_dict())
        shapes = exported(unet, tiny_models.vae(), text)
        found = architecture.infer(shapes, {})
    unet, tower = found.components["unet"], found.components["text_encoder_2"]
    assert found.is_xl
    assert unet["transformer_layers_per_block"] == [*depths]
    assert unet["down_block_types"] == ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2
    assert (unet["attention_head_dim"], unet["use_linear_projection"]) == ([*heads], True)
    assert unet["projection_class_embeddings_input_dim"] == 1600
    assert (tower["hidden_size"], tower["projection_dim"]) == (128, 96)
    assert tower["num_hidden_layers"] == 3
    assert found.components["vae"]["scaling_factor"] == 0.13025


def test_what_the_metadata_says(sd1):
    for marker, metadata, expected in (
        ({}, {}, "epsilon"),
        ({"v_pred": (0,)}, {}, "v_prediction"),
        ({}, {"prediction_type": "v_prediction"}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
    ):
        scheduler = architecture.infer(sd1 | marker, metadata).components["scheduler"]
        assert scheduler["prediction_type"] == expected
        assert not scheduler["rescale_betas_zero_snr"]
    for marker, metadata in (({"ztsnr": (0,)}, {}), ({}, {"ss_zero_terminal_snr": "True"})):
        scheduler = architecture.infer(sd1 | marker, metadata).components["scheduler"]
        assert scheduler["rescale_betas_zero_snr"]
    metadata = {"engine.config": json.dumps({"vae": {"norm_num_groups": 4}})}
    assert architecture.infer(sd1, metadata).components["vae"]["norm_num_groups"] == 4


def test_published_shapes_give_the_published_configurations():
    """The tables of shapes are the worker's; the numbers are those of the models' own folders."""

    def shapes_of(family):
        vae = {ldm.VAE + name: shape for name, shape in stable_diffusion.vae().items()}
        return dict(stable_diffusion.network(family)) | vae

    sd2, refiner, xl = (shapes_of(family) for family in ("SD2", "SDXL refiner", "SDXL"))
    found = architecture.infer(sd2, {}).components
    assert found["unet"]["attention_head_dim"] == [5, 10, 20, 20]
    assert (found["unet"]["cross_attention_dim"], found["unet"]["use_linear_projection"]) == (
        1024,
        1,
    )
    text = found["text_encoder"]
    assert (text["num_hidden_layers"], text["num_attention_heads"]) == (23, 16)
    assert text["hidden_act"] == "gelu"
    found = architecture.infer(refiner, {}).components
    assert found.keys() == {"unet", "vae", "scheduler", "text_encoder_2"}
    assert found["unet"]["attention_head_dim"] == [6, 12, 24, 24]
    assert found["unet"]["transformer_layers_per_block"] == [1, 4, 4, 4]
    assert found["unet"]["projection_class_embeddings_input_dim"] == 2560
    assert (found["text_encoder_2"]["num_hidden_layers"], found["vae"]["scaling_factor"]) == (
        32,
        0.13025,
    )
    # what A1111 removes from SDXL for SSD-1B (sd_hijack.py, convert_sdxl_to_ssd)
    fewer = {"input_blocks.7": 4, "input_blocks.8": 4, "output_blocks.0": 4, "output_blocks.1": 4}
    fewer |= {"output_blocks.4": 1, "output_blocks.5": 1, "middle_block": 0}
    gone = [
        f"{ldm.UNET}{block}.1.transformer_blocks.{number}."
        for block, kept in fewer.items()
        for number in range(kept, 10)
    ]
    gone += [f"{ldm.UNET}middle_block.{number}." for number in (1, 2)]
    ssd = {key: shape for key, shape in xl.items() if not key.startswith(tuple(gone))}
    unet = architecture.infer(ssd, {}).components["unet"]
    assert unet["mid_block_type"] == "UNetMidBlock2D"
    assert unet["transformer_layers_per_block"] == [1, 2, 4]
    assert unet["reverse_transformer_layers_per_block"] == [[4, 4, 10], [2, 1, 1], [1, 1, 1]]
    inpainting = xl | {f"{ldm.UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}
    assert architecture.infer(inpainting, {}).components["unet"]["in_channels"] == 9


def test_exported_file_is_read_by_diffusers_with_the_same_keys_and_numbers(data_dir):
    path = data_dir / "models/Stable-diffusion/alpha.safetensors"
    state, other = tiny_models.make_checkpoint(0), tiny_models.make_checkpoint(1)
    again = ldm.export_pipeline(read_pipeline(path))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    assert any(not torch.equal(again[key], other[key]) for key in state)
