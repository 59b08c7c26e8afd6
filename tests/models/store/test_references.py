"""The file that a reference meant is remembered for as long as the answer can be trusted."""

import json
import os
from dataclasses import replace

import pytest

from worker.errors import (
    ModelArchived,
    ModelForbidden,
    ModelHostFailed,
    ModelNotFound,
    ModelRateLimited,
    ModelRegionBlocked,
)
from worker.hosts.host import RemoteFile
from worker.job.reference import CivitAIModel, CivitAIVersion, HuggingFaceFile, WebFile
from worker.models.store.references import Freshness, References, file_name, is_news

FRESH = Freshness()
DIGEST, OTHER = "ab" * 32, "cd" * 32
REMOTE = RemoteFile(
    "https://example.org/d/1", "fox.safetensors", "civitai:7@1", 5, DIGEST, "lora", "Fox", "SDXL"
)
MARKED = replace(REMOTE, etag='"v1"')
FOX = CivitAIVersion(1)
FIXED = [FOX, CivitAIVersion(1, 2), HuggingFaceFile("org/name", "x.safetensors", "a" * 40)]
WEB = WebFile("https://example.org/x.safetensors")
SECRET = WebFile("https://example.org/x.safetensors?token=swordfish")
MODEL = CivitAIModel(7)
MOVING = [MODEL, HuggingFaceFile("org/name", "x.safetensors"), WEB]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "references"


@pytest.fixture
def known(folder, clock):
    return References(folder, clock=clock)


@pytest.fixture(params=["same process", "another process"])
def seen_by(request, folder, clock, known):
    """The references as this process, or another one, knows them."""
    same = request.param == "same process"
    return lambda: known if same else References(folder, clock=clock)


@pytest.mark.parametrize("ref", FIXED + MOVING)
def test_content_is_trusted_for_a_day_if_the_reference_can_move_and_else_for_ever(
    known, seen_by, clock, ref
):
    assert (known.sha256(ref), known.remote(ref), known.etag(ref)) == (None, None, None)
    known.note(ref, REMOTE, DIGEST)
    assert (seen_by().sha256(ref), seen_by().remote(ref)) == (DIGEST, REMOTE)
    clock.now += FRESH.content - 1
    assert seen_by().sha256(ref) == DIGEST
    clock.now += 2
    expected = None if ref in MOVING else DIGEST
    assert seen_by().sha256(ref) == expected
    assert seen_by().sha256(ref, stale=True) == DIGEST
    clock.now -= 3 * FRESH.content  # nothing is trusted after the clock was set back
    assert seen_by().sha256(ref) == expected


def test_a_hosts_answer_is_trusted_for_an_hour(known, seen_by, clock):
    known.note(FOX, REMOTE)
    clock.now += FRESH.metadata - 1
    assert seen_by().remote(FOX) == REMOTE
    clock.now += 2
    assert seen_by().remote(FOX) is None


def test_a_new_answer_keeps_the_old_content_until_the_new_one_is_fetched(known, seen_by, clock):
    known.note(MODEL, REMOTE, DIGEST)
    clock.now += FRESH.content + 1
    known.note(MODEL, REMOTE)
    assert (seen_by().sha256(MODEL), seen_by().sha256(MODEL, stale=True)) == (None, DIGEST)
    known.note(MODEL, REMOTE, OTHER)
    assert seen_by().sha256(MODEL) == OTHER


@pytest.mark.parametrize("ref", [*MOVING, SECRET])
def test_the_etag_belongs_to_the_content_that_was_fetched(known, seen_by, ref):
    known.note(ref, MARKED)
    assert seen_by().etag(ref) is None
    known.note(ref, MARKED, DIGEST)
    known.note(ref, REMOTE)
    known.note_refusal(ref, ModelNotFound("gone."))
    assert seen_by().etag(ref) == '"v1"'
    known.note(ref, REMOTE, OTHER)
    assert seen_by().etag(ref) is None


def test_an_entry_of_an_older_worker_has_its_etag_in_the_hosts_answer(known, folder):
    known.note(WEB, MARKED, DIGEST)
    (path,) = folder.iterdir()
    entry = json.loads(path.read_text())
    del entry["etag"]
    path.write_text(json.dumps(entry))
    other = References(folder)
    assert (other.etag(WEB), other.sha256(WEB, stale=True)) == ('"v1"', DIGEST)


@pytest.mark.parametrize("kind", [ModelNotFound, ModelArchived])
def test_a_refusal_for_every_worker_is_trusted_for_a_minute(known, seen_by, clock, kind):
    known.note(FOX, REMOTE, DIGEST)
    known.note_refusal(FOX, kind("it is gone.", hint="Use another."))
    assert seen_by().sha256(FOX) == DIGEST
    with pytest.raises(kind, match=r"it is gone\. Use another\."):
        seen_by().remote(FOX)
    clock.now += FRESH.refusal + 1
    assert seen_by().remote(FOX) is None
    known.note_refusal(FOX, kind("gone."))
    known.note(FOX, REMOTE, DIGEST)
    assert seen_by().remote(FOX) == REMOTE, "a fetched file ends the refusal"


def test_a_refusal_for_this_worker_or_moment_is_not_stored(known):
    for kind in (ModelForbidden, ModelHostFailed, ModelRateLimited, ModelRegionBlocked):
        known.note_refusal(FOX, kind("no."))
        assert known.remote(FOX) is None


def test_a_secret_url_is_never_written(known, seen_by, folder):
    known.note(SECRET, RemoteFile(SECRET.url, "x.safetensors", SECRET.shown), DIGEST)
    other = WebFile(SECRET.url + "2")
    known.note_refusal(other, ModelNotFound(f"{SECRET.shown}: gone."))
    # This reference may be stored, but not the URL that its host has answered with.
    signed = replace(REMOTE, url="https://cdn.example/x?sig=swordfish", is_signed=True)
    known.note(FOX, signed)
    known.note(FOX, signed, DIGEST)
    written = [path.read_text() for path in folder.iterdir()]
    assert len(written) == 3
    assert not any("swordfish" in text for text in written)
    for ref in (SECRET, FOX):
        assert (seen_by().sha256(ref), seen_by().remote(ref)) == (DIGEST, None)
    assert known.sha256(other) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"at": "x"}', b"\xff", b'{"shown": 1}'])
@pytest.mark.parametrize("ref", [FOX, MODEL])
def test_a_garbled_entry_is_ignored_and_replaced(known, folder, content, ref):
    known.note(ref, REMOTE, DIGEST)
    for path in folder.iterdir():
        path.write_bytes(content)
    other = References(folder)
    assert (other.sha256(ref), other.remote(ref)) == (None, None)
    other.note(ref, REMOTE, DIGEST)
    assert References(folder).sha256(ref) == DIGEST
    assert len(list(folder.iterdir())) == 1, "nothing unfinished is left"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    known = References(tmp_path / "file" / "references")
    known.note(FOX, REMOTE, DIGEST)
    known.note_refusal(FOX, ModelNotFound("gone."))
    assert (known.sha256(FOX), known.remote(FOX)) == (None, None)


@pytest.fixture
def baked(tmp_path, folder, clock):
    """Make the references of a worker whose image was baked with FOX and MODEL."""
    for ref in (FOX, MODEL):
        References(tmp_path / "baked", clock=clock).note(ref, REMOTE, DIGEST)
    return lambda: References(folder, tmp_path / "baked", clock=clock)


def test_baked_answers_are_always_trusted_but_newer_ones_come_first(baked, folder, clock):
    worker = baked()
    assert (worker.sha256(FOX), worker.remote(FOX)) == (DIGEST, REMOTE)
    assert not folder.exists()
    worker.note(FOX, REMOTE, OTHER)
    assert (worker.sha256(FOX), baked().sha256(FOX)) == (OTHER, OTHER)
    clock.now += 1000 * FRESH.content
    assert baked().sha256(MODEL) == DIGEST
    baked().note(MODEL, REMOTE, OTHER)
    clock.now += 2 * FRESH.content
    assert (baked().sha256(MODEL), baked().sha256(MODEL, stale=True)) == (None, OTHER)


@pytest.mark.parametrize("ref", FIXED + MOVING)
def test_a_build_trusts_an_earlier_one_only_about_fixed_references(folder, clock, ref):
    """While an image is baked, both folders are the same."""
    References(folder, folder, clock=clock).note(ref, MARKED, DIGEST)
    clock.now += 1
    build = References(folder, folder, clock=clock)
    expected = None if ref in MOVING else DIGEST
    assert (build.sha256(ref), build.remote(ref)) == (expected, None)
    assert (build.sha256(ref, stale=True), build.etag(ref)) == (DIGEST, '"v1"')
    build.note(ref, MARKED, OTHER)
    clock.now += 60
    assert (build.sha256(ref), build.remote(ref)) == (OTHER, MARKED)


def test_a_fifo_in_place_of_an_answer_does_not_block(known, folder):
    known.note(FOX, REMOTE, DIGEST)
    path = next(folder.iterdir())
    path.unlink()
    os.mkfifo(path)
    assert References(folder).sha256(FOX) is None


def test_an_entry_replaces_that_of_a_volume_only_if_it_says_something_newer(folder, clock):
    def entry(ref, digest, at):
        clock.now = at
        known = References(folder / f"{digest}{at}", clock=clock)
        known.note(ref, REMOTE, digest)
        return known.exported(ref)

    assert References(folder, clock=clock).exported(FOX) is None
    table = {  # reference, ours, theirs -> whether ours is sent
        (FOX, (DIGEST, 9), (DIGEST, 5)): False,
        (FOX, (DIGEST, 9), (OTHER, 5)): True,
        (MODEL, (DIGEST, 9), (DIGEST, 5)): True,
        (MODEL, (DIGEST, 9), (DIGEST, 9)): False,
        (MODEL, (DIGEST, 5), (OTHER, 9)): False,
    }
    for (ref, ours, theirs), expected in table.items():
        assert is_news(ref, entry(ref, *ours), entry(ref, *theirs)) is expected, (ref, ours, theirs)
    for damaged in (None, b"", b"{}", b"\xff"):
        assert is_news(FOX, entry(FOX, DIGEST, 5), damaged)


def test_references_whose_content_is_never_fetched_fill_no_disk(known, folder, clock):
    for number in range(1, 1000):
        known.note(CivitAIVersion(number), REMOTE)
        known.note_refusal(WebFile(f"https://example.org/{number}"), ModelNotFound("gone."))
    assert len(list(folder.iterdir())) <= 256
    with pytest.raises(ModelNotFound):
        References(folder, clock=clock).remote(WebFile("https://example.org/999"))
    for number in range(1, 301):
        known.note(CivitAIVersion(number), REMOTE, DIGEST)
    other = References(folder, clock=clock)
    assert all(other.sha256(CivitAIVersion(number)) == DIGEST for number in range(1, 301))


def test_an_answer_in_the_slot_of_another_reference_is_not_its_own(known, seen_by):
    first = CivitAIVersion(1)
    same = (CivitAIVersion(n) for n in range(2, 10_000))
    second = next(ref for ref in same if ref.key[:2] == first.key[:2])
    known.note_refusal(first, ModelNotFound("gone."))
    assert seen_by().remote(second) is None
    known.note(second, REMOTE)
    assert (seen_by().remote(second), seen_by().remote(first)) == (REMOTE, None)


def test_an_entry_of_an_older_worker_without_content_is_read(known, folder):
    known.note(FOX, REMOTE)
    (path,) = folder.iterdir()
    entry = json.loads(path.read_text())
    del entry["key"]
    path.unlink()
    (folder / file_name(FOX)).write_text(json.dumps(entry))
    assert References(folder).remote(FOX) == REMOTE
