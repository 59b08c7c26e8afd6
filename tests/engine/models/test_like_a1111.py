"""Details of a picture in which diffusers differs from A1111 v1.9.3."""

import numpy as np
import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from fakes import tiny_models
from torch.nn import functional

from engine.models import odd_sizes
from engine.models.loaded_model import plain_settings, to_image
from engine.prompt.encoding import TextOptions


@pytest.fixture(scope="module", params=["alpha", "xl"])
def model(request, data_dir):
    return tiny_models.load(data_dir / f"models/Stable-diffusion/{request.param}.safetensors")


def picture(model, width=64, height=64, steps=2, sampler="Euler", prompt="a cat"):
    encoder = model.text_encoder(TextOptions(size=(width, height)))
    settings = plain_settings(sampler, steps, 1, (width, height), 7)
    return np.asarray(model.picture(encoder.conditioning(prompt, "", steps), settings), dtype=int)


def test_levels_are_cut_off_not_rounded():
    levels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 0.999, 2 * 77.99 / 255 - 1])
    pixels = levels[None, :, None].expand(1, 7, 3)
    shown = np.asarray(to_image(pixels))[0, :, 0]
    assert shown.tolist() == [0, 0, 127, 255, 255, 254, 77]


@pytest.mark.parametrize("sampler", ["DDIM", "PLMS"])
def test_a_single_step_of_ddim_and_plms_is_the_noise(model, sampler):
    """A1111's loop goes over the times but one, and a single step has one."""
    calls = []
    handle = model.pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    one = picture(model, steps=1, sampler=sampler)
    assert np.array_equal(picture(model, steps=1, sampler=sampler, prompt="a dog"), one)
    assert calls == []
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(np.asarray(to_image(model.decode(noise)), dtype=int), one)
    picture(model, steps=2, sampler=sampler)
    assert calls
    handle.remove()


def as_a1111(module, given, size):
    """Twice the size, the convolution, and then the nearest pixels for the connection."""
    doubled = given.repeat_interleave(2, -1).repeat_interleave(2, -2)
    convolved = functional.conv2d(doubled, module.conv.weight, module.conv.bias, padding=1)
    rows, columns = (
        torch.arange(n) * m // n for n, m in zip(size, convolved.shape[2:], strict=True)
    )
    return convolved[:, :, rows][..., columns]


@pytest.mark.parametrize(("width", "height"), [(200, 264), (248, 248), (72, 64), (64, 64)])
def test_sides_that_are_no_multiple_of_64(model, width, height):
    """Compared with A1111's own UNet (ldm) and its changed `cat`: equal to 2e-6 at any size."""
    seen = []

    def record(module, given, output):
        seen.append((module, given[0], output))

    upsamplers = [m for m in model.pipe.unet.modules() if isinstance(m, Upsample2D)]
    handles = [module.register_forward_hook(record) for module in upsamplers]
    drawn = picture(model, width, height, steps=1)
    for handle in handles:
        handle.remove()
    assert drawn.shape == (height, width, 3)
    assert len(seen) == len(upsamplers) > 0
    for module, given, output in seen:
        expected = as_a1111(module, given, output.shape[2:])
        assert torch.allclose(output, expected, atol=1e-5)
    sizes = [output.shape[2:] for *_, output in seen]
    assert sizes[-1] == (height // 8, width // 8)


def test_only_odd_sizes_change(model):
    """A size that is a multiple of 64 is enlarged by diffusers' own code."""
    module = next(m for m in model.pipe.unet.modules() if isinstance(m, Upsample2D))
    assert type(module) is odd_sizes._Doubling
    given = torch.randn(1, module.channels, 4, 4)
    assert torch.equal(module(given), Upsample2D.forward(module, given))
    assert module(given, (7, 8)).shape[2:] == (7, 8)
    assert not torch.equal(module(given, (7, 8)), Upsample2D.forward(module, given, (7, 8)))


def test_sdxl_is_told_the_requested_size(model):
    seen = []

    def record(_unet, _given, options):
        seen.append((options.get("added_cond_kwargs") or {}).get("time_ids"))

    handle = model.pipe.unet.register_forward_pre_hook(record, with_kwargs=True)
    picture(model, width=79, height=70, steps=1)
    handle.remove()
    if getattr(model.pipe, "text_encoder_2", None) is None:
        assert seen == [None]
    else:
        assert seen[0].tolist() == [[70, 79, 0, 0, 70, 79]] * 2
