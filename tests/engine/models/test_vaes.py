"""VAE files: their list, and a checkpoint that draws with another VAE for a while."""

import pytest
import torch
from fakes import tiny_models
from safetensors.torch import save_file

from engine.models import ldm, vaes
from engine.models.files import Unreadable
from engine.models.requirements import Incomplete
from engine.models.vaes import Vaes

LATENT = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def make(seed):
    torch.manual_seed(seed)
    return tiny_models.vae().requires_grad_(False).eval()


def exported(vae, prefix=""):
    state = ldm.export_vae(vae.state_dict(), 4)
    return {prefix + key.removeprefix(ldm.VAE): one.contiguous() for key, one in state.items()}


def flat(state):
    """Attentions as matrices, as some files have them."""
    return {k: v.flatten(1) if ".attn_1." in k and v.ndim > 1 else v for k, v in state.items()}


def both_ways(vae):
    return vae.decode(LATENT)[0], vae.encode(torch.ones(1, 3, 32, 32) / 2).latent_dist.mean


FILES = {
    "bare names": exported,
    "a checkpoint's names": lambda vae: exported(vae, ldm.VAE),
    "matrices": lambda vae: flat(exported(vae)),
    "training's values": lambda vae: exported(vae) | {"loss.logvar": torch.zeros(1)},
    "averaged": lambda vae: exported(vae) | {"model_ema.decay": torch.zeros(1)},
}


@pytest.mark.parametrize("kind", FILES)
def test_another_vae_and_back_bit_for_bit(tmp_path, kind):
    own, other = make(1), make(2)
    before, parameters = both_ways(own), [*own.parameters()]
    save_file(FILES[kind](other), tmp_path / "other.safetensors")
    with vaes.exchange(own, tmp_path / "other.safetensors", torch.float32):
        assert all(map(torch.equal, both_ways(own), both_ways(other)))
        assert not torch.equal(both_ways(own)[0], before[0])
    assert all(map(torch.equal, both_ways(own), before))
    assert all(one is two for one, two in zip(own.parameters(), parameters, strict=True))


def test_each_vae_has_the_precision_that_it_had(tmp_path):
    """A VAE that overflows becomes single precision; this stays with it alone."""
    own, other = make(1).half(), make(2)
    save_file(exported(other), tmp_path / "other.safetensors")
    half = {name: one.clone() for name, one in own.state_dict().items()}
    with vaes.exchange(own, tmp_path / "other.safetensors", torch.float16):
        assert own.dtype == torch.float16
        own.float()
    assert own.dtype == torch.float16
    assert all(torch.equal(one, half[name]) for name, one in own.state_dict().items())


def without(name):
    return lambda state: {key: one for key, one in state.items() if key != name}


CUT = "decoder.conv_in.weight"
BAD = {
    "a tensor less": (without(CUT), "it lacks tensors of the checkpoint's VAE: 1 (the first: 'dec"),
    "a tensor more": (lambda s: s | {"x": torch.ones(1)}, "it has tensors that no VAE has: 1 (the"),
    "another width": (
        lambda s: s | {CUT: torch.ones(32, 16, 3, 3)},
        "has the shape [32, 16, 3, 3]",
    ),
    "too large": (lambda s: s | {CUT: torch.full((32, 4, 3, 3), 1e6)}, "torch.float16 cannot hold"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, kind):
    change, cause = BAD[kind]
    own = make(1)
    before = both_ways(own)
    save_file(change(exported(make(2))), tmp_path / "other.safetensors")
    with pytest.raises((Incomplete, Unreadable)) as caught:
        vaes.exchange(own, tmp_path / "other.safetensors", torch.float16)
    assert cause in str(caught.value)
    assert all(map(torch.equal, both_ways(own), before))


def test_the_list_and_what_the_option_means(tmp_path):
    checkpoints, folder = tmp_path / "Stable-diffusion", tmp_path / "VAE"
    for path in ("b.vae.safetensors", "b.safetensors", "sub/a2.vae.safetensors"):
        (checkpoints / path).parent.mkdir(parents=True, exist_ok=True)
        (checkpoints / path).write_bytes(b"1")
    for path in ("a10.safetensors", "x.txt", "sub/b.vae.safetensors", "sub/None"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"2")
    found = Vaes(folder, checkpoints)
    names = ["a2.vae.safetensors", "a10.safetensors", "b.vae.safetensors"]
    assert [vae.name for vae in found.all] == names
    last = folder / "sub/b.vae.safetensors"
    assert found.all[2].describe() == {"model_name": names[2], "filename": str(last)}
    assert found.hash(found.all[2]) == "d4735e3a26"  # of the text 2
    for option, checkpoint, expected in (
        ("Automatic", "b.safetensors", names[2]),
        ("auto", "b.safetensors", names[2]),
        ("Automatic", "c.safetensors", None),
        ("None", "b.safetensors", None),
        (names[1], "b.safetensors", names[1]),
        ("a10", "b.safetensors", None),
    ):
        vae = found.resolve(option, checkpoints / checkpoint)
        assert (vae and vae.name) == expected
    (folder / "a10.safetensors").unlink()
    found.refresh()
    assert len(found.all) == 2
