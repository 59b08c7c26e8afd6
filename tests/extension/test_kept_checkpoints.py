"""A kept checkpoint that comes into use again has nothing of the one that was used before it."""

import pytest
import torch
from a1111_worker import kept_checkpoints
from a1111_worker.expect import NotAsExpected


class Model(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width, self.conv, self.cond_stage_model = width, torch.nn.Conv2d(1, 1, 1), object()
        self.used_config = f"{width}.yaml"
        self.sd_checkpoint_info, self.vae = f"of width {width}", f"its own of {width}"


def keep_apart(a1111):
    names = ("sd_models", "sd_hijack", "sd_vae", "networks", "sd_samplers_common")
    kept_checkpoints.keep_apart(*(getattr(a1111, name) for name in names))


@pytest.fixture
def engine(a1111):
    """A1111 with the part on, which has loaded one model of SD1 and then one of SDXL."""
    keep_apart(a1111)
    a1111.sd1, a1111.sdxl = Model(768), Model(2048)
    for model in (a1111.sd1, a1111.sdxl):
        load(a1111, model)
    return a1111


def load(engine, model):
    engine.sd_hijack.model_hijack.hijack(model)
    engine.sd_models.model_data.set_sd_model(model)
    engine.sd_models.model_data.was_loaded_at_least_once = True
    engine.sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings()


def use_again(engine, model):
    engine.sd_models.model_data.set_sd_model(model, already_loaded=True)


def tiled(engine):
    return [model.conv.padding_mode for model in (engine.sd1, engine.sdxl)]


def test_tiling_changes_only_the_checkpoint_in_use(engine):
    hijack = engine.sd_hijack.model_hijack
    use_again(engine, engine.sd1)
    hijack.apply_circular(True)
    assert tiled(engine) == ["circular", "zeros"]
    use_again(engine, engine.sdxl)
    assert tiled(engine) == ["zeros", "zeros"]
    hijack.apply_circular(True)
    assert tiled(engine) == ["zeros", "circular"]
    new = Model(768)
    load(engine, new)
    hijack.apply_circular(True)
    assert tiled(engine) == ["zeros", "zeros"]
    assert new.conv.padding_mode == "circular"


def test_embeddings_are_read_again_only_for_a_checkpoint_of_another_shape(engine):
    embeddings = engine.sd_hijack.model_hijack.embedding_db
    before = embeddings.reads
    use_again(engine, engine.sd1)
    assert (embeddings.expected_shape, embeddings.reads) == (768, before + 1)
    use_again(engine, engine.sd1)
    assert embeddings.reads == before + 1
    assert engine.sd_hijack.model_hijack.clip is engine.sd1.cond_stage_model


def test_the_own_vae_of_a_checkpoint_is_saved_before_a_job_loads_another_one(engine):
    vae = engine.sd_vae
    use_again(engine, engine.sd1)
    vae.store_base_vae(engine.sd1)
    assert vae.base_vae == engine.sd1.vae
    engine.sd1.base_vae, engine.sd1.vae = vae.base_vae, "of a job"
    use_again(engine, engine.sdxl)
    use_again(engine, engine.sd1)
    vae.store_base_vae(engine.sd1)
    assert vae.base_vae == "its own of 768"


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize(("width", "loras", "merged"), [(768, ["fox"], 0.5), (2048, [], 0)])
def test_a_refiner_of_the_same_architecture_has_the_loras_and_the_token_merging_kept_or_not(
    engine, is_kept, width, loras, merged
):
    refiner = Model(width)
    refiner.sd_checkpoint_info = "the refiner"
    if is_kept:
        engine.sd_models.model_data.loaded_sd_models.append(refiner)
    use_again(engine, engine.sd1)
    engine.networks.loaded_networks[:] = ["fox"]
    engine.sd_models.apply_token_merging(engine.sd1, 0.5)
    engine.sd_models.reload_model_weights(refiner)
    assert engine.networks.loaded_networks == loras
    assert engine.sd_models.model_data.sd_model is refiner
    assert refiner.applied_token_merged_ratio == merged
    assert engine.sd1.applied_token_merged_ratio == 0  # it may be the refiner of a later picture


@pytest.mark.parametrize(("file", "levels"), [({}, "own"), ({"alphas_cumprod": "file"}, "file")])
def test_the_noise_levels_of_a_picture_do_not_stay_for_the_next_checkpoint(a1111, file, levels):
    kept_checkpoints.reset_schedule(a1111.sd_models, a1111.sd_samplers)
    model = Model(768)
    model.alphas_cumprod = "own"
    a1111.sd_models.load_model_weights(model, {})
    model.alphas_cumprod = "zero terminal SNR"
    a1111.sd_models.load_model_weights(model, file)
    assert (model.alphas_cumprod, model.alphas_cumprod_original) == (levels, levels)


def test_a_sampler_notes_the_noise_levels_of_its_job(a1111):
    kept_checkpoints.reset_schedule(a1111.sd_models, a1111.sd_samplers)
    model = Model(768)
    model.alphas_cumprod = "of the last job"
    sampler = a1111.sd_samplers.create_sampler("Euler", model)
    assert (sampler.name, sampler.levels) == ("Euler", "picture")


def test_the_second_picture_of_a_sampler_begins_without_the_refiner_of_the_first(engine):
    base = engine.sd_models.model_data.sd_model
    base.alphas_cumprod = "own"
    sampler = engine.sd_samplers.create_sampler("Euler", base)
    assert sampler.initialize("p") is base
    sampler.model_wrap_cfg.model_wrap.inner_model = engine.sd1  # the refiner
    assert sampler.initialize("p") is base


def test_a_kept_checkpoint_gets_the_noise_levels_of_the_picture(engine):
    engine.sd1.alphas_cumprod = "of its last picture"
    use_again(engine, engine.sd1)
    assert engine.sd1.alphas_cumprod == "picture"


def test_a_checkpoint_that_could_not_be_loaded_changes_nothing(engine):
    engine.sd_models.model_data.set_sd_model(None)
    assert engine.sd_models.model_data.sd_model is None


def test_another_a1111_is_not_changed(a1111):
    a1111.sd_models.SdModelData.set_sd_model = lambda self, v: None
    with pytest.raises(NotAsExpected):
        keep_apart(a1111)
