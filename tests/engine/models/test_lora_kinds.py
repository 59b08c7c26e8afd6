"""Each kind of LoRA against its formula in float64, written with loops and permutations.

The formulas are those of A1111 v1.9.3 (extensions-builtin/Lora) and share no code with the engine.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import tiny_models
from fakes.tiny_models import draw
from safetensors.torch import save_file
from scipy.linalg import block_diag

from engine.models.lora_layers import Layers, add_all
from engine.models.loras import Lora, LoraUse

WEIGHT, ALPHA, RANK = 0.7, 3.0, 4
CPU = torch.device("cpu")
# of the tiny SD1 model: path, kohya's name, and the shape of the weight
LAYERS = {
    "matrix": ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", (32, 64)),
    "convolution": ("unet", "down_blocks.1.resnets.0.conv1", (64, 32, 3, 3)),
    "single pixels": ("unet", "down_blocks.1.attentions.0.proj_in", (64, 64, 1, 1)),
    "group norm": ("unet", "down_blocks.1.resnets.0.norm1", (32,)),
    "layer norm": ("unet", "mid_block.attentions.0.transformer_blocks.0.norm2", (64,)),
    "last norm": ("unet", "conv_norm_out", (32,)),
    "text": ("text_encoder", "text_model.encoder.layers.1.mlp.fc1", (256, 64)),
    "text norm": ("text_encoder", "text_model.encoder.layers.0.layer_norm1", (64,)),
}


def tucker(core, outer, inner):
    """The sum over both axes of the core, one product of vectors at a time."""
    a, b, *kernel = core.shape
    total = np.zeros((outer.shape[1], inner.shape[1], *kernel))
    for i in range(a):
        for j in range(b):
            total += np.multiply.outer(np.outer(outer[i], inner[j]), core[i, j])
    return total


def lora(w, p):
    rank = p["lora_down.weight"].shape[0]
    up, down = p["lora_up.weight"].reshape(len(w), rank), p["lora_down.weight"]
    if "lora_mid.weight" in p:
        product = tucker(p["lora_mid.weight"], up.T, down.reshape(rank, -1))
    else:
        product = sum(np.multiply.outer(up[:, r], down[r]) for r in range(rank))
    return scaled(p, rank) * product.reshape(w.shape)


def scaled(p, rank):
    return float(p.get("scale", p["alpha"] / rank))


def loha(w, p):
    products = []
    for n in "12":
        a, b = p[f"hada_w{n}_a"], p[f"hada_w{n}_b"]
        products.append(tucker(p[f"hada_t{n}"], a, b) if f"hada_t{n}" in p else a @ b)
    return scaled(p, RANK) * (products[0] * products[1]).reshape(w.shape)


def lokr(w, p):
    first = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if "lokr_t2" in p:
        second = tucker(p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
    else:
        second = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
    rows = [np.concatenate([one * second for one in row], 1) for row in first]
    ranked = [p[name] for name in ("lokr_w2_b", "lokr_w1_b") if name in p]
    return (scaled(p, len(ranked[0])) if ranked else 1) * np.concatenate(rows, 0).reshape(w.shape)


def glora(w, p):
    return p["b2.weight"] @ p["b1.weight"] + w @ p["a2.weight"] @ p["a1.weight"]


def ia3(w, p):
    factors = p["weight"].ravel()
    return (
        np.moveaxis(np.moveaxis(w, 1, -1) * factors, -1, 1) if p["on_input"] else (w.T * factors).T
    )


def rotations(p, outputs):
    """The blocks as rotations: A1111 inverts, kohya limits the norm of all of them together."""
    if "oft_diag" in p:
        return p["oft_diag"]
    skew = p["oft_blocks"] - np.swapaxes(p["oft_blocks"], -1, -2)
    if p.get("alpha"):
        skew = skew * min(1, p["alpha"] * outputs / np.sqrt((skew**2).sum()))
    one = np.eye(skew.shape[-1])
    return (one + skew) @ np.linalg.inv(one - skew)


def oft(w, p):
    turned = block_diag(*rotations(p, len(w))).T @ w.reshape(len(w), -1)
    return (
        turned.reshape(w.shape) * p.get("rescale", np.ones(1)).reshape(-1, *[1] * (w.ndim - 1)) - w
    )


def boft(w, p):
    """Each level pairs outputs that are further apart: (c, g, k) is moved to (c, k, g)."""
    turned = w.reshape(len(w), -1).copy()
    for level, blocks in enumerate(rotations(p, len(w))):
        distance = 2**level * blocks.shape[-1] // 2
        order = np.arange(len(w)).reshape(-1, 2, distance).swapaxes(1, 2).ravel()
        turned[order] = block_diag(*blocks) @ turned[order]
    return turned.reshape(w.shape) * p.get("rescale", 1) - w


def difference(_w, p):
    return p["diff"] if "diff" in p else p["w_norm"]


def dora(axis):
    """Every input (1) or output (0) of the merged weight gets a length."""

    def formula(w, p):
        merged = w + lora(w, p)
        vectors = np.moveaxis(merged, axis, 0).reshape(w.shape[axis], -1)
        lengths = np.array([np.sqrt((one**2).sum()) for one in vectors])
        factors = p["dora_scale"].ravel() / lengths
        return np.moveaxis(np.moveaxis(merged, axis, -1) * factors, -1, axis) - w

    return formula


LORA = {"lora_up.weight": (32, 4), "lora_down.weight": (4, 64)}
CONV_LORA = {"lora_up.weight": (64, 4, 1, 1), "lora_down.weight": (4, 32, 3, 3)}
LOHA = {
    f"hada_w{n}_{side}": shape for n in "12" for side, shape in (("a", (32, 4)), ("b", (4, 64)))
}
# (formula, layer, shapes of the parts; a number is the value itself)
CASES = {
    "LoRA, scale": (lora, "matrix", LORA | {"scale": 0.3}),
    "LoRA, text": (lora, "text", {"lora_up.weight": (256, 4), "lora_down.weight": (4, 64)}),
    "LoRA, flat": (lora, "single pixels", {"lora_up.weight": (64, 4), "lora_down.weight": (4, 64)}),
    "LoCon": (lora, "convolution", CONV_LORA),
    "LoCon, Tucker": (
        lora,
        "convolution",
        {"lora_up.weight": (64, 4, 1, 1), "lora_mid.weight": (4, 4, 3, 3)}
        | {"lora_down.weight": (4, 32, 1, 1)},
    ),
    "LoHa": (loha, "matrix", LOHA),
    "LoHa, flat": (loha, "convolution", {k: (64, 4) if k[-1] == "a" else (4, 288) for k in LOHA}),
    "LoHa, Tucker": (
        loha,
        "convolution",
        {k: (4, 64) if k[-1] == "a" else (4, 32) for k in LOHA}
        | {"hada_t1": (4, 4, 3, 3), "hada_t2": (4, 4, 3, 3)},
    ),
    "LoKr": (lokr, "matrix", {"lokr_w1": (4, 4), "lokr_w2": (8, 16)}),
    "LoKr, second factored": (
        lokr,
        "matrix",
        {"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 16)},
    ),
    "LoKr, first factored": (
        lokr,
        "convolution",
        {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 4), "lokr_w2": (16, 8, 3, 3)},
    ),
    "LoKr, both, flat": (
        lokr,
        "convolution",
        {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (16, 3), "lokr_w2_b": (3, 72)},
    ),
    "LoKr, Tucker": (
        lokr,
        "convolution",
        {"lokr_w1": (4, 4), "lokr_t2": (2, 3, 3, 3), "lokr_w2_a": (2, 16), "lokr_w2_b": (3, 8)},
    ),
    "GLoRA": (
        glora,
        "matrix",
        {"a1.weight": (4, 64), "a2.weight": (64, 4), "b1.weight": (4, 64), "b2.weight": (32, 4)},
    ),
    "IA3, inputs": (ia3, "matrix", {"weight": (64,), "on_input": True}),
    "IA3, outputs": (ia3, "text", {"weight": (256, 1), "on_input": False}),
    "IA3, inputs of a convolution": (
        ia3,
        "convolution",
        {"weight": (1, 32, 1, 1), "on_input": True},
    ),
    "OFT": (oft, "matrix", {"oft_blocks": (4, 8, 8), "alpha": 0.0}),
    "OFT, limited": (oft, "convolution", {"oft_blocks": (8, 8, 8), "alpha": 0.01}),
    "OFT, rescaled": (oft, "convolution", {"oft_blocks": (8, 8, 8), "rescale": (64, 1, 1, 1)}),
    "OFT, old LyCORIS": (oft, "matrix", {"oft_diag": (4, 8, 8)}),
    "BOFT": (boft, "matrix", {"oft_blocks": (3, 4, 8, 8), "alpha": 0.0}),
    "BOFT, limited": (boft, "convolution", {"oft_blocks": (2, 16, 4, 4), "alpha": 0.02}),
    "DoRA, inputs": (dora(1), "matrix", LORA | {"dora_scale": (1, 64)}),
    "DoRA, inputs in a row": (dora(1), "matrix", LORA | {"dora_scale": (64,)}),
    "DoRA, convolution": (dora(1), "convolution", CONV_LORA | {"dora_scale": (1, 32, 1, 1)}),
    "DoRA, outputs": (dora(0), "convolution", CONV_LORA | {"dora_scale": (64, 1, 1, 1)}),
    "difference": (difference, "convolution", {"diff": (64, 32, 3, 3)}),
    "difference and bias": (difference, "text", {"diff": (256, 64), "diff_b": (256,)}),
    "difference and a new bias": (difference, "matrix", {"diff": (32, 64), "diff_b": (32,)}),
    **{
        name: (difference, name, {"w_norm": shape, "b_norm": shape})
        for name, (_, _, shape) in LAYERS.items()
        if "norm" in name
    },
}


def parts_of(shapes):
    random = torch.Generator().manual_seed(4)
    parts = {
        name: torch.randn(shape, generator=random) / 4
        if isinstance(shape, tuple)
        else torch.tensor(shape)
        for name, shape in ({"alpha": ALPHA} | shapes).items()
    }
    return parts | {name: parts[name].abs() for name in parts if name == "dora_scale"}


def named(layer, parts):
    network, path, _ = LAYERS[layer]
    name = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[network] + path.replace(".", "_")
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


@pytest.fixture(scope="module")
def model(data_dir):
    return tiny_models.load(data_dir / "models/Stable-diffusion/alpha.safetensors")


def module_of(model, layer):
    network, path, _ = LAYERS[layer]
    return getattr(model.pipe, network).get_submodule(path.removeprefix("text_model."))


@pytest.mark.parametrize("case", CASES)
def test_weights_equal_the_formula_and_are_the_former_tensors_afterwards(model, case):
    formula, layer, shapes = CASES[case]
    parts, module = parts_of(shapes), module_of(model, layer)
    weight, bias = module.weight, module.bias
    before = copy.deepcopy(module.state_dict())
    double = {name: part.double().numpy() for name, part in parts.items()}
    expected = weight.double().numpy()
    expected = expected + WEIGHT * formula(expected.copy(), double)
    (addition,) = model._layers.additions(named(layer, parts), {})
    with addition.add(WEIGHT, CPU):
        found = module.weight.double().numpy()
        assert np.abs(expected - weight.double().numpy()).max() > 0.01 * np.abs(expected).max()
        assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()
        for name in {"diff_b", "b_norm"} & parts.keys():
            now = WEIGHT * parts[name] + (0 if bias is None else bias)
            assert torch.allclose(module.bias, now)
    assert module.weight is weight
    assert module.bias is bias
    assert all(torch.equal(module.state_dict()[name], one) for name, one in before.items())


def test_a_rank_in_the_tag_cuts_off_the_others(model):
    parts, module = parts_of(LORA), module_of(model, "matrix")
    (addition,) = model._layers.additions(named("matrix", parts), {})
    up, down = parts["lora_up.weight"][:, :2], parts["lora_down.weight"][:2]
    expected = module.weight + WEIGHT * ALPHA / RANK * up @ down
    with addition.add(WEIGHT, CPU, dyn=2):
        assert torch.allclose(module.weight, expected, atol=1e-6)


def test_each_lora_changes_what_the_ones_before_it_left(model):
    module = module_of(model, "matrix")
    weight = module.weight.detach().clone()
    kinds = ("LoRA, scale", "IA3, inputs", "OFT", "DoRA, inputs", "DoRA, inputs")
    additions, expected = [], weight.double().numpy()
    for case in kinds:
        parts = parts_of(CASES[case][2])
        (addition,) = model._layers.additions(named("matrix", parts), {})
        additions.append((addition, WEIGHT, None))
        double = {name: part.double().numpy() for name, part in parts.items()}
        expected = expected + WEIGHT * CASES[case][0](expected.copy(), double)
    with add_all(additions, CPU):
        assert np.abs(module.weight.double().numpy() - expected).max() <= 1e-5
    assert torch.equal(module.weight, weight)


@pytest.mark.parametrize("case", ["LoKr, Tucker", "OFT", "DoRA, inputs", "group norm", "text norm"])
def test_pictures_change_and_are_the_same_again(model, tmp_path, case):
    _, layer, shapes = CASES[case]
    path = tmp_path / "kind.safetensors"
    save_file(named(layer, {k: v.contiguous() for k, v in parts_of(shapes).items()}), path)
    plain = draw(model)
    assert not np.array_equal(draw(model, LoraUse(Lora(path, {}), te=2, unet=2)), plain)
    assert np.array_equal(draw(model), plain)


def test_lengths_as_peft_writes_them_are_those_of_the_outputs(model):
    _, path, _ = LAYERS["matrix"]
    parts = parts_of(LORA | {"dora_scale": (32, 1), "alpha": 4.0})
    ours = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    state = {f"unet.{path}.{ours[part]}": parts[part] for part in ours}
    state[f"unet.{path}.lora_magnitude_vector"] = parts["dora_scale"].flatten()
    changed = []
    for one in (state, named("matrix", parts)):
        (addition,) = model._layers.additions(one, {})
        with addition.add(WEIGHT, CPU):
            changed.append(module_of(model, "matrix").weight.clone())
    assert torch.equal(*changed)


def test_the_first_layer_of_an_inpainting_model_changes_its_first_four_inputs():
    unet = tiny_models.unet(in_channels=9).requires_grad_(False)
    layers = Layers(SimpleNamespace(unet=unet))
    parts = parts_of({"lora_up.weight": (32, 4, 1, 1), "lora_down.weight": (4, 4, 3, 3)})
    (addition,) = layers.additions({f"lora_unet_conv_in.{k}": v for k, v in parts.items()}, {})
    weight = unet.conv_in.weight
    with addition.add(WEIGHT, CPU):
        changed = (unet.conv_in.weight - weight).flatten(2).abs().sum((0, 2)) > 0
    assert changed.tolist() == [True] * 4 + [False] * 5


def test_norms_of_openclip_are_not_changed_as_in_a1111():
    layers = Layers(SimpleNamespace(unet=None, text_encoder=tiny_models.second_text_encoder()))
    assert layers.find("lora_te_text_model_encoder_layers_0_mlp_fc1")
    assert layers.find("lora_te_text_model_encoder_layers_0_layer_norm1") is None


MISFITS = {
    "three factors for a matrix": (
        "matrix",
        LORA | {"lora_mid.weight": (4, 4, 3, 3)},
        "do not fit",
    ),
    "a LoRA of a norm": ("group norm", LORA, "a LoRA cannot change a norm"),
    "an OFT of a norm": ("group norm", {"oft_blocks": (4, 8, 8)}, "an OFT cannot rotate a norm"),
    "another kernel": ("convolution", CONV_LORA | {"lora_down.weight": (4, 32, 1, 1)}, "delta has"),
    "other products": ("matrix", LOHA | {"hada_w1_a": (30, 4)}, "its two products are"),
    "factors of nothing": ("matrix", {"weight": (63,), "on_input": True}, "IA3 has 63 factors"),
    "outputs of a convolution": ("convolution", {"weight": (64,), "on_input": False}, "IA3 has 64"),
    "too few blocks": ("matrix", {"oft_blocks": (3, 8, 8)}, "its rotations have"),
    "another rescale": ("matrix", {"oft_blocks": (4, 8, 8), "rescale": (5,)}, "its rescale has"),
    "another bias": ("matrix", {"diff": (32, 64), "diff_b": (31,)}, "its bias has"),
    "another length": ("matrix", LORA | {"dora_scale": (1, 63)}, "its dora_scale has"),
    "a transposed difference": ("matrix", {"diff": (64, 32)}, "its delta has"),
    "GLoRA of LyCORIS 3": (
        "matrix",
        {"a1.weight": (64, 4), "a2.weight": (4, 64), "b1.weight": (32, 4), "b2.weight": (4, 64)},
        "LyCORIS 3",
    ),
    "GLoRA of a convolution": (
        "convolution",
        {"a1.weight": (4, 32), "a2.weight": (32, 4), "b1.weight": (4, 32), "b2.weight": (64, 4)},
        "only to matrices",
    ),
    "half a LoHa": ("matrix", {"hada_w1_a": (32, 4), "hada_w1_b": (4, 64)}, "no kind of LoRA has"),
    "parts of two kinds": ("matrix", LORA | {"diff": (32, 64)}, "LoRA, which has no part diff"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_before_anything_changes(model, case):
    layer, shapes, cause = MISFITS[case]
    with pytest.raises(ValueError, match=cause):
        model._layers.additions(named(layer, parts_of(shapes)), {})
