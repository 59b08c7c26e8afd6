"""What one job leaves in the engine acts on no other job, in whatever order they come."""

import base64
import os
import random
import signal

import pytest
from fakes import model_files
from fakes.a1111.picture import png_chunks
from fakes.a1111.process import wait_until, write_safetensors
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import FOREVER, SMALL, completed, running_worker

ODD = {"fault": "checkpoint_load_fails", "times": FOREVER, "name": "odd"}
STYLE = {"prompt": "a fox in style"}
HIRES = {"enable_hr": True, "denoising_strength": 0.5}
LONG = {"prompt": ", ".join(["a fox"] * 30)}
BUNDLED = {"loras": [{"name": "bundled"}]}
ONE, TWO = {"embeddings": ["civitai:1@1"]}, {"embeddings": ["civitai:2@2"]}
PLOT = {"script_name": "x/y/z plot", "script_args": [25, "0.5", *[None] * 16]}

JOBS = {
    "plain": {},
    "checkpoint": {"checkpoint": "second"},
    "lora": {"loras": [{"name": "detail"}]},
    "tag": {"prompt": "a fox <lora:detail:0.5>", "checkpoint": "second"},
    "no tag": {"prompt": "a fox <lora:detail:0.5>", "disable_extra_networks": True},
    "no embedding": STYLE,
    "embedding": STYLE | ONE,
    "other embedding of that name": STYLE | TWO,
    "own embedding": {"prompt": "a fox in own"},
    "bundled": STYLE | BUNDLED,
    "bundled and embedding": STYLE | BUNDLED | ONE,
    "vae": {"vae": "good"},
    "no vae": {"override_settings": {"sd_vae": "None"}},
    "clip skip": {"clip_skip": 2},
    "hires": HIRES | STYLE,
    "hires embedding": HIRES | STYLE | TWO,
    "hires checkpoint": HIRES | {"hr_checkpoint_name": "second"},
    "refiner": {"refiner_checkpoint": "second", "refiner_switch_at": 0.5},
    "long": LONG,
    "comma": LONG | {"override_settings": {"comma_padding_backtrack": 0}},
    "settings": {"override_settings": {"eta_ddim": 0.5, "randn_source": "NV"}},
    "plot": PLOT,
    "no such model": {"checkpoint": "none"},
    "odd checkpoint": {"checkpoint": "odd"},
    "bad lora": {"loras": [{"name": "broken"}]},
}
FAULTS = {
    "plot": {"fault": "script_sets", "option": "img2img_extra_noise", "value": 0.5},
    "bad vae": {"fault": "vae_load_fails"},
    "late": {"fault": "slow_steps", "seconds": 1},
    "cancelled": {"fault": "slow_steps", "seconds": 1},
    "fault": {"fault": "internal_error"},
    "lora fault": {"fault": "internal_error"},
}
JOBS |= {
    "bad vae": {"vae": "good", "checkpoint": "second"},
    "late": {"steps": 100, "timeout": 1} | BUNDLED,
    "cancelled": {"steps": 100} | STYLE | ONE,
    "fault": {"checkpoint": "second"},
    "lora fault": {"loras": [{"name": "detail"}]},
}


@pytest.fixture
def worker(tmp_path):
    """A worker whose engine may be restarted as often as the test wants."""
    lora = {"shapes": model_files.LORA | {"bundle_emb.style.string_to_param.*": (1, 768)}}
    store = tmp_path / "models"
    write_safetensors(store / "VAE/good.safetensors")
    for place in ("Lora/bundled", "embeddings/own"):
        (store / place).parent.mkdir(parents=True, exist_ok=True)
    (store / "Lora/bundled.safetensors").write_bytes(safetensors(number=8, **lora))
    (store / "Lora/broken.safetensors").write_bytes(b"<html>")
    own = safetensors(model_files.EMBEDDING, number=9)
    (store / "embeddings/own.safetensors").write_bytes(own)
    with ModelHosts() as hosts, RunPodPlane(hold=1.0) as plane:
        for number in (1, 2):
            data = safetensors(model_files.EMBEDDING, number=number)
            more = {"name": "style.safetensors", "kind": "TextualInversion"}
            hosts.add_model(version_id=number, model_id=number, data=data, **more)
        how = {"hosts": hosts, "faults": (ODD,), "checkpoints": ("first", "odd", "second")}
        with running_worker(tmp_path, plane, MAX_ENGINE_RESTARTS="1000", **how) as worker:
            yield worker


def draw(worker, name):
    """The pixels of a job's first picture, or None if it did not complete."""
    if name in FAULTS:
        await_engine(worker)
        worker.fault(**FAULTS[name])
    job = worker.plane.submit(SMALL | JOBS[name])
    if name == "cancelled":
        worker.wait_until_generating()
        worker.plane.cancel(job)
    ended = worker.plane.wait(job, 60)
    if name in FAULTS:
        await_engine(worker)
        worker.no_faults()
        worker.fault(**ODD)
    if ended["status"] != "COMPLETED":
        return None
    image = base64.b64decode(ended["output"]["images"][0])
    return [data for kind, data in png_chunks(image) if kind == b"IDAT"]


def on_fresh_engine(worker, name):
    """The same, on an engine that has drawn nothing else."""
    await_engine(worker)
    restarts = health(worker)["restarts"]
    os.kill(worker.engine_pid(), signal.SIGKILL)
    await_engine(worker, restarts + 1)
    return draw(worker, name)


def health(worker):
    """What the worker says of its engine."""
    engine = completed(worker.run({"task": "health"}))["engine"]
    assert not engine["retiring"], worker.log()
    return engine


def await_engine(worker, restarts=0):
    """Wait until the engine is ready after so many restarts; the last job may have caused one."""

    def is_ready():
        engine = health(worker)
        return engine["ready"] and engine["restarts"] >= restarts

    wait_until(is_ready, "the engine")


# Each of these orders gave a wrong picture once.
@pytest.mark.parametrize(
    "order",
    [
        ("plain", "plot", "plain"),
        ("bundled and embedding", "bundled", "bundled and embedding", "embedding"),
        ("long", "comma", "long"),
        ("lora", "no tag"),
    ],
    ids=" ".join,
)
def test_a_job_is_drawn_as_on_a_fresh_engine(worker, order):
    fresh = {name: on_fresh_engine(worker, name) for name in set(order)}
    on_fresh_engine(worker, order[0])
    assert [draw(worker, name) == fresh[name] for name in order] == [True] * len(order)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_jobs_in_any_order_are_drawn_as_on_a_fresh_engine(worker, seed):
    fresh = {name: on_fresh_engine(worker, name) for name in JOBS}
    kept = {name for name, pixels in fresh.items() if pixels}
    assert kept >= JOBS.keys() - FAULTS.keys() - {"no such model", "odd checkpoint", "bad lora"}
    names, order = sorted(JOBS), []
    chance = random.Random(seed)
    for _ in range(100):
        order.append(chance.choice(names))
        assert draw(worker, order[-1]) == fresh[order[-1]], order[-5:]
