"""The models of jobs that are in the store: found, checked, linked, and shown to the engine."""

import errno
import json
import logging
import os
import threading

import pytest
from fakes import model_files
from fakes.a1111.process import write_safetensors
from fakes.model_files import safetensors
from fakes.model_files import sha256 as sha256_of
from fakes.model_store import add

import model_manager
from model_manager import ModelManager
from worker.config.settings import Settings
from worker.errors import InvalidInput, ModelFileInvalid, ModelNotFound
from worker.formats.model_file import file_sha256
from worker.job.txt2img import parse

CHECKPOINTS = "Stable-diffusion"
HTML_REASON = "'bad.safetensors' cannot be used: the file is a web page, not a model: '<html>'."


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
    assert (models.loras[0][0].path, new, own.is_symlink()) == (own, True, False)
    assert not prepare(manager, loras=["own"])[1]


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
    assert "pickle.safetensors' is left out: the file is a PyTorch pickle" in caplog.text
    assert len(caplog.records) == 2, "one line for each, however often it is looked at"


def test_a_file_is_not_left_out_if_no_descriptor_is_left_for_it(manager, folders, monkeypatch):
    put(folders[1], "good.safetensors")

    def exhausted(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("worker.formats.model_file.open_regular", exhausted)
        with pytest.raises(OSError, match="Too many open files"):
            manager.link_everything()
    assert manager.own.health() == []
    assert manager.link_everything() == 1


def embedding(folders, name, number, root=1):
    path = folders[root] / "embeddings" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors(model_files.EMBEDDING, number=number))
    return path


def fetched(manager, number, stem="style", kind="embedding", **fields):
    """A fetched file; a second one of the same stem gets a mark. Returns its hash."""
    shapes = {"embedding": model_files.EMBEDDING, "lora": model_files.LORA, "vae": model_files.VAE}
    data = safetensors(shapes[kind], number=number)
    return add(manager.store.fetched, data, stem, kind, name=stem, **fields).sha256


def turn(manager, **job_input):
    """Prepare a job and let it be its turn; returns stem -> content of the embeddings then."""
    models, _ = prepare(manager, **job_input)
    manager.arrange_embeddings(models)
    manager.arrange_vaes(models)
    manager.release(models)
    return seen(manager)


def seen(manager):
    folder = manager.store.engine_folders["embedding"]
    return {path.stem: path.read_bytes() for path in folder.glob("*")}


def test_an_embedding_is_seen_by_its_own_job_only(manager, folders):
    ours = embedding(folders, "own.safetensors", 1)
    sha256 = fetched(manager, 2)
    for _ in range(2):
        assert turn(manager, prompt="a fox") == {"own": ours.read_bytes()}
        assert turn(manager, embeddings=[f"sha256:{sha256}"]).keys() == {"own", "style"}
    assert manager.link_everything() == 1, "the engine starts without it, too"
    assert seen(manager).keys() == {"own"}


def test_the_engine_reads_its_embeddings_again_only_if_they_have_changed(manager):
    job = {"embeddings": [f"sha256:{fetched(manager, 2)}"]}
    models = [prepare(manager, **one)[0] for one in ({}, job, job, {}, {})]
    assert [manager.arrange_embeddings(one) for one in models] == [False, True, False, True, False]


def test_two_embeddings_of_one_file_name_act_each_in_its_own_job(manager):
    hashes = [fetched(manager, number) for number in (1, 2)]
    contents = [turn(manager, embeddings=[f"sha256:{one}"])["style"] for one in hashes]
    assert contents == [safetensors(model_files.EMBEDDING, number=number) for number in (1, 2)]


NAMES = [
    ({}, "a style", {"style"}),
    ({"name": "My Look"}, "in my look", {"My Look"}),
    ({"filename": "look.safetensors"}, "in (look:1.2)", {"look"}),
    ({"filename": "look.safetensors", "name": "Shown"}, "shown", {"Shown"}),
    ({"name": "A Display Name"}, "a style", {"style"}),
    ({"name": "Unused"}, "a fox", {"Unused"}),
]


@pytest.mark.parametrize(("fields", "prompt", "names"), NAMES)
def test_an_embedding_has_the_name_by_which_the_job_uses_it(manager, fields, prompt, names):
    """Whatever name it was stored under, and whatever earlier jobs called it."""
    ref = {"sha256": fetched(manager, 1), "name": "style"}
    turn(manager, prompt="earlier", embeddings=[ref | {"name": "earlier"}])
    assert turn(manager, prompt=prompt, embeddings=[ref | fields]).keys() == names


def test_two_embeddings_of_one_job_need_two_names(manager):
    one, two = ({"sha256": fetched(manager, number)} for number in (1, 2))
    with pytest.raises(InvalidInput, match="two embeddings of the job are named 'style'"):
        prepare(manager, embeddings=[one | {"filename": "Style.safetensors"}, two])
    job = {"prompt": "style and other", "embeddings": [one, two | {"name": "other"}]}
    assert turn(manager, **job).keys() == {"style", "other"}
    assert turn(manager, embeddings=[one, one]).keys() == {"style"}


def test_the_jobs_embedding_replaces_the_operators_of_that_name_for_its_job(manager, folders):
    ours = embedding(folders, "STYLE.safetensors", 1)
    job = {"embeddings": [f"sha256:{fetched(manager, 2)}"]}
    for _ in range(2):
        assert turn(manager) == {"STYLE": ours.read_bytes()}
        assert turn(manager, **job) == {"style": safetensors(model_files.EMBEDDING, number=2)}
    turn(manager)
    embedding((folders[0].parent, *folders[1:]), "style.safetensors", 3, root=0)
    with pytest.raises(InvalidInput, match="engine's own folder is named 'style'"):
        prepare(manager, **job)
    assert turn(manager, embeddings=["style"])["style"] == safetensors(
        model_files.EMBEDDING, number=3
    )


def test_the_operators_embedding_acts_as_soon_as_it_lies_there(manager, folders, caplog):
    assert turn(manager) == {}
    good = embedding(folders, "good.safetensors", 1)
    embedding(folders, "bad.safetensors", 1).write_bytes(b"<html>")
    for _ in range(2):
        assert turn(manager) == {"good": good.read_bytes()}
    assert manager.health()["left_out"] == [
        {"file": "embeddings/bad.safetensors", "reason": HTML_REASON}
    ]
    assert len([one for one in caplog.records if "bad.safetensors" in one.getMessage()]) == 1
    good.unlink()
    embedding(folders, "bad.safetensors", 2)
    assert turn(manager).keys() == {"bad"}
    assert manager.health()["left_out"] == []


def test_a_fetched_vae_is_seen_by_its_own_job_only(manager, folders):
    """A1111 uses any VAE whose name begins with the checkpoint's."""
    sha256 = fetched(manager, 1, "base_vae", "vae")
    put(folders[1], "own.safetensors", "VAE").write_bytes(safetensors(model_files.VAE, number=2))
    folder = folders[0] / "VAE"
    for job, names in (
        ({}, {"own"}),
        ({"vae": f"sha256:{sha256}"}, {"own", "base_vae"}),
        ({}, {"own"}),
    ):
        turn(manager, **job)
        assert {path.stem for path in folder.iterdir()} == names


def test_a_file_that_was_good_and_turned_bad_is_hidden_again(manager, folders):
    """Else the engine could not list its LoRAs, which every job needs."""
    path = put(folders[1], "detail.safetensors")
    assert only_lora(manager, "detail").path == path
    path.write_bytes(b"<html>")
    with pytest.raises(ModelFileInvalid):
        only_lora(manager, "detail")
    assert list((folders[0] / "Lora").iterdir()) == []
    assert [one["file"] for one in manager.health()["left_out"]] == ["Lora/detail.safetensors"]


def test_the_workers_process_knows_what_was_left_out_before_the_start(new_manager, folders, caplog):
    put(folders[1], "bad.safetensors").write_bytes(b"<html>")
    new_manager().link_everything()
    assert new_manager().health()["left_out"] == [
        {"file": "Lora/bad.safetensors", "reason": HTML_REASON}
    ]
    prepare(new_manager())
    assert len(caplog.records) == 1


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff" * 64, None])
@pytest.mark.parametrize(
    "name", ["a.safetensors", "\udcff.safetensors", "x\n2026 INFO.safetensors"]
)
def test_no_file_of_the_operator_stops_the_start(manager, folders, content, name):
    good = put(folders[1], "good.safetensors")
    bad = put(folders[1], name)
    if content is None:
        bad.unlink()
        os.mkfifo(bad)
    else:
        bad.write_bytes(content)
    assert manager.link_everything() == 1
    assert only_lora(manager, "good").path == good
    json.dumps(manager.health()).encode()


def test_a_tag_never_means_a_file_that_was_fetched_for_another_job(manager):
    """Both were named detail.safetensors at their hosts; the second was stored with a mark."""
    hashes = [fetched(manager, number, "detail", "lora") for number in (1, 2)]
    for sha256 in hashes:
        ref = {"sha256": sha256}
        models, _ = prepare(manager, prompt="a <lora:detail:1>", loras=[ref])
        assert models.written_loras["detail"].verified_sha256 == sha256
        models, _ = prepare(manager, prompt="a <lora:Mine:1>", loras=[ref | {"name": "mine"}])
        assert models.written_loras["Mine"].verified_sha256 == sha256
    both = [{"sha256": one} for one in hashes]
    models, _ = prepare(manager, prompt="a fox", loras=both)
    assert [file.verified_sha256 for file, _ in models.loras] == hashes
    with pytest.raises(InvalidInput, match="two LoRAs of the job are named 'detail'"):
        prepare(manager, prompt="a <lora:detail:1>", loras=both)


def test_a_name_from_training_means_a_lora_only_if_it_is_the_only_one(manager, folders):
    put(folders[1], "one.safetensors", ss_output_name="trained")
    assert prepare(manager, prompt="<lora:trained:1>")[0].written_loras["trained"].stem == "one"
    put(folders[1], "two.safetensors", ss_output_name="trained")
    with pytest.raises(ModelNotFound):
        prepare(manager, prompt="<lora:trained:1>")
    trained = put(folders[1], "trained.safetensors", ss_output_name="one")
    assert only_lora(manager, "trained").path == trained


def test_a_title_with_folders_comes_before_hugging_face(manager, folders):
    file = put(folders[1], "SDXL/photo/fourth.safetensors", CHECKPOINTS)
    for title in ("SDXL/photo/fourth.safetensors", "SDXL/photo/fourth.safetensors [0123456789]"):
        for job in ({"checkpoint": title}, {"override_settings": {"sd_model_checkpoint": title}}):
            models, _ = prepare(manager, **job)
            assert (models.checkpoint.path, models.checkpoint.stem) == (file, "fourth")


def test_the_engines_default_checkpoint_is_never_evicted(manager, folders):
    data = {name: safetensors(model_files.SD1, number=n) for n, name in enumerate("bac")}
    for name, content in data.items():
        add(manager.store.fetched, content, name, "checkpoint")
    manager.link_everything()
    manager.release(prepare(manager)[0])
    assert manager.space.pinned == {sha256_of(data["a"])}, "without a setting it is the first"
    (folders[0].parent / "config.json").write_text('{"sd_model_checkpoint": "c [0123456789]"}')
    manager.release(prepare(manager)[0])
    assert manager.space.pinned == {sha256_of(data["c"])}
    manager.release(prepare(manager, checkpoint="b")[0], was_loaded=False)
    assert manager.space.pinned == {sha256_of(data["c"])}, "it was only prefetched"


def test_a_job_ends_while_the_folders_of_another_one_do_not_answer(manager, folders):
    put(folders[1], "base.safetensors", "Stable-diffusion")
    models, _ = prepare(manager, checkpoint="base")
    with manager._lock:  # as a thread that waits for a file under it
        ending = threading.Thread(target=manager.release, args=[models], daemon=True)
        ending.start()
        ending.join(30)
        assert not ending.is_alive()


def test_a_replaced_file_of_the_operator_is_reported_once(manager, folders):
    for kind in ("Lora", CHECKPOINTS):
        put(folders[1], "mine.safetensors", kind)
    manager.link_everything()
    job = {"loras": ["mine"]}
    prepare(manager, **job)
    assert manager.take_replaced() == set()
    for kind in ("Lora", CHECKPOINTS):  # the checkpoint is the engine's default
        put(folders[1], "mine.safetensors", kind, content=b"other content")
    assert prepare(manager, **job)[1]
    assert manager.take_replaced() == {"lora", "checkpoint"}
    assert manager.take_replaced() == set()


def test_no_error_names_the_target_of_a_link(manager, folders, tmp_path):
    secret = tmp_path / "secret-name"
    secret.write_bytes(b"<html>")
    link = folders[1] / "Lora" / "mine.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(secret)
    with pytest.raises(ModelFileInvalid, match="'mine") as raised:
        only_lora(manager, "mine")
    assert "secret-name" not in str(raised.value)


def test_the_command_line_prepares_the_engines_folder(folders, monkeypatch):
    monkeypatch.setenv("WEBUI_DIR", str(folders[0].parent))
    monkeypatch.setenv("MODELS_DIR", str(folders[1]))
    put(folders[1], "good.safetensors", CHECKPOINTS)
    assert model_manager.main(["prepare-engine"]) == 0
    assert (folders[0] / CHECKPOINTS / "good.safetensors").is_symlink()
    config = json.loads((folders[0].parent / "config.json").read_text())
    assert config["samples_format"] == "png"


@pytest.mark.parametrize("engine", ["a1111", "embedded"])
def test_a_checkpoint_with_zero_terminal_snr_is_reported_to_the_payload(
    new_manager, folders, engine
):
    path = folders[1] / CHECKPOINTS / "noob.safetensors"
    path.parent.mkdir(parents=True)
    for marks, expected in (({"v_pred": (0,), "ztsnr": (0,)}, True), ({}, False)):
        path.write_bytes(model_files.safetensors(model_files.SDXL | marks))
        models, _ = prepare(new_manager(engine=engine), checkpoint="noob")
        assert models.zero_terminal_snr is expected


def test_a_lora_with_embeddings_in_its_file_is_reported_to_the_payload(manager, folders):
    path = folders[1] / "Lora" / "both.safetensors"
    path.parent.mkdir(parents=True)
    for more, expected in (({"bundle_emb.fox.emb_params": (4, 768)}, True), ({}, False)):
        path.write_bytes(model_files.safetensors(model_files.LORA | more))
        for job in ({"loras": ["both"]}, {"prompt": "a fox <lora:both:1>"}):
            assert prepare(manager, **job)[0].has_bundle is expected


def test_a_warm_job_looks_at_as_many_files_however_many_there_are(manager, folders, monkeypatch):
    store, calls = folders[1], []
    job = {"checkpoint": "base", "loras": ["a0"], "prompt": "<lora:a1:1>"}
    put(store, "base.safetensors", CHECKPOINTS)
    for number in range(2):
        put(store, f"a{number}.safetensors")
    for name in ("stat", "scandir", "readlink"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, r=real, **more: calls.append(a) or r(*a, **more))
    counts = set()
    for more in (0, 30):
        for number in range(more):
            put(store, f"b{number}.safetensors")
        manager.release(prepare(manager, **job)[0])  # makes the links
        for folder in (p for one in folders for p in (one, *one.rglob("*")) if p.is_dir()):
            os.utime(folder, (1e9 + more, 1e9 + more))
        for _ in range(2):
            calls.clear()
            manager.release(prepare(manager, **job)[0])
        counts.add(len(calls))
    assert len(counts) == 1
