"""The table of GPUs agrees with itself, with the networks' sizes and with the networks."""

import itertools
import math
import re

import pytest

from worker.config import gpus
from worker.config.settings import PROJECT
from worker.formats import stable_diffusion

SDXL = next(picture for picture in gpus.PICTURES if picture.name == "SDXL, 1024x1024")
CARDS = [*itertools.chain(*gpus.POOLS.values()), *gpus.OTHER_CARDS]
each_card = pytest.mark.parametrize("cards", CARDS, ids=lambda cards: cards.names)


def runs_code_for(architecture, capability):
    """Machine code runs on its major version, from its minor version on."""
    major, minor = int(architecture[3:-1]), int(architecture[-1])
    return major == capability[0] and minor <= capability[1]


@each_card
def test_a_card_runs_on_the_images_if_their_torch_was_built_for_it(cards):
    built = [runs_code_for(one, cards.capability) for one in gpus.ARCHITECTURES]
    assert gpus.has_code(cards.capability) == any(built)


@each_card
def test_each_card_belongs_to_one_generation_and_all_of_that_generation_need_one_driver(cards):
    found = [
        limits for _, limits, _ in gpus.GENERATIONS if limits[0] <= cards.capability <= limits[1]
    ]
    assert len(found) == 1
    for answer in (gpus.has_code, lambda capability: gpus.oldest_driver(gpus.CUDA, capability)):
        assert {answer(limit) for limit in found[0]} == {answer(cards.capability)}


def test_every_pool_of_runpod_can_draw_the_default_template():
    smallest = {pool: min(kind.memory[0] for kind in kinds) for pool, kinds in gpus.POOLS.items()}
    assert [
        pool for pool, gb in smallest.items() if gb < gpus.size_for(SDXL.memory(single=True))
    ] == []


def test_the_documents_name_the_same_memory():
    sdxl, sd1 = gpus.size_for(SDXL.memory(single=True)), gpus.size_for(gpus.SMALLEST_GPU)
    sentences = {
        "README.md": f"SDXL needs {sdxl} GB of GPU memory, SD1 needs {sd1} GB.",
        "README.tr.md": f"SDXL {sdxl} GB, SD1 ise {sd1} GB GPU belleği ister.",
        "docs/gpus.md": f"plan with {sdxl} GB for SDXL at 1024x1024",
    }
    assert [
        page for page, text in sentences.items() if text not in (PROJECT / page).read_text()
    ] == []


def test_hosts_are_named_from_the_oldest_cuda_of_torchs_major_version_without_a_gap():
    versions = [tuple(map(int, name.split("."))) for name in gpus.CUDA_OF_HOSTS]
    assert versions == sorted(set(versions))
    assert versions[0] == (int(gpus.CUDA.split(".")[0]), 0)
    for (major, minor), following in itertools.pairwise(versions):
        assert following in {(major, minor + 1), (major + 1, 0)}


@pytest.mark.parametrize("family", gpus.WEIGHTS)
def test_the_weights_are_those_of_the_networks(family):
    tensors = [*stable_diffusion.network(family).values(), *stable_diffusion.vae().values()]
    assert gpus.WEIGHTS[family] == math.ceil(sum(map(math.prod, tensors)) * 2 / (1 << 20))
    vae = sum(map(math.prod, stable_diffusion.vae().values()))
    assert math.ceil(vae * 2 / (1 << 20)) == gpus.WEIGHTS_OF_VAE


@pytest.mark.parametrize(
    ("family", "side", "batch"), [("SD1", 512, 1), ("SD1", 1024, 4), ("SDXL", 1536, 1)]
)
def test_the_memory_is_proportional_to_pixels_and_batch(family, side, batch):
    pytest.importorskip("diffusers")
    from benchmarks import memory

    megapixels = side * side / (1 << 20)
    assert memory.unet(family, side, batch) == pytest.approx(
        gpus.UNET[family] * batch * megapixels, rel=0.01
    )
    assert memory.vae(side) == pytest.approx(gpus.VAE * megapixels, rel=0.01)
    assert memory.vae(side, single=True) == pytest.approx(2 * gpus.VAE * megapixels, rel=0.01)


@pytest.mark.parametrize(("single", "measured"), [(False, 9175), (True, 17231)])
def test_the_calculation_gives_what_others_measured_for_sdxl(single, measured):
    """The peak of torch's tensors, as worker/config/gpus.py cites it; here within 2 %."""
    weights = gpus.WEIGHTS["SDXL"] * (1 + single)
    tensors = gpus.VAE * (1 + single) + gpus.WORKSPACE
    assert weights + tensors == pytest.approx(measured, rel=0.02)


def test_it_describes_the_torch_that_the_images_get():
    for name in ("a1111", "embedded"):
        lock = (PROJECT / "image" / f"{name}.lock").read_text()
        (runtime,) = re.findall(r"^nvidia-cuda-runtime-cu12==(\d+\.\d+)", lock, re.MULTILINE)
        assert runtime == gpus.CUDA
