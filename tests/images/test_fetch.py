"""Pictures behind URLs; the hosts are fakes on loopback."""

import threading
import time

import pytest
from fakes.hosts.fixtures import client_for
from images.samples import file_of

from worker.errors import FetchStopped, ImageHostFailed, ImageUrlRefused, InvalidInput
from worker.http.client import SafeHttpClient
from worker.images.fetch import fetch_all
from worker.images.limits import ImageLimits

FILE = file_of() * 50
AT_ONCE = {"first_pause": 0.0, "longest_pause": 0.0}


class Stop(threading.Event):
    """Never set; shows that a fetch listens to it."""


def fetch(hosts, urls, stop=None, **limits):
    urls = {f"init_images.{number}": url for number, url in enumerate(urls)}
    return fetch_all(client_for(hosts), urls, ImageLimits(**AT_ONCE | limits), stop or Stop())


def threads_end():
    """Whether all threads of fetches end; waits for them."""
    deadline = time.monotonic() + 30
    while any(one.name.startswith("picture-") for one in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_files_are_fetched_whatever_their_type_and_each_url_once(hosts):
    urls = [hosts.add_web(f"/{number}", FILE + bytes([number])) for number in range(6)]
    moved = hosts.add_redirect("/moved", urls[0])
    files = fetch(hosts, [*urls, urls[3], moved])
    assert list(files) == [f"init_images.{number}" for number in range(8)]
    assert [file[-1] for file in files.values()] == [0, 1, 2, 3, 4, 5, 3, 0]
    assert hosts.count("web", "/3") == 1
    assert threads_end()


REFUSED = [
    ("http://example.com/x?sig=secret", r"'http://example.com/x' is not an https URL"),
    ("https://127.0.0.1/x?sig=secret", r"the host '127.0.0.1' has no public address"),
    ("https://[::1", "not a URL"),
]


@pytest.mark.parametrize(("url", "message"), REFUSED)
@pytest.mark.parametrize("by_redirect", [False, True])
def test_a_url_that_is_not_allowed_is_refused_also_behind_a_redirect(
    hosts, url, message, by_redirect
):
    if by_redirect:
        url = hosts.add_redirect("/go", url)
        message = rf"{message}|malformed URL"
    with pytest.raises(ImageUrlRefused, match=f"init_images.0: .*({message})") as refused:
        fetch(hosts, [url])
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 304])
def test_a_refusal_of_the_host_is_final_and_names_the_status(hosts, status):
    hosts.fault("status", status=status, body="no", role="web")
    with pytest.raises(ImageUrlRefused, match=f"init_images.0: .*/x answered {status}") as refused:
        fetch(hosts, [f"{hosts.web}/x?sig=secret"])
    assert refused.value.details == {"status": status}
    assert "secret" not in str(refused.value)
    assert hosts.count("web") == 1


BUSY = [
    *({"name": "status", "status": status} for status in (408, 429, 500, 501, 503, 522)),
    *({"name": "drop"}, {"name": "garbage"}, {"name": "cut", "after": 1000}),
    {"name": "rate_limited", "retry_after": "9999"},
]


@pytest.mark.parametrize("fault", BUSY)
def test_a_host_that_fails_is_asked_four_times(hosts, fault):
    url = hosts.add_web("/x", FILE)
    hosts.fault(**fault, role="web", times=3)
    assert fetch(hosts, [url]) == {"init_images.0": FILE}
    hosts.reset()
    hosts.fault(**fault, role="web")
    with pytest.raises(ImageHostFailed, match=r"init_images\.0: .*/x") as failed:
        fetch(hosts, [f"{url}?sig=secret"])
    assert hosts.count("web") == 4
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("announced", [True, False])
def test_no_more_is_read_than_a_picture_may_have(hosts, announced):
    url = hosts.add_web("/x", bytes(40_000_000))
    if not announced:
        hosts.fault("chunked", role="web")
    with pytest.raises(InvalidInput, match=r"init_images\.0: .* MB or more"):
        fetch(hosts, [url], file_bytes=1000)
    hosts.settle()
    assert hosts.bytes_sent("web") < 40_000_000
    with pytest.raises(InvalidInput, match=r"init_images\.[01]: .* the pictures of the job"):
        fetch(hosts, [hosts.add_web(f"/{n}", FILE) for n in range(2)], total_bytes=len(FILE))


def test_an_empty_answer_is_named(hosts):
    with pytest.raises(InvalidInput, match=r"init_images\.0: .*/x sent an empty file"):
        fetch(hosts, [hosts.add_web("/x", b"")])


SLOW = [
    {"name": "slow", "seconds": 60},  # before its answer
    {"name": "stall", "after": 100},
    {"name": "trickle", "rate": 10},
]


@pytest.mark.parametrize("fault", SLOW, ids=lambda fault: fault["name"])
@pytest.mark.parametrize("ends_by", ["time", "stop"])
def test_a_slow_host_is_given_up_in_time_and_its_thread_ends(hosts, fault, ends_by):
    url, stop = f"{hosts.add_web('/x', FILE)}?sig=secret", threading.Event()
    hosts.fault(**fault, role="web")
    if ends_by == "stop":
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(FetchStopped):
            fetch(hosts, [url], stop)
    else:
        with pytest.raises(ImageHostFailed, match="was not complete after 0 seconds") as failed:
            fetch(hosts, [url], fetch_seconds=0.2)
        assert "secret" not in str(failed.value)
    assert threads_end()


def test_the_first_failure_ends_the_others(hosts):
    slow, gone = hosts.add_web("/slow", FILE), f"{hosts.web}/gone"
    hosts.fault("slow", seconds=60, path="/slow")
    with pytest.raises(ImageUrlRefused, match=r"init_images\.1: .*/gone answered 404"):
        fetch(hosts, [slow, gone])
    assert threads_end()


def test_plain_http_is_only_for_hosts_that_the_operator_trusts(hosts):
    with pytest.raises(ImageUrlRefused, match="is not an https URL"):
        fetch_all(SafeHttpClient(), {"mask": hosts.web}, ImageLimits(), Stop())
    assert hosts.requests == []
