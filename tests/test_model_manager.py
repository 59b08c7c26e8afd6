import json
import logging

import pytest
from fakes.a1111.process import write_safetensors

import model_manager
from model_manager import ModelManager
from worker.config.settings import Settings
from worker.errors import InvalidInput, ModelFileInvalid, ModelNotFound
from worker.formats.model_file import file_sha256
from worker.formats.names import clean_stem
from worker.job.request import parse


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "webui" / "models", tmp_path / "store", tmp_path / "baked"


@pytest.fixture
def manager(folders):
    webui, store, baked = folders
    return ModelManager(Settings(webui_dir=webui.parent, models_dir=store, baked_models_dir=baked))


def put(folder, name, kind="Lora", content=b"12345678", **metadata):
    path = folder / kind / name
    write_safetensors(path, content, **metadata)
    return path


def prepare(manager, **job_input):
    return manager.prepare_models_for_request(parse(job_input))


def test_models_are_found_by_file_name_or_stem_and_linked(manager, folders):
    engine, store, baked = folders
    base = put(store, "base.safetensors", "Stable-diffusion")
    detail = put(baked, "detail.safetensors")

    models, new = prepare(manager, checkpoint="base.safetensors", loras=["detail"])

    assert new
    assert models.checkpoint.path == base
    assert (engine / "Stable-diffusion" / "base.safetensors").resolve() == base
    assert (engine / "Lora" / "detail.safetensors").resolve() == detail


def test_a_second_job_links_nothing(manager, folders):
    put(folders[1], "detail.safetensors")

    assert prepare(manager, loras=["detail"])[1] is True
    assert prepare(manager, loras=["detail"])[1] is False


def test_a_checkpoints_yaml_is_linked_with_it(manager, folders):
    base = put(folders[1], "v: pred.safetensors", "Stable-diffusion")
    config = base.with_suffix(".yaml")
    config.write_text("model: {}")

    prepare(manager, checkpoint="v: pred")

    linked = folders[0] / "Stable-diffusion"
    assert (linked / "v_ pred.safetensors").resolve() == base
    assert (linked / "v_ pred.yaml").resolve() == config


def test_a_file_in_the_engines_own_folder_needs_no_link(manager, folders):
    put(folders[0], "own.safetensors")

    models, new = prepare(manager, loras=["own"])

    assert not new
    assert not models.loras[0][0].path.is_symlink()


def test_a_link_that_points_elsewhere_is_replaced_as_the_engine_starts(manager, folders, tmp_path):
    engine, store, _ = folders
    stale = engine / "Lora" / "detail.safetensors"
    stale.parent.mkdir(parents=True)
    stale.symlink_to(tmp_path / "gone.safetensors")
    good = put(store, "detail.safetensors")

    assert manager.link_everything() == 1
    assert stale.resolve() == good
    assert prepare(manager, loras=["detail"])[1] is False


def test_the_writable_store_goes_before_the_baked_one(manager, folders):
    _, store, baked = folders
    mine = put(store, "same.safetensors", content=b"aaaaaaaa")
    put(baked, "same.safetensors", content=b"bbbbbbbb")

    assert prepare(manager, loras=["same"])[0].loras[0][0].path == mine


def test_an_own_file_is_found_by_its_name_and_hash_without_a_network(manager, folders):
    file = put(folders[1], "mine.safetensors", "Stable-diffusion")
    named = {"filename": "mine.safetensors", "sha256": file_sha256(file)}

    assert manager.first_checkpoint(parse({"checkpoint": named})) == "mine"
    assert prepare(manager, checkpoint=named)[0].checkpoint.path == file
    other = {**named, "sha256": "0" * 64}
    assert manager.first_checkpoint(parse({"checkpoint": other})) is None


def test_the_file_name_of_an_object_goes_before_its_display_name(manager, folders):
    file = put(folders[1], "detail_tweaker_xl.safetensors")
    lora = {"name": "Detail Tweaker XL", "filename": "detail_tweaker_xl.safetensors"}

    assert prepare(manager, loras=[lora])[0].loras[0][0].path == file


def test_another_case_is_found_when_it_is_clear(manager, folders):
    put(folders[1], "Detail.safetensors")

    assert prepare(manager, loras=["detail"])[0].loras[0][0].stem == "Detail"


def test_a_tag_in_the_prompt_is_resolved_by_stem_case_and_trained_name(manager, folders):
    put(folders[1], "Detail.safetensors", ss_output_name="tweaker_v2")

    for written in ("Detail", "detail", "tweaker_v2"):
        models, _ = prepare(manager, prompt=f"a <lora:{written}:1>")
        assert models.written_loras[written].stem == "Detail"


def test_an_unknown_model_is_refused_with_near_names(manager, folders):
    put(folders[1], "detail_tweaker.safetensors")

    with pytest.raises(ModelNotFound) as raised:
        prepare(manager, loras=["detial_tweaker"])

    assert str(raised.value) == (
        "MODEL_NOT_FOUND: lora 'detial_tweaker' is not in the model store (1 known)."
        " Did you mean 'detail_tweaker'?"
    )


def test_an_unknown_tag_in_the_prompt_costs_no_generation(manager):
    with pytest.raises(ModelNotFound):
        prepare(manager, prompt="a <lora:nope:1>")


def test_a_name_cannot_leave_the_store(manager, tmp_path):
    write_safetensors(tmp_path / "secret.safetensors")

    for name in ("../../secret.safetensors", "..", "/secret.safetensors"):
        with pytest.raises(InvalidInput):
            prepare(manager, checkpoint=name)


DAMAGED = [
    b"<!DOCTYPE html><html>Login</html>",
    b"",
    b"\x08\x00\x00\x00\x00\x00\x00\x00{}",
    b"\xff" * 64,
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_refused_and_never_linked(manager, folders, content):
    path = put(folders[1], "bad.safetensors", "Stable-diffusion")
    path.write_bytes(content)

    with pytest.raises(ModelFileInvalid, match=r"'bad\.safetensors' cannot be used"):
        prepare(manager, checkpoint="bad")
    assert not (folders[0] / "Stable-diffusion").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("content", DAMAGED)
def test_so_is_what_only_has_a_pickles_name(folders, suffix, content):
    webui, store, baked = folders
    manager = ModelManager(
        Settings(
            webui_dir=webui.parent, models_dir=store, baked_models_dir=baked, allow_pickles=True
        )
    )
    path = store / "Stable-diffusion" / f"bad{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

    for _ in range(2):
        with pytest.raises(ModelFileInvalid, match=r"'bad\.\w+' cannot be used"):
            prepare(manager, checkpoint="bad")
    assert not (folders[0] / "Stable-diffusion").exists()
    path.write_bytes(b"\x80\x02}q\x00.")
    assert prepare(manager, checkpoint="bad")[1]


def test_a_file_that_was_cut_off_is_refused(manager, folders):
    path = put(folders[1], "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ModelFileInvalid):
        prepare(manager, loras=["cut"])


def test_a_repaired_file_is_checked_again(manager, folders):
    path = put(folders[1], "cut.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ModelFileInvalid):
        prepare(manager, loras=["cut"])
    path.write_bytes(whole)

    assert prepare(manager, loras=["cut"])[1]


def test_models_named_in_a1111s_own_way_are_the_same(manager, folders):
    put(folders[1], "base.safetensors", "Stable-diffusion")
    put(folders[1], "v.safetensors", "VAE")
    override = {"sd_model_checkpoint": "base", "sd_vae": "v.safetensors"}

    models, _ = prepare(manager, override_settings=override)

    assert (models.checkpoint.stem, models.vae.stem) == ("base", "v")


def test_the_words_for_no_vae_are_no_files(manager):
    assert prepare(manager, override_settings={"sd_vae": "Automatic"})[0].vae is None


def test_refiner_and_second_pass_checkpoints_must_exist(manager, folders):
    put(folders[1], "fine.safetensors", "Stable-diffusion")
    job = {"refiner_checkpoint": "fine", "refiner_switch_at": 0.8, "hr_checkpoint_name": "fine"}

    models, _ = prepare(manager, **job)

    assert (models.refiner.stem, models.hr_checkpoint.stem) == ("fine", "fine")
    with pytest.raises(ModelNotFound):
        prepare(manager, **job | {"hr_checkpoint_name": "nope"})
    assert prepare(manager, hr_checkpoint_name="Use same checkpoint")[0].hr_checkpoint is None


STEMS = [
    ("a: b ", "a_ b"),
    ("x=<y>,z", "x_y_z"),
    ("../etc", "_etc"),
    (" . ", "model"),
    ("ok", "ok"),
]


@pytest.mark.parametrize(("stem", "clean"), STEMS)
def test_a_stem_can_stand_in_a_tag(stem, clean):
    assert clean_stem(stem) == clean


def test_a_file_with_an_unclean_name_is_linked_under_a_clean_one(manager, folders):
    file = put(folders[1], "style: bold, v2.safetensors")

    models, _ = prepare(manager, loras=["style: bold, v2.safetensors"])

    assert models.loras[0][0].stem == "style_ bold_ v2"
    assert (folders[0] / "Lora" / "style_ bold_ v2.safetensors").resolve() == file


def test_the_prompt_gets_the_tags(manager, folders):
    put(folders[1], "x.safetensors")
    models, _ = prepare(manager, loras=[{"name": "x", "scale": 0.5}])

    assert manager.build_lora_prompt("a cat", models.loras) == "a cat <lora:x:0.5>"


def test_a_bad_tag_is_refused_before_anything_is_linked(manager):
    with pytest.raises(InvalidInput):
        prepare(manager, prompt="<lora:x:bad>")


def test_the_stores_are_counted_once(manager, folders):
    size = put(folders[1], "x.safetensors").stat().st_size
    put(folders[2], "x.safetensors")
    prepare(manager, loras=["x"])

    stats = manager.get_cache_stats()

    assert stats["loras"] == {"count": 1, "total_size": size}
    assert stats["checkpoints"] == {"count": 0, "total_size": 0}


def test_an_engine_that_starts_sees_every_good_file(manager, folders, caplog):
    put(folders[1], "good.safetensors", "Stable-diffusion")
    put(folders[1], "bad.safetensors", "Stable-diffusion").write_bytes(b"<html>")
    caplog.set_level(logging.WARNING, logger="worker")

    assert manager.link_everything() == 1
    assert [p.name for p in (folders[0] / "Stable-diffusion").iterdir()] == ["good.safetensors"]
    assert "'bad.safetensors' cannot be used" in caplog.text


def test_an_odd_file_does_not_keep_the_engine_from_starting(manager, folders, caplog):
    put(folders[1], "good.safetensors")
    put(folders[1], "pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    loop = folders[1] / "Lora" / "loop.safetensors"
    loop.symlink_to(loop)
    caplog.set_level(logging.WARNING, logger="worker")

    assert manager.link_everything() == 1
    assert [p.name for p in (folders[0] / "Lora").iterdir()] == ["good.safetensors"]
    assert "pickle.safetensors: " in caplog.text
    assert "The engine will not see it." in caplog.text


@pytest.fixture
def environment(monkeypatch, folders, tmp_path):
    monkeypatch.setenv("WEBUI_DIR", str(tmp_path / "webui"))
    monkeypatch.setenv("MODELS_DIR", str(folders[1]))
    return monkeypatch


@pytest.mark.usefixtures("environment")
def test_the_command_line_prepares_the_engines_folder(folders, tmp_path):
    put(folders[1], "good.safetensors", "Stable-diffusion")

    assert model_manager.main(["prepare-engine"]) == 0
    assert (folders[0] / "Stable-diffusion" / "good.safetensors").is_symlink()
    assert json.loads((tmp_path / "webui" / "config.json").read_text())["samples_format"] == "png"


@pytest.mark.usefixtures("environment")
def test_the_command_line_counts(folders, capsys):
    put(folders[1], "x.safetensors")

    assert model_manager.main(["stats", "--json"]) == 0
    rows = {row["kind"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["loras"]["count"] == 1


def test_the_command_line_names_a_wrong_setting(monkeypatch, capsys):
    monkeypatch.setenv("ENGINE", "comfy")

    assert model_manager.main(["stats"]) == 78
    assert "ENGINE='comfy'" in capsys.readouterr().err


def test_a_file_that_is_gone_has_no_hash(manager, folders):
    path = put(folders[1], "x.safetensors")
    file = prepare(manager, loras=["x"])[0].loras[0][0]
    path.unlink()

    assert file.sha256() is None
    with pytest.raises(ModelNotFound):
        file.check()
