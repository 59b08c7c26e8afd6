"""LoRA names of layers, compared with diffusers' own modules without data."""

from functools import partial

import pytest

from worker.formats.safetensors_header import Tensor
from worker.models.merge.checkpoint_layers import CheckpointLayer, find_layers

torch = pytest.importorskip("torch", reason="the engine's packages are not installed")

from fakes import tiny_models  # noqa: E402

from engine.models import ldm  # noqa: E402

UNETS = {
    "SD1.5": tiny_models.unet,
    "SDXL": partial(tiny_models.xl_unet, transformer_layers_per_block=(1, 2, 10)),
    "another depth": partial(
        tiny_models.unet,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
    ),
}


def tensors(state):
    return {key: Tensor("F16", tuple(value.shape)) for key, value in state.items()}


def layers(network):
    """Paths of all linear layers and convolutions."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [path for path, module in network.named_modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("name", UNETS)
def test_every_layer_of_a_unet_has_its_name_in_diffusers_and_its_own(name):
    with torch.device("meta"):
        unet = UNETS[name]()
    per_block = unet.config.layers_per_block
    found = find_layers(tensors(ldm.export_unet(unet.state_dict(), per_block)))
    original = ldm.export_unet({key: key for key in unet.state_dict()}, per_block)
    keys = {path: key for key, path in original.items()}
    all_expected = set()
    for path in layers(unet):
        key = keys[f"{path}.weight"]
        rows = unet.get_submodule(path).weight.shape[0]
        expected = CheckpointLayer(key, 0, rows, in_text_encoder=False)
        all_expected.add(expected)
        own = key.removeprefix("model.diffusion_model.").removesuffix(".weight")
        assert found[f"lora_unet_{path.replace('.', '_')}"] == expected
        assert found[f"lora_unet_{own.replace('.', '_')}"] == expected
    assert len(layers(unet)) > 30
    assert set(found.values()) == all_expected


@pytest.mark.parametrize(
    ("export", "prefixes"), [(ldm.CLIP, ("te", "te1")), (ldm.CLIP_XL, ("te1",))]
)
def test_the_layers_of_clip_have_kohyas_names(export, prefixes):
    model = tiny_models.text_encoder()
    found = find_layers(tensors(ldm.export_clip(model.state_dict(), export)))
    paths = [path.removeprefix("text_model.") for path in layers(model)]
    expected = {
        f"lora_{prefix}_text_model_{path.replace('.', '_')}"
        for path in paths
        for prefix in prefixes
    }
    assert len(paths) == 2 * 6
    assert set(found) == expected
    assert all(layer.in_text_encoder for layer in found.values())


def test_queries_keys_and_values_of_openclip_are_rows_of_one_tensor():
    model = tiny_models.second_text_encoder()
    exported = ldm.export_openclip(model.state_dict())
    found = find_layers(tensors(exported))
    paths = [path for path in layers(model) if ".encoder.layers." in f".{path}"]
    names = {path.removeprefix("text_model.").replace(".", "_") for path in paths}
    assert set(found) == {f"lora_te2_text_model_{name}" for name in names}
    attention = "conditioner.embedders.1.model.transformer.resblocks.2.attn.in_proj_weight"
    for number, letter in enumerate("qkv"):
        layer = found[f"lora_te2_text_model_encoder_layers_2_self_attn_{letter}_proj"]
        rows = (64 * number, 64 * (number + 1))
        assert layer == CheckpointLayer(attention, *rows, in_text_encoder=True)
