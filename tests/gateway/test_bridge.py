"""The bridge as a program, in front of a server that answers as RunPod does."""

import ctypes
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests
from fakes.a1111.process import free_port
from fakes.gateway_server import read_answer, served_endpoint
from fakes.runpod_endpoint import KEY, RunPodEndpoint, completed, failed, progress, queued

from gateway.bridge.job_log import what_it_is
from gateway.bridge.options import read
from gateway.http.listen import KeepAlive, listen

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "gateway")
JOB = b'{"input": {"prompt": "a secret fox", "width": 64, "height": 96}}'
WAIT_FOR_IT = (
    b"POST /runsync HTTP/1.1\r\nHost: localhost\r\nUser-Agent: fox/1.0 (x)\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(JOB), JOB)
)


@pytest.fixture
def runpod():
    with RunPodEndpoint(lambda _input: [queued(), progress(), completed(images=["aGk="])]) as one:
        yield one


@contextmanager
def bridge(runpod, folder, *arguments, start=PROGRAM, **environ):
    """The running program, its port and the file of its output."""
    port, output = free_port(), folder / "bridge.log"
    own = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(folder)} | runpod.environ() | environ
    with output.open("wb") as log:
        process = subprocess.Popen(
            [*start, "bridge", "--port", str(port), *arguments],
            cwd=ROOT,
            env=own,
            stdout=log,
            stderr=log,
        )
    try:
        while not re.search(r"Ctrl-C ends|bridge:", output.read_text()) and process.poll() is None:
            time.sleep(0.05)
        yield process, port, output
    finally:
        process.kill()
        process.wait()


def waiting_client(port):
    line = socket.create_connection(("127.0.0.1", port), 30)
    line.sendall(WAIT_FOR_IT)
    return line


@pytest.mark.parametrize("start", [PROGRAM, (sys.executable, "client.py"), ("./start.sh",)])
def test_it_says_what_to_enter_draws_and_logs_each_job_without_key_or_prompt(
    runpod, tmp_path, start
):
    """As it is started by each of the three ways; start.sh is how an image starts it."""
    with bridge(runpod, tmp_path, "--price", "0.5", start=start) as (process, port, output):
        with closing(waiting_client(port)) as client:
            assert b'"COMPLETED"' in read_answer(client)
        shown_to_all = Path(f"/proc/{process.pid}/cmdline").read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    text = output.read_text()
    for part in (f"URL       http://127.0.0.1:{port}\n", f"base URL  http://127.0.0.1:{port}/v1 "):
        assert part in text
    assert "is queued: txt2img 64x96, from 'fox/1.0' by '/runsync'" in text
    assert "COMPLETED, waited 0.0 s, worked 0.0 s (about $0.0170), txt2img 64x96" in text
    assert KEY not in text + shown_to_all
    assert "secret" not in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_its_end_cancels_the_jobs_of_waiting_clients_and_says_so(runpod, tmp_path, number):
    runpod.states = lambda _input: [queued()]
    runpod.fault("cancel", times=2, status=500)
    with bridge(runpod, tmp_path) as (process, port, output):
        clients = [waiting_client(port) for _ in range(3)]
        runpod.wait_for("status", count=6)
        process.send_signal(number)
        answers = [read_answer(client) for client in clients]
        assert process.wait(60) == 0
    assert [runpod.status(job_id) for job_id in runpod.job_ids] == ["CANCELLED"] * 3
    assert all(b"503" in answer and b"shutting down" in answer for answer in answers)
    assert "jobs of waiting clients that are cancelled: 3" in output.read_text()
    for client in clients:
        client.close()


def test_a_failed_job_is_logged_with_the_workers_sentence(runpod, tmp_path):
    """Many programs hide it from their users."""
    runpod.states = lambda _input: [failed("INVALID_INPUT: steps: too many.")]
    with bridge(runpod, tmp_path, GATEWAY_LOGIN="ann:fox") as (process, port, output):
        requests.post(
            f"http://127.0.0.1:{port}/runsync",
            json={"input": {"prompt": "a secret fox"}},
            auth=("ann", "fox"),
            timeout=60,
        )
        process.terminate()
        process.wait(30)
    text = output.read_text()
    assert "FAILED, waited 0.0 s, worked 0.0 s, txt2img: INVALID_INPUT: steps: too many.\n" in text
    assert "(API key: needs GATEWAY_TOKEN)" in text
    assert "secret" not in text


def test_a_job_that_could_not_be_cancelled_is_named_at_the_end(runpod, tmp_path):
    runpod.states = lambda _input: [queued()]
    runpod.fault("cancel", times=-1, status=400)
    with bridge(runpod, tmp_path) as (process, port, output), closing(waiting_client(port)):
        runpod.wait_for("status")
        process.terminate()
        assert process.wait(60) == 0
    assert f"job {runpod.job_ids[0]} may run on and cost money" in output.read_text()


WRONG = [
    ({"RUNPOD_API_KEY": "wrong"}, (), 2, "RunPod refuses the API key"),
    ({"RUNPOD_URL": "http://127.0.0.1:9"}, (), 3, "cannot be reached: Connection refused"),
    ({}, ("--endpoint", "other"), 2, "knows no endpoint"),
]


@pytest.mark.parametrize(("environ", "arguments", "status", "text"), WRONG)
def test_what_is_wrong_at_the_start_ends_it_with_a_sentence(
    runpod, tmp_path, environ, arguments, status, text
):
    with bridge(runpod, tmp_path, *arguments, **environ) as (process, _, output):
        assert process.wait(30) == status
    assert text in output.read_text()
    assert "Traceback" not in output.read_text()
    assert runpod.events("run") == []


def test_a_taken_port_is_named(runpod, tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        with bridge(runpod, tmp_path, "--port", port) as (process, _, output):
            assert process.wait(30) == 2
    assert f"Port {port} of 127.0.0.1 cannot be used (Address already in use)" in output.read_text()


# Options ------------------------------------------------------------------------------------------

RUNPOD_ENV = {"RUNPOD_ENDPOINT_ID": "abc123", "RUNPOD_API_KEY": KEY}
REFUSED = [
    ({"RUNPOD_API_KEY": KEY}, [], "which endpoint?"),
    ({"RUNPOD_ENDPOINT_ID": "a"}, [], "which API key?"),
    (RUNPOD_ENV | {"RUNPOD_API_KEY": "two words"}, [], "RUNPOD_API_KEY must be one word"),
    (RUNPOD_ENV | {"RUNPOD_API_KEY_FILE": "/nope", "RUNPOD_API_KEY": ""}, [], "cannot be read"),
    (RUNPOD_ENV | {"RUNPOD_URL": "http://api.runpod.ai"}, [], "has no https"),
    (RUNPOD_ENV | {"RUNPOD_URL": "api.runpod.ai"}, [], "must look like"),
    (RUNPOD_ENV, ["--endpoint", "../x"], "no id of an endpoint"),
    (RUNPOD_ENV, ["--endpoint", "https://api.runpod.ai/v2/abc"], "no id of an endpoint"),
    *[(RUNPOD_ENV, ["--host", host], "spend your RunPod money") for host in ("0.0.0.0", "::", "x")],
    *[(RUNPOD_ENV, [name, KEY], "is no option") for name in ("--key", "--api-key", "--token")],
    (RUNPOD_ENV, [f"--key={KEY}"], "is no option"),
    (RUNPOD_ENV, ["--port", "99999"], "no port"),
    (RUNPOD_ENV, ["--price", "cheap"], "no price"),
    (RUNPOD_ENV, ["--allow-origin", "null"], "--allow-origin must name origins"),
    (RUNPOD_ENV, ["--allow-host", "http://x"], "--allow-host must be host names"),
    (RUNPOD_ENV | {"GATEWAY_LOGIN": "ann"}, [], "GATEWAY_LOGIN must be user:password"),
    (RUNPOD_ENV, ["--nope"], "unrecognized arguments"),
]


@pytest.mark.parametrize(("environ", "arguments", "text"), REFUSED)
def test_a_wrong_option_is_refused_with_a_sentence_without_the_key(
    environ, arguments, text, capsys
):
    with pytest.raises(SystemExit) as raised:
        read(arguments, environ)
    error = capsys.readouterr().err
    assert (raised.value.code, text in error) == (2, True), error
    assert KEY not in error


ADDRESSES = [
    (RUNPOD_ENV, "https://api.runpod.ai/v2/abc123", KEY),
    (RUNPOD_ENV | {"RUNPOD_URL": "'https://x.example/v2/' "}, "https://x.example/v2/abc123", KEY),
    ({"RUNPOD_URL": "http://localhost:8000"}, "http://localhost:8000", ""),
    ({"RUNPOD_URL": "http://[::1]:8000/", "RUNPOD_ENDPOINT_ID": "a"}, "http://[::1]:8000/v2/a", ""),
]


@pytest.mark.parametrize(("environ", "url", "key"), ADDRESSES)
def test_the_endpoint_comes_from_the_environment(environ, url, key):
    address = read([], environ).address
    assert (address.url, address.key) == (url, key)


def test_the_key_can_be_in_a_file_or_typed_and_a_login_opens_other_addresses(tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    named = {"RUNPOD_ENDPOINT_ID": "a", "RUNPOD_API_KEY_FILE": str(tmp_path / "key")}
    assert read([], named).address.key == KEY
    assert read(["--endpoint", "a"], {}, lambda _prompt: KEY).address.key == KEY
    options = read(["--host", "0.0.0.0"], RUNPOD_ENV | {"GATEWAY_LOGIN": "ann:x"})
    assert (options.host, options.access.login, options.port) == ("0.0.0.0", "ann:x", 7860)
    assert "ann:x" not in repr(options)
    assert KEY not in repr(options)


def test_a_job_is_described_without_its_prompt():
    for job_input, what in [
        ({"prompt": "x", "width": 64, "height": 96, "batch_size": 4}, "txt2img 64x96 x 4"),
        ({"task": "models"}, "models"),
        ({"task": "a\nb"}, "'a\\nb'"),
        ({"openai_route": "/v1/images/generations"}, "'/v1/images/generations'"),
        ([], "no object"),
    ]:
        assert what_it_is(job_input) == what


# A client that goes away --------------------------------------------------------------------------


def test_each_of_30_clients_that_hang_up_has_its_job_cancelled(runpod):
    """Some are in the queue, some are running; some close in order, some are killed."""
    runpod.states = lambda _input: [queued(), *([progress()] * 1000)]
    with served_endpoint(runpod) as gateway:

        def hang_up(number):
            line = waiting_client(gateway.port)
            runpod.wait_for("run", count=number + 1)
            if number % 2:  # as the system does for a killed program
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.close()

        with ThreadPoolExecutor(10) as clients:
            list(clients.map(hang_up, range(30)))
        runpod.wait_for("cancel", count=30)
        ended = {runpod.status(job_id) for job_id in runpod.job_ids}
    assert len(runpod.job_ids) == 30
    assert ended == {"CANCELLED"}


def test_a_client_that_is_killed_has_its_job_cancelled(runpod):
    runpod.states = lambda _input: [queued()]
    with served_endpoint(runpod) as gateway:
        sends = ["curl", "-s", "-H", "Content-Type: application/json", "-d", JOB]
        client = subprocess.Popen([*sends, "-o", "/dev/null", f"{gateway.url}/runsync"])
        runpod.wait_for("status")
        client.kill()
        client.wait()
        assert runpod.wait_for("cancel")["id"] == runpod.job_ids[0]


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_a_client_that_vanishes_without_a_word_has_its_job_cancelled(runpod):
    """As without power or network: nothing of the server's reaches the client's socket."""
    runpod.states = lambda _input: [queued()]
    keep_alive = KeepAlive(idle=1, interval=1, probes=1)
    with (
        served_endpoint(runpod, keep_alive=keep_alive) as gateway,
        closing(waiting_client(gateway.port)) as client,
    ):
        runpod.wait_for("status")
        drop_everything(client)
        assert runpod.wait_for("cancel")["id"] == runpod.job_ids[0]


def drop_everything(line):
    """Let the kernel drop each packet to this socket, by a filter that accepts 0 bytes."""
    instruction = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET
    program = ctypes.create_string_buffer(instruction)
    attach_filter = 26  # SO_ATTACH_FILTER of asm-generic/socket.h
    given = struct.pack("HL", 1, ctypes.addressof(program))
    line.setsockopt(socket.SOL_SOCKET, attach_filter, given)


def test_a_server_on_localhost_listens_on_both_addresses_of_it():
    families = set()
    for listening in listen("localhost", 0):
        families.add(listening.family)
        listening.close()
    assert socket.AF_INET in families


def test_a_second_signal_ends_it_at_once_with_a_sentence_and_no_traceback(runpod, tmp_path):
    runpod.fault("cancel", times=99, hold=True)
    runpod.states = lambda _input: [progress()]
    with bridge(runpod, tmp_path) as (process, port, output), closing(waiting_client(port)):
        runpod.wait_for("status")
        process.send_signal(signal.SIGINT)
        runpod.wait_for("cancel")
        process.send_signal(signal.SIGINT)
        while "ends at once" not in output.read_text() and process.poll() is None:
            time.sleep(0.05)
        runpod.release()
        assert process.wait(30) == 0
    assert "Traceback" not in output.read_text()
    assert runpod.status(runpod.job_ids[0]) == "CANCELLED"
