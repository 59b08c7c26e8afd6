"""A folder of model files is read when it has changed, and only then."""

import os
import threading
import time
from pathlib import Path

import pytest

from worker.models.store import listing
from worker.models.store.listing import Listing


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Lora" / "sub").mkdir(parents=True)
    for name in ("a.safetensors", "sub/b.safetensors"):
        (tmp_path / "Lora" / name).write_bytes(b"12345")
    settle(tmp_path / "Lora")
    return tmp_path / "Lora"


@pytest.fixture
def reads(monkeypatch):
    """The folders that were read."""
    seen = []

    def scandir(path):
        seen.append(Path(path).name)
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    return seen


def settle(folder, seconds=60):
    """Make the folders look as if nothing had happened for a while."""
    then = time.time() - seconds
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            os.utime(path, (then, then))


def names(one):
    return [path.name for path in one.files()]


def test_a_warm_look_reads_no_folder(folder, reads):
    known = Listing(folder)
    assert names(known) == ["a.safetensors", "b.safetensors"]
    del reads[:]

    generation = known.current_generation()
    for _ in range(3):
        assert known.find("b") == [folder / "sub" / "b.safetensors"]
        assert names(known) == ["a.safetensors", "b.safetensors"]
        assert list(known.sizes().values()) == [5, 5]

    assert reads == []
    assert known.current_generation() == generation


def test_a_folder_that_does_not_exist_is_looked_for_in_vain_only_once(tmp_path, reads):
    missing = Listing(tmp_path / "Lora")
    generation = missing.current_generation()

    assert [names(missing) for _ in range(3)] == [[], [], []]
    assert (reads, missing.current_generation()) == (["Lora"], generation)

    (tmp_path / "Lora").mkdir()
    (tmp_path / "Lora" / "a.safetensors").touch()
    assert names(missing) == ["a.safetensors"]


@pytest.mark.parametrize("below", ["", "sub", "sub/new"])
def test_a_new_file_is_seen(folder, below):
    known = Listing(folder)
    names(known)
    (folder / below).mkdir(exist_ok=True)
    (folder / below / "new.safetensors").touch()

    assert known.find("new") == [folder / below / "new.safetensors"]


def test_a_file_that_is_gone_is_not_found(folder):
    known = Listing(folder)
    assert known.sizes()[folder / "sub" / "b.safetensors"] == 5
    (folder / "sub" / "b.safetensors").unlink()

    assert known.find("b") == []
    assert list(known.sizes()) == [folder / "a.safetensors"]


def test_a_renamed_file_is_found_by_its_new_name(folder):
    known = Listing(folder)
    names(known)
    (folder / "a.safetensors").rename(folder / "z.safetensors")

    assert (known.find("a"), known.find("z")) == ([], [folder / "z.safetensors"])


def test_a_removed_subfolder_takes_its_files_along(folder):
    known = Listing(folder)
    names(known)
    (folder / "sub" / "b.safetensors").unlink()
    (folder / "sub").rmdir()

    assert names(known) == ["a.safetensors"]


def test_a_change_within_the_same_tick_is_seen(folder):
    """A clock that stands still: each change leaves the folder's time as it was."""
    now = time.time()
    os.utime(folder, (now, now))
    known = Listing(folder)
    names(known)
    (folder / "new.safetensors").touch()
    os.utime(folder, (now, now))

    assert len(known.find("new")) == 1


def test_a_settled_folder_is_trusted(folder, monkeypatch, reads):
    monkeypatch.setattr(listing, "_SETTLED", 0.0)
    now = time.time()
    os.utime(folder, (now - 1, now - 1))
    known = Listing(folder)
    names(known)
    names(known)

    assert reads == ["Lora", "sub"]


PICKLES = ["a.ckpt", "b.pt", "c.pth", "d.bin"]


@pytest.mark.parametrize(("pickles", "more"), [(False, []), (True, PICKLES)])
def test_pickles_count_only_where_they_may(folder, pickles, more):
    for name in (*PICKLES, "readme.txt", "e.yaml", "f.gguf"):
        (folder / name).touch()

    found = set(names(Listing(folder, pickles=pickles)))
    assert found == {"a.safetensors", "b.safetensors", *more}


def test_hidden_files_and_folders_are_left_out(folder):
    (folder / ".hidden.safetensors").touch()
    (folder / ".trash").mkdir()
    (folder / ".trash" / "x.safetensors").touch()

    assert names(Listing(folder)) == ["a.safetensors", "b.safetensors"]


def test_the_exact_case_goes_before_any_other(folder):
    (folder / "A.safetensors").touch()
    (folder / "Fox.safetensors").touch()
    (folder / "FOX.safetensors").touch()
    known = Listing(folder)

    assert known.find("A") == [folder / "A.safetensors"]
    assert known.find("B") == [folder / "sub" / "b.safetensors"]
    assert len(known.find("fox")) == 2


def test_two_files_of_one_stem_are_both_found(folder):
    (folder / "sub" / "a.safetensors").touch()

    assert len(Listing(folder).find("a")) == 2


def test_a_dangling_link_has_no_size(folder):
    (folder / "gone.safetensors").symlink_to("nowhere")
    known = Listing(folder)

    assert known.find("gone")
    assert set(known.sizes()) == {folder / "a.safetensors", folder / "sub" / "b.safetensors"}


def test_threads_may_look_while_the_folder_changes(folder):
    known, failed = Listing(folder), []
    over = threading.Event()

    def look():
        try:
            while not over.is_set():
                assert known.find("a") == [folder / "a.safetensors"]
                assert len(known.find("b")) == 1
        except (AssertionError, RuntimeError) as error:
            failed.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(100):
        (folder / f"sub{number}").mkdir()
        (folder / f"new{number}.safetensors").touch()
    over.set()
    for thread in threads:
        thread.join()
    assert failed == []
