"""The kinds of checkpoints beside plain SD1 and SDXL: each network has the file's numbers."""

import diffusers
import pytest
import torch
from fakes import tiny_models
from safetensors.torch import save_file

from engine.models import ldm
from engine.models.loading import Parts, read_pipeline

# what `Parts` says of each: (SDXL, refiner, inpainting)
FLAGS = {
    "inpainting": (False, False, True),
    "SD2": (False, False, False),
    "refiner": (True, True, False),
    "SSD-1B": (True, False, False),
}


@pytest.fixture(scope="module", params=FLAGS)
def kind(request):
    return request.param, tiny_models.make_kind(request.param)


def write(path, networks, extra=None):
    save_file(tiny_models.export(networks) | (extra or {}), path)
    return path


def draw(unet):
    """The UNet's answer to random input."""
    random = torch.Generator().manual_seed(3)
    config = unet.config
    latent = torch.randn(1, config.in_channels, 8, 8, generator=random)
    text = torch.randn(1, 5, config.cross_attention_dim, generator=random)
    added = {}
    if config.addition_embed_type:
        ids = (config.projection_class_embeddings_input_dim - tiny_models.XL_WIDTHS[1]) // 256
        added = {"text_embeds": torch.ones(1, tiny_models.XL_WIDTHS[1])}
        added["time_ids"] = torch.ones(1, ids)
    with torch.no_grad():
        return unet(latent, 500, text, added_cond_kwargs=added, return_dict=False)[0]


def assert_like(parts, networks):
    """Each network computes the same as the one that was written, up to the file's precision."""
    torch.testing.assert_close(draw(parts.unet), draw(networks[ldm.UNET].eval()), atol=0.02, rtol=0)
    texts = [one for prefix, one in networks.items() if prefix not in (ldm.UNET, ldm.VAE)]
    words = torch.tensor([[49406, 320, 2368, 49407]])
    for (_, found), own in zip(parts.text_encoders, texts, strict=True):
        layers = own(words, output_hidden_states=True).hidden_states
        # SD2's last layer is not used
        expected = layers[len(found(words, output_hidden_states=True).hidden_states) - 1]
        actual = found(words, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(actual, expected, atol=0.02, rtol=0)


def test_networks_of_a_file_and_of_a_folder(kind, tmp_path):
    name, networks = kind
    pipe = read_pipeline(write(tmp_path / "one.safetensors", networks))
    pipe.save_pretrained(tmp_path / "folder")
    for parts in (Parts.of(pipe), Parts.of(read_pipeline(tmp_path / "folder"))):
        assert (parts.is_xl, parts.is_refiner, parts.is_inpainting) == FLAGS[name]
        assert (parts.prediction_type, parts.zero_terminal_snr) == ("epsilon", False)
        assert_like(parts, networks)
        padding = {"SD2": ["!"], "refiner": ["!"], "SSD-1B": ["<|endoftext|>", "!"]}
        assert [one.pad_token for one, _ in parts.text_encoders] == padding.get(
            name, ["<|endoftext|>"]
        )


def test_a_folder_may_name_a_task_of_its_own(tmp_path):
    networks = tiny_models.make_kind("inpainting")
    pipe = read_pipeline(write(tmp_path / "one.safetensors", networks))
    other = diffusers.StableDiffusionInpaintPipeline(
        **pipe.components, requires_safety_checker=False
    )
    other.save_pretrained(tmp_path / "folder")
    assert Parts.of(read_pipeline(tmp_path / "folder")).is_inpainting


@pytest.mark.parametrize(("bias", "declared", "expected"), [
    (0, {}, "epsilon"),
    (-5, {}, "v_prediction"),
    (-5, {"prediction_type": "epsilon"}, "epsilon"),
    (0, {"modelspec.prediction_type": "v"}, "v_prediction"),
])  # fmt: skip
def test_sd2_is_measured_unless_it_says_what_it_predicts(tmp_path, bias, declared, expected):
    """A1111 tests the UNet with constant input: with v-prediction it answers far below it."""
    networks = tiny_models.make_kind("SD2")
    networks[ldm.UNET].conv_out.bias.data += bias
    path = tmp_path / "one.safetensors"
    save_file(tiny_models.export(networks), path, declared)
    assert Parts.of(read_pipeline(path)).prediction_type == expected


def test_markers_of_v_prediction_with_zero_terminal_snr(tmp_path):
    markers = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    state = tiny_models.make_checkpoint(xl=True)
    save_file(state | markers, tmp_path / "one.safetensors")
    parts = Parts.of(read_pipeline(tmp_path / "one.safetensors"))
    assert (parts.prediction_type, parts.zero_terminal_snr) == ("v_prediction", True)


def test_an_inpainting_model_without_a_picture_paints_all_of_a_gray_one(tmp_path):
    """As A1111's txt2img does; another VAE, or tiling, encodes the gray picture anew."""
    networks = tiny_models.make_kind("inpainting")
    pipe = read_pipeline(write(tmp_path / "one.safetensors", networks))
    latent, text = torch.randn(2, 4, 6, 8), torch.randn(2, 5, tiny_models.WIDTH)
    pictures = []
    for seed, padding in ((1, "zeros"), (1, "zeros"), (1, "circular"), (2, "zeros")):
        torch.manual_seed(seed)
        pipe.vae.encoder.conv_out.padding_mode = padding
        pipe.vae.encoder.conv_out.weight.data = torch.randn(8, 32, 3, 3)
        with torch.no_grad():
            gray = pipe.vae.encode(torch.zeros(1, 3, 48, 64)).latent_dist.mean * 0.18215
            whole = torch.cat([torch.ones(1, 1, 6, 8), gray], 1).expand(2, -1, -1, -1)
            expected = pipe.unet(torch.cat([latent, whole], 1), 500, text).sample
            assert torch.equal(pipe.unet(latent, 500, text).sample, expected)
            assert torch.equal(
                pipe.unet(sample=latent, timestep=500, encoder_hidden_states=text).sample, expected
            )
        pictures.append(expected)
    assert torch.equal(*pictures[:2])
    assert not torch.equal(*pictures[1:3])
    assert not torch.equal(*pictures[1::2])
    assert tiny_models.draw(tiny_models.load(tmp_path / "one.safetensors")).std() > 1
