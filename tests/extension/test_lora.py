"""A layer without a LoRA costs nothing; one with a LoRA is changed and restored as before."""

import pytest
import torch
from a1111_worker import lora
from a1111_worker.expect import NotAsExpected


def biases(a1111, wanted):
    """The bias of a layer after each of these lists of LoRAs, and whether a copy exists."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2)
    layer.network_layer_name = "layer"
    for names in wanted:
        a1111.networks.loaded_networks[:] = names
        a1111.networks.network_apply_weights(layer)
        yield layer.bias.tolist(), hasattr(layer, "network_bias_backup")


SEQUENCES = [[[]], [[], ["a"]], [["a"], []], [[], ["a"], ["a", "b"], [], []]]


@pytest.mark.parametrize("wanted", SEQUENCES)
def test_loras_act_as_before(a1111, wanted):
    expected = [bias for bias, _ in biases(a1111, wanted)]
    lora.skip_layers_without_lora(a1111.networks)
    assert [bias for bias, _ in biases(a1111, wanted)] == expected


def test_the_bias_is_copied_when_the_first_lora_comes(a1111):
    lora.skip_layers_without_lora(a1111.networks)
    assert [copied for _, copied in biases(a1111, [[], [], ["a"]])] == [False, False, True]


def test_another_way_to_apply_loras_is_left_alone(a1111):
    own = a1111.networks.network_apply_weights = lambda layer: None
    with pytest.raises(NotAsExpected, match="bias"):
        lora.skip_layers_without_lora(a1111.networks)
    assert a1111.networks.network_apply_weights is own
