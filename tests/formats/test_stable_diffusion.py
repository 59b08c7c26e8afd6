"""The generated tensors of each family, against those of the original classes."""

import hashlib

import pytest

from worker.formats.stable_diffusion import VAE, network, vae

# The original classes (ldm, sgm, transformers, open_clip, as A1111 v1.9.3 pins them) were built
# without weights; the names and shapes of their state dicts, less position_ids, logit_scale and
# SD2's unused text_projection, one `name:4x4` a line, sorted, have these numbers and hashes.
ORIGINAL = {
    "SD1": (1130, "b998b2879f70dfc3"),
    "SD2": (1226, "fba6fa8c0ae46e23"),
    "SDXL": (2513, "da47fff7b39d3d1a"),
    "SDXL refiner": (1857, "2df0ebf097e24682"),
}


@pytest.mark.parametrize("family", ORIGINAL)
def test_the_tensors_are_those_of_the_original_classes(family):
    tensors = network(family) | {VAE + name: shape for name, shape in vae().items()}
    lines = sorted(f"{name}:{'x'.join(map(str, shape))}" for name, shape in tensors.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (len(lines), digest[:16]) == ORIGINAL[family]
