"""Pictures with LoRAs equal those of weights merged by hand; other files are refused.

What a file of any naming adds to one layer is in `test_lora_deltas.py`.
"""

import copy
import re

import numpy as np
import pytest
import torch
from fakes import tiny_models
from fakes.tiny_models import draw
from safetensors.torch import save_file

from engine.models.loras import Lora, Loras, LoraUse

RANK = 4
CLIP_TARGETS = r"encoder\.layers\.\d\.(self_attn\.(q|k|v|out)_proj|mlp\.fc\d)"
ATTENTION = r".*(attn\d\.to_(q|k|v|out\.0))"
CONVOLUTIONS = r".*(conv1|conv2|conv_in|conv_out|samplers\.0\.conv)"
SINGLE_PIXELS = r".*(proj_in|proj_out|conv_shortcut)"
REST = r".*(ff\.net\.0\.proj|ff\.net\.2|time_emb_proj|linear_\d)"


# ------------------------------------------------------------------------------- layers and names

with torch.device("meta"):
    NETWORKS = {"unet": tiny_models.unet(), "te": tiny_models.text_encoder()}
ORIGINAL_NAMES = tiny_models.sgm_names(NETWORKS["unet"])


def kohya(kind, path):
    prefix = "lora_unet_" if kind == "unet" else "lora_te_text_model_"
    return prefix + path.replace(".", "_"), "lora_down", "lora_up"


def kohya_original(_kind, path):
    """kohya's SDXL trainer uses the UNet's original names."""
    return "lora_unet_" + ORIGINAL_NAMES[path].replace(".", "_"), "lora_down", "lora_up"


def peft(kind, path):
    prefix = "unet." if kind == "unet" else "text_encoder.text_model."
    return prefix + path, "lora_A", "lora_B"


def factors(kind, pattern, rank=RANK, seed=0):
    """{(network, path): (down, up)} of the layers whose path matches the pattern."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path, module in NETWORKS[kind].named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and re.fullmatch(pattern, path):
            down, up = tiny_models.random_factors(module, generator, rank)
            found[kind, path] = (down, up / 2)
    assert found
    return found


def state_of(found, naming, alpha=None):
    state = {}
    for (kind, path), (down, up) in found.items():
        name, down_name, up_name = naming(kind, path)
        state |= {f"{name}.{down_name}.weight": down, f"{name}.{up_name}.weight": up}
        state |= {} if alpha is None else {f"{name}.alpha": torch.tensor(float(alpha))}
    return state


def merge(pipe, found, scale):
    """Set weights to W + scale * up @ down, computed in double precision."""
    networks = {"unet": pipe.unet, "te": pipe.text_encoder}
    for (kind, path), (down, up) in found.items():
        weight = networks[kind].get_submodule(path).weight
        product = up.double().flatten(1) @ down.double().flatten(1)
        weight.copy_(weight.double() + scale * product.reshape(weight.shape))


FOUND = factors("unet", ATTENTION)
GOOD = state_of(FOUND, kohya, RANK)


@pytest.fixture(scope="module")
def model(data_dir):
    return tiny_models.load(data_dir / "models/Stable-diffusion/alpha.safetensors")


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
def check(model, plain):
    """Assert that the LoRAs' picture is that of the merged weights, and not the plain one."""

    def check(uses, *merges):
        merged = copy.copy(model)
        merged.pipe = copy.copy(model.pipe)
        merged.pipe.unet = copy.deepcopy(model.pipe.unet)
        merged.pipe.text_encoder = copy.deepcopy(model.pipe.text_encoder)
        for found, scale in merges:
            merge(merged.pipe, found, scale)
        expected = draw(merged)
        assert np.abs(expected - plain).max() > 20
        assert np.abs(draw(model, *uses) - expected).max() <= 1
        assert np.array_equal(draw(model), plain)

    return check


@pytest.mark.parametrize("naming", [kohya, kohya_original])
@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [(ATTENTION, None), (f"{CONVOLUTIONS}|{SINGLE_PIXELS}|{REST}", 6)],
    ids=["attention", "others"],
)
def test_every_layer_of_the_unet(lora, check, pattern, alpha, naming):
    found = factors("unet", pattern)
    file = lora(state_of(found, naming, alpha))
    check([LoraUse(file, te=0, unet=0.8)], (found, 0.8 * (alpha or RANK) / RANK))


def test_several_loras_with_layers_of_different_rank_alpha_and_weight(lora, check):
    first, second = (factors("unet", rf".*attn{n}\.to_.*", rank=r) for n, r in ((1, 2), (2, 8)))
    third = factors("unet", r".*attn2.*|.*conv1", seed=1)
    text = factors("te", CLIP_TARGETS, rank=3)
    text = {k: (down.half(), up.half()) for k, (down, up) in text.items()}
    uses = [
        LoraUse(lora(state_of(first, kohya, 1) | state_of(second, kohya, 16), "one"), 1, 0.5),
        LoraUse(lora(state_of(third | text, peft), "two"), te=-1.5, unet=-0.4),
        LoraUse(lora(state_of(third, kohya), "without weight"), te=0, unet=0),
    ]
    check(uses, (first, 0.25), (second, 1), (third, -0.4), (text, -1.5))


def test_any_file_name_is_possible(lora, model, plain):
    for name in ("style.v1.0", "a b", "[x] (y)", "日本 é", "unet.text_encoder"):
        assert not np.array_equal(draw(model, LoraUse(lora(GOOD, name), te=1, unet=1)), plain)


# ------------------------------------------------------------------------------- refusals

TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
KINDS = {
    "LoRA with biases": {"unet.time_embedding.linear_1.lora_B.bias": (128,)},
}


@pytest.fixture(scope="module", autouse=True)
def _refused_files_leave_no_trace(model, plain):
    yield
    assert np.array_equal(draw(model), plain)


def refusal(model, lora):
    with pytest.raises(RuntimeError) as caught:
        draw(model, LoraUse(lora, te=1, unet=1))
    message = str(caught.value)
    assert message.startswith(f"LoRA {lora.name!r} does not fit checkpoint 'alpha': ")
    assert len(message) < 300
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_networks_are_refused_by_name(lora, model, kind):
    for state in ({}, GOOD):
        other = {key: torch.ones(shape) for key, shape in KINDS[kind].items()}
        assert f"it is a {kind}; the embedded engine" in refusal(model, lora(state | other))


def without(part):
    name = next(key for key in GOOD if part in key)
    return {key: value for key, value in GOOD.items() if key != name}


X = {f"lora_unet_x.lora_{part}.weight": torch.ones(4, 4) for part in ("down", "up")}
HALF = "does not have both of its matrices"
UNKNOWN = "are not in the model"


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({}, "it contains no LoRA layers"),
        ({"a": torch.ones(1)}, "1 of its 1 keys are not LoRA keys (first: 'a')"),
        (GOOD | {"b": torch.ones(1)}, f"1 of its {len(GOOD) + 1} keys are not LoRA keys"),
        *((without("lora_up"), HALF), (without("lora_down"), HALF)),
        ({"lora_unet_x.alpha": torch.ones(1)}, HALF),
        (GOOD | X, f"1 of its {len(FOUND) + 1} layers {UNKNOWN} (first: 'lora_unet_x')"),
        (GOOD | {f"{TO_Q}.lora_down.weight": torch.ones(4, 33)}, "[4, 33]"),
        (GOOD | {f"{TO_Q}.lora_up.weight": torch.ones(32, 5)}, "[32, 5]"),
        (GOOD | {f"{TO_Q}.lora_up.weight": torch.ones(1)}, "[1]"),
        (GOOD | {f"{TO_Q}.lora_down.weight": torch.ones(4, 32, 3, 3)}, "[4, 32, 3, 3]"),
        (GOOD | {f"{TO_Q}.alpha": torch.ones(3)}, "is not a single number"),
        ({key.replace(TO_Q, "unet.x"): value for key, value in GOOD.items()}, UNKNOWN),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_fits_only_in_part_is_refused(lora, model, state, cause):
    assert cause in refusal(model, lora(state))


def test_deleted_file_and_layer_under_two_names(lora, model, tmp_path):
    twice = GOOD | {key: value.clone() for key, value in state_of(FOUND, peft).items()}
    assert "the same layer under two names" in refusal(model, lora(twice))
    gone = Lora(tmp_path / "gone.safetensors", {})
    assert "FileNotFoundError" in refusal(model, gone)
