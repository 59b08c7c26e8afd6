"""LoRAs with the names of other tools: converted once, to the same deltas, and then used."""

import json
import logging
import math
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from fakes import lora_files
from fakes.lora_files import KINDS, OUT, RANK, inner
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from model_manager import ModelManager
from worker.config.settings import Settings
from worker.errors import InternalError, ModelFileInvalid, ModelNotSupported, StoreFull
from worker.formats.model_file import file_sha256
from worker.job.txt2img import parse
from worker.models.convert import converted_loras, lora_rewrite
from worker.tasks.picture_result import models_used

LAYERS = {
    "attention": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "conv": "down_blocks.1.resnets.0.conv1",
    "text": "text_model.encoder.layers.0.mlp.fc1",
}
ORIGINAL = {
    "attention": "input_blocks.4.1.transformer_blocks.0.attn2.to_k",
    "conv": "input_blocks.4.0.in_layers.2",
    "text": LAYERS["text"],
}
ALPHA = 2.0


def old_parts(part):
    return {"lora_down.weight": "lora.down.weight", "lora_up.weight": "lora.up.weight"}.get(
        part, part
    )


def peft_parts(part):
    return {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}.get(part, part)


def diffusers(layer):
    return f"{'text_encoder' if layer == 'text' else 'unet'}.{LAYERS[layer]}"


NAMINGS = {
    "diffusers": (diffusers, old_parts),
    "peft": (diffusers, peft_parts),
    "ComfyUI": (lambda layer: ("text_encoders.clip_l.transformer." if layer == "text" else
                               "diffusion_model.") + ORIGINAL[layer], str),
    "OneTrainer": (lambda layer: ("clip_l." if layer == "text" else "unet.") + ORIGINAL[layer],
                   str),
    "LyCORIS": (lambda layer: f"lycoris_{LAYERS[layer].replace('.', '_')}", str),
}  # fmt: skip


def tensors(naming, kind, *, alpha=ALPHA, layers=LAYERS):
    name, part_name = NAMINGS[naming]
    found = {}
    for layer in layers:
        for part, value in KINDS[kind][0](inner("SD1", layer)).items():
            found[f"{name(layer)}.{part_name(part)}"] = value
        if alpha:
            found[f"{name(layer)}.alpha"] = np.array(alpha, np.float32)
    return found


@pytest.fixture
def new_manager(folders):
    engine, store, baked = folders
    settings = Settings(
        engine="a1111", webui_dir=engine.parent, models_dir=store, baked_models_dir=baked
    )
    return lambda: ModelManager(settings)


@pytest.fixture
def manager(new_manager):
    return new_manager()


@pytest.fixture
def put(folders):
    def write(state, name="fox", metadata=None, folder=None):
        path = (folder or folders[1]) / "Lora" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, path, metadata)
        return path

    return write


def used(manager, name="fox", **more):
    """The file that the engine gets for the LoRA."""
    models, _ = manager.prepare_models_for_request(parse({"loras": [name], **more}))
    manager.release(models)
    return models.loras[0][0]


def conversions(caplog):
    return sum(record.message.startswith("converted LoRA") for record in caplog.records)


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_each_naming_and_kind_gives_the_formulas_deltas(manager, put, naming, kind):
    _, value, has_alpha = KINDS[kind]
    source = put(tensors(naming, kind))
    file = used(manager)
    assert (file.stem, file.source) == ("fox", None)
    is_told = naming != "peft" or any(".lora_A." in key for key in load_file(source))
    assert file.converted_from.naming == (naming if is_told else "diffusers")
    assert file.converted_from.sha256 == file_sha256(source)
    written = load_file(file.path)
    assert {key.partition(".")[0] for key in written} == {
        lora_files.LAYERS["SD1"][layer][2][0] for layer in LAYERS
    }
    for layer in LAYERS:
        shape, name = inner("SD1", layer), lora_files.LAYERS["SD1"][layer][2][0]
        parts = {k.partition(".")[2]: v for k, v in written.items() if k.startswith(f"{name}.")}
        scale = float(parts.pop("alpha")) / RANK if has_alpha else 1.0
        expected = value(KINDS[kind][0](shape), shape) * (ALPHA / RANK if has_alpha else 1.0)
        assert np.array_equal(value(parts, shape) * scale, expected)
        assert expected.shape == (OUT, math.prod(shape))


def test_it_is_converted_once_and_used_by_lists_and_tags_under_its_own_name(
    manager, new_manager, put, folders, caplog
):
    source = put(tensors("peft", "LoRA"))
    assert manager.link_everything() == 0  # the source would do nothing in the engine
    first = used(manager)
    link = folders[0] / "Lora" / "fox.safetensors"
    assert link.resolve() == first.path != source
    assert used(new_manager()) == first
    models, is_new = manager.prepare_models_for_request(parse({"prompt": "a <lora:fox:0.5>"}))
    assert (models.written_loras["fox"], is_new) == (first, False)
    assert conversions(caplog) == 1
    (row,) = models_used({"extra_generation_params": {"Lora hashes": "fox: 0"}}, models)[1:]
    assert row.sha256 == file_sha256(first.path) != row.converted_from.sha256
    assert (row.name, row.source, row.converted_from.naming) == ("fox", "job", "peft")
    assert [file.path for file in manager.store.files("lora")] == [source]
    assert new_manager().link_everything() == 1


@pytest.mark.parametrize(
    ("kind", "multiplied"),
    [("LoRA", "lora_up.weight"), ("LoHa", "hada_w1_a"), ("LoKr", "lokr_w2_a")],
)
@pytest.mark.parametrize("naming", ["kohya", "LyCORIS"])
def test_a_doras_alpha_becomes_a_part_of_its_factors(manager, put, naming, kind, multiplied):
    """A1111 multiplies by alpha / rank after it has normalised, its trainers do before that."""
    old, new = NAMINGS["LyCORIS"][0]("attention"), lora_files.ATTENTION_NAMES[0]
    old = new if naming == "kohya" else old
    scale = {f"{old}.dora_scale": np.ones((1, inner("SD1", "attention")[0]), np.float16)}
    source = tensors("LyCORIS", kind, layers=["attention"])
    source = {f"{old}.{name.partition('.')[2]}": value for name, value in source.items()}
    put(source | scale)
    made = load_file(used(manager).path)
    expected = source[f"{old}.{multiplied}"].astype(np.float32) * np.float32(ALPHA / RANK)
    assert np.array_equal(made[f"{new}.{multiplied}"], expected)
    assert made.keys() == {f"{new}.{name.partition('.')[2]}" for name in source | scale} - {
        f"{new}.alpha"
    }
    assert not manager.converted.needs(used(manager))
    put({**source, **scale, f"{old}.alpha": np.array(RANK, np.float32)})
    assert f"{new}.alpha" in load_file(used(manager).path)


def test_two_workers_of_one_volume_convert_it_once(new_manager, put, caplog, monkeypatch):
    put(tensors("peft", "LoRA"))
    both, make = threading.Barrier(2), converted_loras.ConvertedLoras._make

    def slow(*args):
        while both.n_waiting == 0 and not both.broken:
            threading.Event().wait(0.01)
        both.wait()
        make(*args)

    class Second(threading.Thread):
        def run(self):
            manager = new_manager()
            both.wait()
            self.file = used(manager)

    monkeypatch.setattr(converted_loras.ConvertedLoras, "_make", slow)
    second = Second()
    second.start()
    first = used(new_manager())
    second.join()
    assert second.file == first
    assert conversions(caplog) == 1


@pytest.mark.parametrize("lost", ["note", "damaged note", "blob", "damaged blob"])
def test_what_is_lost_is_made_again_with_the_same_bytes(new_manager, put, folders, caplog, lost):
    put(tensors("peft", "LoRA"))
    first = used(new_manager())
    content = first.path.read_bytes()
    (note,) = (folders[1] / "fetched" / "converted").glob("*.json")
    manager = new_manager()
    if "note" in lost:
        note.write_text('["') if "damaged" in lost else note.unlink()
    elif lost == "blob":
        manager.store.fetched.remove(manager.store.fetched.find(first.verified_sha256))
    else:
        first.path.write_bytes(content[:-9])
    assert used(manager) == first
    assert first.path.read_bytes() == content
    assert conversions(caplog) == 2


def test_a_replaced_source_is_converted_again(manager, put, caplog):
    put(tensors("peft", "LoRA"))
    first = used(manager)
    put(tensors("diffusers", "LoHa"))
    second = used(manager)
    assert second.verified_sha256 != first.verified_sha256
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a" in load_file(second.path)
    assert conversions(caplog) == 2


def test_an_operators_read_only_folder_stays_as_it_is(manager, put, folders):
    source = put(tensors("peft", "LoRA"), folder=folders[2])
    for folder in (source.parent, folders[2]):
        folder.chmod(0o555)
    file = used(manager)
    assert file.path.is_relative_to(folders[1])
    assert [path for path in folders[2].rglob("*") if path.is_file()] == [source]


def test_a_file_in_the_engines_own_folder_is_never_overwritten(manager, put, folders):
    source = put(tensors("peft", "LoRA"), folder=folders[0])
    content = source.read_bytes()
    file = used(manager)
    assert file.stem.startswith("fox-")
    assert source.read_bytes() == content
    assert not source.is_symlink()


def test_the_embedded_engine_gets_the_source(folders, put):
    source = put(tensors("peft", "LoRA"))
    settings = Settings(webui_dir=folders[0].parent, models_dir=folders[1])
    assert used(ModelManager(settings)).path == source


def test_training_words_stay_and_what_strict_json_cannot_hold_does_not(manager, put):
    kept = {"ss_output_name": "tweaker", "ss_tag_frequency": '{"a": {"fox": 3}}', "odd": "{no json"}
    lost = {
        "ss_bucket_info": '{"mean_img_ar_error": NaN}',
        "half": '{"a": "\\ud800"}',
        "huge": '{"a": 1e999}',
        "sshs_model_hash": "0" * 64,
        "lora_adapter_metadata": '{"unet.lora_alpha": 8}',
    }
    source = put(tensors("peft", "LoRA", alpha=None), metadata=kept | lost)
    file = used(manager)
    with safe_open(file.path, framework="numpy") as opened:
        metadata = opened.metadata()
        alphas = [opened.get_tensor(key) for key in opened.keys() if key.endswith(".alpha")]  # noqa: SIM118
    origin = json.loads(metadata.pop(converted_loras.METADATA))
    assert (origin["converted_from"], origin["naming"]) == (file_sha256(source), "peft")
    assert metadata == kept
    assert alphas == [8.0, 8.0]  # of the UNet; the text encoder has none, so its scale is 1


def test_a_lora_whose_only_fault_is_its_metadata_is_used_without_them(manager, put, folders):
    bad = {"ss_bucket_info": '{"mean_img_ar_error": NaN}', "ss_output_name": "fox"}
    put(tensors("peft", "LoRA"), name="other")
    source = put(load_file(used(manager, "other").path), metadata=bad)
    file = used(manager)
    assert (file.stem, file.converted_from.naming) == ("fox", "kohya")
    assert (folders[0] / "Lora/fox.safetensors").resolve() == file.path
    with safe_open(file.path, framework="numpy") as opened:
        assert opened.metadata().keys() == {"ss_output_name", converted_loras.METADATA}
    one, other = load_file(file.path), load_file(source)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


EMBEDDINGS = "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding"
REWRITE = lora_rewrite.rewrite


@pytest.mark.parametrize("value", [0, 1])
def test_a_layer_that_a1111_cannot_apply_must_change_nothing(manager, put, value):
    more = {f"{EMBEDDINGS}.lora_up.weight": np.full((9, RANK), value, np.float16)}
    more[f"{EMBEDDINGS}.lora_down.weight"] = np.ones((RANK, 8), np.float16)
    put(tensors("ComfyUI", "LoRA") | more)
    if value:
        with pytest.raises(ModelNotSupported, match="token_embedding"):
            used(manager)
    else:
        assert not any("embedding" in key for key in load_file(used(manager).path))


def other_strength(file, layer, alpha):
    return 1.0 if alpha is None or alpha.startswith("lora_") else layer.scale(file.number(alpha))


def other_byte(source, renaming, target, added):
    REWRITE(source, renaming, target, added)
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)


def other_list(source, renaming, target, added):
    keys = dict(list(renaming.keys.items())[:-1])
    REWRITE(source, replace(renaming, keys=keys), target, added)


FAULTS = [
    (lora_rewrite, "rewrite", other_byte, "the values of"),
    (lora_rewrite, "rewrite", other_list, "the list of its tensors"),
    (lora_rewrite, "_strength", other_strength, "the delta of the layer"),
]


@pytest.mark.parametrize(("module", "name", "wrong", "message"), FAULTS)
def test_a_conversion_that_is_not_the_same_lora_is_never_published(
    manager, put, folders, monkeypatch, module, name, wrong, message
):
    put(tensors("peft", "LoRA"))
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(InternalError, match=message):
        used(manager)
    assert [path for path in folders[1].rglob("*") if path.suffix in {".part", ".json"}] == []
    assert not list((folders[1] / "fetched").rglob("*.safetensors"))


def test_the_size_of_the_blocks_does_not_matter(new_manager, put, folders, monkeypatch):
    put(tensors("peft", "LoRA"))
    content = used(new_manager()).path.read_bytes()
    shutil.rmtree(folders[1] / "fetched")
    monkeypatch.setattr(lora_rewrite, "_BLOCK", 7)
    assert used(new_manager()).path.read_bytes() == content


def test_numbers_that_cannot_be_compared_and_a_source_with_nan_are_refused(manager, put, folders):
    state = tensors("peft", "LoRA")
    key = next(key for key in state if "lora_A" in key)
    put({**state, key: np.full_like(state[key], np.nan)})
    with pytest.raises(ModelFileInvalid, match="NaN"):
        used(manager)
    put({**state, key: state[key].astype(np.int8)}, "whole")
    with pytest.raises(ModelNotSupported, match="type I8"):
        used(manager, "whole")
    assert not list((folders[1] / "fetched").rglob("*.part"))


def test_a_full_disk_is_an_error_and_leaves_nothing(manager, put, folders, monkeypatch):
    put(tensors("peft", "LoRA"))
    full = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(StoreFull):
        used(manager)
    assert not list((folders[1] / "fetched").rglob("*.part"))
