"""Kinds of checkpoint files that people have: drawn with, or refused with the cause."""

import pytest
import torch
from fakes import tiny_models
from safetensors.torch import save, save_file

from engine.errors import Unsupported
from engine.models import ldm
from engine.models.checkpoints import Checkpoint
from engine.models.loaded_model import LoadedModel
from engine.models.requirements import FIRST, today

ONE = torch.zeros(1)
TEXT = f"{ldm.CLIP}text_model."


@pytest.fixture(scope="module")
def states():
    return {"sd1": tiny_models.make_checkpoint(), "xl": tiny_models.make_checkpoint(xl=True)}


def load(path):
    return LoadedModel.load(Checkpoint(path, f"sub/{path.name}", ""), "")


def without(*prefixes):
    return lambda state: {k: v for k, v in state.items() if not k.startswith(prefixes)}


def adding(**tensors):
    """Further tensors; a double underscore in a name stands for a dot."""
    return lambda state: state | {name.replace("__", "."): v for name, v in tensors.items()}


def renamed(old, new):
    return lambda state: {key.replace(old, new, 1): value for key, value in state.items()}


def bent(key, *shape):
    return lambda state: state | {key: torch.zeros(shape)}


DRAWN = {
    "the oldest names of CLIP": ("sd1", renamed(TEXT, ldm.CLIP)),
    "positions in the file": ("sd1", bent(f"{TEXT}embeddings.position_ids", 1, 77)),
    "averaged weights beside": ("sd1", bent(f"model_ema.{FIRST}", 1)),
    "a LoRA's keys beside": ("sd1", bent("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", 1)),
    "the VAE's attention as matrices": (
        "sd1",
        lambda state: {
            k: v.flatten(1) if ".attn_1." in k and v.ndim > 1 else v for k, v in state.items()
        },
    ),
    "single precision": ("sd1", lambda state: {k: v.float() for k, v in state.items()}),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_variants_of_complete_checkpoints_give_the_same_picture(states, tmp_path, kind):
    family, change = DRAWN[kind]
    pictures = []
    for name, state in (("plain", states[family]), ("changed", change(states[family]))):
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / f"{name}.safetensors")
        pictures.append(tiny_models.draw(load(tmp_path / f"{name}.safetensors")))
    assert (pictures[0] == pictures[1]).all()


INCOMPLETE = {
    "no tensors": (
        "sd1",
        lambda _: {},
        "Stable Diffusion: it has no tensors",
    ),
    "one strange tensor": ("sd1", lambda _: {"a": ONE}, f"it has no tensor '{FIRST}' (its first"),
    "a LoRA": ("sd1", lambda _: tiny_models.make_lora(), "it is a LoRA"),
    "only a VAE": ("sd1", without(ldm.UNET, ldm.CLIP), f"it has no tensor '{FIRST}'"),
    "diffusers' names": ("sd1", renamed(ldm.UNET, "unet."), f"it has no tensor '{FIRST}'"),
    "no VAE": ("sd1", without(ldm.VAE), "it has no VAE"),
    "no text encoder": ("sd1", without(ldm.CLIP), "it has no text encoder"),
    "SDXL without its first": ("xl", without(ldm.CLIP_XL), "needs 96 numbers for a token, its te"),
    "SDXL without its second": ("xl", without(ldm.OPENCLIP_XL), f"it has no tensor '{TEXT}emb"),
    "only the VAE's decoder": ("sd1", without(f"{ldm.VAE}encoder."), "it has no tensor '"),
    "no quantization": ("sd1", without(f"{ldm.VAE}quant_conv."), "it lacks tensors of its arch"),
    "one tensor less": (
        "sd1",
        without(f"{TEXT}encoder.layers.1.mlp.fc2.bias"),
        "architecture: 1 (",
    ),
    "wrong width": ("sd1", bent(f"{TEXT}encoder.layers.1.mlp.fc2.bias", 3), "has the shape [3], e"),
    "wrong rank": (
        "sd1",
        bent(FIRST, 32),
        "its shapes are not those of a ch",
    ),
    "a block too many": ("sd1", bent(f"{ldm.UNET}x.weight", 1), "its UNet has unknown tensors: 1"),
    "a million blocks": (
        "sd1",
        bent(f"{ldm.UNET}input_blocks.1.1.transformer_blocks.999999.norm1.weight", 32),
        "at most 100 are known",
    ),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_incomplete_file_is_named_with_the_cause(states, tmp_path, kind):
    family, change, cause = INCOMPLETE[kind]
    path = tmp_path / "a b.safetensors"
    save_file(change(states[family]), path)
    with pytest.raises(RuntimeError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith("cannot load checkpoint 'sub/a b.safetensors': ")
    assert cause in message
    assert not any(word in message for word in ("KeyError", "meta tensor", "IndexError"))
    assert len(message) < 350


UNSUPPORTED = {
    "KOALA": ("xl", without(f"{ldm.UNET}input_blocks.8.")),
    "EDM (Playground 2.5)": ("xl", adding(edm_std=ONE)),
    "EDM v-prediction (CosXL)": ("xl", adding(edm_vpred__sigma_max=ONE)),
    "scaled fp8": ("xl", adding(scaled_fp8=ONE)),
    "scaled fp8 ": ("xl", bent(FIRST.removesuffix("weight") + "scale_weight", 1)),
    "unCLIP": ("sd1", bent("embedder.model.ln_final.weight", 768)),
    "Alt-Diffusion": ("sd1", bent("cond_stage_model.roberta.embeddings.word_embeddings.weight", 1)),
    "instruct-pix2pix": ("sd1", bent(FIRST, 32, 8, 3, 3)),
    "depth": ("sd1", bent(FIRST, 32, 5, 3, 3)),
    "takes 7 channels": ("sd1", bent(FIRST, 32, 7, 3, 3)),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_checkpoint_of_another_kind_is_refused_with_its_kind(states, tmp_path, kind):
    family, change = UNSUPPORTED[kind]
    path = tmp_path / "odd.safetensors"
    save_file(change(states[family]), path)
    with pytest.raises(Unsupported) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith("the embedded engine does not support ")
    assert kind.strip() in message
    assert message.endswith(": 'sub/odd.safetensors'")


def header(text, data=b""):
    encoded = text.encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


DAMAGED = {
    "empty": (b"", "it is empty (0 bytes)"),
    "a web page": (b"<html>404</html>" * 9, "it is cut off, or not a safetensors file (144 bytes)"),
    "a few bytes": (b"abc", "it is cut off, or not a safetensors file (3 bytes)"),
    "no JSON": (header("no JSON"), "it is cut off, or not a safetensors file ("),
    "half a surrogate pair": (header('{"\\ud800": 1}'), "it is cut off, or not a safetensors"),
    "endless header": (
        header(" " * 2**24 + "{}"),
        "its header has 16777218 bytes; at most 16777216",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_file_is_named_with_the_cause(tmp_path, kind):
    content, cause = DAMAGED[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(RuntimeError) as caught:
        load(path)
    assert f"cannot load checkpoint 'sub/x.safetensors': {cause}" in str(caught.value)


def test_truncated_anywhere_is_one_short_sentence(states, tmp_path):
    whole, path = save(states["sd1"]), tmp_path / "x.safetensors"
    for length in (1, 8, 9, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            RuntimeError, match=r"^cannot load checkpoint .*it is cut off"
        ) as caught:
            load(path)
        assert len(str(caught.value)) < 300


CONFIGS = [
    *("[]", "{", "[" * 5000, '{"unet": 1}', '{"unet": {"sample_size": 8}}', '{"scheduler": {}}'),
    *('{"unet": {"norm_num_groups": "8"}}', '{"vae": {"norm_num_groups": 7}}'),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda text: text[:30])
def test_unusable_configuration_in_the_metadata_is_an_error(states, tmp_path, config):
    path = tmp_path / "x.safetensors"
    save_file(states["sd1"], path, {"engine.config": config})
    with pytest.raises(RuntimeError, match=r"metadata 'engine\.config'|its shapes are not those"):
        load(path)


def test_old_and_double_prefixes_get_present_names():
    names = {"embeddings.a": True, "encoder.b": True, "final_layer_norm.c": True, "d": False}
    names |= {"text_model.encoder.e": False, "encoders.f": False}
    expected = {
        ldm.CLIP + name: f"{TEXT}{name}" if changed else f"{ldm.CLIP}{name}"
        for name, changed in names.items()
    }
    assert today(expected) == expected
    refiner = f"{ldm.OPENCLIP_REFINER}ln_final.weight"
    assert today([refiner])[refiner] == f"{ldm.OPENCLIP_XL}ln_final.weight"
    turbo = today([refiner, f"{ldm.UNET}input_blocks.1.1.norm.weight"])
    assert turbo[refiner] == f"{ldm.OPENCLIP_SD2}ln_final.weight"
