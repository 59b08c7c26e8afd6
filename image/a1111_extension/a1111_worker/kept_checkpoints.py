"""No state of one checkpoint in another one, while A1111 keeps several in memory.

With `sd_checkpoints_limit` above 1, A1111 takes a kept checkpoint into use without what it does for
one that it loads.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from a1111_worker.expect import expect, uses


def keep_apart(
    sd_models: ModuleType,
    sd_hijack: ModuleType,
    sd_vae: ModuleType,
    networks: ModuleType,
    samplers: ModuleType,
) -> None:
    """Prepare each checkpoint that comes into use as one that was just loaded, a refiner, too.

    Raises:
        NotAsExpected: A1111 keeps checkpoints in another way.
    """
    _prepare_kept(sd_models, sd_hijack, sd_vae)
    _keep_refiner_alike(sd_models, networks)
    _begin_without_refiner(sd_models, samplers)


def _prepare_kept(sd_models: ModuleType, sd_hijack: ModuleType, sd_vae: ModuleType) -> None:
    """Prepare each checkpoint that comes into use as one that was just loaded.

    Otherwise `tiling` would change the layers of the checkpoint that was loaded last, and a prompt
    would not find the embeddings that do not fit the checkpoint before. Tiling is switched off
    before another checkpoint comes: A1111 compares only a flag, and would not switch it on in it.
    A kept checkpoint would also keep the first VAE that a job names: A1111 takes its own one for
    saved already, and cannot put it back.
    """
    data, hijacking = sd_models.SdModelData, sd_hijack.StableDiffusionModelHijack
    set_sd_model, hijack = data.set_sd_model, hijacking.hijack
    expect(uses(set_sd_model, "already_loaded", "loaded_sd_models"), "set_sd_model keeps models")
    expect(uses(hijack, "layers", "clip"), "hijack notes the layers and the text encoder")
    expect(uses(hijacking.apply_circular, "layers"), "apply_circular changes the noted layers")
    expect(uses(sd_vae.store_base_vae, "checkpoint_info"), "store_base_vae compares checkpoints")

    def hijack_apart(self: Any, model: Any) -> Any:
        self.apply_circular(False)
        return hijack(self, model)

    def set_sd_model_apart(self: Any, model: Any, already_loaded: bool = False) -> None:
        set_sd_model(self, model, already_loaded)
        if model is None or not self.was_loaded_at_least_once:
            return
        if already_loaded:
            _note_layers(sd_hijack.model_hijack, model)
            sd_models.apply_alpha_schedule_override(model)  # the noise levels of this picture
            if sd_vae.base_vae is None:
                sd_vae.delete_base_vae()  # it also forgets whose VAE is saved
        _fit_embeddings(sd_hijack.model_hijack.embedding_db)

    hijacking.hijack = hijack_apart
    data.set_sd_model = set_sd_model_apart


def _note_layers(hijack: Any, model: Any) -> None:
    hijack.apply_circular(False)
    hijack.clip = model.cond_stage_model
    hijack.layers = list(model.modules())


def _fit_embeddings(embeddings: Any) -> None:
    if embeddings.expected_shape != embeddings.get_expected_shape():
        embeddings.load_textual_inversion_embeddings(force_reload=True)


def _keep_refiner_alike(sd_models: Any, networks: ModuleType) -> None:
    """Let a refiner have the same LoRAs and token merging whether it is kept or loaded.

    As with one checkpoint in memory, where its weights come into the model of the first one: it has
    them if it is of the same architecture. Otherwise A1111 would switch the LoRAs off only in the
    picture for which the refiner is loaded beside the first one, and would merge the tokens of the
    first one only, also in a later picture whose refiner it is.
    """
    reload, merge_tokens = sd_models.reload_model_weights, sd_models.apply_token_merging
    expect(uses(reload, "used_config"), "reload_model_weights compares configurations")
    expect(uses(merge_tokens, "applied_token_merged_ratio"), "a model notes its token merging")
    expect(isinstance(networks.loaded_networks, list), "the LoRAs in use are a list")

    def reload_alike(*args: Any, **named: Any) -> Any:
        old, before = sd_models.model_data.sd_model, _shown(sd_models)
        loras = [*networks.loaded_networks]
        merged = getattr(old, "applied_token_merged_ratio", 0)
        model = reload(*args, **named)
        new, after = sd_models.model_data.sd_model, _shown(sd_models)
        is_alike = after[1] == before[1]
        if after != before:
            networks.loaded_networks[:] = loras if is_alike else []
        if old is not None and new is not None and new is not old:
            merge_tokens(old, 0)
            merge_tokens(new, merged if is_alike else 0)
        return model

    sd_models.reload_model_weights = reload_alike


def _begin_without_refiner(sd_models: Any, samplers: ModuleType) -> None:
    """Let each picture of an img2img job begin with the job's checkpoint.

    All its pictures have one sampler. With one checkpoint in memory, the sampler's model has the
    weights of the job's checkpoint again after a picture with a refiner. With several it would
    still be the refiner.
    """
    sampler = samplers.Sampler
    initialize = sampler.initialize
    expect(uses(initialize, "model_wrap_cfg"), "a sampler has its model in model_wrap_cfg")

    def initialize_apart(self: Any, p: Any) -> Any:
        denoiser = self.model_wrap_cfg
        if getattr(denoiser.model_wrap, "inner_model", None) is not sd_models.model_data.sd_model:
            denoiser.model_wrap = None  # A1111 then takes the checkpoint in use
        return initialize(self, p)

    sampler.initialize = initialize_apart


def reset_schedule(sd_models: Any, sd_samplers: Any) -> None:
    """Give each picture the noise levels of its checkpoint and settings, also after other ones.

    A1111 loads the weights of the next checkpoint into the model of the last one. The noise levels
    of its last picture ("Zero Terminal SNR") would stay for all checkpoints whose files have none.
    And the sampler of an img2img job notes the noise levels before A1111 sets those of the job.

    Raises:
        NotAsExpected: A1111 notes a checkpoint's noise levels in another way.
    """
    load, create = sd_models.load_model_weights, sd_samplers.create_sampler
    expect(uses(load, "alphas_cumprod_original"), "load_model_weights notes the noise levels")
    expect(uses(create, "model", "constructor"), "create_sampler makes a sampler for a model")

    def load_apart(model: Any, *args: Any, **named: Any) -> Any:
        if hasattr(model, "alphas_cumprod_original"):
            model.alphas_cumprod = model.alphas_cumprod_original
        return load(model, *args, **named)

    def create_apart(name: Any, model: Any) -> Any:
        sd_models.apply_alpha_schedule_override(model)
        return create(name, model)

    sd_models.load_model_weights = load_apart
    sd_samplers.create_sampler = create_apart


def _shown(sd_models: Any) -> tuple[Any, Any]:
    """The checkpoint in use, and the file of its configuration."""
    model = sd_models.model_data.sd_model
    return getattr(model, "sd_checkpoint_info", None), getattr(model, "used_config", None)
