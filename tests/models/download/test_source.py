import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest
from fakes.hosts.fixtures import client_for
from hypothesis import given
from hypothesis import strategies as st

from worker import errors
from worker.errors import ModelForbidden, ModelHostFailed, ModelNotFound, ModelRateLimited
from worker.models.download import source as source_module
from worker.models.download.source import RENEWALS, Source, TryAgain, filename_of, size_of

DATA = bytes(range(256)) * 400


def refusal(document):
    kinds = {403: ModelForbidden, 404: ModelNotFound, 429: ModelRateLimited}
    return kinds.get(document.status, ModelHostFailed)(f"refused with {document.status}.")


@pytest.fixture
def source(hosts):
    client = client_for(hosts, tokens={hosts.civitai: hosts.civitai_key})
    return Source(client, hosts.add_model(version_id=1, data=DATA).file_url, refusal)


def bytes_of(source, start, end):
    with source.open(start, end) as reply:
        return reply.read(end - start)


def final_of(source, start=0, end=10):
    """The error of an attempt that may be repeated."""
    with pytest.raises(TryAgain) as again:
        source.open(start, end)
    return again.value


# The signed URL.


def test_many_connections_ask_once(hosts, source):
    hosts.fault("slow", seconds=0.1)
    with ThreadPoolExecutor(8) as threads:
        got = threads.map(lambda at: bytes_of(source, at, at + 10), range(0, 80, 10))
    assert b"".join(got) == DATA[:80]
    assert (hosts.count("civitai"), hosts.count("storage")) == (1, 8)


EXPIRED = {400: [], 401: ["tiering"]}  # what either of the storages answers


@pytest.mark.parametrize("status", [*EXPIRED, 403, 404, 410, 416])
def test_after_any_refusal_of_the_storage_the_url_is_renewed(hosts, source, status):
    for fault in EXPIRED.get(status, []):
        hosts.fault(fault)
    assert bytes_of(source, 0, 10) == DATA[:10]
    if status in EXPIRED:
        hosts.expire_urls()
    else:
        hosts.fault("status", status=status, role="storage", times=1)
    assert final_of(source).after == 0
    assert bytes_of(source, 10, 20) == DATA[10:20]
    assert [one.authorized for one in hosts.asked("civitai")] == [True, True]
    assert not any(one.authorized for one in hosts.asked("storage"))


def test_connections_that_find_the_url_expired_renew_it_once(hosts, source):
    bytes_of(source, 0, 10)
    hosts.expire_urls()
    together = threading.Barrier(8)  # so that all are under way with the old URL
    real = source._checked

    def checked(*given):
        together.wait(30)
        return real(*given)

    with ThreadPoolExecutor(8) as threads:
        source._checked = checked
        refused = list(threads.map(lambda _: final_of(source), range(8)))
        source._checked = real
        assert len(refused) == 8
        got = threads.map(lambda at: bytes_of(source, at, at + 10), range(0, 80, 10))
        assert b"".join(got) == DATA[:80]
    assert hosts.count("civitai") == 2


def test_an_answer_from_an_old_url_does_not_restore_it(hosts, source):
    bytes_of(source, 0, 10)
    first = hosts.requests[-1].target
    old, source._direct = source._direct, "https://renewed.example/"
    source._checked(source._send(old, {"Range": "bytes=0-9"}), old, 0).close()
    assert hosts.requests[-1].target == first
    assert source._direct == "https://renewed.example/"


def test_renewals_without_a_byte_in_between_are_counted(hosts, source):
    for _ in range(3):
        hosts.fault("status", status=403, role="storage", times=RENEWALS)
        for _ in range(RENEWALS):
            assert isinstance(final_of(source).final, ModelHostFailed)
        bytes_of(source, 0, 10)
        source.progressed()
        source._direct = None
    hosts.forget_requests()
    hosts.fault("status", status=403, body="no", role="storage")
    for _ in range(RENEWALS):
        final_of(source)
    with pytest.raises(ModelForbidden):
        source.open(0, 10)
    assert hosts.count("civitai") == RENEWALS + 1


# Refusals.

ELSEWHERE = {"name": "redirect_to", "url": "http://10.0.0.1/"}


@pytest.mark.parametrize(
    ("fault", "error"),
    [({"name": "no_access"}, ModelForbidden), (ELSEWHERE, errors.ModelUrlRefused)],
)
def test_a_refusal_of_the_host_is_final(hosts, source, fault, error):
    hosts.fault(**fault)
    with pytest.raises(error):
        source.open(0, 10)
    assert hosts.count("civitai") == 1


def test_a_second_404_is_final(hosts, source):
    """CivitAI also answers 404 when it could not reach its storage for a moment."""
    hosts.fault("not_found", times=1)
    assert isinstance(final_of(source).final, ModelNotFound)
    assert bytes_of(source, 0, 10) == DATA[:10]
    source.progressed()
    source._direct = None
    hosts.fault("not_found")
    final_of(source)
    with pytest.raises(ModelNotFound):
        source.open(0, 10)


def test_a_malformed_url_is_refused():
    with pytest.raises(errors.ModelUrlRefused):
        Source(None, "https://[::1", refusal)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 524, 530])
@pytest.mark.parametrize(("role", "after"), [("civitai", None), ("storage", 7)])
def test_a_busy_host_is_asked_again(hosts, source, role, after, status):
    wait = {"retry_after": after} if after else {}
    hosts.fault("server_error", status=status, role=role, times=1, **wait)
    again = final_of(source)
    assert type(again.final) is (ModelRateLimited if status == 429 else ModelHostFailed)
    assert (again.after, again.host_complains) == (after, status in {429, 503})
    assert again.final.message == f"refused with {status}."  # the host's class wrote it
    assert bytes_of(source, 0, 10) == DATA[:10]


# The headers of an answer.


def answer(status=206, **headers):
    named = {name.replace("_", "-"): text for name, text in headers.items() if text is not None}
    return SimpleNamespace(status=status, headers=named)


@pytest.mark.parametrize(
    ("content_range", "start", "end"),
    [
        *(("bytes 0-9/100", 0, 10), (" bytes 0-9/100 ", 0, 10), ("bytes 99-99/100", 99, 100)),
        *(("bytes 90-99/100", 90, 120), ("bytes 0-99/100", 0, 1 << 24)),  # the end was not known
    ],
)
def test_the_requested_range_contains_the_size(content_range, start, end):
    assert size_of(answer(Content_Range=content_range), start, end) == 100


WRONG_RANGES = [
    *(None, "", "bytes 1-9/100", "bytes 0-8/100", "bytes 0-10/100", "bytes 0-9/*"),
    "bytes 0-9/5",  # ends after the end of the file
    *("bytes */100", "bytes 0-9", "0-9/100", "items 0-9/100", "bytes=0-9/100", "bytes -1-9/100"),
    *("bytes 0-9/100, bytes 20-29/100", "bytes 0-9/1e3", "bytes 0-9/" + "9" * 5000, "bytes 0-9/²"),
]


@pytest.mark.parametrize("content_range", WRONG_RANGES)
def test_any_other_range_is_refused(content_range):
    reply = answer(Content_Range=content_range)
    with pytest.raises(TryAgain, match="bytes 0-9 were requested, and the host sent"):
        size_of(reply, 0, 10)


@given(st.text(st.characters(codec="latin-1"), max_size=60))
def test_any_content_range_is_read_or_refused(content_range):
    with suppress(TryAgain):
        assert size_of(answer(Content_Range=content_range), 0, 10) >= 1


@pytest.mark.parametrize(
    ("length", "size"),
    [("100", 100), ("0", 0), ("-1", None), ("many", None), ("9" * 5000, None), (None, None)],
)
def test_a_whole_answer_may_have_a_length(length, size):
    assert size_of(answer(200, Content_Length=length), 0, 10) == size


@pytest.mark.parametrize(
    ("header", "name"),
    [
        *((None, None), ("attachment", None), ("attachment; filename*;filename*1*", None)),
        ('attachment; filename="a b.safetensors"', "a b.safetensors"),
        ("attachment; filename=plain.bin", "plain.bin"),
        ("attachment; filename*=UTF-8''na%C3%AFve.bin", "naïve.bin"),
        ("attachment; filename=\"old\"; filename*=UTF-8''new", "old"),
        ('inline; filename="../../etc/passwd"', "../../etc/passwd"),  # not to be trusted as a path
        *(("attachment; filename*=idna''x", None), ("attachment; filename*=undefined''x", None)),
        ("attachment; filename*=no-such-encoding''x", "x"),
        ("attachment; filename*=a\0b''x", None),
    ],
)
def test_the_file_name_of_an_answer(header, name):
    assert filename_of(answer(Content_Disposition=header)) == name


WORDS = ["filename", "*", "0", "1", "=", ";", '"', "''", "utf-8", "idna", "punycode", "%ff", "x"]


@given(st.lists(st.sampled_from(WORDS), max_size=14).map("".join))
def test_any_content_disposition_is_read_or_ignored(text):
    name = filename_of(answer(Content_Disposition=f"attachment; {text}"))
    assert name is None or isinstance(name, str)


def test_the_error_for_a_large_file_has_both_sizes():
    error = source_module.too_large(20_000_000_000, 5_000_000_000)
    assert "20.0 GB, more than the 5.0 GB allowed" in str(error)
    assert error.details == {"size": 20_000_000_000}


def test_a_slow_answer_does_not_block_the_other_connections(hosts, source):
    bytes_of(source, 0, 10)
    hosts.fault("stall", after=0, times=1)  # for ever
    with source.open(0, 10):
        assert bytes_of(source, 10, 20) == DATA[10:20]
