"""Which file a name means: own files, fetched ones and baked ones, and their links."""

import os
import socket
import threading

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


def test_a_file_that_became_a_link_to_a_fetched_one_is_the_fetched_one(store, folders):
    path = put(folders[1])
    assert store.find("lora", FOX).verified_sha256 is None
    file = fetched(store, TWO, stem="dog")
    path.unlink()
    path.symlink_to(file.path)
    assert store.find("lora", FOX) == file
    path.unlink()
    assert put(folders[1]).read_bytes() == ONE
    assert store.find("lora", FOX).path == path


def test_a_store_that_cannot_be_written_is_searched_after_the_writable_one(store, folders, loras):
    volume = folders[0].parent / "volume"
    other = Store(folders[0].parent / "other", volume, folders[2])
    kept = fetched(other, THREE, "kept")
    for folder, data in ((folders[1], ONE), (volume, TWO)):
        put(folder, data=data)
    put(volume, "only here.safetensors", TWO)
    for path in (volume, *volume.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    store = Store(*folders, read_only_dir=volume)
    found = [store.find("lora", name) for name in ("fox", "only here", "kept")]
    assert [file.path.is_relative_to(volume) for file in found] == [False, True, True]
    assert found[2].verified_sha256 == kept.verified_sha256
    assert store.by_sha256(kept.verified_sha256).path == kept.path
    for file in found:
        store.link(file)
    assert sorted(seen(loras).values()) == sorted([ONE, TWO, THREE])
    assert list(store.fetched.all()) == []


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
    (loras / "far.safetensors").symlink_to("/" + "x" * 300)  # `exists` would raise an error
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
        (["a/eyes.safetensors", "b/eyes.safetensors"], "name: 'a/eyes.safetensors' or 'b/"),
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
    assert all(store.find("lora", name) for name in error.details["near"])
    target = put(tmp_path / "nas")  # two links to one file are one file
    for name in ("a", "b"):
        put(folders[1], f"{name}/{FOX}", link=target)
    assert store.find("lora", "fox").path == target


CLASHES = [("foo_1", "foo,1"), ("a_b", "a:b"), ("a_b", "a<b"), ("Fox", "fox"), ("fox", "FOX")]


@pytest.mark.parametrize("kind", ["lora", "checkpoint", "vae", "embedding"])
@pytest.mark.parametrize("names", CLASHES)
@pytest.mark.parametrize("in_one_folder", [True, False])
def test_an_exact_file_name_wins_whatever_was_linked_before(folders, kind, names, in_one_folder):
    """Also over a link of ours, over another case, and over an earlier folder."""
    folder_of = {"lora": "Lora", "vae": "VAE", "embedding": "embeddings"}
    folder = folder_of.get(kind, "Stable-diffusion")
    for root, name, data in zip(folders[1:], names, (ONE, TWO), strict=True):
        path = (folders[1] if in_one_folder else root) / folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    store = Store(*folders)
    for file in store.files(kind):
        store.link(file)
    engine = folders[0] if kind == "embedding" else folders[0] / "models"
    for name, data in zip(names, (ONE, TWO), strict=True):
        for written in (name, f"{name}.safetensors"):
            file = store.find(kind, written)
            assert file.path.read_bytes() == data
            linked, _ = store.link(file)
            assert (engine / folder / linked.filename).read_bytes() == data


NESTED = {"SDXL/own": ONE, "SDXL/photo/fourth": TWO, "SDXL_flat": THREE}
TITLES = {
    "SDXL/own": ["SDXL/own.safetensors", "SDXL/own", "SDXL_own", "sdxl/OWN.safetensors", "own"],
    "SDXL/photo/fourth": ["SDXL/photo/fourth.safetensors", "SDXL_photo_fourth", "fourth"],
    "SDXL_flat": ["SDXL_flat", "SDXL_flat.safetensors"],
}


@pytest.mark.parametrize("root", [0, 1, 2])
@pytest.mark.parametrize(("path", "title"), [(p, t) for p, many in TITLES.items() for t in many])
def test_a_file_in_a_subfolder_is_found_by_the_titles_of_a1111(folders, root, path, title):
    folder = (folders[0] / "models", *folders[1:])[root]
    for name, data in NESTED.items():
        put(folder, f"{name}.safetensors", data)
    assert Store(*folders).find("lora", title).path == folder / "Lora" / f"{path}.safetensors"


def test_a_file_is_not_linked_beside_another_of_its_name_in_a_subfolder(store, folders, loras):
    """A1111 distinguishes LoRAs only by their stems, wherever they lie."""
    inside = put(folders[0] / "models", f"sub/{FOX}", TWO)
    linked, _ = store.link(fetched(store))
    assert linked.stem.startswith("fox-")
    twin = put(folders[0] / "models", f"twin/{FOX}", THREE)
    for path, data in ((inside, TWO), (twin, THREE)):
        file, _ = store.link(store.find("lora", str(path.relative_to(loras))))
        assert (loras / file.filename).read_bytes() == data


def test_the_beginning_of_a_hash_names_a_fetched_checkpoint(store):
    file = fetched(store, ONE, "model", "checkpoint")
    other = fetched(store, TWO, "lora")
    assert store.find("checkpoint", file.verified_sha256[:10].upper()) == file
    assert store.find("checkpoint", other.verified_sha256[:10]) is None
    assert store.find("checkpoint", "0" * 10) is None


@pytest.mark.parametrize("by_other_worker", [False, True])
def test_a_model_that_returns_after_its_eviction_is_new_to_the_engine(
    store, other_worker, by_other_worker
):
    """Its dangling link has the same target, but the engine may have listed its folder since."""
    file = fetched(store, ONE, "model", "checkpoint")
    assert store.link(file) == (file, True)
    assert store.link(file) == (file, False)
    evict(other_worker, file)
    fetched(other_worker if by_other_worker else store, ONE, "model", "checkpoint")
    assert store.link(file) == (file, True)
    assert store.link(file) == (file, False)
    assert store.replaced == set(), "it has the same content"


def test_a_replaced_file_of_the_operator_is_noticed_also_if_it_is_older(store, folders):
    path = put(folders[1])
    linked = store.link(store.find("lora", "fox"))[0]
    put(folders[1], "new", TWO).replace(path)
    os.utime(path, (1, 1))
    assert store.link(store.find("lora", "fox")) == (linked, True)
    assert store.replaced == {"lora"}


def test_a_file_that_came_into_the_engines_own_folder_is_new(folders):
    put(folders[0] / "models", "old.safetensors")
    store = Store(*folders)
    put(folders[0] / "models", "new.safetensors")
    os.utime(folders[0] / "models/Lora/old.safetensors", (1, 1))
    new = {name: store.link(store.find("lora", name))[1] for name in ("new", "new.safetensors")}
    assert new == {"new": True, "new.safetensors": False}


def test_the_names_of_arranged_files_keep_their_meaning(store, folders):
    """A1111 does not load a VAE again if the loaded one has the same path."""
    first = fetched(store, ONE, "fox", "vae")
    assert store.arrange("vae", [store.named(first)])
    assert store.arrange("vae", [])
    assert not list((folders[0] / "models/VAE").iterdir())
    evict(store, first)
    second = store.named(fetched(store, TWO, "fox", "vae"))
    assert second.stem.startswith("fox-")
    assert store.named(first).stem == "fox"


@pytest.mark.parametrize("is_link", [False, True])
def test_arranging_never_touches_what_the_operator_put_into_the_engines_folder(
    store, folders, tmp_path, is_link
):
    target = put(tmp_path / "nas", "whatever.safetensors", THREE) if is_link else None
    own = put(folders[0] / "models", "easyneg.safetensors", THREE, target)
    embeddings = folders[0] / "embeddings"
    embeddings.mkdir()
    own = own.rename(embeddings / own.name)
    store.arrange("embedding", [fetched(store, ONE, "easyneg", "embedding")])
    store.arrange("embedding", [])
    assert own.read_bytes() == THREE


SPECIAL = ["fifo", "socket", "device", "folder"]


@pytest.mark.parametrize("what", SPECIAL)
def test_what_is_not_a_regular_file_is_no_model(folders, monkeypatch, what):
    """Opening a FIFO would block for ever."""
    store = Store(*folders)
    path = folders[1] / "Lora" / FOX
    path.parent.mkdir(parents=True)
    if what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    else:
        monkeypatch.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    assert store.find("lora", "fox") is None
    assert list(store.files("lora")) == []
    assert store.link(fetched(store, TWO))[0].path.read_bytes() == TWO


@pytest.mark.parametrize("which", ["about", "blob"])
def test_a_fifo_in_place_of_a_blob_or_its_metadata_does_not_block(store, which):
    file = fetched(store)
    path = file.path.with_suffix(".json") if which == "about" else file.path
    path.unlink()
    os.mkfifo(path)
    fresh = type(store.fetched)(store.fetched.root)
    assert fresh.find(file.verified_sha256) is None
    assert [blob.sha256 for blob in fresh.all()] == []


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


@pytest.mark.parametrize("root", [0, 1])
def test_a_checkpoint_that_a1111_would_take_for_a_vae_gets_another_name(
    store, folders, checkpoints, root
):
    folder = (folders[0] / "models", folders[1])[root] / "Stable-diffusion"
    folder.mkdir(parents=True)
    (folder / "x.vae.safetensors").write_bytes(ONE)
    linked, _ = store.link(store.find("checkpoint", "x.vae.safetensors"))
    assert linked.stem == "x_vae"
    assert (checkpoints / "x_vae.safetensors").read_bytes() == ONE


def test_a_fifo_in_place_of_a_download_or_its_lease_does_not_block(store):
    downloads, leases = (store.fetched.root / name for name in ("downloads", "leases"))
    for path in (downloads / "key.1.part", downloads / "key.2.json", leases / "key.lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
    (downloads / "key.2.part").write_bytes(ONE)
    with store.fetched.lease("key", lambda: False, threading.Event()) as is_mine:
        assert is_mine
        assert not store.fetched.partial("key").exists()
    assert store.fetched.partials() == []


SSD = {
    f"{model_files.UNET}{part}.weight": (1, 1)
    for part in ("input_blocks.8.1.proj_in", "middle_block.0.in_layers.2")
}
V = {"v_pred": (0,)}
CONFIGS = [
    # tensors beside those of the family, and the .yaml that A1111 finds beside the checkpoint
    (model_files.SDXL, {}, None),
    (model_files.SDXL, V, "sdxl_v.yaml"),
    (model_files.SDXL, V | {"ztsnr": (0,)}, "sdxl_v.yaml"),
    (model_files.SDXL, SSD, "sdxl.yaml"),
    (model_files.SDXL, SSD | V, "sdxl_v.yaml"),
    (model_files.SDXL, SSD | {f"{model_files.UNET}middle_block.1.norm.weight": (1,)}, None),
    (model_files.SD1, {}, None),
    (model_files.SD1, V, "sd1_v.yaml"),
    (model_files.SD1, V | {f"{model_files.UNET}input_blocks.0.0.weight": (1, 9, 3, 3)}, None),
]


def config_of(checkpoints, name="base"):
    path = checkpoints / f"{name}.yaml"
    return path.resolve().name if path.exists() else None


@pytest.mark.parametrize(("family", "more", "config"), CONFIGS)
def test_a1111_gets_a_yaml_of_ours_where_it_would_guess_wrongly(
    store, folders, checkpoints, family, more, config
):
    path = folders[1] / "Stable-diffusion/base.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(safetensors(family | more))
    store.link(store.find("checkpoint", "base"))
    assert config_of(checkpoints) == config
    own = path.with_suffix(".yaml")  # the operator's own wins
    own.write_text("model: {}")
    store.link(store.find("checkpoint", "base"))
    assert (checkpoints / "base.yaml").resolve() == own
    own.unlink()
    store.link(store.find("checkpoint", "base"))
    assert config_of(checkpoints) == config
    path.write_bytes(safetensors(family, number=2))  # replaced by one that needs none
    store.link(store.find("checkpoint", "base"))
    assert config_of(checkpoints) is None
    other = Store(folders[0].parent / "embedded", *folders[1:], diffusers=True)
    path.write_bytes(safetensors(family | more, number=3))
    other.link(other.find("checkpoint", "base"))
    assert config_of(folders[0].parent / "embedded/models/Stable-diffusion") is None


@pytest.mark.parametrize("own", [False, True])
def test_a_checkpoint_in_the_engines_own_folder_gets_the_yaml_too(store, checkpoints, own):
    path = checkpoints / "sub/v1.5.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(safetensors(model_files.SDXL | V))
    config = path.with_name("v1.5.yaml")
    if own:
        config.write_text("model: {}")
    for _ in range(2):
        store.link(store.find("checkpoint", "v1.5"))
        assert config.is_symlink() is not own
    path.write_bytes(safetensors(model_files.SDXL))
    store.link(store.find("checkpoint", "v1.5"))
    assert config.exists() is own


def test_a_remembered_name_follows_a_link_whose_target_changes_elsewhere(store, folders, tmp_path):
    """The folder of the link does not change when a folder behind its target does."""
    for name, data in {"one": ONE, "two": TWO}.items():
        put(tmp_path / name, data=data)
    (tmp_path / "now").symlink_to(tmp_path / "one")
    put(folders[1], link=tmp_path / "now/Lora" / FOX)
    for _ in range(2):
        assert store.find("lora", "fox").path == tmp_path / "one/Lora" / FOX
    (tmp_path / "now").unlink()
    assert store.find("lora", "fox") is None
    (tmp_path / "now").symlink_to(tmp_path / "two")
    assert store.find("lora", "fox").path == tmp_path / "two/Lora" / FOX


def test_a_remembered_name_gives_way_to_a_file_with_precedence(store, folders):
    later = put(folders[2])
    for _ in range(2):
        assert store.find("lora", "fox").path == later
    first = put(folders[1], data=TWO)
    assert store.find("lora", "fox").path == first
    first.unlink()
    assert store.find("lora", "fox").path == later
