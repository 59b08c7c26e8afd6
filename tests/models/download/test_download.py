"""Whole downloads from the fakes: each of their faults ends in the right file or a clear error.

The sizes are small and the pauses short; what is left is the same.
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
from email.utils import formatdate
from itertools import pairwise

import pytest
from fakes.hosts.model_hosts import ModelHosts
from fakes.hosts.tls import make_certificates

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
from worker.http import client as http
from worker.http.client import SafeHttpClient
from worker.models.download import download as module
from worker.models.download import pace, schedule
from worker.models.download.download import Hooks, download
from worker.models.download.source import Source
from worker.models.hosts.civitai import CivitAI
from worker.models.hosts.host import AnyHost, RemoteFile

KIB, MIB = 1 << 10, 1 << 20
HEADER = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
DATA = struct.pack("<Q", len(HEADER)) + HEADER + random.Random(1).randbytes(2 * MIB)
SIZE = len(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = "0" * 64
BLOCK = 16 * KIB
FIRST = 64 * KIB


@pytest.fixture(scope="module")
def no_ca(tmp_path_factory):
    """Of nobody's certificates."""
    return make_certificates(tmp_path_factory.mktemp("ca"))[0]


def quick_backoff(attempt, asked_for=None):
    return 0.002 * 2**attempt if asked_for is None else min(0.3, asked_for)


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch, no_ca):
    monkeypatch.setenv("SSL_CERT_FILE", str(no_ca))
    monkeypatch.setattr(http.certifi, "where", lambda: str(no_ca))
    for name, value in {"BLOCK": BLOCK, "INSPECT_FROM": FIRST, "TICK": 0.01}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "backoff", quick_backoff)
    sizes = {"FIRST_PART": 256 * KIB, "SMALLEST_PART": 64 * KIB, "LARGEST_PART": 256 * KIB}
    rhythm = {"SETTLING": 0.01, "MEASURING": 0.02, "MOST_CONNECTIONS": 8}
    for name, value in (sizes | rhythm).items():
        monkeypatch.setattr(schedule, name, value)


@pytest.fixture
def quick_stalls(monkeypatch):
    monkeypatch.setattr(pace, "STALLED", 0.15)
    monkeypatch.setattr(pace, "WINDOW", 0.3)


@pytest.fixture
def hosts():
    with ModelHosts() as running:
        yield running


@pytest.fixture
def model(hosts):
    return hosts.add_model(version_id=1, data=DATA, name="dream.safetensors")


@pytest.fixture
def partial(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder / "key.run.part"


def way_out(hosts):
    trusted = [url.partition("//")[2] for url in hosts._world.urls.values()]
    return SafeHttpClient(trusted, {hosts.civitai: hosts.civitai_key})


def civitai_source(hosts, model):
    """As the worker makes it."""
    client = way_out(hosts)
    remote = RemoteFile(model.file_url, model.name, "civitai:1@1")
    host = CivitAI(client, hosts.civitai)
    return Source(client, model.file_url, lambda said: host.refusal(said, remote))


def web_source(hosts, url):
    remote = RemoteFile(url, "x.safetensors", "web")
    return Source(way_out(hosts), url, lambda said: AnyHost().refusal(said, remote))


@pytest.fixture
def source(hosts, model):
    return civitai_source(hosts, model)


def files(partial):
    return sorted(one.name for one in partial.parent.iterdir())


def noted(partial):
    """Bytes that a next run need not fetch; the note must be sound and the bytes right."""
    if not note_file(partial).exists():
        return 0
    note = json.loads(note_file(partial).read_text())
    for start, end in note["done"]:
        assert 0 <= start < end <= note["size"]
    return sum(end - start for start, end in note["done"])


def leave(partial, done, *, data=DATA, etag=None, **more):
    """As if an earlier run had been killed."""
    partial.write_bytes(data)
    note = {"size": SIZE, "etag": etag, "done": done, **more}
    note_file(partial).write_text(json.dumps(note))


def refuse_pages(start, _size):
    if not start[8:].startswith(b"{"):
        raise ModelFileInvalid("it is a web page.")


def check(fetched, partial):
    assert (fetched.size, fetched.sha256, fetched.path) == (SIZE, SHA256, partial)
    assert partial.read_bytes() == DATA


# The right file.


def test_a_model_of_civitai_comes_over_several_connections(hosts, source, partial):
    hosts.throttle(2 * MIB, ttfb=0.01)
    fetched = download(source, partial, SHA256)

    check(fetched, partial)
    assert fetched.filename == "dream.safetensors"
    assert fetched.etag
    assert hosts.connections("storage") > 2
    assert hosts.count("civitai") == 1
    assert hosts.bytes_sent("storage") == SIZE  # each byte once
    assert all(one.range for one in hosts.asked("storage"))


def test_a_file_of_hugging_face_too(hosts, partial):
    file = hosts.add_hf("org/repo", "x.safetensors", DATA)
    fetched = download(web_source(hosts, file.url), partial, SHA256)
    check(fetched, partial)
    assert fetched.etag == f'"{SHA256}"'


def test_a_hash_is_not_needed(source, partial):
    check(download(source, partial), partial)


@pytest.mark.parametrize("size", [1, 7, BLOCK, FIRST - 1, FIRST, FIRST + 1, 256 * KIB, 300_001])
@pytest.mark.parametrize("faults", [[], ["chunked"], ["whole"], ["whole", "chunked"]])
def test_any_size_is_right(hosts, partial, size, faults):
    """With both faults nobody knows the size before the end."""
    url, seen = hosts.add_web("/x", DATA[:size]), []
    for fault in faults:
        hosts.fault(fault)
    hooks = Hooks(inspect=lambda start, size: seen.append((start, size)))
    fetched = download(web_source(hosts, url), partial, hooks=hooks)
    assert fetched.size == size
    assert partial.read_bytes() == DATA[:size]
    [(start, told)] = seen
    assert start == DATA[: min(size, FIRST)]
    assert told in {size, None}


@pytest.mark.parametrize("length", [True, False])
def test_a_host_without_ranges_is_read_through(hosts, partial, length):
    url = hosts.add_web("/x", DATA, ranges=False)
    if not length:
        hosts.fault("chunked")
    check(download(web_source(hosts, url), partial, SHA256), partial)
    assert hosts.count("web") == 1


def test_an_empty_file_is_shown_to_the_owner(hosts, partial):
    url = hosts.add_web("/x", b"", ranges=False)
    hooks = Hooks(inspect=refuse_pages)
    with pytest.raises(ModelFileInvalid):
        download(web_source(hosts, url), partial, hooks=hooks)
    assert files(partial) == []


def test_the_bytes_are_hashed_once_and_never_read_again(source, partial, monkeypatch):
    """No second pass: what is read back is what came out of order, and that but once."""
    read, real = [], os.preadv

    def preadv(descriptor, buffers, offset):
        count = real(descriptor, buffers, offset)
        read.append((offset, offset + count))
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    check(download(source, partial, SHA256), partial)
    read.sort()
    assert all(one[1] <= other[0] for one, other in pairwise(read))
    assert sum(end - start for start, end in read) < SIZE


# Resume.


@pytest.mark.parametrize(
    "done",
    [
        [[0, 500_000]],
        [[0, 100_000], [200_000, 900_000]],
        [[100_000, 400_000]],
        [[0, 10]],
        [[0, SIZE - 1]],
        [[1, SIZE]],
        [[0, SIZE]],
    ],
)
def test_only_what_is_missing_is_fetched(hosts, source, partial, done):
    leave(partial, done)
    check(download(source, partial, SHA256), partial)
    assert hosts.bytes_sent("storage") == SIZE - sum(end - start for start, end in done)


@pytest.mark.parametrize("fault", ["whole", "ranges"])
def test_a_host_without_ranges_starts_over(hosts, partial, fault):
    url = hosts.add_web("/x", DATA, ranges=fault != "ranges")
    if fault == "whole":
        hosts.fault("whole")
    leave(partial, [[0, 500_000]])
    check(download(web_source(hosts, url), partial), partial)


def test_a_part_in_the_middle_that_comes_as_the_whole_file(hosts, source, partial):
    hosts.fault("whole", skip=2, times=1)
    check(download(source, partial, SHA256), partial)
    firsts = [one for one in hosts.asked("storage") if one.range and one.range[0] == 0]
    assert len(firsts) == 1  # what had arrived was kept


@pytest.mark.parametrize("has_hash", [True, False])
def test_what_changed_at_the_host_meanwhile_is_not_mixed(hosts, partial, has_hash):
    url = hosts.add_web("/x", DATA, etag='"new"')
    leave(partial, [[0, 500_000]], data=b"old" * SIZE, etag='"old"')
    check(download(web_source(hosts, url), partial, SHA256 if has_hash else None), partial)


def test_what_has_another_size_now_is_not_mixed(hosts, partial):
    url = hosts.add_web("/x", DATA)
    partial.write_bytes(b"old" * SIZE)
    note_file(partial).write_text(json.dumps({"size": 3 * SIZE, "etag": None, "done": [[0, 9]]}))
    check(download(web_source(hosts, url), partial), partial)


MONDAY, TUESDAY = "Mon, 19 Jan 2026 10:00:00 GMT", "Tue, 20 Jan 2026 10:00:00 GMT"
MARKS = [  # ETag and Last-Modified: noted by the run before, told now; is it one version?
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
def test_without_a_hash_only_what_is_surely_the_same_version_is_gone_on_with(
    hosts, partial, etag, modified, etag_now, modified_now, is_same
):
    """A LoRA that was trained anew has the same size."""
    url = hosts.add_web("/x", DATA, etag=etag_now, modified=modified_now)
    left = DATA if is_same else b"old" * SIZE
    leave(partial, [[0, 500_000]], data=left[:SIZE], etag=etag, modified=modified)
    check(download(web_source(hosts, url), partial), partial)
    firsts = [one for one in hosts.asked("web") if one.range and one.range[0] == 0]
    assert len(firsts) == (0 if is_same else 1)


@pytest.mark.parametrize("has_hash", [True, False])
def test_with_a_hash_what_has_arrived_is_always_gone_on_with(hosts, partial, has_hash):
    url = hosts.add_web("/x", DATA, etag="", modified="")
    leave(partial, [[0, 500_000]])
    check(download(web_source(hosts, url), partial, SHA256 if has_hash else None), partial)
    hosts.settle()
    firsts = [one for one in hosts.asked("web") if one.range and one.range[0] == 0]
    assert bool(firsts) is not has_hash


def test_what_an_earlier_run_noted_of_the_version_is_enough_for_the_next(hosts, partial):
    """Both runs are real ones."""
    url = hosts.add_web("/x", DATA, etag="", modified=MONDAY)
    hosts.fault("drop", skip=2)
    with pytest.raises(ModelHostFailed):
        download(web_source(hosts, url), partial)
    hosts.no_faults()
    assert noted(partial)
    other = bytes(reversed(DATA))
    hosts.add_web("/x", other, etag="", modified=TUESDAY)
    fetched = download(web_source(hosts, url), partial)
    assert fetched.sha256 == hashlib.sha256(other).hexdigest()


@pytest.mark.parametrize("etag", [None, '"fake-etag"'])
@pytest.mark.parametrize("has_hash", [True, False])
def test_what_is_shorter_now_than_what_has_arrived_is_not_empty(hosts, partial, etag, has_hash):
    """The host answers 416 to a range behind the end."""
    url = hosts.add_web("/x", DATA)
    partial.write_bytes(b"old" * SIZE)
    note = {"size": 3 * SIZE, "etag": etag, "done": [[0, 2 * SIZE]]}
    note_file(partial).write_text(json.dumps(note))
    check(download(web_source(hosts, url), partial, SHA256 if has_hash else None), partial)
    assert hosts.asked("web")[0].status == 416


def test_the_connections_of_one_run_agree_on_the_version(hosts, partial):
    """No ETag: it is Last-Modified that tells that the file was replaced meanwhile."""
    url = hosts.add_web("/x", bytes(SIZE), etag="", modified=MONDAY)
    hosts.throttle(2 * MIB, ttfb=0.01)
    replaced = []

    def report(fetched, _size):
        if fetched > SIZE // 4 and not replaced:
            replaced.append(fetched)
            hosts.add_web("/x", DATA, etag="", modified=TUESDAY)

    check(download(web_source(hosts, url), partial, hooks=Hooks(report=report)), partial)
    assert replaced


def test_a_host_that_dates_each_answer_anew_is_no_changed_file(hosts, partial):
    url = hosts.add_web("/x", DATA, etag="", modified=formatdate(usegmt=True))
    hosts.throttle(2 * MIB, ttfb=0.01)

    def report(_fetched, _size):
        now = time.time() + random.Random().randrange(5)
        hosts.add_web("/x", DATA, etag="", modified=formatdate(now, usegmt=True))

    check(download(web_source(hosts, url), partial, hooks=Hooks(report=report)), partial)
    assert len(hosts.asked("web")) >= 2


def test_damage_of_the_disk_starts_over_once(hosts, source, partial):
    leave(partial, [[0, 500_000]], data=bytes(SIZE))
    check(download(source, partial, SHA256), partial)
    assert hosts.bytes_sent("storage") == SIZE - 500_000 + SIZE


@pytest.mark.parametrize("note", ["", "{}", '{"size": -1, "etag": null, "done": []}'])
def test_an_odd_note_starts_over(hosts, source, partial, note):
    leave(partial, [])
    note_file(partial).write_text(note)
    check(download(source, partial, SHA256), partial)
    assert hosts.bytes_sent("storage") == SIZE


# The faults.


def fault_(name, times=-1, skip=0, **params):
    return {"name": name, "times": times, "skip": skip, **params}


PASSING = [
    fault_("cut", after=100_000),  # for ever, but each time some bytes have come
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
    """No planted secret may be in a log line; `told` are errors."""
    caplog.set_level(logging.DEBUG)
    told = []
    yield told
    for secret in {*hosts.planted_secrets, "planted"}:
        assert secret not in caplog.text
        assert secret not in "".join(told)


def error_text(error):
    return "".join(traceback.format_exception(error)) + repr(vars(error))


@pytest.mark.usefixtures("quick_stalls", "watched")
@pytest.mark.parametrize("fault", PASSING, ids=map(named, PASSING))
def test_a_fault_that_passes_ends_in_the_right_file(hosts, source, partial, fault):
    hosts.throttle(20 * MIB, ttfb=0.002)  # so that several connections are worth it
    struck = hosts.fault(**fault)
    hooks = Hooks(inspect=refuse_pages)
    check(download(source, partial, SHA256, hooks), partial)
    assert struck.hits
    assert set(files(partial)) <= {"key.run.part", "key.run.json"}


@pytest.mark.usefixtures("quick_stalls")
@pytest.mark.parametrize("ending", STOPPING, ids=[named(one) for one, _ in STOPPING])
def test_a_fault_that_stays_ends_in_a_clear_error(hosts, source, partial, watched, ending):
    fault, kind = ending
    hosts.throttle(20 * MIB, ttfb=0.002)
    struck = hosts.fault(**fault)
    hooks = Hooks(inspect=refuse_pages)
    with pytest.raises(kind) as failed:
        download(source, partial, SHA256, hooks)
    watched.append(error_text(failed.value))
    assert struck.hits
    assert len(hosts.requests) < 200  # each connection tries, and may ask for a new URL
    assert set(files(partial)) <= {"key.run.part", "key.run.json"}

    hosts.no_faults()
    hosts.settle()
    hosts.forget_requests()
    here = noted(partial)
    check(download(source, partial, SHA256, hooks), partial)  # and later all is well
    if "wrong_range" not in fault["name"]:  # then the size was wrong, too
        # a slow connection is replaced, and on a busy machine what was on its way comes twice
        assert SIZE - here <= hosts.bytes_sent("storage") <= SIZE


@pytest.mark.usefixtures("quick_stalls")
@pytest.mark.parametrize("fault", ["drop", "stall", "garbage", "server_error"])
def test_what_has_arrived_is_kept_for_the_next_try(hosts, source, partial, fault):
    hosts.throttle(20 * MIB, ttfb=0.002)
    hosts.fault(fault, skip=4, role="storage")
    with pytest.raises(ModelHostFailed):
        download(source, partial, SHA256)
    assert files(partial) == ["key.run.json", "key.run.part"]
    assert noted(partial) >= 256 * KIB


def test_a_host_that_is_away_for_a_while(hosts, source, partial, monkeypatch):
    monkeypatch.setattr(module, "backoff", lambda *_: 0.1)
    hosts.throttle(4 * MIB, ttfb=0.002)

    def away():
        hosts.refuse("storage")
        time.sleep(0.2)
        hosts.accept("storage")

    timer = threading.Timer(0.1, away)
    timer.start()
    check(download(source, partial, SHA256), partial)
    timer.join()


def test_a_host_that_is_gone(hosts, source, partial):
    hosts.refuse("civitai")
    with pytest.raises(ModelHostFailed, match="NewConnectionError"):
        download(source, partial, SHA256)
    assert files(partial) == []


def test_a_new_connection_does_not_begin_the_counting_anew(hosts, source, partial, monkeypatch):
    """Two connections that take turns at one part that never comes must give up, too."""
    monkeypatch.setattr(pace, "STALLED", 0.05)
    monkeypatch.setattr(module, "backoff", lambda *_: 0.03)
    leave(partial, [[0, SIZE - 1000]])
    hosts.fault("stall", after=0)
    start = time.monotonic()
    with pytest.raises(ModelHostFailed):
        download(source, partial, SHA256)
    assert hosts.count("storage") <= 8 * module.ATTEMPTS
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("role", ["civitai", "storage"])
def test_all_connections_wait_as_long_as_the_host_asks(hosts, source, partial, monkeypatch, role):
    monkeypatch.setattr(module, "backoff", lambda _, asked_for=None: asked_for or 0.01)
    # Fewer connections would hide that the others do not wait.
    monkeypatch.setattr(module.Connections, "host_complained", lambda *_: None)
    hosts.throttle(20 * MIB, ttfb=0.002)
    skip = 0 if role == "civitai" else 3
    hosts.fault("rate_limited", role=role, skip=skip, times=1, retry_after=1)
    check(download(source, partial, SHA256), partial)
    hosts.settle()
    refused = next(one for one in hosts.requests if one.status == 429)
    waited = [one.time - refused.ended for one in hosts.requests if one.time > refused.ended]
    early = sum(seconds < 0.9 for seconds in waited)
    assert early < len(waited) / 3  # what was under way


def test_a_host_that_complains_gets_fewer_connections(hosts, source, partial, monkeypatch):
    monkeypatch.setattr(module, "backoff", lambda *_: 0.05)
    hosts.throttle(MIB, ttfb=0.002)
    at_once = []

    def too_many(_request):
        running = sum(one.ended is None for one in hosts.asked("storage"))
        at_once.append(running)
        return running > 3

    hosts.fault("server_error", status=503, role="storage", when=too_many)
    check(download(source, partial, SHA256), partial)
    assert max(at_once) > 3
    assert sum(count > 3 for count in at_once) < 20


# Signed URLs that expire.


def test_urls_that_expire_on_the_way_lose_nothing(hosts, source, partial):
    hosts.fault("url_limits", seconds=0.1)
    hosts.throttle(MIB / 2, ttfb=0.002)
    check(download(source, partial, SHA256), partial)
    hosts.settle()
    assert hosts.count("civitai") > 1
    assert sum(one.sent for one in hosts.asked("storage") if one.status == 206) == SIZE


@pytest.mark.parametrize("tiering", [False, True])
def test_all_urls_end_in_the_middle(hosts, source, partial, tiering):
    """With `tiering` the file lies elsewhere afterwards, under another ETag."""
    hosts.throttle(2 * MIB, ttfb=0.002)
    ended = []

    def report(fetched, _size):
        if fetched > SIZE // 3 and not ended:
            ended.append(fetched)
            if tiering:
                hosts.fault("tiering")
            hosts.expire_urls()

    check(download(source, partial, SHA256, Hooks(report=report)), partial)
    hosts.settle()
    assert ended
    answers = hosts.asked("storage") + hosts.asked("storage_b")
    assert sum(one.sent for one in answers if one.status == 206) == SIZE
    assert bool(hosts.count("storage_b")) is tiering


def test_without_a_hash_two_versions_are_never_mixed(hosts, source, partial):
    hosts.fault("url_limits", uses=2, times=1)
    hosts.fault("tiering", skip=1)
    check(download(source, partial), partial)
    hosts.settle()
    assert hosts.bytes_sent("storage_b") >= SIZE


def test_a_file_that_changes_all_the_time_is_given_up(hosts, source, partial):
    hosts.fault("etag_changes")
    with pytest.raises(ModelHostFailed, match="has changed at the host"):
        download(source, partial)
    assert files(partial) == []


# Wrong bytes.


def test_a_wrong_hash_of_one_run_is_believed_at_once(hosts, source, partial):
    with pytest.raises(ModelHashMismatch) as mismatch:
        download(source, partial, OTHER)
    assert mismatch.value.details == {"expected": OTHER, "actual": SHA256}
    assert hosts.bytes_sent("storage") == SIZE
    assert files(partial) == []


def test_a_wrong_hash_of_two_runs_starts_over_once(hosts, source, partial):
    leave(partial, [[0, 500_000]])
    with pytest.raises(ModelHashMismatch):
        download(source, partial, OTHER)
    assert hosts.bytes_sent("storage") == SIZE - 500_000 + SIZE
    assert files(partial) == []


def test_a_wrong_hash_of_two_versions_starts_over_once(hosts, source, partial):
    hosts.fault("corrupt", offset=300_000, times=1)
    hosts.fault("etag_changes", times=1)
    check(download(source, partial, SHA256), partial)
    assert hosts.bytes_sent("storage") == 2 * SIZE


# What the owner sees and decides.


LARGE = 64 * MIB


@pytest.fixture
def large(tmp_path):
    """A file of 64 MiB that takes none on the disk."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(DATA[:MIB])
        file.truncate(LARGE)
    return path


@pytest.fixture
def true_sizes(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 256 * KIB)
    monkeypatch.setattr(module, "INSPECT_FROM", MIB)
    monkeypatch.setattr(schedule, "FIRST_PART", 16 * MIB)


@pytest.mark.usefixtures("true_sizes")
@pytest.mark.parametrize(("kind", "ranges"), [(ModelFileInvalid, False), (ModelNotSupported, True)])
def test_a_useless_file_is_refused_after_a_megabyte(hosts, large, partial, kind, ranges):
    hosts.throttle(1.5 * MIB, ttfb=0)  # what lies in the kernel's buffers is sent, too
    seen = []

    def inspect(start, size):
        seen.append((len(start), size))
        raise kind("it is a web page, or Flux.")

    url = hosts.add_web("/x", large, ranges=ranges)
    with pytest.raises(kind):
        download(web_source(hosts, url), partial, hooks=Hooks(inspect=inspect))
    hosts.settle()
    assert seen == [(MIB, LARGE)]
    assert MIB <= hosts.bytes_sent("web") <= 1.3 * MIB
    assert hosts.count("web") == 1
    assert files(partial) == []


def test_the_owner_may_ask_for_more(source, partial):
    wanted, seen = iter([100_000, 90_000, 500_000, 10 * SIZE, None]), []

    def inspect(start, size):
        seen.append((len(start), size))
        assert start == DATA[: len(start)]
        return next(wanted)

    check(download(source, partial, SHA256, Hooks(inspect=inspect)), partial)
    assert seen == [(length, SIZE) for length in (FIRST, 100_000, 90_000, 500_000, SIZE)]


def test_only_one_connection_works_before_the_owner_is_content(hosts, source, partial):
    counts = []

    def inspect(start, _size):
        counts.append(hosts.count("storage"))
        return len(start) + BLOCK if len(start) < 200_000 else None

    check(download(source, partial, SHA256, Hooks(inspect=inspect)), partial)
    assert set(counts) == {1}


@pytest.mark.parametrize("done", [[[0, 500_000]], [[0, 10_000]], [[0, SIZE]]])
def test_what_an_earlier_run_left_is_inspected_too(hosts, source, partial, done):
    leave(partial, done)
    with pytest.raises(ModelFileInvalid):
        download(source, partial, SHA256, Hooks(inspect=lambda *_: raise_(ModelFileInvalid("no."))))
    assert files(partial) == []
    assert (hosts.requests == []) is (done[0][1] > FIRST)  # then it is here


def raise_(error):
    raise error


@pytest.mark.parametrize("hook", ["inspect", "make_room", "report"])
@pytest.mark.parametrize("error", [ValueError("bug"), OSError(errno.EIO, "bug")])
def test_a_bug_of_a_hook_ends_the_download(source, partial, hook, error):
    with pytest.raises(type(error), match="bug"):
        download(source, partial, SHA256, Hooks(**{hook: lambda *_: raise_(error)}))


def test_room_is_made_step_by_step_while_the_size_is_unknown(hosts, source, partial, monkeypatch):
    monkeypatch.setattr(module, "ROOM_STEP", 512 * KIB)
    hosts.fault("chunked")
    hosts.fault("whole")
    asked = []

    download(source, partial, SHA256, Hooks(make_room=asked.append))

    assert asked == [512 * KIB] * (SIZE // (512 * KIB) + 1)


def test_room_is_made_before_much_is_fetched(source, partial):
    asked = []

    def make_room(size):
        asked.append((size, partial.stat().st_size))

    check(download(source, partial, SHA256, Hooks(make_room=make_room)), partial)
    assert asked == [(SIZE, 0)]


def test_room_is_made_for_what_is_missing(source, partial):
    asked = []
    leave(partial, [[0, 500_000]])
    check(download(source, partial, SHA256, Hooks(make_room=asked.append)), partial)
    assert asked == [SIZE - 500_000]


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("error", [StoreFull("the disk is full."), StoreNotWritable("read-only.")])
def test_without_room_nothing_is_fetched_and_nothing_left(hosts, source, partial, resumed, error):
    if resumed:
        leave(partial, [[0, 500_000]])
    with pytest.raises(type(error)):
        download(source, partial, SHA256, Hooks(make_room=lambda _: raise_(error)))
    assert len(hosts.asked("storage")) == (not resumed)
    if isinstance(error, StoreFull):
        assert files(partial) == []


def test_a_stop_waits_for_the_making_of_room(source, partial):
    """Else it would reserve room for a download that is over."""
    stop, over = threading.Event(), []

    def make_room(_size):
        stop.set()
        time.sleep(0.3)
        over.append(True)

    with pytest.raises(FetchStopped):
        download(source, partial, SHA256, Hooks(make_room=make_room, stop=stop))
    assert over


@pytest.mark.parametrize("told", ["range", "length", "nothing"])
def test_a_file_over_the_limit_is_refused(hosts, partial, told):
    hosts.throttle(4 * MIB, ttfb=0)
    url = hosts.add_web("/x", DATA, ranges=told == "range")
    if told == "nothing":
        hosts.fault("chunked")
    limit = 500_000
    with pytest.raises(ModelUrlRefused, match="GB allowed"):
        download(web_source(hosts, url), partial, largest=limit)
    hosts.settle()
    assert hosts.bytes_sent("web") <= (limit + 300 * KIB if told == "nothing" else 300 * KIB)
    assert files(partial) == []


def test_a_file_at_the_limit_is_fetched(source, partial):
    check(download(source, partial, largest=SIZE), partial)


@pytest.mark.parametrize("fault", [None, "cut", "chunked", "whole"])
def test_the_report_grows_and_ends_with_the_whole(hosts, source, partial, fault):
    if fault:
        hosts.fault(fault, **({"after": 100_000} if fault == "cut" else {}))
    hosts.throttle(4 * MIB, ttfb=0.01)
    seen = []
    hooks = Hooks(report=lambda *told: seen.append(told))
    check(download(source, partial, SHA256, hooks), partial)
    counts = [fetched for fetched, _ in seen]
    assert counts == sorted(counts)
    assert seen[-1] == (SIZE, SIZE)
    assert len([count for count in counts if 0 < count < SIZE]) > 3
    assert {size for _, size in seen} <= {None, SIZE}


def test_the_report_of_a_resumed_run_begins_where_it_was(hosts, source, partial):
    leave(partial, [[0, 500_000]])
    hosts.throttle(4 * MIB, ttfb=0.2)
    seen = []
    download(source, partial, SHA256, Hooks(report=lambda *told: seen.append(told)))
    assert seen[0] == (500_000, SIZE)


# Stop.


@pytest.mark.parametrize("where", ["civitai", "storage", "body", "transfer", "wait"])
def test_a_stop_is_heard_at_once(hosts, source, partial, where):
    if where == "body":
        hosts.fault("stall", after=100_000)
    elif where == "transfer":
        hosts.throttle(MIB, ttfb=0.01)
    elif where == "wait":
        hosts.fault("rate_limited")
        module.backoff = lambda *_: 60  # the fixture restores it
    else:
        hosts.fault("slow", seconds=60, role=where)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    start = time.monotonic()
    with pytest.raises(FetchStopped):
        download(source, partial, SHA256, Hooks(stop=stop))
    assert time.monotonic() - start < 3  # nothing of 20, 30 or 60 seconds
    assert set(files(partial)) <= {"key.run.part", "key.run.json"}


def test_a_stop_is_heard_while_a_resolver_hangs(partial, monkeypatch):
    hang = threading.Event()
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: raise_(OSError()) if hang.wait() else 0
    )
    url = "https://models.example/x"
    source = Source(SafeHttpClient(), url, lambda _: WorkerError("no"))
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    start = time.monotonic()
    with pytest.raises(FetchStopped):
        download(source, partial, SHA256, Hooks(stop=stop))
    assert time.monotonic() - start < 3
    hang.set()
    assert files(partial) == []


def test_what_has_arrived_survives_a_stop(hosts, source, partial):
    hosts.throttle(2 * MIB, ttfb=0.002)
    stop = threading.Event()

    def report(fetched, _size):
        if fetched > SIZE // 2:
            stop.set()

    with pytest.raises(FetchStopped):
        download(source, partial, SHA256, Hooks(report=report, stop=stop))
    here = noted(partial)
    assert here > SIZE // 2
    hosts.settle()
    hosts.forget_requests()
    check(download(source, partial, SHA256), partial)
    assert hosts.bytes_sent("storage") == SIZE - here


def test_an_answer_that_comes_after_the_end_touches_nothing(hosts, source, partial):
    hosts.fault("slow", seconds=0.4, role="storage")
    stop, asked = threading.Event(), []
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(FetchStopped):
        download(source, partial, SHA256, Hooks(make_room=asked.append, stop=stop))
    hosts.settle()
    time.sleep(0.2)
    assert files(partial) == []
    assert asked == []


def test_no_thread_is_left_at_work(hosts, source, partial):
    hosts.throttle(8 * MIB, ttfb=0.002)
    before = threading.active_count()
    check(download(source, partial, SHA256), partial)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


# The disk.


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EROFS, StoreNotWritable)],
)
@pytest.mark.parametrize("after", [0, 20])
def test_a_disk_that_fills_up_is_told(source, partial, monkeypatch, number, kind, after):
    real, left = os.pwrite, [after]

    def pwrite(*given):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return real(*given)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(kind, match=os.strerror(number)):
        download(source, partial, SHA256)
    if kind is StoreFull:
        assert files(partial) == []


def test_dev_full_is_a_full_store(source, partial):
    partial.symlink_to("/dev/full")
    with pytest.raises(StoreFull):
        download(source, partial, SHA256)
    assert files(partial) == []


def test_a_store_that_is_not_there(source, partial):
    partial.parent.rmdir()
    with pytest.raises(StoreNotWritable):
        download(source, partial, SHA256)


# Slow connections.


def test_a_connection_far_slower_than_the_others_is_replaced(hosts, source, partial, monkeypatch):
    monkeypatch.setattr(pace, "WINDOW", 0.2)
    hosts.throttle(MIB, ttfb=0.002)
    slow = hosts.fault("trickle", rate=10_000, skip=3, times=1, min_size=60_000)
    start = time.monotonic()
    check(download(source, partial, SHA256), partial)
    assert slow.hits
    assert time.monotonic() - start < 5  # not the 6 s and more that its part would take


def test_the_memory_does_not_grow_with_the_file(hosts, large, partial):
    import tracemalloc

    digest = hashlib.sha256(large.read_bytes()).hexdigest()
    url = hosts.add_web("/x", large)
    tracemalloc.start()
    fetched = download(web_source(hosts, url), partial, digest)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (fetched.size, fetched.sha256) == (LARGE, digest)
    assert most < 24 * MIB  # the host is in this process, too
