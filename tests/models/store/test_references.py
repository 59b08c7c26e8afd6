"""What a reference has led to is remembered for as long as it can be trusted."""

import json
from dataclasses import replace
from types import SimpleNamespace

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
from worker.models.store import references as references_module
from worker.models.store.references import FRESH, METADATA_FRESH, NEGATIVE_FRESH, References

DIGEST, OTHER = "ab" * 32, "cd" * 32
REMOTE = RemoteFile(
    "https://example.org/d/1", "fox.safetensors", "civitai:7@1", 5, DIGEST, "lora", "Fox", "SDXL"
)
FIXED = [
    CivitAIVersion(1),
    CivitAIVersion(1, 2),
    HuggingFaceFile("org/name", "x.safetensors", "a" * 40),
]
MOVING = [
    CivitAIModel(7),
    HuggingFaceFile("org/name", "x.safetensors"),
    WebFile("https://example.org/x.safetensors"),
]
FOX = CivitAIVersion(1)


@pytest.fixture
def clock(monkeypatch):
    """The time of day; `clock.now += 60` lets a minute pass."""
    clock = SimpleNamespace(now=1_800_000_000.0)
    clock.time = lambda: clock.now
    monkeypatch.setattr(references_module, "time", clock)
    return clock


@pytest.fixture
def known(tmp_path, clock):
    assert clock
    return References(tmp_path / "references")


@pytest.fixture(params=["same process", "another process"])
def seen_by(request, tmp_path, known):
    """What this process, or another one, has in mind."""
    return lambda: known if request.param == "same process" else References(tmp_path / "references")


def test_nothing_is_known_of_a_new_reference(known):
    assert (known.sha256(FOX), known.remote(FOX)) == (None, None)


@pytest.mark.parametrize("ref", FIXED + MOVING)
def test_what_was_noted_is_remembered(known, seen_by, ref):
    known.note(ref, REMOTE, DIGEST)

    assert (seen_by().sha256(ref), seen_by().remote(ref)) == (DIGEST, REMOTE)


@pytest.mark.parametrize("ref", FIXED)
def test_a_fixed_reference_means_the_same_for_ever(known, seen_by, clock, ref):
    known.note(ref, REMOTE, DIGEST)
    clock.now += 1000 * FRESH

    assert seen_by().sha256(ref) == DIGEST


@pytest.mark.parametrize("ref", MOVING)
def test_a_moving_reference_is_trusted_for_a_day(known, seen_by, clock, ref):
    known.note(ref, REMOTE, DIGEST)
    clock.now += FRESH - 1
    assert seen_by().sha256(ref) == DIGEST
    clock.now += 2
    assert seen_by().sha256(ref) is None
    assert seen_by().sha256(ref, stale=True) == DIGEST


def test_a_clock_that_was_set_back_trusts_nothing(known, clock):
    known.note(MOVING[0], REMOTE, DIGEST)
    clock.now -= 2 * FRESH

    assert known.sha256(MOVING[0]) is None


def test_a_hosts_word_is_trusted_for_an_hour(known, seen_by, clock):
    known.note(FOX, REMOTE)
    clock.now += METADATA_FRESH - 1
    assert seen_by().remote(FOX) == REMOTE
    clock.now += 2
    assert seen_by().remote(FOX) is None


def test_asking_the_host_again_keeps_what_was_fetched(known, seen_by, clock):
    """The host's answer is news; that the file behind it can be fetched is not known yet."""
    ref = MOVING[0]
    known.note(ref, REMOTE, DIGEST)
    clock.now += FRESH + 1
    known.note(ref, REMOTE)

    assert seen_by().sha256(ref) is None
    assert seen_by().sha256(ref, stale=True) == DIGEST


def test_a_newer_content_takes_the_old_ones_place(known, seen_by):
    known.note(MOVING[0], REMOTE, DIGEST)
    known.note(MOVING[0], REMOTE, OTHER)

    assert seen_by().sha256(MOVING[0]) == OTHER


# The host's mark of the version that was fetched.

MARKED = replace(REMOTE, etag='"v1"')
SECRET = WebFile("https://example.org/x.safetensors?token=swordfish")


@pytest.mark.parametrize("ref", [*MOVING, SECRET])
def test_the_etag_of_what_was_fetched_is_remembered(known, seen_by, ref):
    known.note(ref, MARKED, DIGEST)

    assert seen_by().etag(ref) == '"v1"'


@pytest.mark.parametrize("ref", [MOVING[2], SECRET])
def test_neither_an_answer_nor_a_no_takes_the_etag_from_what_is_here(known, seen_by, ref):
    known.note(ref, MARKED, DIGEST)
    known.note(ref, REMOTE)
    known.note_refusal(ref, ModelNotFound("gone."))

    assert seen_by().etag(ref) == '"v1"'
    known.note(ref, REMOTE, OTHER)
    assert seen_by().etag(ref) is None


def test_an_etag_of_what_was_never_fetched_is_none(known):
    known.note(FOX, MARKED)

    assert known.etag(FOX) is None


def test_an_older_workers_entry_has_its_etag_in_the_hosts_answer(known, tmp_path):
    known.note(MOVING[2], MARKED, DIGEST)
    (path,) = (tmp_path / "references").iterdir()
    entry = json.loads(path.read_text())
    del entry["etag"]
    path.write_text(json.dumps(entry))

    other = References(tmp_path / "references")
    assert (other.etag(MOVING[2]), other.sha256(MOVING[2])) == ('"v1"', DIGEST)


# A host's no.


@pytest.mark.parametrize("kind", [ModelNotFound, ModelArchived])
def test_a_no_for_everybody_is_trusted_for_a_minute(known, seen_by, clock, kind):
    known.note_refusal(FOX, kind("it is gone.", hint="Use another."))

    with pytest.raises(kind, match=r"it is gone\. Use another\."):
        seen_by().remote(FOX)
    clock.now += NEGATIVE_FRESH + 1
    assert seen_by().remote(FOX) is None


@pytest.mark.parametrize(
    "kind", [ModelForbidden, ModelHostFailed, ModelRateLimited, ModelRegionBlocked]
)
def test_a_no_for_this_worker_or_this_moment_is_not_remembered(known, kind):
    known.note_refusal(FOX, kind("no."))

    assert known.remote(FOX) is None


def test_a_no_does_not_make_the_file_unknown_that_is_here(known, seen_by):
    known.note(FOX, REMOTE, DIGEST)
    known.note_refusal(FOX, ModelNotFound("gone."))

    assert seen_by().sha256(FOX) == DIGEST


def test_a_file_that_comes_ends_the_no(known, seen_by):
    known.note_refusal(FOX, ModelNotFound("gone."))
    known.note(FOX, REMOTE, DIGEST)

    assert seen_by().remote(FOX) == REMOTE


# Secrets.


def test_a_secret_url_is_never_written(known, seen_by, tmp_path):
    ref = WebFile("https://example.org/x.safetensors?token=swordfish")
    known.note(ref, RemoteFile(ref.url, "x.safetensors", ref.shown), DIGEST)
    known.note_refusal(WebFile(ref.url + "2"), ModelNotFound(f"{ref.shown}: gone."))

    written = [path.read_text() for path in (tmp_path / "references").iterdir()]
    assert len(written) == 2
    assert not any("swordfish" in text for text in written)
    assert seen_by().sha256(ref) == DIGEST
    assert seen_by().remote(ref) is None


def test_a_signed_url_is_never_written(known, seen_by, tmp_path):
    """The reference may be stored, but not the URL that its host has answered with."""
    signed = replace(REMOTE, url="https://cdn.example/x?sig=swordfish", is_signed=True)
    known.note(FOX, signed)
    known.note(FOX, signed, DIGEST)

    [path] = (tmp_path / "references").iterdir()
    assert "swordfish" not in path.read_text()
    assert seen_by().remote(FOX) is None
    assert seen_by().sha256(FOX) == DIGEST


def test_two_secrets_are_two_references(known):
    first, second = (WebFile(f"https://example.org/x?token={n}") for n in "12")
    known.note(first, REMOTE, DIGEST)

    assert known.sha256(second) is None


# The disk.


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"at": "x"}', b"\xff", b'{"shown": 1}'])
@pytest.mark.parametrize("ref", [FOX, MOVING[0]])
def test_a_garbled_file_counts_as_none(known, tmp_path, content, ref):
    known.note(ref, REMOTE, DIGEST)
    for path in (tmp_path / "references").iterdir():
        path.write_bytes(content)
    other = References(tmp_path / "references")

    assert (other.sha256(ref), other.remote(ref)) == (None, None)
    other.note(ref, REMOTE, DIGEST)
    assert References(tmp_path / "references").sha256(ref) == DIGEST


def test_a_folder_that_cannot_be_written_only_forgets(tmp_path):
    (tmp_path / "file").touch()
    known = References(tmp_path / "file" / "references")
    known.note(FOX, REMOTE, DIGEST)
    known.note_refusal(FOX, ModelNotFound("gone."))

    assert (known.sha256(FOX), known.remote(FOX)) == (None, None)


def test_nothing_unfinished_is_left(known, tmp_path):
    for _ in range(3):
        known.note(FOX, REMOTE, DIGEST)

    assert len(list((tmp_path / "references").iterdir())) == 1


# Baked references.


@pytest.fixture
def baked(tmp_path, clock):
    assert clock
    References(tmp_path / "baked").note(FOX, REMOTE, DIGEST)
    return References(tmp_path / "references", tmp_path / "baked")


def test_what_was_baked_is_known(baked, tmp_path):
    assert (baked.sha256(FOX), baked.remote(FOX)) == (DIGEST, REMOTE)
    assert not (tmp_path / "references").exists()


def test_what_was_learnt_goes_before_what_was_baked(baked, tmp_path):
    baked.note(FOX, REMOTE, OTHER)

    other = References(tmp_path / "references", tmp_path / "baked")
    assert (baked.sha256(FOX), other.sha256(FOX)) == (OTHER, OTHER)


def test_what_was_baked_never_grows_old_unless_it_was_fetched_anew(tmp_path, clock):
    moving = CivitAIModel(7)
    References(tmp_path / "baked").note(moving, REMOTE, DIGEST)
    baked = References(tmp_path / "references", tmp_path / "baked")
    clock.now += 1000 * FRESH
    assert baked.sha256(moving) == DIGEST

    baked.note(moving, REMOTE, OTHER)
    clock.now += 2 * FRESH

    assert baked.sha256(moving) is None
    assert baked.sha256(moving, stale=True) == OTHER


# While one bakes, both folders are one.


@pytest.mark.parametrize("ref", MOVING)
def test_a_build_trusts_no_earlier_one_about_what_moves(tmp_path, clock, ref):
    folder = tmp_path / "baked"
    References(folder, folder).note(ref, MARKED, DIGEST)
    clock.now += 1

    build = References(folder, folder)
    assert (build.sha256(ref), build.remote(ref)) == (None, None)
    assert (build.sha256(ref, stale=True), build.etag(ref)) == (DIGEST, '"v1"')
    build.note(ref, MARKED, OTHER)
    clock.now += 60
    assert (build.sha256(ref), build.remote(ref)) == (OTHER, MARKED)


@pytest.mark.parametrize("ref", FIXED)
def test_a_build_trusts_an_earlier_one_about_what_is_fixed(tmp_path, clock, ref):
    folder = tmp_path / "baked"
    References(folder, folder).note(ref, REMOTE, DIGEST)
    clock.now += 1

    assert References(folder, folder).sha256(ref) == DIGEST
