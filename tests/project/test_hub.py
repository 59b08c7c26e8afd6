"""The Hub's files: settings that exist, GPUs and CUDA versions that A1111's torch supports."""

import json

import pytest
from fakes.gpu import CUDA_121

from worker.config.credentials import CREDENTIALS
from worker.config.gpu import gpu_findings
from worker.config.nvidia_smi import Gpu
from worker.config.settings import PROJECT, Settings
from worker.job.request import parse

HUB, TESTS = (json.loads((PROJECT / f".runpod/{n}.json").read_text()) for n in ("hub", "tests"))
INPUTS = [one for one in HUB["config"]["env"] if "input" in one]

# RunPod's pools of GPUs (docs.runpod.io/references/gpu-types): the oldest and the newest in each.
POOLS = {
    "AMPERE_16": ("8.6", "8.9"),  # A4000, RTX 2000 and 4000 Ada
    "AMPERE_24": ("8.6", "8.6"),  # A4500, A5000, RTX 3090
    "ADA_24": ("8.9", "8.9"),  # L4, RTX 4090
    "ADA_32_PRO": ("12.0", "12.0"),  # RTX 5090
    "AMPERE_48": ("8.6", "8.6"),  # A40, A6000
    "ADA_48_PRO": ("8.9", "8.9"),  # L40, L40S, RTX 6000 Ada
    "AMPERE_80": ("8.0", "8.0"),  # A100
    "ADA_80_PRO": ("9.0", "9.0"),  # H100
    "HOPPER_141": ("9.0", "9.0"),  # H200
    "BLACKWELL_96": ("12.0", "12.0"),
    "BLACKWELL_180": ("10.0", "10.0"),
}


def works(capability):
    gpu = Gpu.read(f"a GPU, {capability}, 580.95.05, 24564, 24217")
    return not list(gpu_findings(gpu, CUDA_121, Settings(engine="a1111")))


def test_exactly_the_gpus_that_work_are_offered_with_cuda_not_older_than_torchs():
    usable = {pool for pool, capabilities in POOLS.items() if all(map(works, capabilities))}
    assert set(HUB["config"]["gpuIds"].split(",")) == usable
    for file in (HUB, TESTS):  # RunPod filters by the newest CUDA that a host's driver supports
        names = file["config"]["allowedCudaVersions"]
        versions = [tuple(map(int, name.split("."))) for name in names]
        assert versions == sorted(versions, reverse=True)
        assert names[-1] == CUDA_121["cuda"]


@pytest.mark.parametrize("entry", INPUTS, ids=lambda entry: entry["key"])
def test_every_input_is_a_setting_with_a_help_text(entry):
    key, given = entry["key"], entry["input"]
    values = [option["value"] for option in given.get("options", [])]
    assert key.lower() in Settings.model_fields
    assert given["description"].endswith((".", ")"))
    for value in values + [given[name] for name in ("default", "min", "max") if name in given]:
        Settings.from_environ({key: str(value)})
    if "default" in given and key != "DEFAULT_TEMPLATE":
        assert Settings.from_environ({key: str(given["default"])}) == Settings.from_environ({})


def test_no_credential_has_a_value():
    entries = [*INPUTS, *TESTS["config"]["env"]]
    secret = [one for one in entries if one["key"].lower() in CREDENTIALS]
    assert [one["key"] for one in secret if one["input"].get("default")] == []


def test_the_hubs_tests_are_jobs_and_settings_that_are_accepted():
    for test in TESTS["tests"]:
        job = test["input"]
        assert job == {"task": "health"} or parse(job).checkpoint is not None
        assert test["timeout"] <= 600_000  # milliseconds
    environ = {one["key"]: one["value"] for one in TESTS["config"]["env"]}
    assert Settings.from_environ(environ).default_template == "none"
