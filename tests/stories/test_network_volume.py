"""Models go to a network volume over its S3 API, and a worker on that volume draws with them."""

import os
import subprocess
import sys

import pytest
from fakes import tiny_models
from fakes.hosts.model_hosts import ModelHosts
from fakes.hosts.volume_api import VOLUME, volume_api
from fakes.model_store import PROJECT, full_environment
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import completed, running_worker

BOOT = 180.0


@pytest.fixture
def hosts(tmp_path):
    """A loopback CivitAI with a checkpoint and a LoRA that the embedded engine can draw with."""
    states = {"base": tiny_models.make_checkpoint(5), "one": tiny_models.make_lora(1)}
    with ModelHosts() as hosts:
        for number, (name, state) in enumerate(states.items(), start=1):
            data = tmp_path / f"{name}.safetensors"
            tiny_models.write(state, data)
            file = {"data": data, "name": data.name, "kind": "LORA" if number > 1 else "Checkpoint"}
            hosts.add_model(version_id=number, model_id=number, **file)
        yield hosts


def test_a_worker_on_a_pushed_volume_draws_without_a_request_and_without_hashing(hosts, tmp_path):
    """One bit of a weight is changed on the volume: a worker that hashed would find damage."""
    with volume_api() as api:
        where = ("--volume", VOLUME, "--endpoint-url", api.endpoint)
        command = [sys.executable, "model_manager.py", "push", *where, "civitai:1@1", "2"]
        environ = full_environment(hosts, tmp_path / "local", **api.environ())
        subprocess.run(command, cwd=PROJECT, env=environ, check=True, timeout=BOOT)
        folder = api.mount(tmp_path / "volume")
    hosts.forget_requests()
    blobs = folder / "models/fetched/blobs"
    largest = max(blobs.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-2, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    more = {"ENGINE": "embedded", "DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    own = {"checkpoints": (), "loras": (), "wait": False, "READY_TIMEOUT": str(BOOT)}
    job = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1, "checkpoint": 1}
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(folder, plane, hosts=hosts, **own, **more) as worker,
    ):
        plane.wait_for("take", BOOT)
        output = completed(worker.run(job | {"loras": ["2"]}, BOOT))
        named = completed(worker.run(job | {"checkpoint": "base"}, BOOT))
    assert [model["name"] for model in output["models"]] == ["base", "one"]
    assert output["models"][0]["sha256"] == largest.stem == named["models"][0]["sha256"]
    assert hosts.requests == []
    assert "damaged" not in worker.log()
    links = [link.name for link in (folder / "models/fetched").glob("*/*") if link.is_symlink()]
    assert sorted(links) == ["base.safetensors", "one.safetensors"]
