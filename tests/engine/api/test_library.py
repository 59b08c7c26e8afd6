"""Jobs that name other files than checkpoints: embeddings, VAEs, LoRAs with embeddings."""

import numpy as np
import pytest
import torch
from fakes import tiny_models
from safetensors.torch import save_file

from engine.models import ldm

WORD = torch.full((2, 64), 0.3)


def write_vae(path, seed=5):
    torch.manual_seed(seed)
    state = ldm.export_vae(tiny_models.vae().state_dict(), 4)
    save_file({k.removeprefix(ldm.VAE): v.contiguous() for k, v in state.items()}, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    checkpoints = folder / "models/Stable-diffusion"
    tiny_models.write(tiny_models.make_checkpoint(0), checkpoints / "alpha.safetensors")
    tiny_models.write(tiny_models.make_checkpoint(1), checkpoints / "beta.safetensors")
    write_vae(checkpoints / "beta.vae.safetensors", seed=6)
    for name in ("embeddings", "models/VAE", "models/Lora"):
        (folder / name).mkdir(parents=True)
    write_vae(folder / "models/VAE/other.safetensors")
    save_file({"emb_params": WORD}, folder / "embeddings/style.safetensors")
    pair = {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 64)}
    save_file(pair, folder / "embeddings/for-xl.safetensors")
    bundled = {"bundle_emb.hidden.emb_params": WORD}
    save_file(tiny_models.make_lora() | bundled, folder / "models/Lora/bundle.safetensors")
    save_file(bundled, folder / "models/Lora/words.safetensors")
    return folder


@pytest.fixture(scope="module")
def own(serve, folder):
    with serve(folder) as client:
        yield client


@pytest.fixture(scope="module")
def plain(own):
    return own.picture()


def test_lists(own, folder):
    found = own.get("embeddings").json()
    assert {group: [*one] for group, one in found.items()} == {
        "loaded": ["style"],
        "skipped": ["for-xl"],
    }
    assert (found["loaded"]["style"]["vectors"], found["skipped"]["for-xl"]["shape"]) == (2, 96)
    names = [vae["model_name"] for vae in own.get("sd-vae").json()]
    assert names == ["beta.vae.safetensors", "other.safetensors"]
    save_file({"emb_params": WORD}, folder / "embeddings/late.safetensors")
    assert own.post("refresh-embeddings").status_code == 200
    assert "late" in own.get("embeddings").json()["loaded"]


VAE = {"sd_vae": "other.safetensors"}
# {fields of a request: whether the picture is another one, and what `info` tells}
JOBS = [
    ({"prompt": "a style"}, {"prompt": "a styles"}, ["TI hashes: "]),
    ({"prompt": "a hidden <lora:words:0>"}, {"prompt": "a hidden"}, ["Lora hashes: "]),
    ({"prompt": "a cat <lora:words:1>"}, None, ["Lora hashes: "]),
    ({"prompt": "a cat <lora:bundle:0.9>"}, {}, ["Lora hashes: "]),
    ({"prompt": "a cat <lora:bundle:1:1:1>"}, {"prompt": "a cat <lora:bundle:1>"}, []),
    ({"override_settings": VAE}, {}, ["VAE hash: ", "VAE: other.safetensors"]),
    ({"override_settings": {"sd_vae": "None"}}, None, []),
    ({"override_settings": {"token_merging_ratio": 0.5}}, {}, ["Token merging ratio: 0.5"]),
]


@pytest.mark.parametrize(("fields", "other", "written"), JOBS, ids=lambda value: str(value)[:50])
def test_a_job_draws_with_the_file_and_the_next_one_without(own, plain, fields, other, written):
    """`other` are the fields of a picture that differs; None: it is the plain picture."""
    found = own.picture(**fields)
    assert np.array_equal(found, plain) is (other is None)
    if other is not None:
        assert not np.array_equal(found, own.picture(**other))
    text = own.info(**fields)["infotexts"][0]
    assert all(part in text for part in written), text
    assert np.array_equal(own.picture(), plain)


def test_a_vae_beside_the_checkpoint_is_automatic_and_none_means_the_own(own):
    beta = {"sd_model_checkpoint": "beta"}
    info = own.info(override_settings=beta)
    assert (info["sd_vae_name"], len(info["sd_vae_hash"])) == ("beta.vae.safetensors", 10)
    automatic, without, named = (
        own.picture(override_settings=beta | options)
        for options in ({}, {"sd_vae": "None"}, {"sd_vae": "beta.vae.safetensors"})
    )
    assert np.array_equal(automatic, named)
    assert not np.array_equal(automatic, without)


def test_the_option_of_the_server_counts_for_every_job(own, plain):
    expected = own.picture(override_settings=VAE)
    assert own.post("options", **VAE).status_code == 200
    assert np.array_equal(own.picture(), expected)
    assert np.array_equal(own.picture(override_settings={"sd_vae": "Automatic"}), plain)
    own.post("options", sd_vae="Automatic")
    assert np.array_equal(own.picture(), plain)
