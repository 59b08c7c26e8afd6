"""Which GPUs the images run on, and how much memory a picture needs. Data, and no IO.

The documents, `.runpod/hub.json` and the checks before the start use these numbers, so each of
them stands only here.
"""

from __future__ import annotations

from dataclasses import dataclass

Capability = tuple[int, int]

# The torch of both images: PyPI's torch 2.10.0. The checks ask torch itself, in each image; this
# copy is for the documents and for tests.
CUDA = "12.8"
ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")

# CUDA's major version -> oldest driver that runs it, whatever its minor version:
# docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVER = {"11": (450, 80, 2), "12": (525, 60, 13), "13": (580, 65, 6)}
# Oldest driver that knows Blackwell: that of CUDA 12.8, the first toolkit with its compute
# capabilities (docs.nvidia.com/cuda/archive/12.8.0/cuda-toolkit-release-notes).
BLACKWELL, OLDEST_DRIVER_OF_BLACKWELL = 10, (570,)

# Compute capabilities for which xformers has kernels, and for which A1111 v1.9.3 uses it.
XFORMERS = ((7, 5), (9, 0))


def oldest_driver(cuda: str, capability: Capability | None) -> tuple[int, ...]:
    """The oldest driver that runs this version of CUDA on a GPU of this compute capability."""
    for_cuda = OLDEST_DRIVER.get(cuda.partition(".")[0], ())
    if capability and capability[0] >= BLACKWELL:
        return max(for_cuda, OLDEST_DRIVER_OF_BLACKWELL)
    return for_cuda


def has_code(capability: Capability) -> bool:
    """Whether the images' torch can compute on these GPUs: all from Volta to Blackwell."""
    return (7, 0) <= capability < (13, 0)


def has_xformers(capability: Capability) -> bool:
    """Whether A1111 uses xformers on these GPUs; on others it uses torch's own attention."""
    return XFORMERS[0] <= capability <= XFORMERS[1]


# Cards -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cards:
    """Cards of one compute capability, and the sizes of their memory in GB."""

    names: str
    capability: Capability
    memory: tuple[int, ...]


# RunPod's pools, with the names of hub.json's `gpuIds`, from docs.runpod.io/references/gpu-types
# and, for ADA_32_PRO and Blackwell, from RunPod's table in runpod/flash (core/resources/gpu.py).
# Their order is a preference, where RunPod regards one: two consumer cards that are fast for their
# price, then by price (docs.runpod.io/serverless/pricing), with 16 GB behind 24 because SDXL just
# fits. RunPod also rents slices (MIG) of the RTX PRO 6000 with 24 and 48 GB, but documents no pool
# for them.
POOLS: dict[str, tuple[Cards, ...]] = {
    "ADA_24": (Cards("RTX 4090", (8, 9), (24,)),),
    "ADA_32_PRO": (Cards("RTX 5090", (12, 0), (32,)),),
    "AMPERE_24": (
        Cards("RTX 3090, RTX A5000", (8, 6), (24,)),
        Cards("L4", (8, 9), (24,)),
    ),
    "AMPERE_16": (
        Cards("RTX A4000, RTX A4500", (8, 6), (16, 20)),
        Cards("RTX 2000 Ada, RTX 4000 Ada", (8, 9), (16, 20)),
    ),
    "AMPERE_48": (Cards("A40, RTX A6000", (8, 6), (48,)),),
    "ADA_48_PRO": (Cards("L40, L40S, RTX 6000 Ada", (8, 9), (48,)),),
    "AMPERE_80": (Cards("A100", (8, 0), (80,)),),
    "BLACKWELL_96": (Cards("RTX PRO 6000", (12, 0), (96,)),),
    "ADA_80_PRO": (Cards("H100", (9, 0), (80, 94)),),
    "HOPPER_141": (Cards("H200", (9, 0), (141,)),),
    "BLACKWELL_180": (Cards("B200", (10, 0), (180,)),),
}

# Cards that people own or rent elsewhere: developer.nvidia.com/cuda-gpus and cuda-legacy-gpus.
OTHER_CARDS = (
    Cards("GTX 900, Tesla M40 and M60", (5, 2), (2, 4, 8, 12, 24)),
    Cards("Tesla P100", (6, 0), (12, 16)),
    Cards("GTX 10, Tesla P4 and P40", (6, 1), (2, 4, 6, 8, 11, 24)),
    Cards("V100, Titan V", (7, 0), (12, 16, 32)),
    Cards("GTX 16, RTX 20, T4", (7, 5), (4, 6, 8, 11, 16)),
    Cards("A30, A100 with 40 GB", (8, 0), (24, 40)),
    Cards("RTX 30, A2, A10", (8, 6), (4, 6, 8, 10, 12, 16, 24)),
    Cards("RTX 40", (8, 9), (6, 8, 12, 16, 24)),
    Cards("B300", (10, 3), (288,)),
    Cards("RTX 50, RTX PRO Blackwell", (12, 0), (8, 12, 16, 24, 32, 48, 72, 96)),
)

# NVIDIA's generations, each with its compute capabilities and cards that many know.
GENERATIONS = (
    ("Maxwell, Pascal", ((5, 0), (6, 1)), "GTX 900, GTX 10, P100"),
    ("Volta", ((7, 0), (7, 0)), "V100"),
    ("Turing", ((7, 5), (7, 5)), "GTX 16, RTX 20, T4"),
    ("Ampere", ((8, 0), (8, 6)), "RTX 30, RTX A5000, A40, A100"),
    ("Ada", ((8, 9), (8, 9)), "RTX 40, L4, L40S"),
    ("Hopper", ((9, 0), (9, 0)), "H100, H200"),
    ("Blackwell", ((10, 0), (12, 0)), "RTX 50, RTX PRO 6000, B200, B300"),
)

# `allowedCudaVersions` of hub.json: the newest CUDA that a host's driver supports. RunPod compares
# exactly, so that each version is named on which the images run: from 12.0 (driver 525) to the
# newest toolkit of NVIDIA. The oldest stands first because `runpodctl serverless create --hub-id`
# takes the first for the minimum.
CUDA_OF_HOSTS = (
    *(f"12.{minor}" for minor in range(10)),
    *(f"13.{minor}" for minor in range(6)),
)

# Memory ------------------------------------------------------------------------------------------
# Calculated, in MiB: benchmarks/memory.py follows each tensor through the real networks. No GPU has
# confirmed it here. With `WORKSPACE` it gives what others measured for SDXL at 1024x1024 on an
# A100: 9,175 MiB in half precision, 17,231 in single (huggingface.co/datasets/sayakpaul/
# sample-datasets, collated_results_sdxl.csv; `memory (gbs)` there is the peak of torch's tensors).

# UNet, text encoders and VAE in half precision.
WEIGHTS = {"SD1": 2034, "SDXL": 6617}
WEIGHTS_OF_VAE = 160
# The largest sum of tensors that are alive at once, for a picture of 1024x1024: it is proportional
# to the number of pixels. The UNet has the positive and the negative prompt in one pass.
UNET = {"SD1": 521, "SDXL": 401}
VAE = 1536
# What cuDNN's convolutions use beside the tensors, for a picture of 1024x1024.
WORKSPACE = 1024
# CUDA itself, and the gaps between torch's blocks.
CONTEXT, GAPS = 500, 1.1


@dataclass(frozen=True)
class Picture:
    """What A1111 draws: a size in the last pass, and how many at once."""

    name: str
    family: str
    side: int
    batch: int = 1

    def memory(self, *, single: bool = False) -> int:
        """MiB that it needs, with the VAE in half or in single precision.

        Without an upscaler's model and without --medvram. A1111 decodes a batch one by one.
        """
        megapixels = self.side * self.side / (1 << 20)
        weights = WEIGHTS[self.family] + WEIGHTS_OF_VAE * single
        tensors = max(UNET[self.family] * self.batch, VAE * (1 + single)) * megapixels
        needed = (weights + tensors + WORKSPACE * megapixels) * GAPS + CONTEXT
        return -(-int(needed) // 100) * 100


PICTURES = (
    Picture("SD1, 512x512", "SD1", 512),
    Picture("SD1, 512x512, batch of 4", "SD1", 512, 4),
    Picture("SD1, hires to 1024x1024", "SD1", 1024),
    Picture("SD1, hires to 1024x1024, batch of 4", "SD1", 1024, 4),
    Picture("SDXL, 1024x1024", "SDXL", 1024),
    Picture("SDXL, 1024x1024, batch of 4", "SDXL", 1024, 4),
    Picture("SDXL, hires to 1536x1536", "SDXL", 1536),
    Picture("SDXL, hires to 2048x2048", "SDXL", 2048),
)
SMALLEST_GPU = PICTURES[0].memory()  # MiB
WEIGHTS_OF_SD1 = WEIGHTS["SD1"]

# Sizes in which GPUs are sold, in GB. One with ECC has 6 % less for programs: 15,360 MiB of 16 GB.
SIZES = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80)


def size_for(mebibytes: int) -> int:
    """The smallest usual size of a GPU with that much memory, in GB."""
    return next(size for size in SIZES if size * 960 >= mebibytes)
