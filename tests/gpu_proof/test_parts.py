"""The parts of the proof: time, random weights, the filled GPU, and rows of steps."""

import contextlib
import ctypes
import itertools
import re
import time

import numpy as np
import pytest
from fakes.gpu import write_program
from safetensors import safe_open

from benchmarks.gpu_proof import failures, proof, random_models
from benchmarks.gpu_proof.ballast import LEFT_FREE, NoDriver, filled_gpu
from benchmarks.gpu_proof.budget import Budget
from benchmarks.gpu_proof.context import Context, Outcome, Skipped
from benchmarks.gpu_proof.memory import Memory
from benchmarks.gpu_proof.plane import Plane
from benchmarks.gpu_proof.proof import FAILED, PASSED, SKIPPED, Step, run_step
from worker.config.settings import PROJECT

# Time -----------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def context(tmp_path, clock):
    with Plane() as plane:
        yield Context("embedded", tmp_path, plane, Budget(100, clock), {}, tiny=True)


def waits(clock, seconds):
    def run(context):
        for _ in range(seconds):
            context.budget.left()
            clock.now += 1
        return Outcome({"seconds": seconds}, {"done": True})

    return run


def test_steps_are_limited_by_their_own_time_and_by_that_of_the_whole(context, clock):
    steps = [
        (Step("short", waits(clock, 10), limit=20), PASSED, ""),
        (Step("too long", waits(clock, 50), limit=20), FAILED, "StepTooLong: it did not finish"),
        (Step("needs more than is left", waits(clock, 1), least=80), SKIPPED, "no time left"),
        (Step("at the end", waits(clock, 99), limit=90), SKIPPED, "no time left"),
        (Step("after it", waits(clock, 1), least=1), SKIPPED, "no time left"),
    ]
    for step, status, reason in steps:
        row = run_step(context, step)
        assert (row.status, row.reason.startswith(reason)) == (status, True), row
    assert clock.now == 100


def test_two_engines_share_what_is_left(clock):
    whole = Budget(100, clock)
    first = whole.share(2)
    clock.now = 20  # the first one needed less
    assert (first.remaining(), whole.share(1).remaining()) == (30, 80)


# Rows -----------------------------------------------------------------------------------------


def fails(error):
    def run(_context):
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "status", "reason"),
    [
        (lambda _: Outcome({"a": 1}, {"right": True}), PASSED, ""),
        (lambda _: Outcome({"a": 1}, {"right": True, "wrong": False}), FAILED, "not so: wrong"),
        (fails(Skipped("no disk")), SKIPPED, "no disk"),
        (fails(OSError("\x1b[31mred\x1b[0m\nline")), FAILED, "OSError: red line"),
        (fails(KeyError("system")), FAILED, "KeyError: 'system'"),
    ],
)
def test_each_end_of_a_step_is_a_row(context, run, status, reason):
    row = run_step(context, Step("step", run))
    assert (row.status, row.reason) == (status, reason)


# Random weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["SD1", "SDXL"])
def test_random_weights_are_readable_and_of_the_size_that_keeps_values_in_range(tmp_path, family):
    tensors = random_models.tensors_of(family, tiny=True)
    size = random_models.write_checkpoint(tmp_path / "a", tensors, 1)
    random_models.write_checkpoint(tmp_path / "b", tensors, 1)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert 0 < size - random_models.size(tensors) < 300_000  # the header
    with safe_open(tmp_path / "a", "np") as file:
        written = {name: file.get_tensor(name).astype("f4") for name in file.keys()}  # noqa: SIM118
    assert {name: array.shape for name, array in written.items()} == tensors
    for name, array in written.items():
        assert np.isfinite(array).all()
        if random_models.is_norm_weight(name, array.shape):
            assert (array == 1).all()
        elif array.size > 10_000 and not name.endswith(random_models.EMBEDDINGS):
            inputs = np.prod(array.shape[1:])
            assert 0.6 < array.std() * inputs**0.5 < 1.6, name
    last = [a for name, a in written.items() if name.endswith(random_models.LAST_TEXT_NORMS)]
    assert last
    assert all(abs(array.mean()) > 1e-4 for array in last)


def test_the_real_sizes_are_those_of_the_real_models():
    sizes = [random_models.size(random_models.tensors_of(f, tiny=False)) for f in ("SD1", "SDXL")]
    assert [round(size / 1e9, 2) for size in sizes] == [2.13, 6.94]


def test_the_tiny_configuration_replaces_every_size_of_the_real_one(tmp_path):
    random_models.write_tiny_config(tmp_path / "tiny.yaml")
    lines = (tmp_path / "tiny.yaml").read_text().splitlines()
    real = (PROJECT / "worker/models/store/configs/sd1_v.yaml").read_text().splitlines()
    changed = [line.strip() for line, before in zip(lines, real, strict=True) if line != before]
    assert changed == [
        *("parameterization: eps", "model_channels: 32", "channel_mult: [1, 2, 2, 2]"),
        *("context_dim: 64", "ch: 32"),
    ]


def test_a_full_disk_is_named_before_anything_is_written(context, monkeypatch):
    monkeypatch.setattr(random_models, "size", lambda _: 10**15)
    row = run_step(context, proof.STEPS[0])
    assert row.status == SKIPPED
    assert re.search(
        r"GB free, 1000002.0 GB are needed: name another folder with --work", row.reason
    )
    assert list(context.folder.rglob("*.safetensors")) == []


# The GPU's memory -----------------------------------------------------------------------------


class Driver:
    """libcuda with this much free memory, in pieces; it refuses more than its largest piece."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)
        self.is_reset = False

    def __getattr__(self, name):
        def succeed(*_):
            self.is_reset |= name == "cuDevicePrimaryCtxReset_v2"
            return 0

        return succeed

    def cuMemGetInfo_v2(self, free, total):  # noqa: N802 - the driver's name
        free._obj.value = total._obj.value = sum(self.pieces)
        return 0

    def cuMemAlloc_v2(self, _pointer, size):  # noqa: N802 - the driver's name
        largest = max(self.pieces)
        if size.value > largest:
            return 2
        self.pieces[self.pieces.index(largest)] -= size.value
        return 0


@pytest.mark.parametrize("pieces", [(80 << 30,), (3 << 30, 1 << 30, 5 << 30), (LEFT_FREE,)])
def test_the_gpu_is_filled_up_to_a_rest_and_freed_again(pieces):
    driver = Driver(*pieces)
    with filled_gpu(driver) as held:
        assert held == sum(pieces) - sum(driver.pieces)
        assert LEFT_FREE <= sum(driver.pieces) < LEFT_FREE + (len(pieces) << 30)
    assert driver.is_reset


def test_a_machine_without_a_driver_is_named(monkeypatch):
    def load(_name):
        raise OSError("libcuda.so.1: cannot open")

    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(NoDriver, match=r"the NVIDIA driver's library cannot be loaded \(libcuda"):
        filled_gpu().__enter__()


def test_the_largest_memory_of_the_gpu_that_is_used_is_reported_for_each_step(tmp_path):
    smi = 'printf \'%s\\n\' "$*" 100 9000 \'[N/A]\' 200; echo "$@" > "$ASKED"; exec sleep 60'
    write_program(tmp_path / "nvidia-smi", smi)
    asked = tmp_path / "asked"
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "3,1"}
    with Memory(environ | {"ASKED": str(asked)}) as memory:
        while not asked.exists() or memory.take_largest() != {"GPU": 9.44}:
            time.sleep(0.01)
    assert asked.read_text().endswith("-i 3\n")


class Jobs(Context):
    """A context whose jobs end as the test says; `pictures` are numbers."""

    running = None

    def submit(self, family="SD1", **fields):
        job = super().submit(family, **fields)
        self.plane.cancel(job)
        job.error = "" if fields.get("width") != 4096 else self.environ["ERROR"]
        job.output = {"images": [self.environ["PNG"]], "engine": {}}
        return job

    def health(self):
        return {}


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


@pytest.mark.parametrize(
    ("error", "status"),
    [("OUT_OF_MEMORY: ...", PASSED), ("INTERNAL_ERROR: ...", FAILED), ("", SKIPPED)],
)
def test_only_the_clear_error_passes_where_memory_runs_out(tmp_path, error, status):
    fill = itertools.repeat(contextlib.nullcontext(1 << 30)).__next__
    with Plane() as plane:
        context = Jobs("a1111", tmp_path, plane, Budget(60), {"ERROR": error, "PNG": PNG})
        step = Step("out of memory", lambda it: failures.run_out_of_memory(it, fill))
        assert run_step(context, step).status == status
