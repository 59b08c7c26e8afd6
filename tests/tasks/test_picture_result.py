import pytest
from fakes.a1111.process import write_safetensors

from worker.formats.model_file import ModelFile
from worker.job.model_fields import LoraReference
from worker.job.models import Models
from worker.tasks.picture_result import CacheInfo, MergedModel, UsedModel, cache_info, models_used


@pytest.fixture
def file(tmp_path):
    """Write a model file of that kind and name."""

    def file(kind, name, **known):
        path = tmp_path / f"{name}.safetensors"
        write_safetensors(path, name.encode().ljust(8))
        return ModelFile(kind, path, name, path.stat().st_size, **known)

    return file


def test_the_models_are_those_that_the_engine_names(file):
    lora, vae, style = file("lora", "x"), file("vae", "v"), file("embedding", "style", source="url")
    facts = {"sd_model_name": "base", "extra_generation_params": {"Lora hashes": "x: 01, y: 02"}}
    used = models_used(facts, Models(written_loras={"x": lora}, vae=vae, embeddings=(style,)))
    assert used == [
        UsedModel(kind="checkpoint", name="base", sha256=None, source="default"),
        UsedModel(kind="vae", name="v", sha256=vae.sha256(), source="job"),
        UsedModel(kind="embedding", name="style", sha256=style.sha256(), source="url"),
        UsedModel(kind="lora", name="x", sha256=lora.sha256(), source="job"),
    ]


def test_the_refiner_and_the_checkpoint_of_the_second_pass_are_listed_with_their_role(file):
    second, third = file("checkpoint", "second"), file("checkpoint", "third")
    used = models_used({"sd_model_name": "m"}, Models(refiner=second, hr_checkpoint=third))
    listed = [(one.name, one.model_dump(exclude_unset=True).get("role")) for one in used]
    assert listed == [("m", None), ("second", "refiner"), ("third", "hr_checkpoint")]


def test_a_merged_checkpoint_lists_what_it_consists_of(file):
    base, lora = file("checkpoint", "base"), file("lora", "x")
    merged = file("checkpoint", "both", verified_sha256="c" * 64, source="merged")
    loras = ((lora, LoraReference(name="x", scale=0.5, te=0.25)),)
    (used,) = models_used(
        {"sd_model_name": "both"}, Models(checkpoint=base, loras=loras, merged=merged)
    )
    assert (used.sha256, used.source) == ("c" * 64, "merged")
    assert used.merged_from == [
        MergedModel(kind="checkpoint", name="base", sha256=base.sha256(), source="job"),
        MergedModel(kind="lora", name="x", sha256=lora.sha256(), source="job", te=0.25, unet=0.5),
    ]


def test_the_cache_info_counts_checkpoints_and_loras():
    sizes = {"checkpoints": (2, 3 << 20), "loras": (1, 1 << 20), "vaes": (7, 1 << 30)}
    stats = {kind: {"count": n, "total_size": size} for kind, (n, size) in sizes.items()}
    expected = CacheInfo(checkpoints_cached=2, loras_cached=1, total_cache_size_mb=4.0)
    assert cache_info(stats) == expected
