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
    """Make a checkpoint of the store, linked into the engine's folder."""

    def make(stem="fox", sha256=DIGEST):
        path = tmp_path / f"{stem}-blob.safetensors"
        path.write_bytes(b"x")
        link = webui / "models" / "Stable-diffusion" / f"{stem}.safetensors"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        return ModelFile("checkpoint", path, stem, 1, sha256)

    return make


def as_a1111_reads(webui, stem="fox"):
    """`sha256_from_cache` of modules/hashes.py, with the title of modules/sd_models.py."""
    filename = webui / "models" / "Stable-diffusion" / f"{stem}.safetensors"
    title = f"checkpoint/{stem}.safetensors"
    folder = os.path.join(webui, "cache", "hashes")  # noqa: PTH118 - modules/cache.py
    with diskcache.Cache(folder, size_limit=2**32, disk_min_file_size=2**18) as hashes:
        ondisk_mtime = os.path.getmtime(filename)  # noqa: PTH204 - modules/hashes.py
        entry = hashes[title] if title in hashes else {}  # noqa: SIM401
        cached_sha256 = entry.get("sha256", None)
        cached_mtime = entry.get("mtime", 0)
        return None if ondisk_mtime > cached_mtime else cached_sha256


def cache_of(webui):
    return diskcache.Cache(str(webui / "cache" / "hashes"))


def test_a1111_finds_the_hashes_beside_its_own_and_hashes_a_newer_file(webui, checkpoint):
    own = {"mtime": 1.0, "sha256": OTHER}
    with cache_of(webui) as cache:
        cache["checkpoint/own.safetensors"] = own
    files = [checkpoint("Fox v1.5"), checkpoint("猫", OTHER)]
    for _ in range(2):
        assert hash_cache.seed(webui, files) == 2
        assert [as_a1111_reads(webui, stem) for stem in ("Fox v1.5", "猫")] == [DIGEST, OTHER]
    with cache_of(webui) as cache:
        assert cache["checkpoint/own.safetensors"] == own
    os.utime(files[0].path, (2**31, 2**31))
    assert as_a1111_reads(webui, "Fox v1.5") is None


@pytest.mark.parametrize("damaged", [False, True])
def test_another_file_of_that_name_replaces_the_entry_even_a_damaged_one(
    webui, checkpoint, damaged
):
    hash_cache.seed(webui, [checkpoint()])
    if damaged:
        with cache_of(webui) as cache:
            cache._sql("UPDATE Cache SET value = X'80', mode = 4")
    assert hash_cache.seed(webui, [checkpoint(sha256=OTHER)]) == 1
    assert as_a1111_reads(webui) == OTHER


def test_a_file_with_an_unknown_hash_is_left_to_a1111(webui, checkpoint):
    assert hash_cache.seed(webui, [checkpoint(sha256=None)]) == 0
    assert not (webui / "cache").exists()


@pytest.mark.parametrize("spoiled", ["database", "folder", "file"])
def test_a_cache_that_cannot_be_written_is_a_warning(webui, checkpoint, spoiled, caplog):
    file, folder = checkpoint(), webui / "cache" / "hashes"
    if spoiled == "database":
        folder.mkdir(parents=True)
        (folder / "cache.db").write_bytes(b"not a database" * 100)
    elif spoiled == "folder":
        folder.parent.write_bytes(b"")
    else:
        file.path.unlink()
    assert hash_cache.seed(webui, [file]) == 0
    assert "hash cache cannot be written" in caplog.text


def test_an_embedding_is_reported_with_its_own_hash_after_a_newer_one_of_its_name(webui, tmp_path):
    files = [ModelFile("embedding", tmp_path / name, "style", 1) for name in ("new", "old")]
    for number, file in enumerate(files):
        file.path.write_bytes(file.path.name.encode())
        os.utime(file.path, (2 - number, 2 - number))
        assert hash_cache.seed(webui, [file]) == 1
        with cache_of(webui) as cache:
            assert cache["textual_inversion/style"] == {
                "mtime": 2 - number,
                "sha256": file.sha256(),
            }
