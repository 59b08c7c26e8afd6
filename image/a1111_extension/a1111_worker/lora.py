"""No work for LoRAs while no LoRA is used."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from a1111_worker.expect import expect, uses


def skip_layers_without_lora(networks: ModuleType) -> None:
    """Leave a layer alone if no LoRA is wanted and none is applied to it.

    After each load of a checkpoint A1111 copies the bias of every layer to the processor's memory
    as soon as the layer is used, even if no job uses a LoRA. It makes the copy also when the first
    LoRA comes, which is early enough: until then nothing changes the bias.

    Effect of https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/15816

    Raises:
        NotAsExpected: the extension Lora does not make this copy, or applies LoRAs in another way.
    """
    apply = networks.network_apply_weights
    names = ("network_current_names", "network_bias_backup", "loaded_networks")
    expect(
        uses(apply, *names, "network_layer_name") and isinstance(networks.loaded_networks, list),
        "network_apply_weights keeps a copy of each bias",
    )

    def apply_if_needed(self: Any) -> None:
        if networks.loaded_networks or getattr(self, "network_current_names", ()):
            apply(self)

    networks.network_apply_weights = apply_if_needed  # type: ignore[attr-defined]
