"""Which file a name means: own files, fetched ones and baked ones, and their links."""

import os

import pytest
from fakes import model_files
from fakes.model_files import safetensors
from fakes.model_store import add

from worker.formats.model_file import file_sha256
from worker.models.store.store import Store

ONE, TWO, THREE = (safetensors(model_files.LORA, number=number) for number in (1, 2, 3))
FOX = "fox.safetensors"


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "webui", tmp_path / "models", tmp_path / "baked"


@pytest.fixture
def store(folders):
    return Store(*folders)


@pytest.fixture
def other_worker(folders):
    """The store as another worker of the volume sees it, with an engine of its own."""
    return Store(folders[0].parent / "other", *folders[1:])


@pytest.fixture
def loras(folders):
    return folders[0] / "models" / "Lora"


@pytest.fixture
def checkpoints(folders):
    return folders[0] / "models/Stable-diffusion"


def put(folder, name=FOX, data=ONE, link=None):
    """Write a LoRA of the operator, or make a link."""
    path = folder / "Lora" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(link) if link else path.write_bytes(data)
    return path


def seen(loras):
    """Name -> content of the LoRAs that the engine sees."""
    return {path.name: path.read_bytes() for path in loras.glob("*")}


def fetched(store, data=ONE, stem="fox", kind="lora"):
    return add(store.fetched, data, stem, kind).as_file()


def evict(store, file):
    store.fetched.remove(store.fetched.find(file.verified_sha256))


@pytest.mark.parametrize("names", [("a:b", "a=b"), (f"a:{'x' * 178}", f"a={'x' * 178}")])
def test_two_files_with_one_clean_name_get_two_names_in_the_engine(store, folders, loras, names):
    for name, data in zip(names, (ONE, TWO), strict=True):
        put(folders[1], f"{name}.safetensors", data)
    files = [store.find("lora", name) for name in names]
    linked = [store.link(file)[0] for file in files]
    assert linked[1].stem.rpartition("-")[0].startswith("a_")
    assert [seen(loras)[file.filename] for file in linked] == [ONE, TWO]
    assert [store.link(file) for file in files] == [(file, False) for file in linked]
    assert [Store(*folders).find("lora", one.stem) for one in linked] == linked


def test_a_name_that_the_engine_may_have_loaded_keeps_its_meaning(
    store, folders, loras, other_worker
):
    """A1111 loads a LoRA again only if the file of its name is newer."""
    store.link(fetched(store))
    put(folders[1], data=TWO)
    own = other_worker.find("lora", "fox")
    assert own.path.read_bytes() == TWO
    linked, new = store.link(own)
    assert (new, linked.stem == "fox") == (True, False)
    assert seen(loras) == {FOX: ONE, linked.filename: TWO}


def test_a_name_keeps_its_meaning_when_another_worker_has_evicted_its_file(
    store, checkpoints, other_worker
):
    """A1111 does not load a checkpoint again if the loaded one has the same file name."""
    gone = fetched(store, ONE, "model", "checkpoint")
    store.link(gone)
    evict(other_worker, gone)
    new = fetched(other_worker, TWO, "model", "checkpoint")
    assert new.stem == "model"
    linked, is_new = store.link(new)
    assert (linked.stem, is_new) == (f"model-{new.verified_sha256[:10]}", True)
    assert (checkpoints / linked.filename).read_bytes() == TWO
    assert store.link(new) == (linked, False)
    fetched(other_worker, ONE, "other", "checkpoint")
    assert (checkpoints / "model.safetensors").read_bytes() == ONE


def test_an_embedding_keeps_the_name_that_prompts_use(store, folders):
    """Its old version is gone; a pickle of the same stem is not loaded."""
    gone = fetched(store, ONE, "easyneg", "embedding")
    store.link(gone)
    evict(store, gone)
    new = fetched(store, TWO, "easyneg", "embedding")
    link = folders[0] / "embeddings/easyneg.safetensors"
    link.with_suffix(".pt").write_bytes(b"old")
    assert store.link(new) == (new, True)
    assert link.read_bytes() == TWO


@pytest.mark.parametrize("is_link", [False, True])
def test_the_operators_file_or_link_is_never_replaced(store, folders, loras, tmp_path, is_link):
    target = put(tmp_path / "nas", "whatever.safetensors") if is_link else None
    for folder in (folders[1], folders[0] / "models"):
        own = put(folder, link=target)
    assert store.is_taken("lora", "fox")
    assert store.find("lora", "fox").path == (target or own)
    linked, _ = store.link(fetched(store, TWO))
    assert (loras / FOX).is_symlink() == is_link
    assert seen(loras) == {FOX: ONE, linked.filename: TWO}


def test_a_checkpoint_with_the_name_of_a_vae_is_linked_under_one_that_a1111_lists(
    store, checkpoints
):
    checkpoint = fetched(store, safetensors(model_files.SD1), "fox.vae", "checkpoint")
    vae = fetched(store, safetensors(model_files.VAE), "fox.vae", "vae")
    assert store.link(checkpoint)[0].filename == "fox_vae.safetensors"
    assert (checkpoints / "fox_vae.safetensors").resolve() == checkpoint.path
    assert store.link(vae)[0].filename == "fox.vae.safetensors"


def test_links_to_missing_files_are_removed_before_the_engine_starts(store, loras):
    store.link(fetched(store))
    gone = fetched(store, TWO, "cat")
    store.link(gone)
    evict(store, gone)
    store.remove_dangling_links()
    assert seen(loras) == {FOX: ONE}
    assert store.link(fetched(store, THREE, "cat"))[0].stem == "cat", "the name is free again"


def test_a_link_to_itself_is_not_a_file_and_keeps_its_name(store, folders):
    for folder in (folders[0] / "models", folders[1]):
        put(folder, link=folder / "Lora" / FOX)
    assert list(store.files("lora")) == []
    assert store.find("lora", "fox") is None
    assert store.is_taken("lora", "fox")
    assert store.link(fetched(store))[0].stem.startswith("fox-")


TAKEN = [
    (lambda folders, _: put(folders[0] / "models"), True),
    (lambda folders, _: put(folders[1]), True),
    (lambda folders, _: put(folders[1], "sub/fox.safetensors"), True),
    (lambda folders, _: put(folders[1], "FOX.safetensors"), True),
    (lambda folders, _: put(folders[2]), True),
    (lambda _, store: add(store.baked, ONE, "fox"), True),
    (lambda _, store: fetched(store), False),
    (lambda _, store: store.link(fetched(store)), False),
    (lambda _, store: add(store.baked, ONE, "fox", "vae"), False),
]


@pytest.mark.parametrize(("arrange", "taken"), TAKEN)
def test_names_of_files_that_were_not_fetched_are_taken(store, folders, arrange, taken):
    arrange(folders, store)
    assert store.is_taken("lora", "fox") is taken


def test_a_volume_over_the_models_folder_hides_nothing(store, folders):
    blob = add(store.baked, ONE, "baked")
    about = blob.path.with_suffix(".json")
    os.utime(about, (1, 1))
    assert store.by_sha256(blob.sha256).stem == "baked"
    assert about.stat().st_mtime == 1, "a use of a baked model writes nothing"
    put(folders[2], "own.safetensors", TWO)
    assert store.find("lora", "baked")
    put(folders[1], "mounted.safetensors", THREE)
    assert [file.stem for file in store.files("lora")] == ["mounted", "own", "baked"]
    assert store.stats()["loras"]["count"] == 3


def test_counting_does_not_read_an_unchanged_folder(store, monkeypatch, folders):
    fetched(store)
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


@pytest.mark.parametrize("kind", ["lora", "checkpoint"])
def test_a_damaged_blob_is_not_found_by_its_name(store, kind):
    file = fetched(store, kind=kind)
    assert store.find(kind, "fox")
    file.path.write_bytes(b"damaged")
    assert store.find(kind, "fox") is None
    assert list(store.files(kind)) == []


@pytest.mark.parametrize("own_folder", [False, True])
def test_a_full_file_name_means_one_of_two_files_with_one_stem(folders, loras, own_folder):
    """A1111 distinguishes LoRAs only by their stems."""
    store = Store(*folders, pickles=True)
    folder = folders[0] / "models" if own_folder else folders[1]
    old, new = put(folder, "detail.pt", TWO), put(folder, "detail.safetensors", ONE)
    store.link(next(store.files("lora")))  # as the engine starts
    files = [store.find("lora", path.name) for path in (old, new)]
    linked = [store.link(file)[0] for file in files]
    assert [file.path for file in files] == [old, new]
    assert linked[1].stem.startswith("detail-")
    assert seen(loras)[linked[1].filename] == ONE
    assert own_folder or linked[0].stem == "detail"


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (["a/eyes.safetensors", "b/eyes.safetensors"], "Rename all but one of them"),
        (["eyes.pt", "eyes.safetensors"], "name: 'eyes.pt' or 'eyes.safetensors'."),
        (["EYES.safetensors", "Eyes.safetensors"], "'EYES.safetensors' or 'Eyes.safetensors'."),
    ],
)
def test_an_ambiguous_name_is_rejected_with_the_paths(folders, tmp_path, files, hint):
    store = Store(*folders, pickles=True)
    for file in files:
        put(folders[1], file)
    assert store.find("lora", "eyes") is None
    error = store.not_found("lora", "eyes")
    assert error.message.endswith(f"is ambiguous in the model store: Lora/{', Lora/'.join(files)}.")
    assert hint in error.hint
    assert all(store.find("lora", name) for name in error.details["near"] if "whole" in error.hint)
    target = put(tmp_path / "nas")  # two links to one file are one file
    for name in ("a", "b"):
        put(folders[1], f"{name}/{FOX}", link=target)
    assert store.find("lora", "fox").path == target


def test_the_error_for_a_pickle_names_the_setting_that_allows_it(folders):
    for pickles in (False, True):
        error = Store(*folders, pickles=pickles).not_found("checkpoint", "old.ckpt")
        assert ("ALLOW_PICKLES=true" in error.hint) is not pickles


def test_an_engine_that_loads_folders_gets_the_folder_that_was_converted_at_baking(
    store, folders, checkpoints
):
    """Under the file's name; a checkpoint that was not converted is linked as a file."""
    path = folders[2] / "Stable-diffusion/base.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(safetensors(model_files.SD1))
    path.with_name("new.safetensors").write_bytes(safetensors(model_files.SD1, number=2))
    checkpoint = store.find("checkpoint", "base")
    store.link(checkpoint)
    assert [path.name for path in checkpoints.iterdir()] == ["base.safetensors"]
    converted = store.baked.diffusers(file_sha256(path))
    converted.mkdir(parents=True)
    (converted / "model_index.json").write_text("{}")
    store = Store(*folders, diffusers=True)
    assert store.link(checkpoint) == (checkpoint, True)
    assert store.link(checkpoint) == (checkpoint, False)
    assert [path.name for path in checkpoints.iterdir()] == ["base"]
    assert (checkpoints / "base/model_index.json").is_file()
    store.link(store.find("checkpoint", "new"))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["base", "new.safetensors"]
