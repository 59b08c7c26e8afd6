"""Whole downloads from the fakes: each of their faults ends in the right file or a clear error.

The sizes are small and the pauses short; everything else is as in the worker.
"""

import errno
import hashlib
import json
import logging
import os
import random
import shutil
import struct
import threading
import time
import traceback
import tracemalloc
from ast import literal_eval
from dataclasses import replace
from email.utils import formatdate
from itertools import pairwise

import pytest
from fakes.a1111.process import wait_until
from fakes.hosts.fixtures import client_for

from worker import errors
from worker.errors import FetchStopped, ModelFileInvalid, ModelHashMismatch, ModelHostFailed
from worker.files import note_file
from worker.hosts.civitai import CivitAI
from worker.hosts.host import RemoteFile
from worker.hosts.web import AnyHost
from worker.models.download.download import download
from worker.models.download.hooks import Hooks
from worker.models.download.limits import DownloadLimits
from worker.models.download.partial_file import PartialFile
from worker.models.download.source import Source

KIB, MIB = 1 << 10, 1 << 20
HEADER = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
DATA = struct.pack("<Q", len(HEADER)) + HEADER + random.Random(1).randbytes(2 * MIB)
SIZE = len(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = "0" * 64
BLOCK, FIRST = 16 * KIB, 64 * KIB
HOUR = 3600.0
# No connection is replaced: a busy machine can stall a sound one for long, and bytes come twice.
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
    quiet=0.2,
    stalled=HOUR,
    window=HOUR,
)
QUICK_STALLS = replace(LIMITS, stalled=0.15, window=0.3)
KEPT = {"key.run.part", "key.run.json"}


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
    return {one.name for one in partial.parent.iterdir()}


def ranges(partial):
    """What a next run need not fetch; the note must be sound."""
    if not note_file(partial).exists():
        return []
    note = json.loads(note_file(partial).read_text())
    assert all(0 <= start < end <= note["size"] for start, end in note["done"])
    return note["done"]


def noted(partial):
    return sum(end - start for start, end in ranges(partial))


def leave(partial, done, *, data=DATA, size=SIZE, etag=None, **more):
    """As if an earlier run had been killed."""
    partial.write_bytes(data)
    note_file(partial).write_text(json.dumps({"size": size, "etag": etag, "done": done, **more}))


def sent(hosts, role="storage"):
    hosts.settle()
    return hosts.bytes_sent(role)


def times_from_the_start(hosts, role="web"):
    """How often the file was fetched from its first byte."""
    return sum(one.range is not None and one.range[0] == 0 for one in hosts.asked(role))


def raising(error):
    def hook(*_):
        raise error

    return hook


def refuse_pages(start, _size):
    if not start[8:].startswith(b"{"):
        raise ModelFileInvalid("it is a web page.")


def once_beyond(count, act):
    """A `report` that acts once, when so many bytes have come; and the list that then has one."""
    acted = []

    def report(fetched, _size):
        if fetched > count and not acted:
            acted.append(fetched)
            act()

    return report, acted


# The right file.


def test_a_model_of_civitai_comes_over_several_connections(hosts, source, partial):
    hosts.throttle(2 * MIB, ttfb=0.01)
    before = threading.active_count()
    fetched = fetch(source, partial, SHA256)
    wait_until(lambda: threading.active_count() <= before, "the threads to end")
    assert fetched.filename == "dream.safetensors"
    assert fetched.etag
    assert sent(hosts) == SIZE  # each byte once
    asked = hosts.asked("storage")
    assert len({one.connection for one in asked}) > 2
    assert all(one.range for one in asked)
    assert hosts.count("civitai") == 1


def test_new_connections_and_the_end_do_not_wait_for_the_next_tick(hosts, source, partial):
    hosts.throttle(2 * MIB, ttfb=0.01)
    fetch(source, partial, SHA256, replace(LIMITS, tick=HOUR))
    assert len({one.connection for one in hosts.asked("storage")}) > 1


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
    assert hosts.count("web") == 1 or "whole" not in faults


def test_an_empty_file_is_inspected(hosts, partial):
    url = hosts.add_web("/x", b"", ranges=False)
    with pytest.raises(ModelFileInvalid):
        fetch(web_source(hosts, url), partial, inspect=refuse_pages)
    assert not files(partial)


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

HOLES = [[0, 100_000], [200_000, 900_000]]


@pytest.mark.parametrize(
    "done", [[], [[0, 500_000]], HOLES, [[100_000, 400_000]], [[0, 10]], [[1, SIZE]], [[0, SIZE]]]
)
def test_only_missing_bytes_get_room_and_are_fetched_and_all_are_reported(
    hosts, source, partial, done
):
    leave(partial, done, data=DATA + b"more than its size")
    here, rooms, reports = sum(end - start for start, end in done), [], []
    hooks = {
        "make_room": lambda size: rooms.append((size, noted(partial))),
        "report": lambda *one: reports.append(one),
    }
    fetch(source, partial, SHA256, **hooks)
    assert rooms == [(SIZE - here, here)]  # before the rest is fetched
    assert here <= reports[0][0] <= reports[-1][0] == SIZE
    assert sent(hosts) == SIZE - here


def test_what_a_kill_leaves_at_any_moment_is_right_and_is_resumed(
    hosts, source, partial, tmp_path, monkeypatch
):
    """A killed process leaves its files as they are: a copy of them is what it leaves."""
    limits = replace(LIMITS, first_part=FIRST, largest_part=FIRST)
    copies, one_at_a_time, note = [], threading.Lock(), PartialFile.note

    def note_and_copy(file):
        note(file)
        with one_at_a_time:
            with file.lock:
                fetched = file.parts.fetched()
            left = tmp_path / f"{len(copies)}.part"
            shutil.copy(note_file(partial), note_file(left))  # first: it lists what is written
            shutil.copy(partial, left)
            assert fetched - noted(left) <= limits.most_connections * FIRST
            copies.append(left)

    hosts.throttle(4 * MIB, ttfb=0.002)
    with monkeypatch.context() as patch:
        patch.setattr(PartialFile, "note", note_and_copy)
        fetch(source, partial, SHA256, limits)
    counts = [noted(left) for left in copies]
    assert len(counts) > SIZE / FIRST
    assert counts == sorted(counts)  # what was there stays
    for left in copies:
        held = left.read_bytes()
        assert all(held[start:end] == DATA[start:end] for start, end in ranges(left))
    for left in copies[:: len(copies) // 4]:
        here, _ = noted(left), hosts.forget_requests()
        fetch(source, left, SHA256)
        assert sent(hosts) == SIZE - here


def test_a_whole_file_instead_of_a_range_starts_over(hosts, partial):
    url = hosts.add_web("/x", DATA, ranges=False)
    leave(partial, [[0, 500_000]])
    fetch(web_source(hosts, url), partial)


def test_one_whole_file_instead_of_a_range_loses_nothing(hosts, source, partial):
    hosts.fault("whole", skip=2, times=1)
    fetch(source, partial, SHA256)
    assert times_from_the_start(hosts, "storage") == 1


BEYOND = {"size": 3 * SIZE, "done": [[0, 2 * SIZE]]}  # the host answers 416
OLD = {"etag": '"old"', "done": [[0, 500_000]]}


@pytest.mark.parametrize("sha256", [SHA256, None])
@pytest.mark.parametrize(
    "note", [OLD, BEYOND, BEYOND | {"etag": '"fake-etag"'}, BEYOND | {"done": [[0, 9]]}]
)
def test_an_old_version_is_not_mixed_with_the_new_one(hosts, partial, sha256, note):
    url = hosts.add_web("/x", DATA)
    leave(partial, data=b"old" * SIZE, **note)
    fetch(web_source(hosts, url), partial, sha256)
    assert (hosts.asked("web")[0].status == 416) is (note["done"] == BEYOND["done"])


MON, TUE = "Mon, 19 Jan 2026 10:00:00 GMT", "Tue, 20 Jan 2026 10:00:00 GMT"
A, B, WEAK_A, WEAK_B = '"a"', '"b"', 'W/"a"', 'W/"b"'
SAME = [  # ETag and Last-Modified: noted by the run before, sent now
    *((A, MON, A, MON), (A, None, A, MON), (A, MON, A, TUE), (A, MON, "", MON)),
    *((None, MON, "", MON), (None, MON, A, MON), (WEAK_A, MON, WEAK_A, MON)),
]
CHANGED = [  # or it may be another version
    *((A, MON, B, MON), (A, None, "", MON), (None, MON, "", TUE), (None, MON, "", "")),
    *((None, None, "", MON), (None, None, A, MON), (None, None, "", "")),
    *((WEAK_A, MON, WEAK_B, MON), (WEAK_A, MON, WEAK_A, TUE), (WEAK_A, None, WEAK_A, "")),
]


@pytest.mark.parametrize(
    ("marks", "sha256"),
    [*((marks, None) for marks in SAME + CHANGED), ((None, None, "", ""), SHA256)],
)
def test_without_a_hash_only_a_surely_unchanged_file_is_resumed(hosts, partial, marks, sha256):
    """A LoRA that was trained again has the same size."""
    etag, modified, etag_now, modified_now = marks
    url = hosts.add_web("/x", DATA, etag=etag_now, modified=modified_now)
    is_resumed = marks in SAME or sha256 is not None
    left = DATA if is_resumed else b"old" * SIZE
    leave(partial, [[0, 500_000]], data=left[:SIZE], etag=etag, modified=modified)
    fetch(web_source(hosts, url), partial, sha256)
    assert times_from_the_start(hosts) == (not is_resumed)


def test_the_connections_of_one_run_agree_on_the_version(hosts, partial):
    """Without an ETag, Last-Modified shows that the file was replaced in the meantime."""
    url = hosts.add_web("/x", bytes(SIZE), etag="", modified=MON)
    hosts.throttle(2 * MIB, ttfb=0.01)
    report, replaced = once_beyond(
        SIZE // 4, lambda: hosts.add_web("/x", DATA, etag="", modified=TUE)
    )
    fetch(web_source(hosts, url), partial, report=report)
    assert replaced


def test_a_host_that_dates_each_answer_with_the_current_time_has_not_changed_the_file(
    hosts, partial
):
    def report(*_):
        now = time.time() + random.Random().randrange(5)
        return hosts.add_web("/x", DATA, etag="", modified=formatdate(now, usegmt=True))

    hosts.throttle(2 * MIB, ttfb=0.01)
    fetch(web_source(hosts, report()), partial, report=report)
    assert hosts.count("web") >= 2


# Faults: `name: how; how`, each of them for ever unless it says `times`.


def faults(table):
    """The parameters of `hosts.fault` for each fault of the table."""
    for line in table.strip().splitlines():
        name, _, hows = line.partition(":")
        for how in hows.split(";"):
            pairs = (pair.split("=", 1) for pair in how.split())
            yield {"name": name} | {key: literal_eval(value) for key, value in pairs}


def named(fault):
    return " ".join(f"{key}={value}" if key != "name" else value for key, value in fault.items())


PASSING = """
cut: after=100_000; after=100_000 reset=True; times=3; times=3 skip=1 reset=True
stall: times=3 after=50_000; times=4 skip=1
trickle: times=1 skip=1 rate=1000
drop: times=3; times=4 skip=2 reset=True
garbage: times=3
wrong_range_start: times=1; times=3 skip=2 by=-1
wrong_range_total: times=1; times=1 skip=2
whole: ; times=1; times=1 skip=3
short_range: times=5; times=5 by=50_000
long_range: ; by=100_000
wrong_length: times=3 by=5; times=3 by=-5
chunked:
etag_changes:
tiering:
url_limits: uses=3
server_error: times=3 role="storage"; times=4 skip=2 role="storage" status=503
server_error: times=3 role="civitai" status=502; times=1 role="civitai" status=503 retry_after=0
status: times=2 skip=2 status=403 role="storage"; times=2 skip=2 status=404 role="storage"
rate_limited: times=2 retry_after=0; times=4 skip=2 role="storage"
cloudflare_challenge: times=2; times=2 skip=3 role="storage"
not_found: times=1
html: times=1 skip=2
slow: seconds=0.05
"""  # `cut` for ever: each time some bytes have come
NO_HEADERS = {"name": "garbage", "times": 2, "skip": 2, "data": b"HTTP/1.1 206 OK\r\n\r\n"}
STOPPING = {
    ModelHostFailed: """
cut: ; reset=True; skip=3 after=0
stall: ; skip=3
drop: ; skip=3 reset=True
garbage: ; skip=3 data=b""
wrong_range_start:
wrong_range_total:
server_error: role="storage"; skip=3 role="storage" status=503
server_error: role="civitai" status=503 retry_after=0
status: status=403 role="storage" body="<?xml>AccessDenied"
status: skip=3 status=400 role="storage" body="<?xml"
status: status=418 role="civitai"
cloudflare_challenge:
""",
    errors.ModelRateLimited: 'rate_limited: ; html=True; skip=3 role="storage"',
    errors.ModelNotFound: "not_found:",
    errors.ModelForbidden: "no_access:",  # for the others: tests/hosts/test_civitai.py
    errors.ModelUrlRefused: """
redirect_loop: ; role="storage"
redirect_to: url="http://10.0.0.1/?sig=planted"; url="https://127.0.0.1/?sig=planted"
""",
    ModelFileInvalid: "html:\nlogin_page:",
    ModelHashMismatch: "corrupt: offset=1_000_000",
    (ModelFileInvalid, ModelHostFailed): "html: skip=3",
    (ModelHostFailed, ModelHashMismatch): "wrong_range_total: skip=3 by=-5",
}


@pytest.fixture
def watched(hosts, caplog):
    """No planted secret may be in a log line, nor in the errors of this list."""
    caplog.set_level(logging.DEBUG)
    seen = []
    yield seen
    for secret in {*hosts.planted_secrets, "planted"}:
        assert secret not in caplog.text
        assert secret not in "".join(seen)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("fault", [*faults(PASSING), NO_HEADERS], ids=named)
def test_a_fault_that_passes_ends_in_the_right_file(hosts, source, partial, fault):
    hosts.throttle(20 * MIB, ttfb=0.002)  # so that several connections are worth it
    struck = hosts.fault(**fault)
    fetch(source, partial, SHA256, QUICK_STALLS, inspect=refuse_pages)
    assert struck.hits
    assert files(partial) <= KEPT


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        pytest.param(kind, fault, id=named(fault))
        for kind, table in STOPPING.items()
        for fault in faults(table)
    ],
)
def test_a_fault_that_stays_ends_in_a_clear_error(hosts, source, partial, watched, kind, fault):
    hosts.throttle(20 * MIB, ttfb=0.002)
    struck = hosts.fault(**fault)
    with pytest.raises(kind) as failed:
        fetch(source, partial, SHA256, QUICK_STALLS, inspect=refuse_pages)
    error = failed.value
    watched.append("".join(traceback.format_exception(error)) + repr(vars(error)))
    assert struck.hits
    assert len(hosts.requests) < 200  # each connection tries, and may ask for a new URL
    assert files(partial) <= KEPT

    hosts.no_faults()
    hosts.settle()
    hosts.forget_requests()
    done = ranges(partial)
    if kind is ModelHostFailed and "skip" in fault:  # what had arrived is kept
        assert noted(partial) >= 256 * KIB
    fetch(source, partial, SHA256)
    if "wrong_range" not in fault["name"]:  # which made the size wrong, too
        asked = [one.range[0] for one in hosts.asked("storage") if one.range]
        assert not [at for at in asked if any(start <= at < end for start, end in done)]


def test_the_attempts_of_a_replaced_connection_are_counted_further(hosts, source, partial):
    """Two connections that take turns at one part that never comes must give up, too."""
    leave(partial, [[0, SIZE - 1000]])
    hosts.fault("stall", after=0)
    with pytest.raises(ModelHostFailed):
        fetch(source, partial, SHA256, replace(LIMITS, stalled=0.05, first_pause=0.01))
    assert hosts.count("storage") <= 8 * LIMITS.attempts


@pytest.mark.parametrize(("role", "skip"), [("civitai", 0), ("storage", 3)])
def test_all_connections_wait_as_long_as_the_host_asks(hosts, source, partial, role, skip):
    """After a 500, not a 429: that one would also close the other connections."""
    hosts.throttle(4 * MIB, ttfb=0.002)
    fault = hosts.fault("server_error", role=role, skip=skip, times=1, retry_after=3600)
    stop, asked = threading.Event(), []

    def look():
        wait_until(lambda: fault.hits, "the refusal")
        for pause in (0.1, 0.1, 0.3):
            time.sleep(pause)  # a request may be on its way
            hosts.settle()
            asked.append(len(hosts.requests))
        stop.set()

    threading.Thread(target=look).start()
    with pytest.raises(FetchStopped):
        fetch(source, partial, SHA256, replace(LIMITS, longest_wait=HOUR), stop=stop)
    assert asked[1] == asked[2] == len(hosts.requests)
    assert noted(partial) < SIZE


def test_a_host_that_complains_gets_fewer_connections(hosts, source, partial):
    hosts.throttle(MIB, ttfb=0.002)
    at_once = []

    def too_many(_request):
        at_once.append(sum(one.ended is None for one in hosts.asked("storage")))
        return at_once[-1] > 3

    hosts.fault("server_error", status=503, role="storage", when=too_many)
    fetch(source, partial, SHA256, replace(LIMITS, first_pause=0.05))
    assert max(at_once) > 3
    assert sum(count > 3 for count in at_once) < 2 * LIMITS.most_connections


# Signed URLs that expire, and files that change.


@pytest.mark.parametrize("tiering", [False, True])
def test_urls_that_expire_on_the_way_lose_nothing(hosts, source, partial, tiering):
    """With `tiering` the file is elsewhere afterwards, under another ETag."""

    def expire():
        if tiering:
            hosts.fault("tiering")
        hosts.expire_urls()

    hosts.throttle(2 * MIB, ttfb=0.002)
    report, expired = once_beyond(SIZE // 3, expire)
    fetch(source, partial, SHA256, report=report)
    hosts.settle()
    assert expired
    answers = hosts.asked("storage") + hosts.asked("storage_b")
    assert sum(one.sent for one in answers if one.status == 206) == SIZE
    assert bool(hosts.count("storage_b")) is tiering


def test_a_file_that_changes_all_the_time_is_given_up(hosts, source, partial):
    hosts.fault("etag_changes")
    with pytest.raises(ModelHostFailed, match="has changed at the host"):
        fetch(source, partial)
    assert not files(partial)


@pytest.mark.parametrize(
    ("left", "versions", "sha256", "cost"),
    [
        (None, 1, OTHER, SIZE),  # the host has sent exactly these bytes
        (bytes(SIZE), 1, SHA256, 2 * SIZE - 500_000),  # the earlier run's bytes may be damaged
        (DATA, 1, OTHER, 2 * SIZE - 500_000),
        (None, 2, SHA256, 2 * SIZE),
    ],
)
def test_after_a_wrong_hash_only_a_mixed_file_starts_over_once(
    hosts, source, partial, left, versions, sha256, cost
):
    if left:
        leave(partial, [[0, 500_000]], data=left)
    if versions == 2:
        hosts.fault("corrupt", offset=300_000, times=1)
        hosts.fault("etag_changes", times=1)
    if sha256 == OTHER:
        with pytest.raises(ModelHashMismatch) as mismatch:
            fetch(source, partial, sha256)
        assert mismatch.value.details == {"expected": OTHER, "actual": SHA256}
        assert not files(partial)
    else:
        fetch(source, partial, sha256)
    assert sent(hosts) == cost


# The hooks.

LARGE = 64 * MIB


@pytest.fixture
def large(tmp_path):
    """A sparse file of 64 MiB."""
    (tmp_path / "large").write_bytes(DATA[:MIB])
    os.truncate(tmp_path / "large", LARGE)
    return tmp_path / "large"


@pytest.mark.parametrize(
    ("kind", "known_by"),
    [
        *((ModelFileInvalid, "length"), (errors.ModelNotSupported, "range")),
        *((errors.ModelUrlRefused, known_by) for known_by in ("range", "length", "nothing")),
    ],
)
def test_a_useless_or_too_large_file_is_refused_after_a_megabyte(
    hosts, large, partial, kind, known_by
):
    hosts.throttle(4 * MIB, ttfb=0)  # all of it would take 16 s
    is_too_large, seen = kind is errors.ModelUrlRefused, []

    def inspect(start, size):
        seen.append((len(start), size))
        raise kind("it is a web page, or Flux.")

    url = hosts.add_web("/x", large, ranges=known_by == "range")
    if known_by == "nothing":
        hosts.fault("chunked")
    limits = replace(LIMITS, inspect_from=MIB, first_part=LARGE, largest_part=LARGE)
    limits = replace(limits, largest_file=500_000 if is_too_large else LARGE)
    with pytest.raises(kind, match="GB allowed" if is_too_large else "Flux"):
        fetch(web_source(hosts, url), partial, limits=limits, inspect=inspect)
    assert seen == ([] if is_too_large else [(MIB, LARGE)])
    assert sent(hosts, "web") < LARGE / 2
    assert hosts.count("web") == 1
    assert not files(partial)


def test_one_connection_works_while_the_inspection_asks_for_more(hosts, source, partial):
    wanted, seen, requests = iter([100_000, 90_000, 500_000, 10 * SIZE, None]), [], []

    def inspect(start, size):
        seen.append((len(start), size))
        assert start == DATA[: len(start)]
        time.sleep(0.03)  # time enough for another connection
        requests.append(hosts.count("storage"))
        return next(wanted)

    fetch(source, partial, SHA256, limits=replace(LIMITS, largest_file=SIZE), inspect=inspect)
    assert seen == [(length, SIZE) for length in (FIRST, 100_000, 90_000, 500_000, SIZE)]
    assert requests[:3] == [1, 1, 1]


@pytest.mark.parametrize("done", [[[0, 500_000]], [[0, 10_000]], [[0, SIZE]]])
def test_bytes_of_an_earlier_run_are_inspected_too(hosts, source, partial, done):
    leave(partial, done)
    with pytest.raises(ModelFileInvalid):
        fetch(source, partial, SHA256, inspect=raising(ModelFileInvalid("no.")))
    assert not files(partial)
    assert (hosts.requests == []) is (done[0][1] > FIRST)  # then enough of it is there


@pytest.mark.parametrize("hook", ["inspect", "make_room", "report"])
@pytest.mark.parametrize("error", [ValueError("bug"), OSError(errno.EIO, "bug")])
def test_a_bug_in_a_hook_ends_the_download(source, partial, hook, error):
    with pytest.raises(type(error), match="bug"):
        fetch(source, partial, SHA256, **{hook: raising(error)})


def test_room_is_made_in_steps_while_the_size_is_unknown(hosts, source, partial):
    for fault in ("chunked", "whole"):
        hosts.fault(fault)
    step, asked = 512 * KIB, []
    fetch(source, partial, SHA256, replace(LIMITS, room_step=step), make_room=asked.append)
    assert asked == [step] * (SIZE // step + 1)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    "error", [errors.StoreFull("the disk is full."), errors.StoreNotWritable("read-only.")]
)
def test_without_room_nothing_is_fetched(hosts, source, partial, resumed, error):
    if resumed:
        leave(partial, [[0, 500_000]])
    with pytest.raises(type(error)):
        fetch(source, partial, SHA256, make_room=raising(error))
    assert len(hosts.asked("storage")) == (not resumed)
    assert not (isinstance(error, errors.StoreFull) and files(partial))


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


@pytest.mark.parametrize(
    "fault", [None, {"name": "cut", "after": 100_000}, {"name": "chunked"}, {"name": "whole"}]
)
def test_the_report_grows_and_ends_with_the_whole_file(hosts, source, partial, fault):
    if fault:
        hosts.fault(**fault)
    hosts.throttle(4 * MIB, ttfb=0.01)
    reports = []
    fetch(source, partial, SHA256, report=lambda *one: reports.append(one))
    counts = [fetched for fetched, _ in reports]
    assert counts == sorted(counts)
    assert reports[-1] == (SIZE, SIZE)
    assert any(0 < count < SIZE for count in counts)
    assert {size for _, size in reports} <= {None, SIZE}


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
    before = set(threading.enumerate())
    with pytest.raises(FetchStopped):
        fetch(source, partial, SHA256, replace(LIMITS, longest_wait=HOUR, stalled=HOUR), stop=stop)
    assert files(partial) <= KEPT
    for thread in set(threading.enumerate()) - before:  # none waits for its answer
        if "_connection" in thread.name:
            thread.join(60)
            assert not thread.is_alive()


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
    assert not files(partial)
    assert asked == []


# The disk, slow connections, and memory.

FULL = [(errno.ENOSPC, errors.StoreFull), (errno.EDQUOT, errors.StoreFull)]


@pytest.mark.parametrize(("number", "kind"), [*FULL, (errno.EROFS, errors.StoreNotWritable)])
@pytest.mark.parametrize("after", [0, 20])
def test_a_disk_that_fills_up_is_an_error(source, partial, monkeypatch, number, kind, after):
    real, left = os.pwrite, iter(range(after))

    def pwrite(*given):
        if next(left, None) is None:
            raise OSError(number, os.strerror(number))
        return real(*given)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(kind, match=os.strerror(number)):
        fetch(source, partial, SHA256)
    assert not (kind is errors.StoreFull and files(partial))


def test_a_connection_far_slower_than_the_others_is_replaced(hosts, source, partial):
    hosts.throttle(MIB, ttfb=0.002)
    slow = hosts.fault("trickle", rate=500, skip=3, times=1, min_size=60_000)  # takes 2 minutes
    fetch(source, partial, SHA256, replace(LIMITS, window=0.2))
    hosts.settle()
    assert slow.hits
    assert any(one.sent < one.range[1] - one.range[0] + 1 for one in hosts.asked("storage"))


def test_the_memory_does_not_grow_with_the_file(hosts, large, partial):
    url = hosts.add_web("/x", large)
    limits = replace(LIMITS, block=256 * KIB, first_part=MIB, largest_part=4 * MIB)
    tracemalloc.start()
    fetched = download(web_source(hosts, url), partial, limits=limits)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fetched.size == LARGE
    assert most < 24 * MIB  # with the host, which is in this process
