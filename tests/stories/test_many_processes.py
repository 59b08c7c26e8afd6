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

from worker.models.store.blobs import Blobs, size_on_disk


@pytest.fixture(scope="module")
def hosts():
    with ModelHosts() as running:
        yield running


@pytest.fixture
def processes(hosts, tmp_path):
    """Start processes that are all ready to fetch a reference."""
    with contextlib.ExitStack() as stack:
        yield lambda count, ref: stack.enter_context(Fetching(hosts, tmp_path, ref, count))


@pytest.fixture
def store(tmp_path):
    return Blobs(tmp_path / "models" / "fetched")


def check(store, results, data):
    """Every process has the one blob, and it is right."""
    (blob,) = store.all()
    assert {result["path"] for result in results} == {str(blob.path)}
    assert sha256(blob.path.read_bytes()) == sha256(data)
    assert store.partials() == []


@pytest.mark.parametrize(
    ("count", "size"), [(4, 8 << 20), pytest.param(16, 64 << 20, marks=pytest.mark.long)]
)
def test_many_processes_make_one_download(hosts, processes, store, count, size):
    data = safetensors(model_files.LORA, size=size)
    hosts.add_model(version_id=22, data=data, name="fox.safetensors", kind="LORA")
    hosts.throttle(4 << 20)
    ready = processes(count, "22")
    hosts.forget_requests()
    ready.go()
    results = ready.results()
    hosts.settle()
    assert hosts.bytes_sent("storage") == len(data)
    assert [result["stem"] for result in results] == ["fox"] * count
    check(store, results, data)


@pytest.mark.parametrize("ref", ["33", "{web}/fox.safetensors"])
def test_the_download_of_a_killed_process_is_resumed_by_another(hosts, processes, store, ref):
    data = safetensors(model_files.LORA, number=3, size=12 << 20)
    hosts.add_model(version_id=33, data=data, name="fox.safetensors", kind="LORA")
    ref = ref.format(web=hosts.add_web("/fox.safetensors", data).rpartition("/")[0])
    role = "web" if ref.startswith("http") else "storage"
    first, others = (processes(count, ref) for count in (1, 3))
    hosts.throttle(4 << 20)
    hosts.forget_requests()
    first.go()
    while sum(map(size_on_disk, store.partials())) < 6 << 20:
        time.sleep(0.01)
    others.go()
    os.kill(first.pids[0], signal.SIGKILL)
    hosts.no_throttle()
    results = others.results()
    hosts.settle()
    assert len(results) == 3
    check(store, results, data)
    assert hosts.bytes_sent(role) < 2 * len(data), "data that had arrived are not fetched again"
