"""Whole workers whose models, caches or supervisor break: no wrong picture, no lost worker."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from fakes.a1111.process import wait_until, write_safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import FOREVER, SMALL, completed, failed, running_worker

ODD = {"fault": "checkpoint_load_fails", "times": FOREVER}


@pytest.fixture
def own(tmp_path):
    """Start a worker of the test's own."""
    with RunPodPlane(hold=1.0) as plane:
        yield lambda **how: running_worker(tmp_path, plane, **how)


def picture(worker, **job):
    return completed(worker.run(SMALL | job))["images"][0]


def write_checkpoint(worker, name):
    write_safetensors(worker.store / f"Stable-diffusion/{name}.safetensors", name.encode()[:8])


def damage_cache(webui):
    cache = webui / "cache/hashes/cache.db"
    shutil.rmtree(cache.parent, ignore_errors=True)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"garbage" * 100)


def test_after_a_vae_that_does_not_load_the_next_picture_is_right(own):
    """A1111 would draw it with half of that VAE, and report no error."""
    with own(MAX_ENGINE_RESTARTS="0") as worker:
        write_safetensors(worker.store / "VAE/odd.safetensors")
        before, engine = picture(worker), worker.engine_pid()
        worker.fault("vae_load_fails")
        failed(worker.run(SMALL | {"vae": "odd"}), "ENGINE_ERROR")
        assert picture(worker) == before
        assert worker.engine_pid() != engine
        assert picture(worker, vae="odd") != before  # it is the fault that broke it


def test_a_checkpoint_that_cannot_be_loaded_and_sorts_first_stops_nothing(own, tmp_path):
    """It is not the default at any start, and a job that names it costs no other job."""
    odd = ODD | {"name": "aaa-odd"}
    with own(faults=(odd,), checkpoints=("aaa-odd", "good"), MAX_ENGINE_RESTARTS="1") as worker:
        assert "the engine's default checkpoint cannot be used: 'good'" in worker.log()
        before = picture(worker)
        for _ in range(2):
            failed(worker.run(SMALL | {"checkpoint": "aaa-odd"}), "ENGINE_ERROR")
            assert picture(worker) == before
        os.kill(worker.engine_pid(), signal.SIGKILL)
        assert picture(worker) == before
        assert worker.log().count("default checkpoint cannot be used") == 1
        assert '"good"' in (tmp_path / "webui/config.json").read_text()


def test_a_bad_model_costs_no_worker_although_run_dir_is_gone(own):
    """start.sh cannot be asked, so the engine is killed; its next start makes the folder again."""
    with own(faults=(ODD | {"name": "second"},)) as worker:
        before = picture(worker)
        shutil.rmtree(worker.run_dir)
        failed(worker.run(SMALL | {"checkpoint": "second"}), "ENGINE_ERROR")
        assert picture(worker) == before
        engine = completed(worker.run({"task": "health"}))["engine"]
        assert engine["state"] == "running"


def test_many_models_that_cannot_be_loaded_do_not_use_up_the_restarts(own):
    names = [f"odd{number}" for number in range(4)]
    faults = tuple(ODD | {"name": name} for name in names)
    with own(faults=faults, MAX_ENGINE_RESTARTS="1") as worker:
        for name in names:
            write_checkpoint(worker, name)
            failed(worker.run(SMALL | {"checkpoint": name}), "ENGINE_ERROR")
        picture(worker)
        assert worker.log().count("asks for a restart of the engine: bad-model") == len(names)


def test_a_damaged_cache_is_repaired_although_the_engine_dies_of_it(own, tmp_path):
    damage_cache(tmp_path / "webui")
    with own(MAX_ENGINE_RESTARTS="1") as worker:
        before = picture(worker)
        damage_cache(worker.webui)
        os.kill(worker.engine_pid(), signal.SIGKILL)
        assert picture(worker) == before
    assert worker.log().count("started once more without its cache") == 2


def test_a_script_whose_facts_name_no_model_is_proven_by_its_infotexts(own):
    with own() as worker:
        prompts = {"script_args": [False, False, "start", "a fox\na hare"]}
        job = {"script_name": "prompts from file or textbox", "checkpoint": "second"}
        output = completed(worker.run(SMALL | job | prompts))
    assert [model["name"] for model in output["models"]] == ["second"]


def processes(worker):
    """The living processes of this worker, by the environment that they inherit."""
    mark = f"RUN_DIR={worker.run_dir}".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environ = path.read_bytes()
        except OSError:  # it has just ended
            continue
        if mark in environ.split(b"\0"):
            found.add(int(path.parent.name))
    return found


@pytest.mark.parametrize("is_busy", [True, False])
def test_nothing_goes_on_without_start_sh(own, is_busy):
    """If it is killed, the handler kills the engine, reports its job and ends."""
    with own() as worker:
        if is_busy:
            worker.fault("slow_steps", seconds=1)
            job = worker.plane.submit(SMALL | {"steps": 100})
            worker.wait_until_generating()
        worker.process.kill()
        wait_until(lambda: not processes(worker), "the end of the handler and the engine")
        if is_busy:
            error = failed(worker.plane.wait(job, 1), "ENGINE_NOT_READY")
            assert "Start.sh has ended, and its engine with it." in error
        assert "Traceback" not in worker.log()
