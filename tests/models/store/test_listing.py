"""A folder of model files is read again only when it has changed."""

import os
import threading
import time
from pathlib import Path

import pytest

from worker.models.store.listing import Listing, look_again, one_look


@pytest.fixture
def folder(tmp_path):
    """Two files in folders that have not changed for a minute."""
    (tmp_path / "Lora" / "sub").mkdir(parents=True)
    for name in ("a.safetensors", "sub/b.safetensors"):
        (tmp_path / "Lora" / name).write_bytes(b"12345")
    then = time.time() - 60
    for path in (tmp_path / "Lora", tmp_path / "Lora" / "sub"):
        os.utime(path, (then, then))
    return tmp_path / "Lora"


@pytest.fixture
def reads(monkeypatch):
    """The folders that were read."""
    seen, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(Path(path).name) or real(path))
    return seen


def names(listing):
    return [path.name for path in listing.files()]


def test_an_unchanged_folder_is_not_read_again(folder, reads):
    listing = Listing(folder)
    assert names(listing) == ["a.safetensors", "b.safetensors"]
    del reads[:]
    generation = listing.current_generation()
    for _ in range(3):
        assert listing.find("b") == [folder / "sub" / "b.safetensors"]
        assert names(listing) == ["a.safetensors", "b.safetensors"]
        assert list(listing.sizes().values()) == [5, 5]
    assert (reads, listing.current_generation()) == ([], generation)


def test_a_missing_folder_is_read_once_until_it_exists(tmp_path, reads):
    listing = Listing(tmp_path / "Lora")
    generation = listing.current_generation()
    assert [names(listing) for _ in range(3)] == [[], [], []]
    assert (reads, listing.current_generation()) == (["Lora"], generation)
    (tmp_path / "Lora").mkdir()
    (tmp_path / "Lora" / "a.safetensors").touch()
    assert names(listing) == ["a.safetensors"]


def test_new_removed_and_renamed_files_are_followed(folder):
    listing = Listing(folder)
    assert listing.sizes()[folder / "sub" / "b.safetensors"] == 5
    (folder / "sub" / "b.safetensors").unlink()
    assert (listing.find("b"), list(listing.sizes())) == ([], [folder / "a.safetensors"])
    (folder / "a.safetensors").rename(folder / "z.safetensors")
    assert (listing.find("a"), listing.find("z")) == ([], [folder / "z.safetensors"])
    (folder / "sub").rmdir()
    assert names(listing) == ["z.safetensors"]


@pytest.mark.parametrize("below", ["", "sub", "sub/new"])
def test_a_new_file_is_found(folder, below):
    listing = Listing(folder)
    names(listing)
    (folder / below).mkdir(exist_ok=True)
    (folder / below / "new.safetensors").touch()
    assert listing.find("new") == [folder / below / "new.safetensors"]


def test_a_folder_is_trusted_only_once_it_is_settled(folder, reads):
    """The clock stands still: a change does not change the folder's time."""
    now = time.time()
    os.utime(folder, (now, now))
    listing = Listing(folder)
    names(listing)
    (folder / "new.safetensors").touch()
    os.utime(folder, (now, now))
    assert len(listing.find("new")) == 1
    os.utime(folder, (now - 1, now - 1))
    del reads[:]
    listing = Listing(folder, settled=0.0)
    assert names(listing) == names(listing)
    assert reads == ["Lora", "sub"]


PICKLES = ["a.ckpt", "b.pt", "c.pth", "d.bin"]


@pytest.mark.parametrize(("pickles", "more"), [(False, []), (True, PICKLES)])
def test_only_model_files_are_listed_and_pickles_only_if_allowed(folder, pickles, more):
    (folder / ".trash").mkdir()
    others = ("readme.txt", "e.yaml", "f.gguf", ".hidden.safetensors", ".trash/x.safetensors")
    for name in (*PICKLES, *others):
        (folder / name).touch()
    found = set(names(Listing(folder, pickles=pickles)))
    assert found == {"a.safetensors", "b.safetensors", *more}


def test_the_exact_case_comes_before_any_other_and_a_dangling_link_has_no_size(folder):
    for name in ("A", "Fox", "FOX", "sub/Fox"):
        (folder / f"{name}.safetensors").touch()
    (folder / "gone.safetensors").symlink_to("nowhere")
    listing = Listing(folder)
    assert listing.find("A") == [folder / "A.safetensors"]
    assert listing.find("B") == [folder / "sub" / "b.safetensors"]
    assert (len(listing.find("fox")), len(listing.find("Fox"))) == (3, 2)
    assert listing.find("gone")
    assert listing.sizes().keys() == set(listing.files()) - {folder / "gone.safetensors"}


def test_threads_can_look_while_the_folder_changes(folder):
    listing, failed, over = Listing(folder), [], threading.Event()

    def look():
        try:
            while not over.is_set():
                assert listing.find("a") == [folder / "a.safetensors"]
                assert len(listing.find("b")) == 1
        except (AssertionError, RuntimeError) as error:
            failed.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(50):
        (folder / f"sub{number}").mkdir()
        (folder / f"new{number}.safetensors").touch()
    over.set()
    for thread in threads:
        thread.join()
    assert failed == []


def test_deeply_nested_folders_end_at_the_sixteenth_level(folder):
    deepest = folder
    for level in range(1, 40):
        deepest /= f"{level}"
        deepest.mkdir()
        (deepest / f"at{level}.safetensors").touch()
    listing = Listing(folder)
    assert (len(listing.find("at16")), len(listing.find("at17"))) == (1, 0)


def test_a_fifo_is_not_listed(folder):
    os.mkfifo(folder / "pipe.safetensors")
    assert "pipe.safetensors" not in names(Listing(folder))


def test_in_one_look_a_folder_is_read_as_it_was_until_look_again(folder):
    listing = Listing(folder)
    with one_look():
        assert len(names(listing)) == 2
        (folder / "c.safetensors").touch()
        assert len(names(listing)) == 2
        look_again()
        assert len(names(listing)) == 3
        (folder / "c.safetensors").unlink()
    assert len(names(listing)) == 2


def test_an_unlisted_folder_is_not_read_and_its_changes_are_seen(folder, reads):
    blobs = folder / "sub" / "blobs"
    blobs.mkdir()
    (blobs / "d.safetensors").touch()
    assert len(names(Listing(folder))) == 3
    for path in (blobs, blobs.parent):
        os.utime(path, (1, 1))
    del reads[:]
    listing = Listing(folder, unlisted=("blobs",))
    assert len(names(listing)) == 2
    generation = listing.current_generation()
    (blobs / "e.safetensors").touch()
    assert listing.current_generation() != generation
    assert "blobs" not in reads
