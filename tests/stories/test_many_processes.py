"""Many workers of one volume want the same new file: one of them downloads it, all get it."""

import contextlib
import os
import signal
import time

import pytest
from fakes import model_files
from fakes.fetching import Fetching
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors, sha256

from worker.models.store.blobs import Blobs

PROCESSES = 16
SIZE = 64 << 20
SPEED = 4 << 20  # bytes per second of each connection


@pytest.fixture(scope="module")
def hosts():
    with ModelHosts() as running:
        yield running


@pytest.fixture
def processes(hosts, tmp_path):
    """Start processes that are all ready to fetch a reference."""
    with contextlib.ExitStack() as stack:
        yield lambda count, ref, folder: stack.enter_context(
            Fetching(hosts, tmp_path / folder, ref, count)
        )


def test_sixteen_processes_make_one_download(hosts, processes, tmp_path, capsys):
    data = safetensors(model_files.LORA, size=SIZE)
    hosts.add_model(version_id=22, data=data, name="fox.safetensors", kind="LORA")
    hosts.throttle(SPEED)
    seconds = {}
    for count in (1, PROCESSES):
        ready = processes(count, "22", str(count))
        hosts.forget_requests()
        start = time.monotonic()
        ready.go()
        results = ready.results()
        seconds[count] = max(result["at"] for result in results) - start
        hosts.settle()

        assert hosts.bytes_sent("storage") == len(data)
        (blob,) = Blobs(tmp_path / str(count) / "models" / "fetched").all()
        got = [(result["stem"], result["path"]) for result in results]
        assert got == [("fox", str(blob.path))] * count
        assert sha256(blob.path.read_bytes()) == sha256(data)
        blob.path.unlink()
    ratio = seconds[PROCESSES] / seconds[1]
    with capsys.disabled():
        times = f"{seconds[1]:.2f} s alone, {seconds[PROCESSES]:.2f} s with {PROCESSES}"
        print(f"\n{times}: {ratio:.2f}")  # noqa: T201 - the figure is wanted
    assert ratio < 1.5


@pytest.mark.parametrize("ref", ["33", "{web}/fox.safetensors"])
def test_who_is_killed_while_it_downloads_is_followed(hosts, processes, tmp_path, ref):
    data = safetensors(model_files.LORA, number=3, size=16 << 20)
    hosts.add_model(version_id=33, data=data, name="fox.safetensors", kind="LORA")
    ref = ref.format(web=hosts.add_web("/fox.safetensors", data).rpartition("/")[0])
    role = "web" if ref.startswith("http") else "storage"
    first, others = (processes(count, ref, "killed") for count in (1, 4))
    hosts.throttle(4 << 20)
    hosts.forget_requests()
    first.go()
    while hosts.bytes_sent(role) < 6 << 20:
        time.sleep(0.02)
    others.go()
    time.sleep(0.3)
    os.kill(first.pids[0], signal.SIGKILL)

    results = others.results()

    hosts.settle()
    store = Blobs(tmp_path / "killed" / "models" / "fetched")
    (blob,) = store.all()
    assert [result["path"] for result in results] == [str(blob.path)] * 4
    assert sha256(blob.path.read_bytes()) == sha256(data)
    # What the killed one had noted was not fetched again.
    assert hosts.bytes_sent(role) < 2 * len(data) - (1 << 20)
    assert store.partials() == []
