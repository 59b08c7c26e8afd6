"""LoRA files of every naming: each picture is that of weights merged by hand, or a refusal."""

import json
import re

import numpy as np
import pytest
import torch
from fakes import tiny_models
from safetensors.torch import save_file

from engine.models import ldm
from engine.models.checkpoints import Checkpoint
from engine.models.loaded_model import LoadedModel, PictureSettings
from engine.models.loras import Lora, Loras, LoraUse
from engine.sampling import samplers

# diffusers' schedulers; the engine's own process shows no such warnings
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RANK = 4
CLIP_TARGETS = r"encoder\.layers\.\d\.(self_attn\.(q|k|v|out)_proj|mlp\.fc\d)"
ATTENTION = r".*(attn\d\.to_(q|k|v|out\.0))"
CONVOLUTIONS = r".*(conv1|conv2|conv_in|conv_out|samplers\.0\.conv)"
SINGLE_PIXELS = r".*(proj_in|proj_out|conv_shortcut)"
REST = r".*(ff\.net\.0\.proj|ff\.net\.2|time_emb_proj|linear_\d)"


# ------------------------------------------------------------------------------- layers and names


def layers_of(kind):
    """{path: (key in the checkpoint, shape of the weight)} of a network's layers."""
    with torch.device("meta"):
        network = tiny_models.unet() if kind == "unet" else tiny_models.text_encoder()
    layers = {
        path: module.weight.shape
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    if kind == "te":
        return {path: (f"{ldm.CLIP}text_model.{path}.weight", s) for path, s in layers.items()}
    names = tiny_models.sgm_names(network)
    return {path: (f"{ldm.UNET}{names[path]}.weight", shape) for path, shape in layers.items()}


LAYERS = {kind: layers_of(kind) for kind in ("unet", "te")}


def kohya(kind, path):
    prefix = "lora_unet_" if kind == "unet" else "lora_te_text_model_"
    return prefix + path.replace(".", "_"), "lora_down", "lora_up"


def kohya_original(_kind, path):
    """kohya's SDXL trainer takes the UNet's original names."""
    name = LAYERS["unet"][path][0].removeprefix(ldm.UNET).removesuffix(".weight")
    return "lora_unet_" + name.replace(".", "_"), "lora_down", "lora_up"


def peft(kind, path):
    prefix = "unet." if kind == "unet" else "text_encoder.text_model."
    return prefix + path, "lora_A", "lora_B"


def peft_bare(_kind, path):
    return f"base_model.model.{path}", "lora_A.default", "lora_B.default"


def diffusers(kind, path):
    prefix = "unet." if kind == "unet" else "text_encoder.text_model."
    return prefix + path, "lora.down", "lora.up"


def diffusers_old(kind, path):
    """Before peft: the attention's processors had the weights."""
    if kind == "te":
        path = re.sub(r"(q|k|v|out)_proj", r"to_\1", path)
        return f"text_encoder.text_model.{path}_lora", "down", "up"
    path = re.sub(r"\.(to_\w+)(\.0)?$", r".processor.\1_lora", path)
    return f"unet.{path}", "down", "up"


# ------------------------------------------------------------------------------- files and merges


def factors(kind, pattern, rank=RANK, seed=0):
    """{(network, path): (down, up)} of the layers whose path is the pattern."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path, (_, (out, *inner)) in LAYERS[kind].items():
        if re.fullmatch(pattern, path):
            down = torch.randn(rank, *inner, generator=generator)
            up = torch.randn(out, rank, *(1 for _ in inner[1:]), generator=generator)
            found[kind, path] = (down / down[0].numel() ** 0.5, up / 2)
    assert found
    return found


def state_of(found, naming, alpha=None):
    state = {}
    for (kind, path), (down, up) in found.items():
        name, down_name, up_name = naming(kind, path)
        state[f"{name}.{down_name}.weight"] = down
        state[f"{name}.{up_name}.weight"] = up
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(float(alpha))
    return state


def merged(state, found, scale):
    """The checkpoint with W + scale * up @ down, computed in double precision."""
    state = {key: value.double() for key, value in state.items()}
    for (kind, path), (down, up) in found.items():
        key, shape = LAYERS[kind][path]
        product = up.double().flatten(1) @ down.double().flatten(1)
        state[key] = state[key] + scale * product.reshape(shape)
    return {key: value.float().contiguous() for key, value in state.items()}


@pytest.fixture(scope="module")
def weights():
    return tiny_models.make_checkpoint(0)


def load(state, path):
    save_file(state, path)
    return LoadedModel.load(Checkpoint(path, path.name, ""), "")


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    return load(weights, tmp_path_factory.mktemp("checkpoint") / "alpha.safetensors")


def draw(model, *uses):
    sampler = samplers.find_sampler("Euler")
    shot = PictureSettings(1, 64, 64, 2, 7, sampler, None)
    with model.with_loras(uses):
        conditioning = model.encode("a cat", "a dog", 1, 2)
        return np.asarray(model.picture(conditioning, shot, lambda *_: False), dtype=int)


@pytest.fixture(scope="module")
def plain(model):
    return draw(model)


@pytest.fixture
def lora(tmp_path):
    """Write a LoRA file and find it, as a job does."""

    def lora(state, name="style", metadata=None):
        save_file(state, tmp_path / f"{name}.safetensors", metadata=metadata)
        return Loras(tmp_path).find(name)

    return lora


@pytest.fixture
def check(model, weights, plain, tmp_path):
    """The LoRAs' picture is the merged checkpoint's, and another than the plain one."""

    def check(uses, *merges):
        state = weights
        for found, scale in merges:
            state = merged(state, found, scale)
        expected = draw(load(state, tmp_path / "merged.safetensors"))
        assert np.abs(expected - plain).max() > 20
        assert np.abs(draw(model, *uses) - expected).max() <= 1
        assert np.array_equal(draw(model), plain)

    return check


# ------------------------------------------------------------------------------- the right effect


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [(ATTENTION, None), (CONVOLUTIONS, 1), (SINGLE_PIXELS, RANK), (REST, 6)],
    ids=["attention", "convolutions", "single pixels", "rest"],
)
def test_kohyas_layers_of_the_unet_are_as_merged(lora, check, pattern, alpha):
    found = factors("unet", pattern)
    file = lora(state_of(found, kohya, alpha))
    check([LoraUse(file, te=0, unet=0.8)], (found, 0.8 * (alpha or RANK) / RANK))


@pytest.mark.parametrize("naming", [kohya, peft, diffusers, diffusers_old])
def test_every_naming_of_the_text_encoder_is_as_merged(lora, check, naming):
    attention = r".*_proj" if naming is diffusers_old else CLIP_TARGETS
    found = factors("te", attention)
    check([LoraUse(lora(state_of(found, naming)), te=3, unet=0)], (found, 3))


@pytest.mark.parametrize("naming", [kohya_original, peft, peft_bare, diffusers, diffusers_old])
def test_every_naming_of_the_unet_is_as_merged(lora, check, naming):
    found = factors("unet", ATTENTION)
    check([LoraUse(lora(state_of(found, naming)), te=1, unet=1)], (found, 1))


def test_convolutions_by_their_original_names_are_as_merged(lora, check):
    found = factors("unet", f"{CONVOLUTIONS}|{SINGLE_PIXELS}|{REST}")
    check([LoraUse(lora(state_of(found, kohya_original, 2)), te=1, unet=0.5)], (found, 0.25))


def test_single_pixels_may_be_matrices(lora, check):
    found = factors("unet", SINGLE_PIXELS)
    flat = {key: value.flatten(1) for key, value in state_of(found, kohya).items()}
    check([LoraUse(lora(flat), te=1, unet=1)], (found, 1))


def test_layers_of_different_rank_and_alpha_are_as_merged(lora, check):
    first = factors("unet", r".*attn1\.to_.*", rank=2)
    second = factors("unet", r".*attn2\.to_.*", rank=8)
    third = factors("te", CLIP_TARGETS, rank=3)
    state = state_of(first, kohya, 1) | state_of(second, kohya, 16) | state_of(third, kohya)
    uses = [LoraUse(lora(state), te=2, unet=0.5)]
    check(uses, (first, 0.25), (second, 1), (third, 2))


def test_half_precision_files_are_as_merged(lora, check):
    found = {k: (d.half(), u.half()) for k, (d, u) in factors("unet", ATTENTION).items()}
    check([LoraUse(lora(state_of(found, kohya)), te=1, unet=1)], (found, 1))


def test_several_loras_are_as_merged(lora, check):
    first, second = factors("unet", ATTENTION), factors("unet", r".*attn2.*|.*conv1", seed=1)
    third = factors("te", CLIP_TARGETS)
    uses = [
        LoraUse(lora(state_of(first, kohya, 2), "one"), te=1, unet=0.7),
        LoraUse(lora(state_of(second | third, peft), "two"), te=-1.5, unet=-0.4),
    ]
    check(uses, (first, 0.35), (second, -0.4), (third, -1.5))


def test_of_two_loras_one_may_have_no_weight(lora, model, plain):
    one = LoraUse(lora(state_of(factors("unet", ATTENTION), kohya), "one"), te=1, unet=1)
    state = state_of(factors("unet", ATTENTION, seed=1), kohya)
    none = LoraUse(lora(state, "two"), te=0, unet=0)
    assert np.array_equal(draw(model, one, none), draw(model, one))
    assert np.array_equal(draw(model, none), plain)


def test_each_network_has_its_own_weight(lora, model, plain):
    unet, text = factors("unet", ATTENTION), factors("te", CLIP_TARGETS)
    both = lora(state_of(unet | text, kohya), "both")
    only = {"unet": lora(state_of(unet, kohya), "unet"), "te": lora(state_of(text, kohya), "te")}
    assert np.array_equal(
        draw(model, LoraUse(both, te=0, unet=1)), draw(model, LoraUse(only["unet"], te=1, unet=1))
    )
    assert np.array_equal(
        draw(model, LoraUse(both, te=1, unet=0)), draw(model, LoraUse(only["te"], te=1, unet=1))
    )
    assert np.array_equal(draw(model, LoraUse(only["te"], te=0, unet=1)), plain)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"unet.lora_alpha": 8, "unet.r": RANK}, 2),
        ({"unet.lora_alpha": 4, "unet.use_rslora": True}, 2),
        ({"unet.lora_alpha": 1, "unet.alpha_pattern": {"to_q|to_k|to_v|to_out.0": 6}}, 1.5),
        ({"text_encoder.lora_alpha": 99}, 1),
    ],
    ids=str,
)
def test_the_alpha_that_diffusers_writes_into_the_metadata_counts(lora, check, options, scale):
    found = factors("unet", ATTENTION)
    metadata = {"lora_adapter_metadata": json.dumps(options)}
    file = lora(state_of(found, peft), metadata=metadata)
    check([LoraUse(file, te=1, unet=0.5)], (found, 0.5 * scale))


@pytest.mark.parametrize("name", ["style.v1.0", "a b", "[x] (y)", "日本 é", "unet.text_encoder"])
def test_any_file_name_does(lora, model, plain, name):
    file = lora(state_of(factors("unet", ATTENTION), kohya), name)
    assert not np.array_equal(draw(model, LoraUse(file, te=1, unet=1)), plain)


# ------------------------------------------------------------------------------- refusals

TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
KINDS = {
    "LoHa": {f"{TO_Q}.hada_w1_a": (32, 4), f"{TO_Q}.hada_w1_b": (4, 32)},
    "LoKr": {f"{TO_Q}.lokr_w1": (4, 4), f"{TO_Q}.lokr_w2": (8, 8)},
    "DoRA": {f"{TO_Q}.dora_scale": (32, 1)},
    "GLoRA": {f"{TO_Q}.a1.weight": (4, 32), f"{TO_Q}.b1.weight": (4, 32)},
    "OFT": {f"{TO_Q}.oft_blocks": (4, 8, 8)},
    "IA3": {f"{TO_Q}.weight": (32,), f"{TO_Q}.on_input": (1,)},
    "LoCon in three factors": {f"{TO_Q}.lora_mid.weight": (4, 4, 3, 3)},
    "weight difference": {f"{TO_Q}.diff": (32, 32)},
    "LoRA of norms": {"lora_unet_conv_norm_out.w_norm": (32,)},
    "LoRA with biases": {"unet.time_embedding.linear_1.lora_B.bias": (128,)},
    "LoRA with an embedding": {"bundle_emb.word.string_to_param.*": (1, 64)},
}


def refusal(model, lora):
    with pytest.raises(RuntimeError) as caught:
        draw(model, LoraUse(lora, te=1, unet=1))
    text = str(caught.value)
    assert text.startswith(f"LoRA {lora.name!r} does not fit checkpoint 'alpha': ")
    assert len(text) < 300
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_lora_is_refused_by_name_and_never_applied_in_part(lora, model, plain, kind):
    for state in ({}, state_of(factors("unet", ATTENTION), kohya)):
        other = {key: torch.ones(shape) for key, shape in KINDS[kind].items()}
        assert f"it is a {kind}, which" in refusal(model, lora(state | other))
    assert np.array_equal(draw(model), plain)


def without(state, part):
    name = next(key for key in state if part in key)
    return {key: value for key, value in state.items() if key != name}


FOUND = factors("unet", ATTENTION)
GOOD = state_of(FOUND, kohya, RANK)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({}, "it changes none of the model's layers"),
        ({"a": torch.ones(1)}, "1 of its 1 keys are none of a LoRA's"),
        (GOOD | {"b": torch.ones(1)}, f"1 of its {len(GOOD) + 1} keys are none of a LoRA's ('b')"),
        (without(GOOD, "lora_up"), "lacks its other half"),
        (without(GOOD, "lora_down"), "lacks its other half"),
        ({"lora_unet_x.alpha": torch.ones(1)}, "lacks its other half"),
        (
            GOOD | {"lora_unet_x.lora_down.weight": torch.ones(4, 4)}
            | {"lora_unet_x.lora_up.weight": torch.ones(4, 4)},
            f"1 of its {len(FOUND) + 1} layers are not in the model ('lora_unet_x')",
        ),
        (GOOD | {f"{TO_Q}.lora_down.weight": torch.ones(4, 33)}, "[4, 33]"),
        (GOOD | {f"{TO_Q}.lora_up.weight": torch.ones(32, 5)}, "[32, 5]"),
        (GOOD | {f"{TO_Q}.lora_up.weight": torch.ones(1)}, "[1]"),
        (GOOD | {f"{TO_Q}.lora_down.weight": torch.ones(4, 32, 3, 3)}, "[4, 32, 3, 3]"),
        (GOOD | {f"{TO_Q}.alpha": torch.ones(3)}, "alpha"),
        (
            {key.replace(TO_Q, "unet.x"): value for key, value in GOOD.items()},
            "are not in the model",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_file_that_fits_in_part_is_refused(lora, model, plain, state, cause):
    assert cause in refusal(model, lora(state))
    assert np.array_equal(draw(model), plain)


def test_the_same_layer_under_two_names_is_refused(lora, model):
    twice = GOOD | {key: value.clone() for key, value in state_of(FOUND, peft).items()}
    assert "has 2 names" in refusal(model, lora(twice))


def test_a_file_that_is_gone_is_an_error(model, plain, tmp_path):
    gone = Lora(tmp_path / "gone.safetensors", {})
    assert "FileNotFoundError" in refusal(model, gone)
    assert np.array_equal(draw(model), plain)
