"""What client.py does when the network or the endpoint fails: it repeats what is safe to repeat,
sends a job once, gives the key to nobody else, and ends with a sentence.
"""

import contextlib
import socket

import pytest
from fakes.a1111.process import free_port
from fakes.hosts.tls import make_certificates, server_context
from fakes.runpod_endpoint import GONE, RunPodEndpoint, completed, progress, queued

from .conftest import draws, picture

ALWAYS = 99

# fault of /run -> what the user reads; the job was sent once, and status 3
RUN_FAULTS = {
    "wrong key": ({"status": 401}, "does not accept the key"),
    "no endpoint": ({"status": 404}, "does not exist: check RUNPOD_ENDPOINT_ID"),
    "too large": ({"status": 413}, "does not accept a job of this size"),
    "server error": ({"status": 500, "body": '{"error": "x"}'}, "may have been accepted"),
    "html": ({"status": 200, "body": "<html><b>Sign in</b></html>"}, "with 'Sign in'"),
    "no id": ({"status": 200, "body": '{"id": 5}'}, "may have been accepted"),
    "bad id": ({"status": 200, "body": '{"id": "../../health"}'}, "answered 200"),
    "deep": ({"status": 200, "body": "[" * 100_000}, "answered 200"),
    "control characters": ({"status": 400, "body": "a\x1b[2Jb"}, "a\N{REPLACEMENT CHARACTER}[2Jb"),
    "cut": ({"cut": True}, "may have been accepted"),
    "dropped": ({"drop": True}, "may have been accepted"),
}


@pytest.mark.parametrize("fault", RUN_FAULTS)
def test_a_job_is_never_sent_twice_when_its_answer_is_bad(fault, endpoint, client):
    how, sentence = RUN_FAULTS[fault]
    endpoint.fault("run", times=ALWAYS, **how)
    status, out, err = client("a fox")
    assert (status, out) == (3, "")
    assert sentence in err
    assert [event["kind"] for event in endpoint.events()] == ["run"]


def test_a_busy_endpoint_is_asked_again_because_it_took_nothing(endpoint, client):
    endpoint.fault("run", status=429, times=3)
    assert client("a fox")[0] == 0
    assert len(endpoint.job_ids) == 1
    endpoint.fault("run", status=429, times=ALWAYS)
    status, _, err = client("a fox")
    assert (status, "wait some minutes" in err) == (3, True)
    status, _, err = client("a fox", "--timeout", "0.5", quick="client.PAUSES = (60.0,)")
    assert (status, "No answer within --timeout" in err) == (3, True)


PASSING = [{"status": 500}, {"status": 502, "body": "<html>"}, {"status": 200, "body": "<html>"}]
PASSING += [{"status": 429}, {"cut": True}, {"drop": True}]


@pytest.mark.parametrize("route", ["status", "bucket"])
def test_reading_is_repeated_after_a_failure_that_passes(route, endpoint, client):
    endpoint.files["fox.png"] = picture()
    endpoint.states = lambda _: [queued(), completed(images=[f"{endpoint.url}/bucket/fox.png"])]
    for how in PASSING if route == "status" else [{"status": 503}, {"cut": True}, {"drop": True}]:
        endpoint.fault(route, **how)
    assert client("a fox", "--out", "fox.png")[0] == 0
    assert (client.folder / "fox.png").read_bytes() == picture()
    assert len(endpoint.job_ids) == 1


@pytest.mark.parametrize("how", PASSING)
def test_a_job_whose_state_cannot_be_read_is_named_so_that_it_can_be_fetched(how, endpoint, client):
    endpoint.fault("status", times=8, **how)
    status, _, err = client("a fox")
    assert status == 3
    assert f"client.py --fetch {endpoint.job_ids[0]}" in err
    assert f"client.py --cancel {endpoint.job_ids[0]}" in err
    assert client("--fetch", endpoint.job_ids[0])[0] == 0
    assert client.files() == ["a-red-fox-42.png"]


def test_a_result_that_is_no_longer_kept_is_a_sentence(endpoint, client):
    endpoint.states = lambda _: [progress(), GONE]
    status, _, err = client("a fox")
    assert (status, "keeps results for 30 minutes" in err) == (1, True)
    assert "--fetch" not in err
    assert client("--cancel", "never-sent")[0] == 1


def test_a_job_that_is_unknown_for_a_moment_is_asked_for_again(endpoint, client):
    endpoint.fault("status", status=404, times=2)
    assert client("a fox")[0] == 0


def test_endless_answers_end(endpoint, client):
    endpoint.fault("health", endless=True, times=ALWAYS)
    status, _, err = client("--health", quick="client.ANSWER_MAX = 1000000")
    assert (status, "larger than" in err) == (3, True)


def test_a_silent_endpoint_ends(endpoint, client):
    endpoint.fault("health", hold=True, times=ALWAYS)
    status, _, err = client("--health", quick="client.REQUEST_SECONDS = 0.2")
    assert (status, "no complete answer within" in err) == (3, True)
    status, _, err = client("--health", "--timeout", "0.3")
    assert (status, "No answer within --timeout" in err) == (3, True)


def test_nobody_there_is_a_sentence_that_says_what_to_start(client):
    del client.environ["RUNPOD_ENDPOINT_ID"]
    client.environ["RUNPOD_URL"] = f"http://localhost:{free_port()}"
    status, _, err = client("a fox")
    assert (status, "make serve" in err, "Connection refused" in err) == (3, True, True)
    client.environ["RUNPOD_URL"] = client.environ["RUNPOD_URL"].replace("http:", "https:")
    assert "make serve" in client("a fox")[2]
    client.environ["RUNPOD_URL"] = "https://no-such-host.invalid"
    client.environ["RUNPOD_ENDPOINT_ID"] = "ep0"
    status, _, err = client("a fox")
    assert (status, "No connection to https://no-such-host.invalid/v2/ep0" in err) == (3, True)


def test_over_https_the_certificate_must_be_trusted(client, tmp_path):
    authority, server = make_certificates(tmp_path)
    with RunPodEndpoint(draws, context=server_context(server)) as endpoint:
        client.environ |= endpoint.environ()
        status, _, err = client("a fox")
        assert (status, "The certificate is not trusted" in err) == (3, True)
        assert endpoint.events() == []
        client.environ["SSL_CERT_FILE"] = str(authority)
        assert client("a fox")[0] == 0


@pytest.mark.parametrize("garbage", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nx" * 9999])
def test_a_port_of_another_protocol_is_a_sentence(garbage, client):
    with socket.create_server(("127.0.0.1", 0)) as server:
        client.environ["RUNPOD_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = client.start("a fox")
        connection, _ = server.accept()
        with connection:
            connection.recv(100_000)
            with contextlib.suppress(ConnectionError):
                connection.sendall(garbage)
        status, _, err = client.end(process)
    assert (status, "may have been accepted" in err) == (3, True)


def test_the_key_stays_with_its_own_host(endpoint, client):
    """Not after a redirect, not for a bucket, not over http, not to whatever is at port 8000."""
    with RunPodEndpoint(draws) as other:
        other.files["fox.png"] = picture()
        endpoint.fault("run", status=307, headers={"location": f"{other.url}/v2/ep0/run"})
        status, _, err = client("a fox")
        assert (status, f"leads to {other.url}" in err) == (3, True)
        assert other.events() == []
        endpoint.states = lambda _: [completed(images=[f"{endpoint.url}/bucket/there"])]
        endpoint.fault("bucket", status=302, headers={"location": f"{other.url}/bucket/fox.png"})
        assert client("a fox")[0] == 0
        buckets = [*endpoint.events("bucket"), *other.events("bucket")]
    assert [event["headers"].get("Authorization") for event in buckets] == [None, None]
    endpoint.fault("health", status=400, body=endpoint.environ()["RUNPOD_API_KEY"])
    assert "'***'" in client("--health")[2]


def test_pictures_are_fetched_only_over_https_or_from_this_machine(endpoint, client):
    endpoint.states = lambda _: [completed(images=["http://example.com/fox.png"])]
    status, _, err = client("a fox")
    assert (status, "its address is not https. It is at http://example.com/fox.png" in err) == (
        3,
        True,
    )
    endpoint.states = lambda _: [completed(images=[f"{endpoint.url}/bucket/none.png"])]
    status, _, err = client("a fox")
    assert (status, "the bucket answered 404" in err) == (3, True)


def test_a_missing_key_and_a_wrong_one_are_told_apart(client):
    client.environ["RUNPOD_API_KEY"] = "rpa_another"
    assert "does not accept the key: check RUNPOD_API_KEY" in client("--health")[2]
    del client.environ["RUNPOD_API_KEY"]
    status, _, err = client("--health")
    assert (status, "needs a key: set RUNPOD_API_KEY" in err) == (3, True)


def test_the_local_api_needs_neither_an_id_nor_a_key(endpoint, client):
    del client.environ["RUNPOD_ENDPOINT_ID"], client.environ["RUNPOD_API_KEY"]
    assert client("a fox")[0] == 0
    assert endpoint.events()[0]["path"] == "/run"


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/ep0", "/v2/ep0/runsync"])
def test_urls_as_people_paste_them_are_understood(path, endpoint, client):
    client.environ["RUNPOD_URL"] += path
    if "ep0" in path:
        del client.environ["RUNPOD_ENDPOINT_ID"]
    assert client("--health")[0] == 0
    assert endpoint.events()[0]["path"] == "/v2/ep0/health"
