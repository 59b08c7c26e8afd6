"""A1111 v1.9.3 finds our hashes in its own cache, and need not read the checkpoints."""

import os

import diskcache
import pytest

from worker.formats.model_file import ModelFile
from worker.models.store import hash_cache

DIGEST, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def webui(tmp_path):
    return tmp_path / "webui"


@pytest.fixture
def checkpoint(tmp_path, webui):
    """A checkpoint of the store that is linked into the engine's folder."""

    def make(stem, sha256=DIGEST):
        path = tmp_path / "blobs" / f"{stem}-blob.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        link = webui / "models" / "Stable-diffusion" / f"{stem}.safetensors"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
        return ModelFile("checkpoint", path, stem, 1, sha256)

    return make


def as_a1111_reads(webui, stem):
    """`sha256_from_cache` of modules/hashes.py, with the title of modules/sd_models.py."""
    filename = webui / "models" / "Stable-diffusion" / f"{stem}.safetensors"
    title = f"checkpoint/{stem}.safetensors"
    folder = os.path.join(webui, "cache", "hashes")  # noqa: PTH118 - modules/cache.py
    with diskcache.Cache(folder, size_limit=2**32, disk_min_file_size=2**18) as hashes:
        ondisk_mtime = os.path.getmtime(filename)  # noqa: PTH204 - modules/hashes.py
        if title not in hashes:
            return None
        cached_sha256 = hashes[title].get("sha256", None)
        cached_mtime = hashes[title].get("mtime", 0)
        if ondisk_mtime > cached_mtime or cached_sha256 is None:
            return None
        return cached_sha256


def test_a1111_finds_the_hash(webui, checkpoint):
    files = [checkpoint("Fox v1.5"), checkpoint("猫", OTHER)]

    assert hash_cache.seed(webui, files) == 2
    assert [as_a1111_reads(webui, stem) for stem in ("Fox v1.5", "猫")] == [DIGEST, OTHER]


def test_a_second_time_changes_nothing(webui, checkpoint):
    file = checkpoint("fox")
    for _ in range(2):
        hash_cache.seed(webui, [file])

    assert as_a1111_reads(webui, "fox") == DIGEST


def test_a_newer_file_of_that_name_is_hashed_by_a1111(webui, checkpoint):
    file = checkpoint("fox")
    hash_cache.seed(webui, [file])
    os.utime(file.path, (2**31, 2**31))

    assert as_a1111_reads(webui, "fox") is None


def test_another_file_of_that_name_takes_its_place(webui, checkpoint):
    file = checkpoint("fox")
    hash_cache.seed(webui, [file])
    hash_cache.seed(webui, [ModelFile("checkpoint", file.path, "fox", 1, OTHER)])

    assert as_a1111_reads(webui, "fox") == OTHER


def test_a_file_whose_hash_nobody_knows_is_left_to_a1111(webui, checkpoint):
    assert hash_cache.seed(webui, [checkpoint("fox", None)]) == 0
    assert not (webui / "cache").exists()


def test_a1111s_own_entries_stay(webui, checkpoint):
    with diskcache.Cache(str(webui / "cache" / "hashes")) as cache:
        cache["checkpoint/own.safetensors"] = {"mtime": 1.0, "sha256": OTHER}
    hash_cache.seed(webui, [checkpoint("fox")])

    with diskcache.Cache(str(webui / "cache" / "hashes")) as cache:
        assert cache["checkpoint/own.safetensors"] == {"mtime": 1.0, "sha256": OTHER}


def test_a_damaged_entry_is_replaced(webui, checkpoint):
    hash_cache.seed(webui, [checkpoint("fox")])
    with diskcache.Cache(str(webui / "cache" / "hashes")) as cache:
        cache._sql("UPDATE Cache SET value = X'80', mode = 4")

    hash_cache.seed(webui, [ModelFile("checkpoint", webui / "fox", "x", 1)])
    assert hash_cache.seed(webui, [file_of(webui, "fox")]) == 1
    assert as_a1111_reads(webui, "fox") == DIGEST


def file_of(webui, stem):
    path = (webui / "models" / "Stable-diffusion" / f"{stem}.safetensors").resolve()
    return ModelFile("checkpoint", path, stem, 1, DIGEST)


def damaged(folder):
    folder.mkdir(parents=True)
    (folder / "cache.db").write_bytes(b"not a database" * 100)


def no_folder(folder):
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    folder.parent.write_bytes(b"")


@pytest.mark.parametrize("spoil", [damaged, no_folder])
def test_a_cache_that_cannot_be_written_is_only_told(webui, checkpoint, spoil, caplog):
    file = checkpoint("fox")
    spoil(webui / "cache" / "hashes")

    assert hash_cache.seed(webui, [file]) == 0
    assert "hash cache was not filled in" in caplog.text


def test_a_file_that_is_gone_is_only_told(webui, checkpoint, caplog):
    file = checkpoint("fox")
    file.path.unlink()

    assert hash_cache.seed(webui, [file]) == 0
    assert "hash cache was not filled in" in caplog.text
