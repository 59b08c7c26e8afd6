"""Requests that fail: each gets JSON with the right status, and the next picture is untouched."""

import json

import numpy as np
import pytest
import requests
import torch
from fakes import tiny_models
from safetensors.torch import save, save_file

from engine.api.request import Txt2Img
from engine.models import ldm

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def without(state, prefix):
    return {key: value for key, value in state.items() if not key.startswith(prefix)}


def spoil(state, value):
    """The checkpoint with this number in one of its weights."""
    return state | {f"{ldm.UNET}out.2.bias": torch.full((4,), value, dtype=torch.float16)}


def write_checkpoints(folder, good):
    first = f"{ldm.UNET}input_blocks.0.0.weight"
    pix2pix = good | {first: torch.zeros(32, 8, 3, 3)}
    states = {"empty": {}, "no-vae": without(good, ldm.VAE), "nan": spoil(good, float("nan"))}
    for name, state in ({"good": good, "pix2pix": pix2pix} | states).items():
        save_file(state, folder / f"{name}.safetensors")
    (folder / "gone.safetensors").write_bytes(b"")
    (folder / "cut.safetensors").write_bytes(save(good)[:-1000])


def write_loras(folder):
    def pair(down, up):
        return {f"{LAYER}.lora_down.weight": down, f"{LAYER}.lora_up.weight": up}

    states = {
        "no-rank": pair(torch.zeros(0, 32), torch.zeros(32, 0)),
        "nan-lora": pair(torch.full((4, 32), float("nan")), torch.ones(32, 4)),
        "whole-numbers": pair(torch.ones(4, 32, dtype=torch.int8), torch.ones(32, 4)),
        "narrow": pair(torch.ones(4, 31), torch.ones(32, 4)),
        "hada": {f"{LAYER}.hada_w1_a": torch.ones(32, 4)},
    }
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    bucket = {"ss_bucket_info": '{"mean_img_ar_error": NaN}', "x": '{"a": "\\ud800"}'}
    save_file(tiny_models.make_lora(), folder / "good-nan-metadata.safetensors", bucket)
    (folder / "cut-lora.safetensors").write_bytes(save(tiny_models.make_lora())[:-10])


@pytest.fixture(scope="module")
def own_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "models/Stable-diffusion").mkdir(parents=True)
    (folder / "models/Lora").mkdir()
    write_checkpoints(folder / "models/Stable-diffusion", tiny_models.make_checkpoint())
    write_loras(folder / "models/Lora")
    (folder / "models/VAE").mkdir()
    (folder / "models/VAE/x.pt").write_bytes(b"1")
    (folder / "models/VAE/cut-vae.safetensors").write_bytes(b"2")
    vae = {"encoder.conv_in.weight": torch.ones(1)}
    save_file(vae, folder / "models/VAE/odd.safetensors")
    (folder / "config.json").write_text('{"sd_model_checkpoint": "good"}')
    return folder


@pytest.fixture(scope="module")
def engine(serve, own_dir):
    with serve(own_dir) as client:
        (own_dir / "models/Stable-diffusion/gone.safetensors").unlink()
        yield client


@pytest.fixture(scope="module")
def fresh(engine):
    """The engine's first picture."""
    return engine.picture()


def checkpoint(name, **fields):
    return {"override_settings": {"sd_model_checkpoint": name}} | fields


def lora(name):
    return {"prompt": f"a cat<lora:{name}:1>"}


def cannot_load(name, cause):
    return 500, "RuntimeError", f"cannot load checkpoint '{name}.safetensors': {cause}"


def vae(name):
    return {"override_settings": {"sd_vae": f"{name}.safetensors"}}


def misfit(name, cause, kind="LoRA"):
    return 500, "RuntimeError", f"{kind} '{name}' does not fit checkpoint 'good': {cause}"


LACKS = "the embedded engine does not support "
CUT = "it is cut off, or not a safetensors file"
NO_VAE = "it has no VAE"
DOWN = f"the lora_down.weight of layer '{LAYER}'"
KEPT = {"override_settings_restore_afterwards": False}
FAILING = [
    (checkpoint("empty"), cannot_load("empty", "it is not a checkpoint of Stable Dif")),
    (checkpoint("no-vae"), cannot_load("no-vae", NO_VAE)),
    (checkpoint("no-vae", **KEPT), cannot_load("no-vae", NO_VAE)),
    (checkpoint("cut"), cannot_load("cut", CUT)),
    (checkpoint("gone"), (500, "FileNotFoundError", "")),
    (checkpoint("pix2pix"), (422, "HTTPException", f"{LACKS}instruct-pix2pix checkpoints: 'p")),
    (checkpoint("nan"), (500, "NansException", "A tensor with NaNs was produced in Unet.")),
    (lora("no-rank"), misfit("no-rank", f"{DOWN} has no numbers: shape [0, ")),
    (lora("nan-lora"), misfit("nan-lora", f"{DOWN} holds NaN or infinity")),
    (lora("whole-numbers"), misfit("whole-numbers", f"{DOWN} holds torch.i")),
    (lora("narrow"), misfit("narrow", "its tensors for unet.down_blocks.0.attentions.0.")),
    (lora("hada"), misfit("hada", "its tensors for unet.down_blocks.0.attentions.0.")),
    (lora("cut-lora"), misfit("cut-lora", CUT)),
    ({"override_settings": {"sd_vae": 5}}, (500, "TypeError", "sd_vae must be a text, not 5")),
    ({"override_settings": {"sd_vae": "x.pt"}}, (422, "HTTPException", f"{LACKS}the VAE 'x.pt': ")),
    (vae("cut-vae"), misfit("cut-vae.safetensors", CUT, "VAE")),
    (vae("odd"), misfit("odd.safetensors", "it lacks tensors of the checkpoint's VAE", "VAE")),
    ({"override_settings": {"sd_model_checkpoint": [1]}}, (500, "TypeError", "sd_model_chec")),
    ({"width": 10**9}, (500, "ValueError", "size 1000000000x64 is too large")),
    ({"height": 0}, (500, "ValueError", "size 64x0 is too small")),
    ({"cfg_scale": 1e30}, (500, "NansException", "A tensor with NaNs was produced in Unet.")),
    ({"prompt": "half \ud800"}, (422, "HTTPException", "the request has a value that no JSON")),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), FAILING, ids=lambda v: str(v)[:60])
def test_the_picture_after_a_failed_request_is_that_of_a_fresh_engine(
    engine, fresh, fields, expected
):
    answer = engine.txt2img(**fields)
    body, (status, error, message) = answer.json(), expected
    assert (answer.status_code, body["error"]) == (status, error)
    assert (body["detail"] or body["errors"]).startswith(message)
    assert len(answer.text) < 600
    assert np.array_equal(engine.picture(), fresh)


def test_options_with_unusable_values_change_nothing(engine, fresh):
    for options, status in (
        ({"sd_model_checkpoint": "cut"}, 500),
        ({"sd_model_checkpoint": ["good"]}, 500),
        ({"CLIP_stop_at_last_layers": 10**30}, 500),
        ({"CLIP_stop_at_last_layers": 1.5}, 500),
        ({"emphasis": "x" * 100_000}, 422),
    ):
        answer = engine.post("options", **options)
        assert answer.status_code == status
        assert len(answer.text) < 600
        assert np.array_equal(engine.picture(), fresh)


def test_lora_list_is_an_answer_with_bad_files_in_the_folder(engine, fresh):
    answer = engine.get("loras")
    assert answer.status_code == 200
    listed = {entry["name"]: entry["metadata"] for entry in answer.json()}
    assert listed["good-nan-metadata"]["ss_bucket_info"] == '{"mean_img_ar_error": NaN}'
    assert listed["cut-lora"] == {}
    assert not np.array_equal(engine.picture(**lora("good-nan-metadata")), fresh)


def test_values_without_effect_are_repeated_if_json_can_hold_them(engine):
    nested = 7
    for _ in range(100):
        nested = [nested]
    answer = engine.txt2img(script_args=nested, comments={"a": nested})
    assert answer.json()["parameters"]["script_args"] == nested
    for value in ("[NaN]", '["\\ud800"]'):
        answer = send(engine, "txt2img", f'{{"script_args": {value}}}')
        assert (answer.status_code, answer.json()["error"]) == (422, "HTTPException")
        assert "that no JSON answer can repeat" in answer.json()["detail"]
    for depth in (400, 900, 990):
        body = '{"steps": 1, "width": 64, "height": 64, "script_args": %s}'
        answer = send(engine, "txt2img", body % ("[" * depth + "]" * depth))
        assert answer.status_code in {200, 400, 422}
        assert answer.json().keys() >= {"images"} or len(answer.text) < 1000


# ---------------------------------------------------------------- anything that HTTP can carry

NESTED = "[" * 100_000 + "]" * 100_000
ODD = [
    *("null", "true", "-1", "1e999", "NaN", "9" * 4000, "9" * 5000, '""', '"\\ud800"', "[]", "{}"),
    *("[[[[1]]]]", '{"a": {"b": [NaN]}}', '"' + "x" * 100_000 + '"', "[" * 400 + "]" * 400),
]
BODIES = [
    *("", "{", "null", "[]", "7", '"x"', "\x00", "NaN", "9" * 5000),
    *(NESTED, '{"a":' * 50_000, '{"steps": 1, "steps": "x"}', '{"\\ud800": 1}'),
]


@pytest.fixture(scope="module")
def bare(serve, tmp_path_factory):
    """An engine without checkpoints: a request that would be drawn fails at once, too."""
    with serve(tmp_path_factory.mktemp("bare")) as client:
        yield client


def send(client, path, data, method="POST", kind="application/json"):
    data = data.encode("utf-8", "surrogatepass")
    headers = {"Content-Type": kind}
    return requests.request(method, client.url + path, data=data, headers=headers, timeout=60)


def assert_clear(answer, statuses):
    """A short JSON error without internals."""
    assert answer.status_code in statuses, answer.text[:300]
    assert answer.headers["content-type"] == "application/json"
    json.dumps(answer.json(), allow_nan=False).encode()
    assert len(answer.text) < 3000
    for word in ("Traceback", "site-packages", '.py"'):
        assert word not in answer.text


@pytest.mark.parametrize("value", ODD, ids=lambda text: text[:12])
def test_odd_values_of_every_field(bare, value):
    for field in Txt2Img.model_fields:
        assert_clear(send(bare, "txt2img", f'{{"{field}": {value}}}'), {400, 404, 422, 500})
    for option in ("sd_model_checkpoint", "CLIP_stop_at_last_layers", "sd_vae", "s_noise", "nope"):
        body = f'{{"override_settings": {{"{option}": {value}}}}}'
        assert_clear(send(bare, "txt2img", body), {400, 404, 422, 500})


@pytest.mark.parametrize("path", ["txt2img", "options"])
@pytest.mark.parametrize("body", BODIES, ids=lambda text: repr(text)[:12])
def test_odd_bodies(bare, path, body):
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x"):
        assert_clear(send(bare, path, body, kind=kind), {400, 415, 422, 500})


def test_wrong_methods_and_paths(bare):
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert_clear(send(bare, "txt2img", "{}", method), {405})
    for path in ("loras", "progress", "sd-models"):
        assert_clear(send(bare, path, "{}"), {405})
    for path in ("", "nope", "../x", "%00", "loras%0aINFO", "x" * 5000):
        assert_clear(send(bare, path, "{}"), {404, 405})
    assert bare.get("options").status_code == 200
