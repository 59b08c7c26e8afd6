"""The layers of real UNets have the names that the engine's own export gives them."""

import pytest

from worker.formats.unet_names import kohya_path

torch = pytest.importorskip("torch", reason="the engine's packages are not installed")
tiny_models = pytest.importorskip("fakes.tiny_models")


@pytest.mark.parametrize("is_xl", [False, True])
def test_every_layer_has_its_name_in_kohyas_loras(is_xl):
    with torch.device("meta"):  # allocates no weights
        network = tiny_models.xl_unet() if is_xl else tiny_models.unet()
    for path, original in tiny_models.sgm_names(network).items():
        both = {name.replace(".", "_") for name in (path, original)}
        wanted = (original if is_xl else path).replace(".", "_")
        assert {kohya_path(name, is_xl=is_xl) for name in both} == {wanted}


@pytest.mark.parametrize(
    ("path", "is_xl"),
    [
        ("down_blocks_3_resnets_0_conv1", True),
        ("add_embedding_linear_1", False),
        ("input_blocks_12_0_in_layers_2", False),
        ("down_blocks_1_attentions_2_proj_in", False),
        ("strange", True),
    ],
)
def test_a_block_that_the_unet_does_not_have_has_no_name(path, is_xl):
    assert kohya_path(path, is_xl=is_xl) is None
