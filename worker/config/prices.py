"""What a second of RunPod's cards costs, as its documentation said at one date. Data, and no IO.

The worker estimates with it what a picture costs, and docs/costs.md has it as a table.
"""

from __future__ import annotations

from worker.config.settings import Settings

SOURCE = "https://docs.runpod.io/serverless/endpoints/endpoint-configurations#gpu-configuration"
READ = "2026-08-20"
# Of flex workers, for each pool of worker/config/gpus.py. RunPod's table has none for ADA_32_PRO.
DOLLARS_PER_SECOND = {
    "AMPERE_16": 0.00016,
    "AMPERE_24": 0.00019,
    "ADA_24": 0.00031,
    "AMPERE_48": 0.00034,
    "ADA_48_PRO": 0.00053,
    "AMPERE_80": 0.00076,
    "BLACKWELL_96": 0.00111,
    "ADA_80_PRO": 0.00116,
    "HOPPER_141": 0.00155,
    "BLACKWELL_180": 0.0024,
}
# The cards of the pools, with their whole names as nvidia-smi has them: RunPod's ids of GPUs
# (docs.runpod.io/references/gpu-types) and its list of each pool's (runpod/flash,
# core/resources/gpu.py). A card that is not here, such as a MIG slice, has no known price.
CARDS = {
    "AMPERE_16": (
        *("NVIDIA RTX A4000", "NVIDIA RTX A4500"),
        *("NVIDIA RTX 2000 Ada Generation", "NVIDIA RTX 4000 Ada Generation"),
    ),
    "AMPERE_24": ("NVIDIA GeForce RTX 3090", "NVIDIA RTX A5000", "NVIDIA L4"),
    "ADA_24": ("NVIDIA GeForce RTX 4090",),
    "ADA_32_PRO": ("NVIDIA GeForce RTX 5090",),
    "AMPERE_48": ("NVIDIA A40", "NVIDIA RTX A6000"),
    "ADA_48_PRO": ("NVIDIA L40", "NVIDIA L40S", "NVIDIA RTX 6000 Ada Generation"),
    "AMPERE_80": ("NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"),
    "BLACKWELL_96": tuple(
        f"NVIDIA RTX PRO 6000 Blackwell {edition}"
        for edition in ("Server Edition", "Workstation Edition", "Max-Q Workstation Edition")
    ),
    "ADA_80_PRO": ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"),
    "HOPPER_141": ("NVIDIA H200",),
    "BLACKWELL_180": ("NVIDIA B200",),
}


def usd_per_second(settings: Settings) -> float | None:
    """What a second of this worker costs; None if that is not known.

    It is known for one whole card of RunPod's table, in a worker of an endpoint: a Pod and another
    machine have other prices, and a worker with several GPUs or a part of one has another one.
    """
    is_one_card = settings.engine_device == "cuda" and settings.runpod_gpu_count in {"", "1"}
    if not (settings.is_serverless and is_one_card):
        return None
    pools = [pool for pool, names in CARDS.items() if settings.engine_gpu in names]
    return DOLLARS_PER_SECOND.get(pools[0]) if len(pools) == 1 else None
