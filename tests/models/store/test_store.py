"""Where a name leads to: own files, fetched ones and baked ones, and their links for the engine."""

import os

import pytest
from fakes import model_files
from fakes.model_files import safetensors
from fakes.model_store import add

from worker.formats.model_file import file_sha256
from worker.models.store.store import Store

ONE, TWO, THREE = (safetensors(model_files.LORA, number=number) for number in (1, 2, 3))


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "webui", tmp_path / "models", tmp_path / "baked"


@pytest.fixture
def store(folders):
    return Store(*folders)


def put(folder, name, data=ONE):
    path = folder / "Lora" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def engine(folders):
    """Name -> content of what the engine sees."""
    folder = folders[0] / "models" / "Lora"
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def test_no_two_files_have_one_name_in_the_engine(store, folders):
    """The operator's `a:b` and `a=b` have one clean name; a job may use both."""
    put(folders[1], "a:b.safetensors", ONE)
    put(folders[1], "a=b.safetensors", TWO)
    files = [store.find("lora", name) for name in ("a:b", "a=b")]

    linked = [store.link(file)[0] for file in files]

    assert linked[0].stem == "a_b"
    assert linked[1].stem.startswith("a_b-")
    seen = engine(folders)
    assert [seen[file.filename] for file in linked] == [ONE, TWO]
    assert [store.link(file) for file in files] == [(file, False) for file in linked]


def test_a_long_name_in_the_engine_is_found_by_that_name(store, folders):
    files = []
    for number, name in enumerate(("a:", "a=")):
        put(
            folders[1],
            f"{name}{'x' * 178}.safetensors",
            safetensors(model_files.LORA, number=number),
        )
        files.append(store.find("lora", f"{name}{'x' * 178}"))

    linked = [store.link(file)[0] for file in files]

    again = Store(*folders)
    assert [again.find("lora", one.stem) for one in linked] == linked


def test_a_name_that_the_engine_may_have_loaded_keeps_its_meaning(store, folders):
    """A1111 loads a LoRA again only if the file of its name is newer."""
    fetched = add(store.fetched, ONE, "fox").as_file()
    store.link(fetched)
    put(folders[1], "fox.safetensors", TWO)
    own = Store(folders[0].parent / "other", *folders[1:]).find("lora", "fox")
    assert own.path.read_bytes() == TWO

    linked, new = store.link(own)

    assert (new, linked.stem == "fox") == (True, False)
    assert engine(folders) == {"fox.safetensors": ONE, linked.filename: TWO}


def test_the_engines_own_file_is_never_replaced(store, folders):
    own = folders[0] / "models" / "Lora" / "fox.safetensors"
    put(folders[0] / "models", "fox.safetensors", ONE)

    linked, _ = store.link(add(store.fetched, TWO, "fox").as_file())

    assert own.read_bytes() == ONE
    assert not own.is_symlink()
    assert engine(folders)[linked.filename] == TWO


def test_a_link_of_the_operator_is_his_file(store, folders, tmp_path):
    target = put(tmp_path / "nas", "whatever.safetensors", ONE)
    for folder in (folders[0] / "models" / "Lora", folders[1] / "Lora"):
        folder.mkdir(parents=True)
        (folder / "fox.safetensors").symlink_to(target)

    assert store.is_taken("lora", "fox")
    assert store.find("lora", "fox").path == target
    linked, _ = store.link(add(store.fetched, TWO, "fox").as_file())
    assert engine(folders) == {"fox.safetensors": ONE, linked.filename: TWO}


def test_a_name_keeps_its_meaning_when_another_worker_has_evicted_its_file(store, folders):
    """A1111 loads no checkpoint again whose file name is that of the loaded one."""
    gone = add(store.fetched, ONE, "model", "checkpoint")
    store.link(gone.as_file())
    other = Store(folders[0].parent / "other", *folders[1:])
    other.fetched.remove(gone)
    new = add(other.fetched, TWO, "model", "checkpoint")
    assert new.about.stem == "model"

    linked, is_new = store.link(new.as_file())

    assert (linked.stem, is_new) == (f"model-{new.sha256[:10]}", True)
    link = folders[0] / "models/Stable-diffusion" / linked.filename
    assert link.read_bytes() == TWO
    assert store.link(new.as_file()) == (linked, False)

    add(other.fetched, ONE, "other", "checkpoint")
    assert link.with_name("model.safetensors").read_bytes() == ONE


def test_an_embedding_keeps_the_name_that_prompts_use(store, folders):
    """Its old version is gone; and with pickles off, a twin is none."""
    gone = add(store.fetched, ONE, "easyneg", "embedding")
    store.link(gone.as_file())
    store.fetched.remove(gone)
    new = add(store.fetched, TWO, "easyneg", "embedding")
    link = folders[0] / "embeddings/easyneg.safetensors"
    link.with_suffix(".pt").write_bytes(b"old")

    assert store.link(new.as_file()) == (new.as_file(), True)
    assert link.read_bytes() == TWO


def test_the_name_of_a_file_that_is_gone_is_free_at_the_engines_next_start(store, folders):
    link = folders[0] / "models" / "Lora" / "fox.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to("gone")
    fetched = add(store.fetched, ONE, "fox").as_file()

    store.remove_dangling_links()

    assert store.link(fetched) == (fetched, True)
    assert link.read_bytes() == ONE


def test_a_link_to_itself_is_no_file_and_keeps_its_name(store, folders):
    for folder in (folders[0] / "models" / "Lora", folders[1] / "Lora"):
        folder.mkdir(parents=True)
        (folder / "fox.safetensors").symlink_to(folder / "fox.safetensors")

    assert list(store.files("lora")) == []
    assert store.find("lora", "fox") is None
    assert store.is_taken("lora", "fox")
    linked, _ = store.link(add(store.fetched, ONE, "fox").as_file())
    assert linked.stem.startswith("fox-")


TAKEN = [
    (lambda folders, _: put(folders[0] / "models", "fox.safetensors"), True),
    (lambda folders, _: put(folders[1], "fox.safetensors"), True),
    (lambda folders, _: put(folders[1], "sub/fox.safetensors"), True),
    (lambda folders, _: put(folders[1], "FOX.safetensors"), True),
    (lambda folders, _: put(folders[2], "fox.safetensors"), True),
    (lambda _, store: add(store.baked, ONE, "fox"), True),
    (lambda _, store: add(store.fetched, ONE, "fox"), False),
    (lambda _, store: store.link(add(store.fetched, ONE, "fox").as_file()), False),
    (lambda _, store: add(store.baked, ONE, "fox", "vae"), False),
]


@pytest.mark.parametrize(("arrange", "taken"), TAKEN)
def test_which_names_a_new_file_cannot_have(store, folders, arrange, taken):
    arrange(folders, store)

    assert store.is_taken("lora", "fox") is taken


def test_a_volume_over_the_models_folder_hides_nothing(store, folders):
    """Baked models lie elsewhere; a store that is mounted later only adds to them."""
    add(store.baked, ONE, "baked")
    put(folders[2], "own.safetensors", TWO)
    assert store.find("lora", "baked")

    put(folders[1], "mounted.safetensors", THREE)

    assert [file.stem for file in store.files("lora")] == ["mounted", "own", "baked"]
    assert store.stats()["loras"]["count"] == 3


def test_a_use_of_a_baked_model_writes_nothing(store):
    blob = add(store.baked, ONE, "fox")
    about = blob.path.with_suffix(".json")
    os.utime(about, (1, 1))
    assert store.by_sha256(blob.sha256).stem == "fox"

    assert about.stat().st_mtime == 1


def test_counting_reads_no_folder_that_is_as_it_was(store, monkeypatch, folders):
    add(store.fetched, ONE, "fox")
    os.utime(store.fetched.root / "Lora", (1, 1))
    first = store.stats()
    (link,) = (store.fetched.root / "Lora").iterdir()
    real = type(link).stat

    def stat(self, **kwargs):
        assert self != link
        return real(self, **kwargs)

    monkeypatch.setattr(type(link), "stat", stat)
    assert store.stats() == first
    assert first["loras"] == {"count": 1, "total_size": len(ONE)}
    assert not (folders[1] / "Lora").exists()


def test_links_to_files_that_are_gone_are_removed_before_the_engine_starts(store, folders):
    store.link(add(store.fetched, ONE, "fox").as_file())
    gone = add(store.fetched, TWO, "cat")
    store.link(gone.as_file())
    store.fetched.remove(gone)

    store.remove_dangling_links()

    assert engine(folders) == {"fox.safetensors": ONE}


@pytest.mark.parametrize("kind", ["lora", "checkpoint"])
def test_a_damaged_blob_is_not_found_by_its_name(store, kind):
    blob = add(store.fetched, ONE, "fox", kind)
    assert store.find(kind, "fox")
    blob.path.write_bytes(b"damaged")

    assert store.find(kind, "fox") is None
    assert list(store.files(kind)) == []


# Names that several files have.


def test_of_two_files_that_differ_in_the_suffix_the_whole_name_means_one(folders):
    """A1111 tells LoRAs apart by their stems only."""
    store = Store(*folders, pickles=True)
    old, new = put(folders[1], "detail.pt", TWO), put(folders[1], "detail.safetensors", ONE)
    store.link(next(store.files("lora")))  # as the engine starts

    files = [store.find("lora", path.name) for path in (old, new)]
    linked = [store.link(file)[0] for file in files]

    assert [file.path for file in files] == [old, new]
    assert linked[0].stem == "detail"
    assert linked[1].stem.startswith("detail-")
    assert engine(folders) == {"detail.pt": TWO, linked[1].filename: ONE}


def test_a_name_of_the_engines_own_files_stands_for_one_of_them(folders):
    store = Store(*folders, pickles=True)
    for name, data in (("detail.pt", TWO), ("detail.safetensors", ONE)):
        put(folders[0] / "models", name, data)

    linked, _ = store.link(store.find("lora", "detail.safetensors"))

    assert linked.stem.startswith("detail-")
    assert engine(folders)[linked.filename] == ONE


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (["a/eyes.safetensors", "b/eyes.safetensors"], "Rename all but one of them"),
        (["eyes.pt", "eyes.safetensors"], "name: 'eyes.pt' or 'eyes.safetensors'."),
        (["EYES.safetensors", "Eyes.safetensors"], "'EYES.safetensors' or 'Eyes.safetensors'."),
    ],
)
def test_a_name_that_several_files_have_is_told_with_their_paths(folders, files, hint):
    store = Store(*folders, pickles=True)
    for file in files:
        put(folders[1], file)

    assert store.find("lora", "eyes") is None
    error = store.not_found("lora", "eyes")
    assert error.message.endswith(f"is ambiguous in the model store: Lora/{', Lora/'.join(files)}.")
    assert hint in error.hint
    assert all(store.find("lora", name) for name in error.details["near"] if "whole" in error.hint)


def test_two_links_to_one_file_are_one_file(store, folders, tmp_path):
    target = put(tmp_path / "nas", "fox.safetensors")
    for folder in (folders[1] / "Lora/a", folders[1] / "Lora/b"):
        folder.mkdir(parents=True)
        (folder / "fox.safetensors").symlink_to(target)

    assert store.find("lora", "fox").path == target


# Checkpoints that were converted while an image was built.


@pytest.fixture
def checkpoint(store, folders):
    """A baked checkpoint whose diffusers folder was baked, too."""
    path = folders[2] / "Stable-diffusion/base.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(safetensors(model_files.SD1))
    converted = store.baked.diffusers(file_sha256(path))
    converted.mkdir(parents=True)
    (converted / "model_index.json").write_text("{}")
    return store.find("checkpoint", "base")


def test_an_engine_that_loads_folders_sees_the_folder_under_the_files_name(folders, checkpoint):
    store = Store(*folders, diffusers=True)
    seen = folders[0] / "models/Stable-diffusion"
    Store(*folders).link(checkpoint)  # before it was converted

    assert store.link(checkpoint) == (checkpoint, True)
    assert store.link(checkpoint) == (checkpoint, False)
    assert [path.name for path in seen.iterdir()] == ["base"]
    assert (seen / "base/model_index.json").is_file()


def test_another_engine_sees_the_file(store, folders, checkpoint):
    store.link(checkpoint)

    seen = folders[0] / "models/Stable-diffusion"
    assert [path.name for path in seen.iterdir()] == ["base.safetensors"]


def test_what_was_not_converted_is_shown_as_a_file(folders, checkpoint):
    store = Store(*folders, diffusers=True)
    checkpoint.path.with_name("new.safetensors").write_bytes(safetensors(model_files.SD1, number=2))

    store.link(store.find("checkpoint", "new"))

    seen = folders[0] / "models/Stable-diffusion"
    assert [path.name for path in seen.iterdir()] == ["new.safetensors"]


@pytest.mark.parametrize(("pickles", "hint"), [(False, "ALLOW_PICKLES=true"), (True, None)])
def test_a_name_of_a_pickle_is_told_of_the_setting(folders, pickles, hint):
    error = Store(*folders, pickles=pickles).not_found("checkpoint", "old.ckpt")

    assert (hint in error.hint) if hint else ("ALLOW_PICKLES" not in error.hint)
