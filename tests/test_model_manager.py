"""The models of jobs that are in the store: found, checked, linked, and shown to the engine."""

import json
import logging

import pytest
from fakes.a1111.process import write_safetensors

import model_manager
from model_manager import ModelManager
from worker.config.settings import Settings
from worker.errors import InvalidInput, ModelFileInvalid, ModelNotFound
from worker.formats.model_file import file_sha256
from worker.job.request import parse

CHECKPOINTS = "Stable-diffusion"


@pytest.fixture
def folders(tmp_path):
    """Of the engine, of the writable store and of the baked one."""
    return tmp_path / "webui" / "models", tmp_path / "store", tmp_path / "baked"


@pytest.fixture
def new_manager(folders):
    engine, store, baked = folders
    return lambda **more: ModelManager(
        Settings(webui_dir=engine.parent, models_dir=store, baked_models_dir=baked, **more)
    )


@pytest.fixture
def manager(new_manager):
    return new_manager()


def put(folder, name, kind="Lora", content=b"12345678", **metadata):
    path = folder / kind / name
    write_safetensors(path, content, **metadata)
    return path


def prepare(manager, **job_input):
    return manager.prepare_models_for_request(parse(job_input))


def only_lora(manager, lora, **job_input):
    return prepare(manager, loras=[lora], **job_input)[0].loras[0][0]


def test_models_are_found_by_file_name_or_stem_and_linked_once(manager, folders):
    """A file in the engine's own folder needs no link."""
    engine, store, baked = folders
    base = put(store, "base.safetensors", CHECKPOINTS)
    detail = put(baked, "detail.safetensors")
    models, new = prepare(manager, checkpoint="base.safetensors", loras=["detail"])
    assert new
    assert models.checkpoint.path == base
    assert (engine / CHECKPOINTS / "base.safetensors").resolve() == base
    assert (engine / "Lora" / "detail.safetensors").resolve() == detail
    assert not prepare(manager, checkpoint="base.safetensors", loras=["detail"])[1]
    own = put(engine, "own.safetensors")
    models, new = prepare(manager, loras=["own"])
    assert (models.loras[0][0].path, new, own.is_symlink()) == (own, False, False)


def test_a_file_with_an_unclean_name_is_linked_and_tagged_under_a_clean_one(manager, folders):
    base = put(folders[1], "v: pred.safetensors", CHECKPOINTS)
    config = base.with_suffix(".yaml")
    config.write_text("model: {}")
    file = put(folders[1], "style: bold, v2.safetensors")
    loras = [{"name": "style: bold, v2.safetensors", "scale": 0.5}]
    models, _ = prepare(manager, checkpoint="v: pred", loras=loras)
    assert models.loras[0][0].stem == "style_ bold_ v2"
    links = {"Lora/style_ bold_ v2.safetensors": file}
    links |= {f"{CHECKPOINTS}/v_ pred{path.suffix}": path for path in (base, config)}
    for link, path in links.items():
        assert (folders[0] / link).resolve() == path
    prompt = manager.build_lora_prompt("a cat", models.loras)
    assert prompt == "a cat <lora:style_ bold_ v2:0.5>"


def test_the_writable_store_comes_before_the_baked_one_and_counts_once(manager, folders):
    mine = put(folders[1], "same.safetensors", content=b"aaaaaaaa")
    put(folders[2], "same.safetensors", content=b"bbbbbbbb")
    assert only_lora(manager, "same").path == mine
    stats = manager.get_cache_stats()
    assert stats["loras"] == {"count": 1, "total_size": mine.stat().st_size}
    assert stats["checkpoints"] == {"count": 0, "total_size": 0}


def test_an_operators_file_is_found_by_its_name_and_hash_without_a_network(manager, folders):
    file = put(folders[1], "mine.safetensors", CHECKPOINTS)
    named = {"filename": "mine.safetensors", "sha256": file_sha256(file)}
    assert manager.first_checkpoint(parse({"checkpoint": named})) == "mine"
    assert prepare(manager, checkpoint=named)[0].checkpoint.path == file
    put(folders[1], "bad.safetensors", CHECKPOINTS).write_bytes(b"<html>")
    for unusable in ({**named, "sha256": "0" * 64}, "gone", "bad"):
        assert manager.first_checkpoint(parse({"checkpoint": unusable})) is None
    assert manager.first_checkpoint(parse({})) is None


@pytest.mark.parametrize(
    "lora",
    ["Detail_XL.safetensors", "detail_xl", {"name": "Shown", "filename": "Detail_XL.safetensors"}],
)
def test_a_lora_is_found_by_its_file_name_in_any_case_if_that_is_unique(manager, folders, lora):
    path = put(folders[1], "Detail_XL.safetensors")
    file = only_lora(manager, lora)
    assert file.path == path
    path.unlink()
    assert file.sha256() is None
    with pytest.raises(ModelNotFound):
        file.check()


def test_a_tag_in_the_prompt_is_resolved_by_stem_case_and_trained_name(manager, folders):
    put(folders[1], "Detail.safetensors", ss_output_name="tweaker_v2")
    put(folders[1], "Zbad.safetensors").write_bytes(b"<html>")
    for written in ("Detail", "detail", "tweaker_v2"):
        models, _ = prepare(manager, prompt=f"a <lora:{written}:1>")
        assert models.written_loras[written].stem == "Detail"
    assert not prepare(manager, prompt="a <lora:x:1>", disable_extra_networks=True)[1]


def test_an_unknown_model_is_rejected_with_similar_names(manager, folders):
    put(folders[1], "detail_tweaker.safetensors")
    with pytest.raises(ModelNotFound) as raised:
        prepare(manager, loras=["detial_tweaker"])
    assert str(raised.value) == (
        "MODEL_NOT_FOUND: lora 'detial_tweaker' is not in the model store (1 known)."
        " Did you mean 'detail_tweaker'?"
    )
    with pytest.raises(ModelNotFound) as raised:
        prepare(manager, prompt="a <lora:nope:1>")
    assert "Put the file into Lora/ of MODELS_DIR" in str(raised.value)


def test_a_whole_path_means_the_file_of_that_name_in_the_store(manager, folders, tmp_path):
    write_safetensors(tmp_path / "secret.safetensors")
    with pytest.raises(ModelNotFound):
        prepare(manager, checkpoint=str(tmp_path / "secret.safetensors"))
    put(folders[1], "base.safetensors", CHECKPOINTS)
    found = prepare(manager, checkpoint="/runpod-volume/models/Stable-diffusion/base.safetensors")
    assert found[0].checkpoint.stem == "base"


@pytest.mark.parametrize(
    "job",
    [{"checkpoint": name} for name in ("../../secret.safetensors", "..", "/../secret.ini")]
    + [{"prompt": "<lora:x:bad>"}],
)
def test_a_name_cannot_leave_the_store_and_a_tag_must_be_right(manager, tmp_path, job):
    write_safetensors(tmp_path / "secret.safetensors")
    with pytest.raises(InvalidInput):
        prepare(manager, **job)


DAMAGED = [
    b"<!DOCTYPE html><html>Login</html>",
    b"",
    b"\x08\x00\x00\x00\x00\x00\x00\x00{}",
    b"\xff" * 64,
]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".bin"])
@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_rejected_and_never_linked_until_it_is_repaired(
    new_manager, folders, suffix, content
):
    manager = new_manager(allow_pickles=True)
    path = put(folders[1], f"bad{suffix}", CHECKPOINTS)
    whole = path.read_bytes() if suffix == ".safetensors" else b"\x80\x02}q\x00."
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(ModelFileInvalid, match=r"'bad\.\w+' cannot be used"):
            prepare(manager, checkpoint="bad")
    assert not (folders[0] / CHECKPOINTS).exists()
    path.write_bytes(whole)
    assert prepare(manager, checkpoint="bad")[1]


def test_the_models_of_every_field_are_found_and_must_exist(manager, folders):
    for name, kind in (("base", CHECKPOINTS), ("fine", CHECKPOINTS), ("v", "VAE")):
        put(folders[1], f"{name}.safetensors", kind)
    override = {"sd_model_checkpoint": "base", "sd_vae": "v.safetensors"}
    job = {"refiner_checkpoint": "fine", "refiner_switch_at": 0.8, "hr_checkpoint_name": "fine"}
    job |= {"enable_hr": True, "denoising_strength": 0.5}
    models, _ = prepare(manager, override_settings=override, **job)
    assert (models.checkpoint.stem, models.vae.stem) == ("base", "v")
    assert (models.refiner.stem, models.hr_checkpoint.stem) == ("fine", "fine")
    with pytest.raises(ModelNotFound):
        prepare(manager, **job | {"hr_checkpoint_name": "nope"})
    assert prepare(manager, hr_checkpoint_name="Use same checkpoint")[0].hr_checkpoint is None
    assert prepare(manager, override_settings={"sd_vae": "Automatic"})[0].vae is None


def test_the_engine_starts_with_every_good_file_and_the_others_are_logged(manager, folders, caplog):
    good = put(folders[1], "good.safetensors")
    put(folders[1], "bad.safetensors").write_bytes(b"<html>")
    put(folders[1], "pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    loop = folders[1] / "Lora" / "loop.safetensors"
    loop.symlink_to(loop)
    stale = folders[0] / "Lora" / "good.safetensors"
    stale.parent.mkdir(parents=True)
    stale.symlink_to(folders[2] / "gone.safetensors")
    caplog.set_level(logging.WARNING, logger="worker")
    assert manager.link_everything() == 1
    assert stale.resolve() == good
    assert not prepare(manager, loras=["good"])[1]
    assert [p.name for p in (folders[0] / "Lora").iterdir()] == ["good.safetensors"]
    assert "'bad.safetensors' cannot be used" in caplog.text
    assert "pickle.safetensors: " in caplog.text
    assert "The engine will not see it." in caplog.text


def test_the_command_line_prepares_the_engines_folder(folders, monkeypatch):
    monkeypatch.setenv("WEBUI_DIR", str(folders[0].parent))
    monkeypatch.setenv("MODELS_DIR", str(folders[1]))
    put(folders[1], "good.safetensors", CHECKPOINTS)
    assert model_manager.main(["prepare-engine"]) == 0
    assert (folders[0] / CHECKPOINTS / "good.safetensors").is_symlink()
    config = json.loads((folders[0].parent / "config.json").read_text())
    assert config["samples_format"] == "png"
