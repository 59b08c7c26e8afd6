"""SDXL over HTTP: one engine process, a tiny random checkpoint in CivitAI's key naming."""

import numpy as np
import pytest
import torch
from fakes import tiny_models

from engine.models.checkpoints import Checkpoint
from engine.models.loaded_model import LoadedModel, PictureSettings
from engine.sampling import samplers


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Instead of the folder with SD1 checkpoints."""
    folder = tmp_path_factory.mktemp("xl")
    checkpoints, loras = folder / "models/Stable-diffusion", folder / "models/Lora"
    tiny_models.write(tiny_models.make_xl_checkpoint(), checkpoints / "xl.safetensors")
    every = tiny_models.make_xl_lora()
    for name, part in {"unet": "lora_unet_", "te1": "lora_te1_", "te2": "lora_te2_"}.items():
        state = {key: value for key, value in every.items() if key.startswith(part)}
        tiny_models.write(state, loras / f"{name}.safetensors")
    tiny_models.write(every, loras / "every.safetensors")
    tiny_models.write(tiny_models.make_xl_lora(sgm=True), loras / "sgm.safetensors")
    tiny_models.write(tiny_models.make_lora(), loras / "sd1.safetensors")
    return folder


@pytest.fixture(scope="module")
def cat(client):
    return client.picture()


def test_the_checkpoint_is_small(data_dir):
    assert (data_dir / "models/Stable-diffusion/xl.safetensors").stat().st_size < 25e6


def test_same_request_same_picture(client, cat):
    assert cat.shape == (64, 64, 3)
    assert cat.std() > 5
    assert np.array_equal(client.picture(), cat)
    assert client.info()["sd_model_name"] == "xl"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a dog"},
        {"prompt": "a (cat:1.5)"},
        {"negative_prompt": "blurry"},
        {"seed": 2},
        {"width": 128},
        {"sampler_name": "DPM++ 2M"},
    ],
    ids=str,
)
def test_every_field_changes_the_picture(client, cat, change):
    assert not np.array_equal(client.picture(**change), cat)


def test_sdxl_has_no_clip_skip(client, cat):
    """As in A1111: its layer is fixed."""
    settings = {"CLIP_stop_at_last_layers": 2}
    assert np.array_equal(client.picture(override_settings=settings), cat)


def test_the_last_words_of_a_long_prompt_count(client):
    """200 tokens and more: the pooled vector, of the first 75, is the same."""
    pictures = [client.picture(prompt="cat, " * 100 + last) for last in ("red", "blue", "red")]
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_words_that_change_on_the_way(client, field):
    def picture(text):
        return client.picture(**{field: text}, steps=5)

    cat, dog = picture("a cat"), picture("a dog")
    assert np.array_equal(picture("a [cat:dog:99]"), cat)
    assert np.array_equal(picture("a [cat:dog:0]"), dog)
    early = picture("a [cat:dog:0.2]")
    assert not np.array_equal(early, cat)
    assert not np.array_equal(early, dog)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers
def test_the_pooled_vectors_change_with_the_words(data_dir):
    path = data_dir / "models/Stable-diffusion/xl.safetensors"
    model, seen = LoadedModel.load(Checkpoint(path, path.name, ""), ""), []

    def look(_unet, _args, kwargs):
        seen.append((kwargs["added_cond_kwargs"]["text_embeds"], kwargs["encoder_hidden_states"]))

    model.pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    switching = model.encode("a [cat:dog:0.5]", "a [tree:house:0.5]", 1, 4)
    shot = PictureSettings(1, 64, 64, 4, 7, samplers.find_sampler("Euler"), None)
    model.picture(switching, shot, lambda *_: False)
    for call, (pooled, words) in enumerate(seen):
        texts = ("a cat", "a tree") if call <= 2 else ("a dog", "a house")
        plain = model.encode(*texts, 1, 4).at(0)
        both = [plain["negative_pooled_prompt_embeds"], plain["pooled_prompt_embeds"]]
        assert torch.equal(pooled, torch.cat(both))
        both = [plain["negative_prompt_embeds"], plain["prompt_embeds"]]
        assert torch.equal(words, torch.cat(both))
    assert len(seen) == 4


# ------------------------------------------------------------------------------- LoRAs


@pytest.mark.parametrize("name", ["unet", "te1", "te2", "every", "sgm"])
def test_a_lora_changes_the_picture_and_leaves_no_trace(client, cat, name):
    changed = client.picture(prompt=f"a cat<lora:{name}:1>")
    assert not np.array_equal(changed, cat)
    assert np.array_equal(client.picture(), cat)
    assert np.array_equal(client.picture(prompt=f"a cat<lora:{name}:1>"), changed)


def test_both_namings_of_the_unet_are_the_same_lora(client):
    every, sgm = (client.picture(prompt=f"a cat<lora:{name}:1>") for name in ("every", "sgm"))
    assert np.array_equal(every, sgm)


def test_the_parts_of_a_lora_are_the_whole(client):
    parts = client.picture(prompt="a cat<lora:unet:1><lora:te1:1><lora:te2:1>")
    assert np.array_equal(client.picture(prompt="a cat<lora:every:1>"), parts)


def test_a_lora_of_weight_0_is_the_plain_picture(client, cat):
    assert np.array_equal(client.picture(prompt="a cat<lora:every:0>"), cat)


def test_text_encoders_and_unet_have_their_own_weights(client):
    def picture(tags):
        return client.picture(prompt="a cat" + tags)

    assert np.array_equal(picture("<lora:every:0:1>"), picture("<lora:unet:1>"))
    assert np.array_equal(picture("<lora:every:1:0>"), picture("<lora:te1:1><lora:te2:1>"))


def test_a_lora_for_sd1_is_an_error_and_leaves_no_trace(client, cat):
    answer = client.txt2img(prompt="a cat<lora:every:1><lora:sd1:1>")
    assert (answer.status_code, answer.json()["error"]) == (500, "RuntimeError")
    text = answer.json()["errors"]
    assert text.startswith("LoRA 'sd1' does not fit checkpoint 'xl': ")
    assert len(text) < 300
    assert np.array_equal(client.picture(), cat)
