"""Pictures of an SD1 and an SDXL checkpoint: every field and every LoRA changes them."""

import numpy as np
import pytest
import torch
from fakes import tiny_models

from engine.models.loaded_model import plain_settings
from engine.prompt.encoding import TextOptions

LORAS = {
    "alpha": ("style.v1", "style.v1-unet", "style.v1-te"),
    "xl": ("xl", "xl-unet", "xl-te1", "xl-te2", "xl-sgm"),
}


@pytest.fixture(scope="module", params=LORAS)
def checkpoint(request):
    return request.param


@pytest.fixture(scope="module")
def draw(client, checkpoint):
    def draw(prompt="a cat", override_settings=(), **fields):
        settings = {"sd_model_checkpoint": checkpoint} | dict(override_settings)
        return client.picture(prompt=prompt, override_settings=settings, **fields)

    return draw


@pytest.fixture(scope="module")
def cat(draw):
    return draw()


def same(*pictures):
    return len({picture.tobytes() for picture in pictures}) == 1


CHANGES = [
    *({"seed": 2}, {"prompt": "a dog"}, {"prompt": "a (cat:1.5)"}, {"negative_prompt": "blurry"}),
    *({"cfg_scale": 3}, {"steps": 3}, {"width": 128}, {"sampler_name": "Euler a"}),
    {"scheduler": "SGM Uniform"},
]


def test_every_field_changes_the_picture(draw, cat, checkpoint):
    assert cat.shape == (64, 64, 3)
    assert cat.std() > 5
    assert same(draw(), cat)
    for change in CHANGES:
        assert not same(draw(**change), cat), change
    # clip skip: SDXL's layer is fixed, the same as in A1111
    skipped = draw(override_settings={"CLIP_stop_at_last_layers": 2})
    assert same(skipped, cat) is (checkpoint == "xl")
    pure_noise = draw(override_settings={"sd_noise_schedule": "Zero Terminal SNR"})
    assert not same(pure_noise, cat)
    assert same(draw(), cat)


def test_last_words_of_a_long_prompt_have_an_effect(draw):
    """The prompt has more than 400 tokens, so six chunks."""
    red, blue, again = (draw("cat, " * 200 + last) for last in ("red", "blue", "red"))
    assert same(red, again)
    assert not same(red, blue)


@pytest.mark.parametrize(
    ("field", "sampler"), [("prompt", "Heun"), ("prompt", "Euler"), ("negative_prompt", "Euler")]
)
def test_prompt_editing(draw, field, sampler):
    """Heun calls the model twice per step."""

    def picture(text):
        return draw(**{field: text}, steps=5, sampler_name=sampler)

    cat, dog, early = map(picture, ("a cat", "a dog", "a [cat:dog:0.2]"))
    assert same(picture("a [cat:dog:99]"), cat)
    assert same(picture("a [cat:dog:0]"), dog)
    assert len({p.tobytes() for p in (cat, dog, early, picture("a [cat|dog]"))}) == 4


def test_pooled_vectors_follow_prompt_editing(data_dir):
    model, seen = tiny_models.load(data_dir / "models/Stable-diffusion/xl.safetensors"), []

    def record(_unet, _args, kwargs):
        seen.append((kwargs["added_cond_kwargs"]["text_embeds"], kwargs["encoder_hidden_states"]))

    model.pipe.unet.register_forward_pre_hook(record, with_kwargs=True)
    encoder = model.text_encoder(TextOptions())
    switching = encoder.conditioning("a [cat:dog:0.5]", "a [tree:house:0.5]", 4)
    model.picture(switching, plain_settings("Euler", 4, 1, (64, 64), 7))
    for call, (pooled, text) in enumerate(seen):
        texts = ("a cat", "a tree") if call <= 2 else ("a dog", "a house")
        both = encoder.conditioning(*texts, 4).at(0)
        assert torch.allclose(pooled, torch.cat([one.pooled for one in both]), atol=1e-5)
        assert torch.allclose(text, torch.cat([one.text for one in both]), atol=1e-5)
    assert len(seen) == 4


def test_loras_change_the_picture_and_leave_no_trace(draw, cat, checkpoint):
    changed = [draw(f"a cat<lora:{name}:1>") for name in LORAS[checkpoint]]
    assert same(draw(), cat)
    assert not any(same(picture, cat) for picture in changed)
    assert checkpoint != "xl" or same(changed[0], changed[-1])  # of the UNet's two namings


def test_text_encoders_and_unet_have_separate_weights(draw, cat, checkpoint):
    name = LORAS[checkpoint][0]
    unet = f"<lora:{name}-unet:1>"
    text = "<lora:xl-te1:1><lora:xl-te2:1>" if checkpoint == "xl" else f"<lora:{name}-te:1>"
    for tag, expected in {
        f"<lora:{name}:1>": unet + text,
        f"<lora:{name}:0:1>": unet,
        f"<lora:{name}:te=1:unet=0>": text,
    }.items():
        assert same(draw("a cat" + tag), draw("a cat" + expected))
    assert same(draw(f"a cat<lora:{name}:0>"), cat)


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DDIM", "DPM++ 2M SDE", "LCM"])
def test_half_precision_draws_the_same_picture(tmp_path, sampler):
    """As on a GPU: the noise must not depend on the precision."""
    tiny_models.write(tiny_models.make_checkpoint(), tmp_path / "half.safetensors")
    model = tiny_models.load(tmp_path / "half.safetensors")
    settings = plain_settings(sampler, 4, 1, (64, 64), 2)

    def draw():
        encoded = model.text_encoder(TextOptions()).conditioning("a cat", "", 8)
        return np.asarray(model.picture(encoded, settings), dtype=int)

    single = draw()
    for name in ("unet", "vae", "text_encoder"):
        getattr(model.pipe, name).half()
    assert np.abs(draw() - single).mean() < 2  # another seed: 30 and more
