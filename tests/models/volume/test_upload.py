"""Sending one file: it arrives whole through every fault, and no part is sent twice."""

import hashlib
import random
from collections import Counter

import pytest
from fakes.hosts.bucket import KEY_ID, SECRET
from fakes.hosts.volume_api import VOLUME

from worker.errors import ConfigError, ModelFileInvalid, StoreFull, VolumeFailed
from worker.models.volume.connect import connect
from worker.models.volume.digests import Digests
from worker.models.volume.limits import SendLimits
from worker.models.volume.upload import is_there, send
from worker.models.volume.volume import Stored

PART = 4096
LIMITS = SendLimits(part=PART, attempts=3, first_pause=0, longest_pause=0, looks=2, look_pause=0)
SIZE = 5 * PART + 100
DATA = random.Random(1).randbytes(SIZE)
KEY = "models/fetched/blobs/x.safetensors"


@pytest.fixture(scope="module")
def volume(running_api):
    environ, url = running_api.environ(), running_api.endpoint
    return connect(environ, VOLUME, endpoint_url=url, limits=LIMITS)


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(DATA)
    return file


@pytest.fixture
def push(volume, file):
    """Send the file; returns the bytes sent, and what was reported."""

    def push():
        seen = []
        report = lambda done, size: seen.append((done, size))  # noqa: E731
        digests = Digests.of_file(file, PART)
        return send(volume, KEY, file, digests, report, at_once=2), seen

    return push


def sizes(api):
    """Part number -> bytes of all its requests."""
    sent = Counter()
    for one in api.requests:
        if one.part:
            sent[one.part] += one.size
    return dict(sent)


WHOLE = dict.fromkeys(range(1, 6), PART) | {6: 100}


def test_a_file_arrives_in_parts_with_checksums_and_its_progress_is_reported(api, push):
    sent, seen = push()
    assert (sent, api.content(KEY), sizes(api)) == (SIZE, DATA, WHOLE)
    assert all(one.md5 for one in api.requests if one.part)
    assert [size for _, size in seen] == [SIZE] * 6
    assert max(done for done, _ in seen) == SIZE


@pytest.mark.parametrize("size", [0, 1, PART])
def test_a_small_file_is_sent_with_one_request(api, file, push, size):
    file.write_bytes(DATA[:size])
    assert push()[0] == size
    assert api.content(KEY) == DATA[:size]
    assert [one.method for one in api.writes()] == ["PUT"]


def once(api, fault, matches):
    """Let the fault happen to the first request that matches."""
    left = [fault]
    api.fault = lambda request: left.pop() if left and matches(request) else None
    return left


PASSING = {
    "part-502": (502, lambda one: one.part == 3),
    "part-524": (524, lambda one: one.part == 3),
    "part-slow-down": ((503, "SlowDown"), lambda one: one.part == 3),
    "part-bad-digest": ((400, "BadDigest"), lambda one: one.part == 3),
    "part-cut": ("cut", lambda one: one.part == 3),
    "part-late": ("late", lambda one: one.part == 3),
    "part-damaged": ("damage", lambda one: one.part == 3),
    "begin-502": (502, lambda one: "uploads" in one.query and one.method == "POST"),
    "list-502": (502, lambda one: "uploads" in one.query and one.method == "GET"),
    "complete-502": (502, lambda one: one.completes),
    "complete-late": ("late", lambda one: one.completes),
    "complete-cut": ("cut", lambda one: one.completes),
    "head-502": (502, lambda one: one.method == "HEAD"),
}


@pytest.mark.parametrize(("fault", "matches"), PASSING.values(), ids=PASSING)
def test_a_fault_that_passes_is_survived(api, push, fault, matches):
    left = once(api, fault, matches)
    push()
    assert not left, "the fault did not happen"
    assert api.content(KEY) == DATA
    assert sum(sizes(api).values()) <= SIZE + PART


@pytest.mark.parametrize(("fault", "completions"), [("late", 1), (502, 2)])
def test_after_a_lost_answer_it_is_looked_whether_the_file_has_come(api, push, fault, completions):
    once(api, fault, lambda one: one.completes)
    push()
    assert len([one for one in api.requests if one.completes]) == completions
    assert api.content(KEY) == DATA


def test_a_file_whose_parts_are_never_put_together_is_a_failure(api, push):
    api.fault = lambda one: 524 if one.completes else None
    with pytest.raises(VolumeFailed, match="answered 524"):
        push()
    assert len([one for one in api.requests if one.completes]) == LIMITS.completions
    api.fault = lambda _: None
    api.forget_requests()
    assert (push()[0], sizes(api)) == (0, {}), "all parts are there"


@pytest.mark.parametrize("size", [SIZE, 100])
def test_a_file_that_always_arrives_damaged_is_refused(api, file, push, size):
    file.write_bytes(DATA[:size])
    api.fault = lambda one: "damage" if one.method == "PUT" else None
    with pytest.raises(VolumeFailed, match="arrived 3 times with another content"):
        push()


def test_a_file_that_is_stored_with_another_size_is_removed_there(api, push):
    """As after a merge of the parts that ended too early."""

    def fault(request):
        if request.method == "HEAD":
            api.client.put_object(Bucket=VOLUME, Key=KEY, Body=b"half")

    api.fault = fault
    with pytest.raises(VolumeFailed, match=r"another content \(4 bytes"):
        push()
    assert api.files() == []


REFUSALS = {
    (403, "InvalidAccessKeyId"): (VolumeFailed, "refuses the key", "S3 API Keys"),
    (403, "RequestTimeTooSkewed"): (VolumeFailed, "clock of this machine is wrong", "Set the"),
    (404, "NoSuchBucket"): (VolumeFailed, f"no network volume '{VOLUME}'", "data center"),
    (507, "InsufficientStorage"): (StoreFull, "is full", "Enlarge it"),
    (502, ""): (VolumeFailed, "answered 502", "Push again"),
    (400, "EntityTooLarge"): (VolumeFailed, "answered 400 (EntityTooLarge)", "Push again"),
    "cut": (VolumeFailed, "cannot be reached (ConnectionClosedError)", "Check the network"),
}


@pytest.mark.parametrize(("fault", "expected"), REFUSALS.items(), ids=map(str, REFUSALS))
def test_a_refusal_says_what_to_do_and_names_no_secret(api, push, fault, expected):
    api.fault = lambda one: fault if one.part or one.completes else None
    with pytest.raises(expected[0]) as raised:
        push()
    text = str(raised.value)
    assert expected[1] in text
    assert expected[2] in text
    assert not [secret for secret in (KEY_ID, SECRET) if secret in text]
    tried = Counter(one.part for one in api.requests if one.part)
    assert max(tried.values()) == (3 if fault in {"cut", (502, "")} else 1)


@pytest.mark.parametrize(("status", "text"), [(403, "refuses the key"), (404, "no network volume")])
def test_the_volume_is_checked_by_a_request_whose_answer_has_no_text(api, volume, status, text):
    volume.check()
    api.fault = lambda _: status
    with pytest.raises(VolumeFailed, match=text):
        volume.check()


def stopped_at(api, push, number):
    """A run that ends at this part for good."""
    api.fault = lambda one: (403, "AccessDenied") if one.part == number else None
    with pytest.raises(VolumeFailed):
        push()
    api.fault = lambda _: None
    api.forget_requests()


def test_the_next_run_sends_only_the_parts_that_are_missing(api, push):
    stopped_at(api, push, 4)
    listed = {one["PartNumber"] for one in parts(api)}
    sent, seen = push()
    assert {1, 2, 3} <= listed
    assert sizes(api) == {number: size for number, size in WHOLE.items() if number not in listed}
    assert (sent, seen[-1]) == (sum(sizes(api).values()), (SIZE, SIZE))
    assert api.content(KEY) == DATA
    assert not api.client.list_multipart_uploads(Bucket=VOLUME).get("Uploads")


def parts(api):
    (upload,) = api.client.list_multipart_uploads(Bucket=VOLUME)["Uploads"]
    what = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
    return api.client.list_parts(Bucket=VOLUME, **what)["Parts"]


def test_parts_of_another_content_are_sent_again(api, file, push):
    stopped_at(api, push, 4)
    changed = b"?" + DATA[1:]
    file.write_bytes(changed)
    push()
    assert api.content(KEY) == changed
    assert sizes(api)[1] == PART
    assert 2 not in sizes(api)


def test_an_upload_that_another_run_has_completed_is_done(api, push):
    """Two runs continue one upload: the slower one gets the answer that it does not exist."""

    def fault(request):
        if request.part == 6:
            api.client.put_object(Bucket=VOLUME, Key=KEY, Body=DATA)
            return 404, "NoSuchUpload"
        return None

    api.fault = fault
    push()
    assert api.content(KEY) == DATA


def test_a_file_that_changes_while_it_is_sent_is_refused(api, volume, file):
    digests = Digests.of_file(file, PART)
    file.write_bytes(b"?" * SIZE)
    with pytest.raises(ModelFileInvalid, match="was changed while it was sent"):
        send(volume, KEY, file, digests, lambda *_: None, at_once=2)
    assert api.files() == []


def test_what_an_etag_says_about_a_file(file):
    digests = Digests.of_file(file, PART)
    assert digests.sha256 == hashlib.sha256(DATA).hexdigest()
    md5s = [hashlib.md5(DATA[at : at + PART]).digest() for at in range(0, SIZE, PART)]
    of_parts = hashlib.md5(b"".join(md5s)).hexdigest()
    whole = hashlib.md5(DATA).hexdigest()
    other = "0" * 32
    table = {  # ETag -> whether the file can have it, whether only this file has it
        whole: (True, True),
        f"{of_parts}-6": (True, True),
        other: (False, False),
        f"{other}-6": (False, False),
        f"{other}-7": (True, False),
        "inode-77": (True, False),
        "": (True, False),
    }
    seen = {etag: (digests.could_be(etag), digests.proved_by(etag)) for etag in table}
    assert seen == table
    assert not is_there(Stored(SIZE - 1, whole), digests)


WRONG = {
    "no key": ({}, {}, "RUNPOD_S3_ACCESS_KEY and RUNPOD_S3_SECRET_KEY must be set"),
    "volume": ({"volume": "a/b"}, None, "--volume 'a/b' is not the id"),
    "data center": ({"data_center": "Rome"}, None, "--data-center 'Rome'"),
    "none": ({}, None, "--data-center is missing"),
    "url": ({"endpoint_url": "ftp://me:pw@x"}, None, "--endpoint-url must look like"),
}


@pytest.mark.parametrize(("arguments", "environ", "text"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(api, arguments, environ, text):
    with pytest.raises(ConfigError) as raised:
        connect(api.environ() if environ is None else environ, **{"volume": "v1"} | arguments)
    assert text in str(raised.value)
    assert "pw" not in str(raised.value)


def test_the_key_can_be_in_files_or_under_runpods_own_names(tmp_path):
    """The signature is for the data center, and the host is that of its API."""
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    files = {"RUNPOD_S3_ACCESS_KEY": KEY_ID, "RUNPOD_S3_SECRET_KEY_FILE": str(tmp_path / "secret")}
    aws = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
    for environ in (files, aws):
        client = connect(environ, "v1", "eu-ro-1")._client
        assert client.meta.endpoint_url == "https://s3api-eu-ro-1.runpod.io"
        assert client.meta.region_name == "EU-RO-1"
        keys = client._request_signer._credentials.get_frozen_credentials()
        assert (keys.access_key, keys.secret_key) == (KEY_ID, SECRET)


def test_no_file_needs_more_parts_than_s3_has():
    sizes = [1, 16 << 20, 160 << 30, 4 << 40]
    parts = [SendLimits().part_size(size) for size in sizes]
    assert parts == [16 << 20, 16 << 20, 32 << 20, 432 << 20]
    assert parts[-1] < 500e6, "RunPod's limit"
