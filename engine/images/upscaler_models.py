"""Upscaling networks, read by spandrel: it knows the architectures from the tensors' names."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.models import files, placement

PIXEL_CHANNELS = 3
LONGEST_CAUSE = 200
# raised for files that are damaged, no model, or a model of another kind
LOAD_ERRORS = (
    *(OSError, LookupError, TypeError, ValueError, RuntimeError, EOFError, AttributeError),
    pickle.UnpicklingError,
)


class Network:
    """An upscaling network on its device, in single precision."""

    def __init__(self, descriptor: Any) -> None:  # noqa: ANN401 - spandrel
        self._descriptor = descriptor
        self.scale = int(descriptor.scale)

    @torch.no_grad()
    def __call__(self, picture: Image.Image) -> Image.Image:
        """The picture, `scale` times as large, as RGB.

        As in A1111 v1.9.3, the model is given blue, green and red in this order.
        """
        levels = np.asarray(picture.convert("RGB"))[:, :, ::-1] / 255
        pixels = torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1)))[None]
        found = self._descriptor(pixels.to(self._descriptor.device, torch.float32))
        enlarged = found[0].float().cpu().clamp(0, 1).numpy().transpose(1, 2, 0)
        return Image.fromarray((enlarged * 255).round().astype(np.uint8)[:, :, ::-1].copy())


def load(name: str, path: Path) -> Network:
    """Read the model. Raises RuntimeError with a short message."""
    # imported here: it takes seconds, and most jobs use no such model
    import spandrel  # noqa: PLC0415

    try:
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(_read(path))
    except (*LOAD_ERRORS, spandrel.UnsupportedModelError) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_CAUSE]
        raise RuntimeError(f"cannot load upscaler {name!r}: {cause}") from error
    channels = (found.input_channels, found.output_channels)
    if not isinstance(found, spandrel.ImageModelDescriptor) or set(channels) != {PIXEL_CHANNELS}:
        raise RuntimeError(
            f"cannot load upscaler {name!r}: it is a {found.architecture.name} model for another "
            "task than enlarging pictures of three colors"
        )
    device = "cpu" if placement.measure() is None else "cuda"
    found.to(torch.device(device), dtype=torch.float32).eval()
    return Network(found)


def _read(path: Path) -> dict[str, Any]:
    """The tensors. Of a pickle, only tensors and plain containers are read, never code."""
    if path.suffix.lower() == ".safetensors":
        with files.open_tensors(path) as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not a regular file")
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise TypeError(f"it holds a {type(found).__name__} instead of tensors by name")
    return found
