"""The files that client.py writes: whole, under a name of their own, never over another file."""

import resource
import threading
from pathlib import Path

import pytest
from fakes.runpod_endpoint import completed
from hypothesis import given
from hypothesis import strategies as st

import client as program

from .conftest import drawn, picture


@given(taken=st.sets(st.integers(1, 6)), count=st.integers(1, 4))
def test_files_get_the_first_free_numbers(tmp_path_factory, taken, count):
    folder = tmp_path_factory.mktemp("files")
    for number in taken:
        (folder / ("fox.png" if number == 1 else f"fox-{number}.png")).write_bytes(b"taken")
    written = [program.write_new(folder, "fox", ".png", b"%d" % n) for n in range(count)]
    assert [file.read_bytes() for file in written] == [b"%d" % n for n in range(count)]
    numbers = [int(file.stem.partition("-")[2] or 1) for file in written]
    assert numbers == [n for n in range(1, 11) if n not in taken][:count]
    assert len(list(folder.iterdir())) == len(taken) + count


@pytest.mark.parametrize("links", [True, False])
def test_many_writers_of_one_name_lose_nothing(links, tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError

    if not links:  # as on FAT
        monkeypatch.setattr(program.os, "link", no_links)
    data = [b"%d" % number * 1000 for number in range(40)]

    def write(part):
        for one in part:
            program.write_new(tmp_path, "fox", ".png", one)

    threads = [threading.Thread(target=write, args=(data[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(file.read_bytes() for file in tmp_path.iterdir()) == sorted(data)


def test_two_clients_at_once_write_two_files(endpoint, client):
    endpoint.fault("status", hold=True, times=2)
    both = [client.start("a fox", "--out", "fox.png") for _ in range(2)]
    endpoint.wait_for("status", count=2)
    endpoint.release()
    assert {client.end(process)[1] for process in both} == {"fox.png\n", "fox-2.png\n"}


@pytest.mark.parametrize("sent", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("out", ["fox.png", "fox.jpeg", "fox.webp", "fox"])
def test_a_file_has_the_suffix_of_what_came(sent, out, endpoint, client):
    endpoint.states = lambda _: [drawn(picture(sent))]
    suffix = {"png": ".png", "jpeg": ".jpeg" if out == "fox.jpeg" else ".jpg", "webp": ".webp"}[
        sent
    ]
    status, printed, _ = client("a fox", "--out", out)
    expected = f"fox/a-red-fox-42{suffix}" if out == "fox" else f"fox{suffix}"
    assert (status, printed) == (0, f"{expected}\n")
    assert (client.folder / expected).read_bytes() == picture(sent)


def test_what_cannot_be_written_leaves_no_part_and_can_be_fetched_again(endpoint, client):
    endpoint.states = lambda _: [drawn(picture(), picture(infotext="x" * 9000))]

    def limited():  # as on a full disk: the second file does not fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    status, _, err = client("a fox", preexec_fn=limited)
    assert (status, client.files()) == (1, ["a-red-fox-42.png"])
    assert "file     a-red-fox-42.png" in err
    assert "cannot be written: File too large" in err
    status, out, _ = client("--fetch", endpoint.job_ids[0], "--out", "other/")
    assert (status, out.split()) == (0, ["other/a-red-fox-42.png", "other/a-red-fox-43.png"])


def test_the_pictures_of_a_batch_are_all_saved_and_its_failures_named(endpoint, client):
    results = [drawn(picture())["output"], {"error": "INVALID_INPUT: no."}, None]
    results += [drawn(picture("webp"), picture("jpeg"))["output"]]
    endpoint.states = lambda _: [completed(results=results, failed=1)]
    job = b'{"input": {"task": "batch", "inputs": [{}]}}'
    status, out, err = client("--job", "-", "--out", "all/", "--quiet", stdin=job)
    names = ["a-red-fox-42.png", "a-red-fox-42.webp", "a-red-fox-43.jpg"]
    assert (status, err) == (0, "failed   INVALID_INPUT: no.\n")
    assert out.split() == [f"all/{name}" for name in names] == client.files()


@given(prompt=st.text(max_size=300), seed=st.none() | st.integers())
def test_a_name_from_a_prompt_is_a_name_in_its_folder(prompt, seed):
    stem = program.stem_of({"prompt": prompt, "seed": seed}, 0)
    assert Path(stem).name == stem
    assert not stem.startswith((".", "-"))
    assert len(stem.encode()) < 200
