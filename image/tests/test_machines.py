"""What both images do on machines with GPUs of each generation; nvidia-smi is a script."""

import json

import pytest
from fakes.gpu import write_nvidia_smi

from worker.config import gpus

CARDS = {  # compute capability -> a card
    "6.1": "NVIDIA GeForce GTX 1080 Ti",
    "7.5": "Tesla T4",
    "8.6": "NVIDIA RTX A5000",
    "8.9": "NVIDIA GeForce RTX 4090",
    "9.0": "NVIDIA H100 80GB HBM3",
    "10.0": "NVIDIA B200",
    "12.0": "NVIDIA GeForce RTX 5090",
}
XFORMERS, SDP = "ENGINE_ATTENTION=xformers", "ENGINE_ATTENTION=sdp"
TOO_OLD = "is too old for CUDA 12.8 on NVIDIA"


def test_its_torch_has_code_for_the_gpus_of_the_table(each_image, new_container):
    target, image = each_image
    python = "/opt/a1111" if target == "a1111" else "/opt/worker"
    build = json.loads(new_container(image).file(f"{python}/torch_build.json").read_text())

    assert (build["cuda"], tuple(build["architectures"])) == (gpus.CUDA, gpus.ARCHITECTURES)


@pytest.mark.parametrize(
    ("driver", "capability", "expected"),
    [
        ("525.60.13", "8.6", XFORMERS),
        ("525.60.13", "10.0", TOO_OLD),
        ("550.54.15", "8.9", XFORMERS),
        ("550.54.15", "12.0", TOO_OLD),
        ("570.86.15", "7.5", XFORMERS),
        ("570.86.15", "12.0", SDP),
        ("580.65.06", "9.0", XFORMERS),
        ("580.65.06", "10.0", SDP),
        ("580.65.06", "6.1", "has compute capability 6.1, and the torch of"),
        ("470.256.02", "8.6", TOO_OLD),
    ],
)
def test_each_gpu_is_used_or_the_start_ends_with_the_reason(
    each_image, new_container, driver, capability, expected
):
    target, image = each_image
    container = new_container(image)
    gpu = f"{CARDS[capability]}, {capability}, {driver}, 24564, 24217"
    write_nvidia_smi(container.file("/usr/local/bin"), gpu)
    done = container.run("/opt/worker/bin/python", "-m", "worker.config.preflight")
    print(done.stderr.strip())

    if expected in {XFORMERS, SDP}:
        assert done.returncode == 0
        assert "ENGINE_DEVICE=cuda" in done.stdout.splitlines()
        assert (expected if target == "a1111" else SDP) in done.stdout.splitlines()
    else:
        assert done.returncode == 71
        assert expected in done.stderr
