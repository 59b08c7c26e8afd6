"""The Hugging Face cache: which file a reference or a name means in it, and what is not used."""

import errno
import logging
import os
import shutil

import diskcache
import pytest
from fakes import model_files
from fakes.hub_cache import COMMIT, OTHER_COMMIT, add_cached, folder_of, state
from fakes.model_files import safetensors, sha256, write_as_before
from fakes.model_store import files_below, manager_for

from worker.errors import ModelHashMismatch, ModelNotFound, ModelUnsafe, WorkerError
from worker.job.reference import Wanted, local_path, parse_reference
from worker.job.txt2img import parse
from worker.models.store import hub_cache

REPO = "Org/Name"
PATH = "loras/fox.safetensors"
REF = f"{REPO}/{PATH}"
FOX, NEW, OTHER = (safetensors(number=number) for number in (1, 2, 3))  # FOX is cached
SIZE = len(FOX)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "hub"


@pytest.fixture
def new_manager(hosts, tmp_path, root):
    """A worker's model manager; the host has another file than the cache under the same name."""
    hosts.add_hf(REPO, PATH, NEW)
    return lambda **more: manager_for(hosts, tmp_path, HUB_CACHE_DIR=str(root), **more)


@pytest.fixture
def manager(new_manager):
    return new_manager()


@pytest.fixture
def cached(root):
    return add_cached(root, REPO, {PATH: FOX})[PATH]


def age(root):
    """Let no folder of the cache have changed just now: it would be read again anyway."""
    for path in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(path, (1, 1))


def raising(error):
    def read(*_, **_named):
        raise error

    return read


def ensure(manager, text=REF, kind="lora", sha256=None):
    wanted = Wanted(parse_reference(text), kind, sha256, local=local_path(text))
    return manager.ensure([wanted])[0]


@pytest.mark.parametrize(
    "text",
    [
        *(REF, f"hf://{REF}", f"{REPO}@{COMMIT}/{PATH}", f"org/name/{PATH}"),
        f"https://huggingface.co/{REPO}/resolve/main/{PATH}",
        *(f"sha256:{sha256(FOX)}", "fox.safetensors", "fox"),
    ],
)
def test_a_cached_file_costs_no_request_no_copy_and_no_change(
    manager, hosts, tmp_path, root, cached, text
):
    before = state(root)
    file = ensure(manager, text)
    shown, is_new = manager.store.link(file)
    assert (file.path, file.verified_sha256, is_new) == (cached, sha256(FOX), True)
    assert file.source == f"hf://{REPO}@{COMMIT}/{PATH}"
    assert (tmp_path / "webui/models/Lora" / shown.filename).read_bytes() == FOX
    assert manager.store.in_engine("lora", "fox").source == file.source  # found behind its link
    assert hosts.requests == []
    assert not (tmp_path / "models").exists()
    assert state(root) == before


def test_a_hash_in_a_blobs_name_is_taken_without_reading_the_file(manager, cached):
    blob = cached.resolve()
    blob.write_bytes(NEW)
    assert ensure(manager).verified_sha256 == blob.name != sha256(NEW)


@pytest.mark.parametrize("blobs", ["git", "none"])
def test_a_hash_that_no_name_tells_is_computed_once_for_all_workers(
    new_manager, root, caplog, blobs
):
    add_cached(root, REPO, {PATH: FOX}, blobs=blobs)
    caplog.set_level(logging.INFO)
    for text in (REF, "fox"):
        assert ensure(new_manager(), text).verified_sha256 == sha256(FOX)
    assert [line for line in caplog.messages if line.startswith("hashing")] == [
        f"hashing hf://{REPO}@{COMMIT}/{PATH}, because its name in the cache is not its SHA-256"
    ]
    assert ensure(new_manager(), f"sha256:{sha256(FOX)}").path.is_relative_to(root)
    path = next(root.rglob(PATH)).resolve()
    path.write_bytes(NEW)  # the note is for the old file
    os.utime(path, (1, 1))
    assert ensure(new_manager()).verified_sha256 == sha256(NEW)


def test_a_hash_is_also_known_where_the_store_cannot_be_written(new_manager, root, tmp_path):
    add_cached(root, REPO, {PATH: FOX}, blobs="none")
    (tmp_path / "models").write_text("no folder")
    assert ensure(new_manager()).verified_sha256 == sha256(FOX)


# What is not there --------------------------------------------------------------------------------


def ref(text):
    return lambda path: (path.parents[3] / "refs/main").write_bytes(text)


def two_snapshots(newest):
    """Without refs/main; the newer snapshot has the file, or the older one has it."""

    def make(path):
        folder = path.parents[3]
        shutil.rmtree(folder / "refs")
        add_cached(folder.parent, REPO, {"other.safetensors": OTHER}, commit=OTHER_COMMIT, ref=None)
        os.utime(folder / "snapshots" / COMMIT, (newest, newest))
        os.utime(folder / "snapshots" / OTHER_COMMIT, (2, 2))

    return make


def outside(path):
    path.unlink()
    (path.parents[6] / "secret.safetensors").write_bytes(FOX)
    path.symlink_to(path.parents[6] / "secret.safetensors")


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def blob(data):
    return lambda path: path.resolve().write_bytes(data)


def incomplete(path):
    target = path.resolve()
    target.with_suffix(".incomplete").write_bytes(FOX[: SIZE // 2])
    target.unlink()


def no_permission(path):
    path.parents[3].joinpath("refs/main").unlink()
    path.parents[3].joinpath("refs/main").mkdir()


@pytest.mark.parametrize(
    ("change", "is_cached"),
    [
        (lambda path: shutil.rmtree(path.parents[3] / "refs"), True),
        (ref(b""), True),
        (ref(b"../../x\xff"), True),
        (ref(b"0" * 2000), True),
        (ref(f" {COMMIT}\n".encode()), True),
        (no_permission, True),
        (two_snapshots(newest=3), True),
        (two_snapshots(newest=1), False),
        (ref(OTHER_COMMIT.encode()), False),
        (lambda path: path.unlink(), False),
        (lambda path: path.resolve().unlink(), False),
        (lambda path: shutil.rmtree(path.parents[1]), False),
        (lambda path: shutil.rmtree(path.parents[5]), False),
        *((change, False) for change in (outside, fifo, folder, loop, incomplete)),
        (blob(b""), False),
        (blob(FOX[:-1]), False),
        (blob(FOX + b"x"), False),
        (blob(model_files.HTML), False),
    ],
)
def test_a_broken_cache_is_no_cache_and_the_file_is_downloaded_instead(
    new_manager, hosts, cached, change, is_cached, caplog
):
    change(cached)
    manager = new_manager()
    for _ in range(2):
        file = ensure(manager)
    assert file.verified_sha256 == sha256(FOX if is_cached else NEW)
    assert bool(hosts.requests) is not is_cached
    assert manager.fetcher.bytes_fetched == (0 if is_cached else len(NEW))
    assert len([line for line in caplog.messages if "in the Hugging Face cache" in line]) <= 1


def test_a_damaged_file_is_reported_once(manager, cached, caplog):
    cached.resolve().write_bytes(FOX[:-1])
    for _ in range(2):
        ensure(manager)
        manager.list_files("lora")
    (line,) = [line for line in caplog.messages if "cache is not used" in line]
    assert line.startswith(f"{REF} in the Hugging Face cache is not used: ")
    assert str(SIZE) in line


def test_a_file_is_not_called_damaged_if_no_descriptor_is_left_for_it(
    manager, hosts, cached, caplog, monkeypatch
):
    with monkeypatch.context() as patch:
        exhausted = OSError(errno.EMFILE, "Too many open files")
        patch.setattr("worker.formats.model_file.open_regular", raising(exhausted))
        for names in (ensure, lambda manager: manager.list_files("lora")):
            with pytest.raises(OSError, match="Too many open files"):
                names(manager)
    with monkeypatch.context() as patch:
        patch.setattr("worker.formats.model_file.ModelFile.check", raising(exhausted))
        with pytest.raises(OSError, match="Too many open files"):
            manager.list_files("lora")
    assert list(manager.list_files("lora")) == ["fox.safetensors"]
    assert "is not used" not in caplog.text
    assert ensure(manager).path == cached
    assert hosts.requests == []


@pytest.mark.parametrize(
    "text",
    [
        *(f"{REPO}@v2/{PATH}", f"{REPO}@{OTHER_COMMIT}/{PATH}", f"{REPO}/fox.safetensors"),
        f"Org/Name2/{PATH}",
    ],
)
@pytest.mark.usefixtures("cached")
def test_another_revision_path_or_repository_is_not_the_cached_one(manager, hosts, text):
    with pytest.raises(WorkerError):
        ensure(manager, text)
    assert hosts.count("huggingface") == 1


def test_a_tag_and_a_pull_request_are_found_where_the_cache_has_them(manager, hosts, root):
    for name in ("v2", "refs/pr/1"):
        add_cached(root, REPO, {PATH: FOX}, ref=name)
    assert {ensure(manager, f"{REPO}@{name}/{PATH}").size for name in ("v2", "refs/pr/1")} == {SIZE}
    assert hosts.requests == []


# Hashes, pickles and other files ------------------------------------------------------------------


def test_a_hash_that_the_job_requires_is_compared(new_manager, hosts, cached):
    assert ensure(new_manager(), sha256=sha256(FOX)).path == cached
    with pytest.raises(ModelHashMismatch, match="but the job requires"):
        ensure(new_manager(), f"{REPO}@{COMMIT}/{PATH}", sha256=sha256(NEW))
    assert hosts.requests == []
    assert ensure(new_manager(), sha256=sha256(NEW)).verified_sha256 == sha256(
        NEW
    )  # main has moved


def test_content_that_another_reference_means_is_not_downloaded(manager, hosts, cached):
    hosts.add_model(version_id=7, data=FOX, name="fox.safetensors", kind="LORA")
    assert ensure(manager, "7").path == cached
    assert manager.fetcher.bytes_fetched == 0


@pytest.mark.parametrize(("pickles", "is_cached"), [("false", False), ("true", True)])
def test_a_cached_pickle_is_used_only_where_pickles_are_allowed(
    new_manager, hosts, root, pickles, is_cached
):
    hosts.add_hf(REPO, "fox.ckpt", model_files.PICKLE)
    path = add_cached(root, REPO, {"fox.ckpt": model_files.PICKLE})["fox.ckpt"]
    manager = new_manager(ALLOW_PICKLES=pickles)
    if is_cached:
        assert ensure(manager, f"{REPO}/fox.ckpt", "checkpoint").path == path
        assert ensure(manager, "fox.ckpt", "checkpoint").path == path
        assert hosts.requests == []
    else:
        with pytest.raises(ModelUnsafe):
            ensure(manager, f"{REPO}/fox.ckpt", "checkpoint")
        with pytest.raises(ModelNotFound):
            ensure(manager, "fox.ckpt", "checkpoint")


@pytest.mark.usefixtures("cached")
def test_the_operators_own_file_comes_before_a_cached_one(manager, tmp_path):
    own = tmp_path / "models/Lora" / REF
    own.parent.mkdir(parents=True)
    own.write_bytes(NEW)
    assert {ensure(manager, text).path for text in (REF, "fox")} == {own}


def test_models_are_listed_by_name_and_parts_of_a_pipeline_are_not(manager, root):
    files = {
        "fp16/base.safetensors": safetensors(model_files.SDXL),
        "fp32/base.safetensors": safetensors(model_files.SDXL, number=1),
        "fox.safetensors": FOX,
        "vae/vae.safetensors": safetensors(model_files.VAE),
        "unet/diffusion_pytorch_model.safetensors": safetensors(model_files.UNKNOWN),
        "flux.safetensors": safetensors(model_files.FLUX),
    }
    add_cached(root, REPO, files)
    add_cached(root, REPO, {"old.safetensors": NEW}, commit=OTHER_COMMIT, ref="old")
    add_cached(root, "without-owner", {"gpt.safetensors": NEW})
    listed = {kind: list(manager.list_files(kind)) for kind in ("checkpoint", "lora", "vae")}
    assert listed == {
        "checkpoint": [f"{REPO}/fp16/base.safetensors", f"{REPO}/fp32/base.safetensors"],
        "lora": ["fox.safetensors"],
        "vae": ["vae.safetensors"],
    }
    for name in listed["checkpoint"]:
        assert ensure(manager, name, "checkpoint").source.endswith(name.removeprefix(f"{REPO}/"))
    with pytest.raises(ModelNotFound, match="ambiguous"):
        ensure(manager, "base", "checkpoint")
    assert [{**one, "bytes": 0} for one in manager.health()["cached"]] == [
        {"repo": REPO, "commit": COMMIT, "files": len(files), "bytes": 0}
    ]
    assert manager.health()["cached"][0]["bytes"] == sum(map(len, files.values()))
    assert manager.health()["stored"]["loras"]["count"] == 0


def test_a_yaml_of_the_repository_is_not_given_to_the_engine(manager, root, tmp_path):
    """A1111 imports the classes that it names."""
    files = {"base.safetensors": safetensors(model_files.SD1), "base.yaml": b"model: {target: os}"}
    add_cached(root, REPO, files)
    manager.store.link(ensure(manager, f"{REPO}/base.safetensors", "checkpoint"))
    assert files_below(tmp_path / "webui") == ["models/Stable-diffusion/base.safetensors"]


def test_a_link_of_an_earlier_process_is_removed_when_its_job_is_over(new_manager, root, tmp_path):
    """An embedding acts wherever its name is in a prompt."""
    add_cached(root, REPO, {"cat.safetensors": safetensors(model_files.EMBEDDING)})
    first = new_manager()
    first.store.arrange("embedding", [ensure(first, "cat", "embedding")])
    assert files_below(tmp_path / "webui") == ["embeddings/cat.safetensors"]
    new_manager().store.arrange("embedding", [])
    assert files_below(tmp_path / "webui") == []


def test_a_repository_that_is_added_later_is_found(manager, root):
    with pytest.raises(ModelNotFound):
        ensure(manager, "fox")
    add_cached(root, REPO, {PATH: FOX})
    assert ensure(manager, "fox").size == SIZE


def test_a_branch_is_followed_after_a_failed_read_and_a_change_that_keeps_size_and_time(
    manager, root, cached, monkeypatch
):
    monkeypatch.setattr(hub_cache, "_SETTLED", -1)
    branch = cached.parents[3] / "refs/main"
    new = add_cached(root, REPO, {PATH: OTHER}, commit=OTHER_COMMIT, ref=None)[PATH]
    age(root)
    os.utime(new.parents[1], (2, 2))  # the newest snapshot
    with monkeypatch.context() as patch:
        patch.setattr(hub_cache, "read_small", raising(OSError("no answer from the volume")))
        assert ensure(manager).path == new
    for commit, path in ((COMMIT, cached), (OTHER_COMMIT, new)):
        write_as_before(branch, commit)
        assert [ensure(manager, text).path for text in (REF, "fox")] == [path, path]


def test_a_damaged_file_has_its_name_again_when_its_blob_was_replaced(manager, root, cached):
    blob = cached.resolve()
    blob.write_bytes(FOX[:-1])
    age(root)
    with pytest.raises(ModelNotFound):
        ensure(manager, "fox")
    blob.with_suffix(".new").write_bytes(FOX)
    blob.with_suffix(".new").rename(blob)
    assert ensure(manager, "fox").path == cached


def test_files_can_disappear_while_the_cache_is_read(manager, root, cached, monkeypatch):
    add_cached(root, REPO, {"other.safetensors": OTHER})
    read = os.readlink

    def link_is_gone(path, **more):
        if str(path) == str(cached):
            raise FileNotFoundError(path)
        return read(path, **more)

    monkeypatch.setattr(os, "readlink", link_is_gone)
    assert list(manager.list_files("lora")) == ["other.safetensors"]
    assert manager.health()["cached"]


def test_the_branches_are_read_as_often_for_many_files_as_for_one(manager, root, monkeypatch):
    reads = []
    read = hub_cache.read_small
    monkeypatch.setattr(hub_cache, "read_small", lambda *a: reads.append(a) or read(*a))
    counts = set()
    for names in (["a"], "abcdefgh"):
        add_cached(
            root, REPO, {f"{name}.safetensors": safetensors(number=ord(name)) for name in names}
        )
        manager.link_everything()
        reads.clear()
        assert len(manager.list_files("lora")) == len(names)
        counts.add(len(reads))
    assert len(counts) == 1


# The other commands -------------------------------------------------------------------------------


def test_the_engine_sees_cached_models_from_its_start_with_their_hashes(manager, root, tmp_path):
    add_cached(root, REPO, {"base.safetensors": safetensors(model_files.SD1), PATH: FOX})
    assert manager.link_everything() == 2
    links = tmp_path / "webui/models"
    assert files_below(links) == ["Lora/fox.safetensors", "Stable-diffusion/base.safetensors"]
    sha256 = manager.list_files("checkpoint")["base.safetensors"].verified_sha256
    with diskcache.Cache(str(tmp_path / "webui/cache/hashes")) as hashes:
        assert hashes["checkpoint/base.safetensors"]["sha256"] == sha256
    assert ensure(manager, sha256[:10].upper(), "checkpoint").verified_sha256 == sha256
    old = {"old.safetensors": safetensors(model_files.SD1, number=9)}
    add_cached(root, REPO, old, commit=OTHER_COMMIT, ref=None)
    default = parse({"prompt": "", "checkpoint": f"{REPO}@{OTHER_COMMIT}/old.safetensors"})
    assert manager.first_checkpoint(default) == "old"
    with diskcache.Cache(str(tmp_path / "webui/cache/hashes")) as hashes:
        assert "checkpoint/old.safetensors" in hashes
    shutil.rmtree(folder_of(root, REPO))
    assert manager.link_everything() == 0  # the repository of the endpoint was changed
    assert files_below(links) == []
