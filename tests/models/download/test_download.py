"""Whole downloads from the fakes: each of their faults ends in the right file or a clear error.

The sizes are small and the pauses short; everything else is as in the worker.
"""

import errno
import hashlib
import json
import logging
import os
import random
import socket
import struct
import threading
import time
import traceback
import tracemalloc
from dataclasses import replace
from email.utils import formatdate
from itertools import pairwise

import pytest
from fakes.a1111.process import wait_until
from fakes.hosts.fixtures import client_for

from worker.errors import (
    FetchStopped,
    ModelArchived,
    ModelEarlyAccess,
    ModelFileInvalid,
    ModelForbidden,
    ModelHashMismatch,
    ModelHostFailed,
    ModelLoginRequired,
    ModelNotFound,
    ModelNotSupported,
    ModelRateLimited,
    ModelRegionBlocked,
    ModelUrlRefused,
    StoreFull,
    StoreNotWritable,
    WorkerError,
)
from worker.files import note_file
from worker.hosts.civitai import CivitAI
from worker.hosts.host import RemoteFile
from worker.hosts.web import AnyHost
from worker.http.client import SafeHttpClient
from worker.models.download.download import Hooks, download
from worker.models.download.limits import DownloadLimits
from worker.models.download.source import Source

KIB, MIB = 1 << 10, 1 << 20
HEADER = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
DATA = struct.pack("<Q", len(HEADER)) + HEADER + random.Random(1).randbytes(2 * MIB)
SIZE = len(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = "0" * 64
BLOCK, FIRST = 16 * KIB, 64 * KIB
LIMITS = DownloadLimits(
    block=BLOCK,
    inspect_from=FIRST,
    tick=0.01,
    first_pause=0.002,
    longest_wait=0.3,
    first_part=256 * KIB,
    smallest_part=64 * KIB,
    largest_part=256 * KIB,
    most_connections=8,
    settling=0.01,
    measuring=0.02,
)
# A busy machine can stall a connection for so long, too: then bytes come twice.
QUICK_STALLS = replace(LIMITS, stalled=0.15, window=0.3)
HOUR = 3600.0


@pytest.fixture
def model(hosts):
    return hosts.add_model(version_id=1, data=DATA, name="dream.safetensors")


@pytest.fixture
def partial(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder / "key.run.part"


def source_of(hosts, url, host, read_timeout=30.0):
    client = client_for(hosts, tokens={hosts.civitai: hosts.civitai_key}, read_timeout=read_timeout)
    remote = RemoteFile(url, "x.safetensors", "civitai:1@1")
    return Source(client, url, lambda document: host.refusal(document, remote))


@pytest.fixture
def source(hosts, model):
    return source_of(hosts, model.file_url, CivitAI(hosts.civitai, key=hosts.civitai_key))


def web_source(hosts, url):
    return source_of(hosts, url, AnyHost())


def fetch(source, partial, sha256=None, limits=LIMITS, **hooks):
    """Download it; the file must be the right one."""
    fetched = download(source, partial, sha256, Hooks(**hooks), limits)
    assert (fetched.size, fetched.sha256, fetched.path) == (SIZE, SHA256, partial)
    assert partial.read_bytes() == DATA
    return fetched


def files(partial):
    return sorted(one.name for one in partial.parent.iterdir())


def noted(partial):
    """Bytes that a next run need not fetch; the note must be sound."""
    if not note_file(partial).exists():
        return 0
    note = json.loads(note_file(partial).read_text())
    for start, end in note["done"]:
        assert 0 <= start < end <= note["size"]
    return sum(end - start for start, end in note["done"])


def leave(partial, done, *, data=DATA, size=SIZE, etag=None, **more):
    """As if an earlier run had been killed."""
    partial.write_bytes(data)
    note = {"size": size, "etag": etag, "done": done, **more}
    note_file(partial).write_text(json.dumps(note))


def times_from_the_start(hosts, role="web"):
    """How often the file was fetched from its first byte."""
    return sum(one.range is not None and one.range[0] == 0 for one in hosts.asked(role))


def refuse_pages(start, _size):
    if not start[8:].startswith(b"{"):
        raise ModelFileInvalid("it is a web page.")


def raising(error):
    def hook(*_):
        raise error

    return hook


# The right file.


def test_a_model_of_civitai_comes_over_several_connections(hosts, source, partial):
    hosts.throttle(2 * MIB, ttfb=0.01)
    fetched = fetch(source, partial, SHA256)

    assert fetched.filename == "dream.safetensors"
    assert fetched.etag
    hosts.settle()
    asked = hosts.asked("storage")
    assert len({one.connection for one in asked}) > 2
    assert all(one.range for one in asked)
    assert hosts.bytes_sent("storage") == SIZE  # each byte once
    assert hosts.count("civitai") == 1


def test_a_file_of_hugging_face_has_its_hash_as_etag(hosts, partial):
    file = hosts.add_hf("org/repo", "x.safetensors", DATA)
    assert fetch(web_source(hosts, file.url), partial, SHA256).etag == f'"{SHA256}"'


@pytest.mark.parametrize("size", [1, BLOCK, FIRST - 1, FIRST, FIRST + 1, 256 * KIB, 300_001])
@pytest.mark.parametrize("faults", [[], ["chunked"], ["whole"], ["whole", "chunked"]])
def test_any_size_is_right(hosts, partial, size, faults):
    """With both faults the size is unknown before the end."""
    url, seen = hosts.add_web("/x", DATA[:size]), []
    for fault in faults:
        hosts.fault(fault)
    hooks = Hooks(inspect=lambda start, size: seen.append((start, size)))
    fetched = download(web_source(hosts, url), partial, None, hooks, LIMITS)
    assert fetched.size == size
    assert partial.read_bytes() == DATA[:size]
    [(start, known)] = seen
    assert start == DATA[: min(size, FIRST)]
    assert known in {size, None}


@pytest.mark.parametrize("has_length", [True, False])
def test_a_host_without_ranges_is_read_through(hosts, partial, has_length):
    url = hosts.add_web("/x", DATA, ranges=False)
    if not has_length:
        hosts.fault("chunked")
    fetch(web_source(hosts, url), partial)
    assert hosts.count("web") == 1


def test_an_empty_file_is_inspected(hosts, partial):
    url = hosts.add_web("/x", b"", ranges=False)
    with pytest.raises(ModelFileInvalid):
        fetch(web_source(hosts, url), partial, inspect=refuse_pages)
    assert files(partial) == []


def test_the_bytes_are_hashed_once_and_read_back_at_most_once(source, partial, monkeypatch):
    read, real = [], os.preadv

    def preadv(descriptor, buffers, offset):
        count = real(descriptor, buffers, offset)
        read.append((offset, offset + count))
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    fetch(source, partial, SHA256)
    read.sort()
    assert all(one[1] <= other[0] for one, other in pairwise(read))


# Resume.


@pytest.mark.parametrize(
    "done",
    [
        [[0, 500_000]],
        [[0, 100_000], [200_000, 900_000]],
        [[100_000, 400_000]],
        [[0, 10]],
        [[1, SIZE]],
        [[0, SIZE]],
    ],
)
def test_only_missing_bytes_are_fetched(hosts, source, partial, done):
    leave(partial, done)
    fetch(source, partial, SHA256)
    hosts.settle()
    assert hosts.bytes_sent("storage") == SIZE - sum(end - start for start, end in done)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_whole_file_instead_of_a_range_starts_over(hosts, partial, ranges):
    url = hosts.add_web("/x", DATA, ranges=ranges)
    if ranges:
        hosts.fault("whole")
    leave(partial, [[0, 500_000]])
    fetch(web_source(hosts, url), partial)


def test_one_whole_file_instead_of_a_range_loses_nothing(hosts, source, partial):
    hosts.fault("whole", skip=2, times=1)
    fetch(source, partial, SHA256)
    assert times_from_the_start(hosts, "storage") == 1


@pytest.mark.parametrize("sha256", [SHA256, None])
@pytest.mark.parametrize(
    "note",
    [
        {"etag": '"old"', "done": [[0, 500_000]]},
        {"size": 3 * SIZE, "done": [[0, 9]]},
        {"size": 3 * SIZE, "done": [[0, 2 * SIZE]]},  # the host answers 416
        {"size": 3 * SIZE, "done": [[0, 2 * SIZE]], "etag": '"fake-etag"'},
    ],
)
def test_an_old_version_is_not_mixed_with_the_new_one(hosts, partial, sha256, note):
    url = hosts.add_web("/x", DATA)
    leave(partial, data=b"old" * SIZE, **note)
    fetch(web_source(hosts, url), partial, sha256)
    assert (hosts.asked("web")[0].status == 416) is (note["done"] == [[0, 2 * SIZE]])


MONDAY, TUESDAY = "Mon, 19 Jan 2026 10:00:00 GMT", "Tue, 20 Jan 2026 10:00:00 GMT"
MARKS = [  # ETag and Last-Modified: noted by the run before, sent now; is it one version?
    ('"a"', MONDAY, '"a"', MONDAY, True),
    ('"a"', None, '"a"', MONDAY, True),
    ('"a"', MONDAY, '"a"', TUESDAY, True),
    ('"a"', MONDAY, '"b"', MONDAY, False),
    ('"a"', MONDAY, "", MONDAY, True),
    ('"a"', None, "", MONDAY, False),
    (None, MONDAY, "", MONDAY, True),
    (None, MONDAY, "", TUESDAY, False),
    (None, MONDAY, "", "", False),
    (None, MONDAY, '"a"', MONDAY, True),
    (None, None, "", MONDAY, False),
    (None, None, '"a"', MONDAY, False),
    (None, None, "", "", False),
    ('W/"a"', MONDAY, 'W/"a"', MONDAY, True),
    ('W/"a"', MONDAY, 'W/"b"', MONDAY, False),
    ('W/"a"', MONDAY, 'W/"a"', TUESDAY, False),
    ('W/"a"', None, 'W/"a"', "", False),
]


@pytest.mark.parametrize(("etag", "modified", "etag_now", "modified_now", "is_same"), MARKS)
def test_without_a_hash_only_a_surely_unchanged_file_is_resumed(
    hosts, partial, etag, modified, etag_now, modified_now, is_same
):
    """A LoRA that was trained again has the same size."""
    url = hosts.add_web("/x", DATA, etag=etag_now, modified=modified_now)
    left = DATA if is_same else b"old" * SIZE
    leave(partial, [[0, 500_000]], data=left[:SIZE], etag=etag, modified=modified)
    fetch(web_source(hosts, url), partial)
    assert times_from_the_start(hosts) == (0 if is_same else 1)


def test_with_a_hash_a_file_is_always_resumed(hosts, partial):
    url = hosts.add_web("/x", DATA, etag="", modified="")
    leave(partial, [[0, 500_000]])
    fetch(web_source(hosts, url), partial, SHA256)
    assert times_from_the_start(hosts) == 0


def test_the_noted_version_is_compared_by_the_next_run(hosts, partial):
    url = hosts.add_web("/x", bytes(SIZE), etag="", modified=MONDAY)
    hosts.fault("drop", skip=2)
    with pytest.raises(ModelHostFailed):
        fetch(web_source(hosts, url), partial)
    assert noted(partial)
    hosts.no_faults()
    hosts.add_web("/x", DATA, etag="", modified=TUESDAY)
    fetch(web_source(hosts, url), partial)


def test_the_connections_of_one_run_agree_on_the_version(hosts, partial):
    """Without an ETag, Last-Modified shows that the file was replaced in the meantime."""
    url = hosts.add_web("/x", bytes(SIZE), etag="", modified=MONDAY)
    hosts.throttle(2 * MIB, ttfb=0.01)
    replaced = []

    def report(fetched, _size):
        if fetched > SIZE // 4 and not replaced:
            replaced.append(fetched)
            hosts.add_web("/x", DATA, etag="", modified=TUESDAY)

    fetch(web_source(hosts, url), partial, report=report)
    assert replaced


def test_a_host_that_dates_each_answer_with_the_current_time_has_not_changed_the_file(
    hosts, partial
):
    url = hosts.add_web("/x", DATA, etag="", modified=formatdate(usegmt=True))
    hosts.throttle(2 * MIB, ttfb=0.01)

    def report(_fetched, _size):
        now = time.time() + random.Random().randrange(5)
        hosts.add_web("/x", DATA, etag="", modified=formatdate(now, usegmt=True))

    fetch(web_source(hosts, url), partial, report=report)
    assert hosts.count("web") >= 2


@pytest.mark.parametrize("note", ["", "{}", '{"size": -1, "etag": null, "done": []}'])
def test_an_odd_note_starts_over(hosts, source, partial, note):
    leave(partial, [])
    note_file(partial).write_text(note)
    fetch(source, partial, SHA256)
    hosts.settle()
    assert hosts.bytes_sent("storage") == SIZE


# Faults.


def fault_(name, times=-1, skip=0, **params):
    return {"name": name, "times": times, "skip": skip, **params}


PASSING = [
    fault_("cut", after=100_000),  # always, but each time some bytes have come
    fault_("cut", after=100_000, reset=True),
    fault_("cut", 3),
    fault_("cut", 3, skip=1, reset=True),
    fault_("stall", 3, after=50_000),
    fault_("stall", 4, skip=1),
    fault_("trickle", 1, skip=1, rate=1000),
    fault_("drop", 3),
    fault_("drop", 4, skip=2, reset=True),
    fault_("garbage", 3),
    fault_("garbage", 2, skip=2, data=b"HTTP/1.1 206 OK\r\n\r\n"),
    fault_("wrong_range_start", 1),
    fault_("wrong_range_start", 3, skip=2, by=-1),
    fault_("wrong_range_total", 1),
    fault_("wrong_range_total", 1, skip=2),
    fault_("whole", 1),
    fault_("whole", 1, skip=3),
    fault_("whole"),
    fault_("short_range", 5),
    fault_("short_range", 5, by=50_000),
    fault_("long_range"),
    fault_("long_range", by=100_000),
    fault_("wrong_length", 3, by=5),
    fault_("wrong_length", 3, by=-5),
    fault_("chunked"),
    fault_("etag_changes"),
    fault_("tiering"),
    fault_("url_limits", uses=3),
    fault_("server_error", 3, role="storage"),
    fault_("server_error", 4, skip=2, role="storage", status=503),
    fault_("server_error", 3, role="civitai", status=502),
    fault_("server_error", 1, role="civitai", status=503, retry_after=0),
    fault_("status", 2, skip=2, status=403, role="storage"),
    fault_("status", 2, skip=2, status=404, role="storage"),
    fault_("rate_limited", 2, retry_after=0),
    fault_("rate_limited", 4, skip=2, role="storage"),
    fault_("cloudflare_challenge", 2),
    fault_("cloudflare_challenge", 2, skip=3, role="storage"),
    fault_("not_found", 1),
    fault_("html", 1, skip=2),
    fault_("slow", seconds=0.05),
]
STOPPING = [
    (fault_("cut"), ModelHostFailed),
    (fault_("cut", reset=True), ModelHostFailed),
    (fault_("cut", skip=3, after=0), ModelHostFailed),
    (fault_("stall"), ModelHostFailed),
    (fault_("stall", skip=3), ModelHostFailed),
    (fault_("drop"), ModelHostFailed),
    (fault_("drop", skip=3, reset=True), ModelHostFailed),
    (fault_("garbage"), ModelHostFailed),
    (fault_("garbage", skip=3, data=b""), ModelHostFailed),
    (fault_("wrong_range_start"), ModelHostFailed),
    (fault_("wrong_range_total"), ModelHostFailed),
    (fault_("wrong_range_total", skip=3, by=-5), (ModelHostFailed, ModelHashMismatch)),
    (fault_("corrupt", offset=1_000_000), ModelHashMismatch),
    (fault_("server_error", role="storage"), ModelHostFailed),
    (fault_("server_error", role="civitai", status=503, retry_after=0), ModelHostFailed),
    (fault_("server_error", skip=3, role="storage", status=503), ModelHostFailed),
    (fault_("status", status=403, role="storage", body="<?xml AccessDenied"), ModelHostFailed),
    (fault_("status", skip=3, status=400, role="storage", body="<?xml"), ModelHostFailed),
    (fault_("status", status=418, role="civitai"), ModelHostFailed),
    (fault_("rate_limited"), ModelRateLimited),
    (fault_("rate_limited", html=True), ModelRateLimited),
    (fault_("rate_limited", skip=3, role="storage"), ModelRateLimited),
    (fault_("cloudflare_challenge"), ModelHostFailed),
    (fault_("not_found"), ModelNotFound),
    (fault_("archived"), ModelArchived),
    (fault_("early_access"), ModelEarlyAccess),
    (fault_("no_access"), ModelForbidden),
    (fault_("forbidden"), ModelForbidden),
    (fault_("downloads_disabled"), ModelForbidden),
    (fault_("login_required"), ModelLoginRequired),
    (fault_("region_blocked"), ModelRegionBlocked),
    (fault_("redirect_loop"), ModelUrlRefused),
    (fault_("redirect_loop", role="storage"), ModelUrlRefused),
    (fault_("redirect_to", url="http://10.0.0.1/?sig=planted"), ModelUrlRefused),
    (fault_("redirect_to", url="https://127.0.0.1/?sig=planted"), ModelUrlRefused),
    (fault_("html"), ModelFileInvalid),
    (fault_("html", skip=3), (ModelFileInvalid, ModelHostFailed)),
    (fault_("login_page"), ModelFileInvalid),
]


def named(fault):
    shown = [f"{key}={value}" for key, value in fault.items() if key != "name" and value != -1]
    return " ".join([fault["name"], *shown])


@pytest.fixture
def watched(hosts, caplog):
    """No planted secret may be in a log line, nor in the errors of this list."""
    caplog.set_level(logging.DEBUG)
    errors = []
    yield errors
    for secret in {*hosts.planted_secrets, "planted"}:
        assert secret not in caplog.text
        assert secret not in "".join(errors)


def error_text(error):
    return "".join(traceback.format_exception(error)) + repr(vars(error))


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("fault", PASSING, ids=map(named, PASSING))
def test_a_fault_that_passes_ends_in_the_right_file(hosts, source, partial, fault):
    hosts.throttle(20 * MIB, ttfb=0.002)  # so that several connections are worth it
    struck = hosts.fault(**fault)
    fetch(source, partial, SHA256, QUICK_STALLS, inspect=refuse_pages)
    assert struck.hits
    assert set(files(partial)) <= {"key.run.part", "key.run.json"}


@pytest.mark.parametrize("ending", STOPPING, ids=[named(one) for one, _ in STOPPING])
def test_a_fault_that_stays_ends_in_a_clear_error(hosts, source, partial, watched, ending):
    fault, kind = ending
    hosts.throttle(20 * MIB, ttfb=0.002)
    struck = hosts.fault(**fault)
    with pytest.raises(kind) as failed:
        fetch(source, partial, SHA256, QUICK_STALLS, inspect=refuse_pages)
    watched.append(error_text(failed.value))
    assert struck.hits
    assert len(hosts.requests) < 200  # each connection tries, and may ask for a new URL
    assert set(files(partial)) <= {"key.run.part", "key.run.json"}

    hosts.no_faults()
    hosts.settle()
    hosts.forget_requests()
    here = noted(partial)
    fetch(source, partial, SHA256)  # with connections that are never replaced
    hosts.settle()
    if "wrong_range" not in fault["name"]:  # which made the size wrong, too
        assert hosts.bytes_sent("storage") == SIZE - here


@pytest.mark.parametrize("fault", ["drop", "stall", "garbage", "server_error"])
def test_bytes_that_have_arrived_are_kept_for_the_next_run(hosts, source, partial, fault):
    hosts.throttle(20 * MIB, ttfb=0.002)
    hosts.fault(fault, skip=4, role="storage")
    with pytest.raises(ModelHostFailed):
        fetch(source, partial, SHA256, QUICK_STALLS)
    assert files(partial) == ["key.run.json", "key.run.part"]
    assert noted(partial) >= 256 * KIB


def test_a_host_that_is_away_for_a_moment(hosts, source, partial):
    hosts.throttle(4 * MIB, ttfb=0.002)

    def report(fetched, _size):
        if fetched > SIZE // 4 and not away:
            away.append(fetched)
            hosts.refuse("storage")
            threading.Timer(0.05, hosts.accept, ["storage"]).start()

    away = []
    fetch(source, partial, SHA256, replace(LIMITS, first_pause=0.2), report=report)
    assert away


def test_a_host_that_is_gone(hosts, source, partial):
    hosts.refuse("civitai")
    with pytest.raises(ModelHostFailed, match="NewConnectionError"):
        fetch(source, partial, SHA256)
    assert files(partial) == []


def test_the_attempts_of_a_replaced_connection_are_counted_further(hosts, source, partial):
    """Two connections that take turns at one part that never comes must give up, too."""
    leave(partial, [[0, SIZE - 1000]])
    hosts.fault("stall", after=0)
    with pytest.raises(ModelHostFailed):
        fetch(source, partial, SHA256, replace(LIMITS, stalled=0.05, first_pause=0.01))
    assert hosts.count("storage") <= 8 * LIMITS.attempts


@pytest.mark.parametrize("role", ["civitai", "storage"])
def test_all_connections_wait_as_long_as_the_host_asks(hosts, source, partial, role):
    """After a 500, not a 429: that one would also close the other connections."""
    hosts.throttle(4 * MIB, ttfb=0.002)
    skip = 0 if role == "civitai" else 3
    fault = hosts.fault("server_error", role=role, skip=skip, times=1, retry_after=3600)
    stop = threading.Event()

    def run():
        with pytest.raises(FetchStopped):
            fetch(source, partial, SHA256, replace(LIMITS, longest_wait=HOUR), stop=stop)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: fault.hits, "the refusal")
    time.sleep(0.1)  # a request may be on its way
    hosts.settle()
    time.sleep(0.1)
    hosts.settle()
    asked = len(hosts.requests)
    time.sleep(0.3)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert len(hosts.requests) == asked
    assert noted(partial) < SIZE


def test_a_host_that_complains_gets_fewer_connections(hosts, source, partial):
    hosts.throttle(MIB, ttfb=0.002)
    at_once = []

    def too_many(_request):
        running = sum(one.ended is None for one in hosts.asked("storage"))
        at_once.append(running)
        return running > 3

    hosts.fault("server_error", status=503, role="storage", when=too_many)
    fetch(source, partial, SHA256, replace(LIMITS, first_pause=0.05))
    assert max(at_once) > 3
    assert sum(count > 3 for count in at_once) < 20


# Signed URLs that expire, and files that change.


@pytest.mark.parametrize("tiering", [False, True])
def test_urls_that_expire_on_the_way_lose_nothing(hosts, source, partial, tiering):
    """With `tiering` the file is elsewhere afterwards, under another ETag."""
    hosts.throttle(2 * MIB, ttfb=0.002)
    ended = []

    def report(fetched, _size):
        if fetched > SIZE // 3 and not ended:
            ended.append(fetched)
            if tiering:
                hosts.fault("tiering")
            hosts.expire_urls()

    fetch(source, partial, SHA256, report=report)
    hosts.settle()
    assert ended
    answers = hosts.asked("storage") + hosts.asked("storage_b")
    assert sum(one.sent for one in answers if one.status == 206) == SIZE
    assert bool(hosts.count("storage_b")) is tiering


def test_without_a_hash_two_versions_are_never_mixed(hosts, source, partial):
    hosts.fault("url_limits", uses=2, times=1)
    hosts.fault("tiering", skip=1)
    fetch(source, partial)
    hosts.settle()
    assert hosts.bytes_sent("storage_b") >= SIZE


def test_a_file_that_changes_all_the_time_is_given_up(hosts, source, partial):
    hosts.fault("etag_changes")
    with pytest.raises(ModelHostFailed, match="has changed at the host"):
        fetch(source, partial)
    assert files(partial) == []


# A wrong hash.


def test_a_wrong_hash_of_one_run_is_final(hosts, source, partial):
    with pytest.raises(ModelHashMismatch) as mismatch:
        fetch(source, partial, OTHER)
    assert mismatch.value.details == {"expected": OTHER, "actual": SHA256}
    hosts.settle()
    assert hosts.bytes_sent("storage") == SIZE
    assert files(partial) == []


@pytest.mark.parametrize(("data", "sha256"), [(bytes(SIZE), SHA256), (DATA, OTHER)])
def test_a_wrong_hash_of_two_runs_starts_over_once(hosts, source, partial, data, sha256):
    """The earlier run's bytes may be damaged."""
    leave(partial, [[0, 500_000]], data=data)
    if sha256 == OTHER:
        with pytest.raises(ModelHashMismatch):
            fetch(source, partial, sha256)
        assert files(partial) == []
    else:
        fetch(source, partial, sha256)
    hosts.settle()
    assert hosts.bytes_sent("storage") == SIZE - 500_000 + SIZE


def test_a_wrong_hash_of_two_versions_starts_over_once(hosts, source, partial):
    hosts.fault("corrupt", offset=300_000, times=1)
    hosts.fault("etag_changes", times=1)
    fetch(source, partial, SHA256)
    hosts.settle()
    assert hosts.bytes_sent("storage") == 2 * SIZE


# The hooks.


LARGE = 64 * MIB


@pytest.fixture
def large(tmp_path):
    """A sparse file of 64 MiB."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(DATA[:MIB])
        file.truncate(LARGE)
    return path


@pytest.mark.parametrize(("kind", "ranges"), [(ModelFileInvalid, False), (ModelNotSupported, True)])
def test_a_useless_file_is_refused_after_a_megabyte(hosts, large, partial, kind, ranges):
    hosts.throttle(4 * MIB, ttfb=0)  # all of it would take 16 s
    seen = []

    def inspect(start, size):
        seen.append((len(start), size))
        raise kind("it is a web page, or Flux.")

    url = hosts.add_web("/x", large, ranges=ranges)
    limits = replace(LIMITS, inspect_from=MIB, first_part=LARGE, largest_part=LARGE)
    with pytest.raises(kind):
        fetch(web_source(hosts, url), partial, limits=limits, inspect=inspect)
    hosts.settle()
    assert seen == [(MIB, LARGE)]
    assert hosts.bytes_sent("web") < LARGE / 2
    assert hosts.count("web") == 1
    assert files(partial) == []


def test_the_inspection_may_ask_for_more(source, partial):
    wanted, seen = iter([100_000, 90_000, 500_000, 10 * SIZE, None]), []

    def inspect(start, size):
        seen.append((len(start), size))
        assert start == DATA[: len(start)]
        return next(wanted)

    fetch(source, partial, SHA256, inspect=inspect)
    assert seen == [(length, SIZE) for length in (FIRST, 100_000, 90_000, 500_000, SIZE)]


def test_one_connection_works_until_the_file_is_accepted(hosts, source, partial):
    counts = []

    def inspect(start, _size):
        counts.append(hosts.count("storage"))
        return len(start) + BLOCK if len(start) < 200_000 else None

    fetch(source, partial, SHA256, inspect=inspect)
    assert set(counts) == {1}


@pytest.mark.parametrize("done", [[[0, 500_000]], [[0, 10_000]], [[0, SIZE]]])
def test_bytes_of_an_earlier_run_are_inspected_too(hosts, source, partial, done):
    leave(partial, done)
    with pytest.raises(ModelFileInvalid):
        fetch(source, partial, SHA256, inspect=raising(ModelFileInvalid("no.")))
    assert files(partial) == []
    assert (hosts.requests == []) is (done[0][1] > FIRST)  # then enough of it is there


@pytest.mark.parametrize("hook", ["inspect", "make_room", "report"])
@pytest.mark.parametrize("error", [ValueError("bug"), OSError(errno.EIO, "bug")])
def test_a_bug_in_a_hook_ends_the_download(source, partial, hook, error):
    with pytest.raises(type(error), match="bug"):
        fetch(source, partial, SHA256, **{hook: raising(error)})


def test_room_is_made_in_steps_while_the_size_is_unknown(hosts, source, partial):
    hosts.fault("chunked")
    hosts.fault("whole")
    step, asked = 512 * KIB, []

    fetch(source, partial, SHA256, replace(LIMITS, room_step=step), make_room=asked.append)

    assert asked == [step] * (SIZE // step + 1)


@pytest.mark.parametrize("here", [0, 500_000])
def test_room_is_made_for_the_missing_bytes_before_they_are_fetched(source, partial, here):
    asked = []
    if here:
        leave(partial, [[0, here]])

    def make_room(size):
        asked.append((size, noted(partial)))

    fetch(source, partial, SHA256, make_room=make_room)
    assert asked == [(SIZE - here, here)]


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("error", [StoreFull("the disk is full."), StoreNotWritable("read-only.")])
def test_without_room_nothing_is_fetched(hosts, source, partial, resumed, error):
    if resumed:
        leave(partial, [[0, 500_000]])
    with pytest.raises(type(error)):
        fetch(source, partial, SHA256, make_room=raising(error))
    assert len(hosts.asked("storage")) == (not resumed)
    if isinstance(error, StoreFull):
        assert files(partial) == []


def test_a_stop_waits_for_the_making_of_room(source, partial):
    """Otherwise room would be reserved for a download that has ended."""
    stop, over = threading.Event(), []

    def make_room(_size):
        stop.set()
        time.sleep(0.1)
        over.append(True)

    with pytest.raises(FetchStopped):
        fetch(source, partial, SHA256, make_room=make_room, stop=stop)
    assert over


@pytest.mark.parametrize("known_by", ["range", "length", "nothing"])
def test_a_file_over_the_limit_is_refused(hosts, large, partial, known_by):
    hosts.throttle(4 * MIB, ttfb=0)  # all of it would take 16 s
    url = hosts.add_web("/x", large, ranges=known_by == "range")
    if known_by == "nothing":
        hosts.fault("chunked")
    with pytest.raises(ModelUrlRefused, match="GB allowed"):
        fetch(web_source(hosts, url), partial, limits=replace(LIMITS, largest_file=500_000))
    hosts.settle()
    assert hosts.bytes_sent("web") < LARGE / 2
    assert files(partial) == []


def test_a_file_at_the_limit_is_fetched(source, partial):
    fetch(source, partial, limits=replace(LIMITS, largest_file=SIZE))


@pytest.mark.parametrize("fault", [None, "cut", "chunked", "whole"])
def test_the_report_grows_and_ends_with_the_whole_file(hosts, source, partial, fault):
    if fault:
        hosts.fault(fault, **({"after": 100_000} if fault == "cut" else {}))
    hosts.throttle(4 * MIB, ttfb=0.01)
    reports = []
    fetch(source, partial, SHA256, report=lambda *one: reports.append(one))
    counts = [fetched for fetched, _ in reports]
    assert counts == sorted(counts)
    assert reports[-1] == (SIZE, SIZE)
    assert any(0 < count < SIZE for count in counts)
    assert {size for _, size in reports} <= {None, SIZE}


def test_the_report_of_a_resumed_run_begins_with_its_bytes(hosts, source, partial):
    leave(partial, [[0, 500_000]])
    hosts.fault("slow", seconds=HOUR)
    stop, reports = threading.Event(), []

    def report(*one):
        reports.append(one)
        stop.set()

    with pytest.raises(FetchStopped):
        fetch(source, partial, SHA256, report=report, stop=stop)
    assert reports[0] == (500_000, SIZE)


# Stop.


@pytest.mark.parametrize("where", ["civitai", "storage", "body", "transfer", "pause"])
def test_a_stop_does_not_wait_for_the_host(hosts, model, partial, where):
    """Without it, each of these would take an hour."""
    if where == "body":
        hosts.fault("stall", after=100_000)
    elif where == "transfer":
        hosts.throttle(500, ttfb=0.01)
    elif where == "pause":
        hosts.fault("rate_limited", retry_after=3600)
    else:
        hosts.fault("slow", seconds=HOUR, role=where)
    source = source_of(hosts, model.file_url, CivitAI(hosts.civitai), read_timeout=HOUR)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(FetchStopped):
        fetch(source, partial, SHA256, replace(LIMITS, longest_wait=HOUR, stalled=HOUR), stop=stop)
    assert set(files(partial)) <= {"key.run.part", "key.run.json"}


def test_a_stop_does_not_wait_for_the_resolver(partial, monkeypatch):
    hang = threading.Event()

    def getaddrinfo(*_, **__):
        hang.wait()
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    source = Source(SafeHttpClient(), "https://models.example/x", lambda _: WorkerError("no"))
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(FetchStopped):
        fetch(source, partial, SHA256, stop=stop)
    hang.set()
    assert files(partial) == []


def test_bytes_that_have_arrived_survive_a_stop(hosts, source, partial):
    hosts.throttle(2 * MIB, ttfb=0.002)
    stop = threading.Event()

    def report(fetched, _size):
        if fetched > SIZE // 2:
            stop.set()

    with pytest.raises(FetchStopped):
        fetch(source, partial, SHA256, report=report, stop=stop)
    here = noted(partial)
    assert here > SIZE // 2
    hosts.settle()
    hosts.reset()
    fetch(source, partial, SHA256)
    hosts.settle()
    assert hosts.bytes_sent("storage") == SIZE - here


def test_an_answer_that_comes_after_the_end_changes_nothing(hosts, source, partial):
    hosts.fault("slow", seconds=0.5, role="storage")
    stop, asked = threading.Event(), []

    def report(*_):
        if hosts.count("storage"):
            stop.set()

    with pytest.raises(FetchStopped):
        fetch(source, partial, SHA256, make_room=asked.append, report=report, stop=stop)
    hosts.settle()
    time.sleep(0.1)
    assert files(partial) == []
    assert asked == []


def test_no_thread_is_left(hosts, source, partial):
    hosts.throttle(8 * MIB, ttfb=0.002)
    before = threading.active_count()
    fetch(source, partial, SHA256)
    wait_until(lambda: threading.active_count() <= before, "the threads to end")


# The disk.


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EROFS, StoreNotWritable)],
)
@pytest.mark.parametrize("after", [0, 20])
def test_a_disk_that_fills_up_is_an_error(source, partial, monkeypatch, number, kind, after):
    real, left = os.pwrite, [after]

    def pwrite(*given):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return real(*given)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(kind, match=os.strerror(number)):
        fetch(source, partial, SHA256)
    if kind is StoreFull:
        assert files(partial) == []


def test_a_store_that_is_missing_is_not_writable(source, partial):
    partial.parent.rmdir()
    with pytest.raises(StoreNotWritable):
        fetch(source, partial, SHA256)


# Slow connections, and memory.


def test_a_connection_far_slower_than_the_others_is_replaced(hosts, source, partial):
    hosts.throttle(MIB, ttfb=0.002)
    slow = hosts.fault("trickle", rate=500, skip=3, times=1, min_size=60_000)  # takes 2 minutes
    fetch(source, partial, SHA256, replace(LIMITS, window=0.2))
    hosts.settle()
    assert slow.hits
    parts = [(one.sent, one.range[1] - one.range[0] + 1) for one in hosts.asked("storage")]
    assert sum(sent < wanted for sent, wanted in parts) >= 1


def test_the_memory_does_not_grow_with_the_file(hosts, large, partial):
    url = hosts.add_web("/x", large)
    limits = replace(LIMITS, block=256 * KIB, first_part=MIB, largest_part=4 * MIB)
    tracemalloc.start()
    fetched = download(web_source(hosts, url), partial, limits=limits)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fetched.size == LARGE
    assert most < 24 * MIB  # with the host, which is in this process
