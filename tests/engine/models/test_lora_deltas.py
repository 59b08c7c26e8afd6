"""What a LoRA file adds to each layer, against a formula in float64 that shares no code with it.

The names in the files are written out here as kohya's sd-scripts, peft, diffusers and ComfyUI write
them: the engine's own tables of names are what is tested.
"""

import json
import math

import numpy as np
import pytest
import torch
from fakes import tiny_models
from safetensors.torch import save_file

from engine.models.lora_factors import Misfit
from engine.models.lora_layers import Layers
from engine.models.loras import Lora

RANK = 4
WEIGHT = 0.7
DOWN_0 = "down_blocks.0.attentions.0.transformer_blocks.0."
INPUT_1 = "input_blocks.1.1.transformer_blocks.0."
UP_3 = "up_blocks.3.resnets.0."
DOWN_1 = "down_blocks.1.attentions.0.transformer_blocks.0."
TEXT = "text_model.encoder.layers.1."

# (network, path in diffusers, name in the original UNet)
SD1 = {
    "attention": ("unet", f"{DOWN_0}attn1.to_q", f"{INPUT_1}attn1.to_q"),
    "attention out": ("unet", f"{DOWN_0}attn2.to_out.0", f"{INPUT_1}attn2.to_out.0"),
    "feed forward": ("unet", f"{DOWN_0}ff.net.0.proj", f"{INPUT_1}ff.net.0.proj"),
    "convolution": ("unet", "down_blocks.0.resnets.1.conv2", "input_blocks.2.0.out_layers.3"),
    "convolution of stride 2": ("unet", "down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op"),
    "upsampler": ("unet", "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
    "shortcut": ("unet", f"{UP_3}conv_shortcut", "output_blocks.9.0.skip_connection"),
    "1x1 convolution": ("unet", "mid_block.attentions.0.proj_in", "middle_block.1.proj_in"),
    "time": ("unet", "time_embedding.linear_1", "time_embed.0"),
    "text attention": ("text_encoder", f"{TEXT}self_attn.v_proj", None),
    "text feed forward": ("text_encoder", f"{TEXT}mlp.fc2", None),
}
SECOND = "transformer_blocks.1.attn2.to_k"
XL = {
    "attention": ("unet", f"down_blocks.1.attentions.0.{SECOND}", f"input_blocks.4.1.{SECOND}"),
    "matrix for 1x1": ("unet", "mid_block.attentions.0.proj_in", "middle_block.1.proj_in"),
    "convolution": ("unet", "up_blocks.0.resnets.2.conv1", "output_blocks.2.0.in_layers.2"),
    "size": ("unet", "add_embedding.linear_2", "label_emb.0.2"),
    "text": ("text_encoder", f"{TEXT}mlp.fc1", None),
    "text 2": ("text_encoder_2", f"{TEXT}self_attn.out_proj", None),
}
FAMILIES = {"alpha": SD1, "xl": XL}
CLIPS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def kohya(family, network, path, _original):
    te = {"alpha": "lora_te_", "xl": "lora_te1_"}[family]
    prefix = {"unet": "lora_unet_", "text_encoder": te, "text_encoder_2": "lora_te2_"}[network]
    return prefix + path.replace(".", "_"), "lora_down", "lora_up"


def kohya_original(family, network, path, original):
    return kohya(family, network, original or path, None)


def diffusers_peft(_family, network, path, _original):
    return f"{network}.{path}", "lora_A", "lora_B"


def diffusers(_family, network, path, _original):
    return f"{network}.{path}", "lora.down", "lora.up"


def unet_only(naming):
    """A naming that exists for UNets only."""

    def named(family, network, path, original):
        assert network == "unet"
        return naming(family, network, path, original)

    named.__name__ = naming.__name__
    return named


@unet_only
def peft(_family, _network, path, _original):
    return f"base_model.model.{path}", "lora_A.default", "lora_B.default"


@unet_only
def bare_peft(_family, _network, path, _original):
    return path, "lora_A", "lora_B"


def save_attn_procs(_family, network, path, _original):
    """Before peft, diffusers knew only the four projections of an attention."""
    block, _, layer = path.removesuffix(".0").rpartition(".")
    if network == "unet":
        return f"{block}.processor.{layer}_lora", "down", "up"
    return f"{network}.{block}.to_{layer.removesuffix('_proj')}_lora", "down", "up"


def comfyui(_family, network, path, original):
    if network == "unet":
        return f"diffusion_model.{original}", "lora_down", "lora_up"
    return f"text_encoders.{CLIPS[network]}.transformer.{path}", "lora_down", "lora_up"


def onetrainer(_family, network, path, original):
    if network == "unet":
        return f"unet.{original}", "lora_down", "lora_up"
    return f"{CLIPS[network]}.{path}", "lora_down", "lora_up"


def old_onetrainer(family, network, path, _original):
    te = {"alpha": "lora_te.", "xl": "lora_te1."}[family]
    prefix = {"unet": "lora_unet.", "text_encoder": te, "text_encoder_2": "lora_te2."}[network]
    return prefix + path, "lora_down", "lora_up"


@unet_only
def lycoris(_family, _network, path, _original):
    return f"lycoris_{path.replace('.', '_')}", "lora_down", "lora_up"


EVERYWHERE = (
    *(kohya, kohya_original, diffusers_peft, diffusers, comfyui),
    onetrainer,
    old_onetrainer,
)
UNET_ONLY = (peft, bare_peft, lycoris)


def cases():
    for family, layers in FAMILIES.items():
        for layer, (network, *_) in layers.items():
            yield from ((family, layer, naming) for naming in EVERYWHERE)
            if network == "unet":
                yield from ((family, layer, naming) for naming in UNET_ONLY)
            if "attention" in layer or layer == "text 2":
                yield family, layer, save_attn_procs


@pytest.fixture(scope="module")
def models(data_dir):
    folder = data_dir / "models/Stable-diffusion"
    return {name: tiny_models.load(folder / f"{name}.safetensors") for name in FAMILIES}


def write(path, state, metadata=None):
    save_file(state, path, metadata)
    return Lora(path, {})


def reference(weight, down, up, scale):
    """W + scale * up x down: each output channel is a sum over the rank, in float64."""
    out, rank = weight.shape[0], down.shape[0]
    down64 = down.double().numpy().reshape(rank, -1)
    up64 = up.double().numpy().reshape(out, rank)
    product = np.einsum("or,ri->oi", up64, down64).reshape(weight.shape)
    return torch.from_numpy(weight.double().numpy() + scale * product)


def through(module, weight, given):
    """The layer's output with this weight instead of its own, in float64."""
    bias = None if module.bias is None else module.bias.double()
    if weight.ndim == 2:
        return torch.nn.functional.linear(given, weight, bias)
    return torch.nn.functional.conv2d(given, weight, bias, module.stride, module.padding)


def example(module):
    """Random input of a layer; 7 x 9 pixels for a convolution, so that strides and edges count."""
    channels = module.weight.shape[1]
    shape = (2, channels) if module.weight.ndim == 2 else (2, channels, 7, 9)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def module_of(model, network, path):
    """The layer; the first text encoder of transformers 5 has no level `text_model`."""
    networks = dict(getattr(model.pipe, network).named_modules())
    return networks.get(path) or networks[path.removeprefix("text_model.")]


def assert_adds(model, lora, path, down, up, scale):
    """The layer at `path` (network, path in it) gives the reference, to 1e-5 of its largest."""
    module = module_of(model, *path)
    (addition,) = model._layers.additions(*lora.read())
    assert addition.layer.module is module
    given = example(module)
    plain = module(given)
    added = addition.add(WEIGHT, torch.device("cpu"))
    with_lora = module(given)
    added.close()
    weight = reference(module.weight, down, up, WEIGHT * scale)
    expected = through(module, weight, given.double())
    assert (expected - plain).abs().max() > 0.1 * expected.abs().max()
    assert (with_lora - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(module(given), plain)


@pytest.mark.parametrize("alpha", [None, 1.5], ids=["no alpha", "alpha"])
@pytest.mark.parametrize(
    ("family", "layer", "naming"), [*cases()], ids=lambda v: getattr(v, "__name__", v)
)
def test_delta_of_every_naming_and_layer(models, tmp_path, family, layer, naming, alpha):
    model, (network, path, original) = models[family], FAMILIES[family][layer]
    down, up = tiny_models.random_factors(
        module_of(model, network, path), torch.Generator().manual_seed(1), RANK
    )
    name, down_name, up_name = naming(family, network, path, original)
    state = {f"{name}.{down_name}.weight": down, f"{name}.{up_name}.weight": up}
    if alpha:
        state[f"{name}.alpha"] = torch.tensor(alpha)
    lora = write(tmp_path / "lora.safetensors", state)
    assert_adds(model, lora, (network, path), down, up, alpha / RANK if alpha else 1)


STORED = {
    "half precision": (lambda m: m.half(), torch.float16),
    "bfloat16": (lambda m: m.bfloat16(), torch.bfloat16),
    "double precision": (lambda m: m.double(), torch.float64),
    "fp8": (lambda m: m.to(torch.float8_e4m3fn), torch.float8_e4m3fn),
    "flat 1x1": (lambda m: m.flatten(1), torch.float32),
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("layer", ["1x1 convolution", "shortcut"])
def test_delta_of_every_way_to_store_the_numbers(models, tmp_path, layer, stored):
    model, (network, path, original) = models["alpha"], SD1[layer]
    change, dtype = STORED[stored]
    random = torch.Generator().manual_seed(2)
    down, up = map(
        change, tiny_models.random_factors(module_of(model, network, path), random, RANK)
    )
    assert down.dtype == dtype
    name, *_ = kohya("alpha", network, path, original)
    state = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    lora = write(tmp_path / "lora.safetensors", state)
    assert_adds(model, lora, (network, path), down, up, 1)


METADATA = {
    "one alpha": ({"unet.lora_alpha": 8}, 8 / RANK),
    "rank-stabilized": ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / math.sqrt(RANK)),
    "a pattern": ({"unet.lora_alpha": 1, "unet.alpha_pattern": {"attn1.to_q": 6}}, 6 / RANK),
    "a whole path": ({"unet.alpha_pattern": {f"^{DOWN_0}attn1.to_q$": 2}}, 2 / RANK),
    "alternatives": ({"unet.alpha_pattern": {"attn2.to_q|attn1.to_q": 6}}, 6 / RANK),
    "another network": ({"text_encoder.lora_alpha": 99}, 1),
    "another path": ({"unet.alpha_pattern": {"n1.to_q": 6, f"{DOWN_1}attn1.to_q": 6}}, 1),
}


@pytest.mark.parametrize("name", METADATA)
def test_delta_with_alphas_in_the_metadata(models, tmp_path, name):
    model, (network, path, _) = models["alpha"], SD1["attention"]
    options, scale = METADATA[name]
    down, up = tiny_models.random_factors(module_of(model, network, path), torch.Generator(), RANK)
    state = {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
    metadata = {"lora_adapter_metadata": json.dumps(options)}
    lora = write(tmp_path / "lora.safetensors", state, metadata)
    assert_adds(model, lora, (network, path), down, up, scale)


REFUSED = {
    "no path": ({"unet.alpha_pattern": [1]}, "is not {path: number}"),
    "endless pattern": ({"unet.alpha_pattern": {"(a+)+$": 1}}, "is not {path: number}"),
    "broken pattern": ({"unet.alpha_pattern": {"to_q\\": 1}}, "is not valid"),
    "text": ({"unet.lora_alpha": "8"}, "have the alpha '8', not a number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_alphas_in_the_metadata_are_refused(models, tmp_path, name):
    options, cause = REFUSED[name]
    state = {f"unet.{DOWN_0}attn1.to_q.lora_{part}.weight": torch.ones(32, 32) for part in "AB"}
    metadata = {"lora_adapter_metadata": json.dumps(options)}
    lora = write(tmp_path / "lora.safetensors", state, metadata)
    with pytest.raises(Misfit) as caught:
        Layers(models["alpha"].pipe).additions(*lora.read())
    assert cause in str(caught.value)
