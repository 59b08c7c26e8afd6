"""Modules with the names and shapes of those of A1111 v1.9.3 that the extension changes.

They contain no code of A1111. The build of the image draws with the real ones.
"""

import math
import pickle
import re
import sys
import types
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "image/a1111_extension"))


class Autograd(torch.autograd.Function):
    """What gradient checkpointing calls for each block."""

    calls = 0

    @staticmethod
    def forward(ctx, run, *tensors):
        Autograd.calls += 1
        return run(tensors[0])


class Block(torch.nn.Module):
    def __init__(self, flag):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        setattr(self, flag, True)
        self.flag = flag

    def forward(self, x):
        if getattr(self, self.flag):
            return Autograd.apply(self.linear, x, *self.parameters())
        return self.linear(x)


class UNet(torch.nn.Module):
    """A first layer for so many channels of a picture, and two blocks with checkpointing."""

    def __init__(self, channels=4):
        super().__init__()
        first = torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 1))
        self.input_blocks = torch.nn.ModuleList([first])
        self.use_checkpoint = True
        self.blocks = torch.nn.Sequential(Block("checkpoint"), Block("use_checkpoint"))

    def forward(self, x, t, cond):
        return self.blocks(self.input_blocks[0](x).mean((2, 3))) + t


class Wrapper(torch.nn.Module):
    """What A1111 has as `model.model`."""

    def __init__(self, unet):
        super().__init__()
        self.diffusion_model = unet

    def forward(self, x, t, cond):
        return self.diffusion_model(x, t, cond)


class DiffusionEngine(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.model = Wrapper(unet)

    def apply_model(self, x, t, cond):
        weight = self.model.state_dict().get("diffusion_model.input_blocks.0.0.weight")
        if weight is not None and weight.shape[1] == 9:
            x = torch.cat([x] + cond["c_concat"], dim=1)
        return self.model(x, t, cond)


def timestep_embedding(timesteps, dim, max_period=10000, repeat_only=False):
    if repeat_only:
        return timesteps[:, None].repeat(1, dim)
    exponents = -math.log(max_period) * torch.arange(0, dim // 2, dtype=torch.float32) / (dim // 2)
    angles = timesteps[:, None].float() * torch.exp(exponents).to(timesteps.device)[None]
    odd = [torch.zeros(len(timesteps), 1)] * (dim % 2)
    embedding = torch.cat([torch.cos(angles), torch.sin(angles), *odd], dim=-1)
    return embedding.half() if devices.unet_needs_upcast else embedding


def append_dims(x, dims):
    return x[(...,) + (None,) * (dims - x.ndim)]


def to_d(x, sigma, denoised):
    return (x - denoised) / append_dims(sigma, x.ndim)


class OnGpu:
    """Sigmas that count how often they come back from the GPU."""

    def __init__(self, values):
        self.values, self.copies = values, 0

    def cpu(self):
        self.copies += 1
        return self.values


shared = types.SimpleNamespace(device="cuda")


class KDiffusionSampler:
    def get_sigmas(self, p, steps):
        return p(torch.linspace(10, 0, steps), shared.device)


class NansException(Exception):
    pass


def test_for_nans(x, where):
    devices.checks.append(where)
    if torch.isnan(x).all():
        raise NansException(f"A tensor with all NaNs was produced in {where}")


class CFGDenoiser:
    def forward(self, x):
        devices.test_for_nans(x, "unet")
        return x


def decode_latent_batch(model, batch, target_device=None, check_for_nans=False):
    pictures = [model(latent) for latent in batch]
    for picture in pictures:
        if check_for_nans:
            devices.test_for_nans(picture, "vae")
    return pictures


def network_apply_weights(self):
    layer = self.network_layer_name
    if getattr(self, "network_bias_backup", None) is None:
        self.network_bias_backup = self.bias.to("cpu", copy=True)
    if getattr(self, "network_current_names", ()) != tuple(networks.loaded_networks):
        self.bias.data = self.network_bias_backup + len(networks.loaded_networks)
        self.network_current_names = tuple(networks.loaded_networks)
    return layer


allowed_zip_names_re = re.compile(r"^([^/]+)/((data/\d+)|version|(data\.pkl))$")


def check_zip_filenames(filename, names):
    for name in names:
        if not safe.allowed_zip_names_re.match(name):
            raise ValueError(f"bad file inside {filename}: {name}")


class RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if module == "numpy.core.multiarray" and name == "scalar":
            return "numpy's scalar"
        raise ValueError(f"{module}.{name} is forbidden")


class ScriptRunner:
    """Errors of a script are reported, and the next one runs."""

    def create_script_ui(self, script):
        script.args_from = 0

    def process(self, p, scripts, report):
        for script in scripts:
            try:
                script.process(p)
            except Exception as error:  # noqa: BLE001 - as A1111
                report(error)


class Embeddings:
    """The embeddings' shape is that of the model for which they were read."""

    def __init__(self):
        self.expected_shape, self.reads = -1, 0

    def get_expected_shape(self):
        return sd_models.model_data.sd_model.width

    def load_textual_inversion_embeddings(self, force_reload=False):
        self.expected_shape = self.get_expected_shape()
        self.reads += force_reload


class StableDiffusionModelHijack:
    layers = clip = None
    circular_enabled = False

    def __init__(self):
        self.embedding_db = Embeddings()

    def hijack(self, m):
        self.clip = m.cond_stage_model
        self.layers = list(m.modules())

    def apply_circular(self, enable):
        if self.circular_enabled == enable:
            return
        self.circular_enabled = enable
        for layer in [layer for layer in self.layers if type(layer) is torch.nn.Conv2d]:
            layer.padding_mode = "circular" if enable else "zeros"


class SdModelData:
    def __init__(self):
        self.sd_model, self.loaded_sd_models, self.was_loaded_at_least_once = None, [], False

    def set_sd_model(self, v, already_loaded=False):
        self.sd_model = v
        if already_loaded:
            sd_vae.base_vae = getattr(v, "base_vae", None)
            sd_vae.checkpoint_info = v.sd_checkpoint_info
        if v not in self.loaded_sd_models:
            self.loaded_sd_models.insert(0, v)


def load_model_weights(model, state_dict):
    """A file without noise levels leaves those that the model has."""
    model.alphas_cumprod = state_dict.get("alphas_cumprod", model.alphas_cumprod)
    model.alphas_cumprod_original = model.alphas_cumprod


def create_sampler(name, model, constructor=types.SimpleNamespace):
    """A sampler notes the noise levels of its model, and the model itself."""
    sampler = sd_samplers_common.Sampler()
    sampler.name, sampler.levels = name, model.alphas_cumprod
    sampler.model_wrap_cfg = constructor(model_wrap=constructor(inner_model=model))
    return sampler


class Sampler:
    def initialize(self, p):
        """The model with which the sampler draws; the one in use if it has none."""
        wrapped = self.model_wrap_cfg.model_wrap
        return wrapped.inner_model if wrapped else sd_models.model_data.sd_model


def apply_token_merging(sd_model, token_merging_ratio):
    sd_model.applied_token_merged_ratio = token_merging_ratio


def reload_model_weights(info):
    """A checkpoint that is not kept is loaded; and all LoRAs are switched off."""
    if info not in sd_models.model_data.loaded_sd_models:
        networks.loaded_networks.clear()
        assert info.used_config
    sd_models.model_data.set_sd_model(info)


def saved_vae():
    """The module that saves a checkpoint's own VAE before it loads another one."""
    made = module("modules.sd_vae", base_vae=None, checkpoint_info=None)

    def store_base_vae(model):
        if made.checkpoint_info != model.sd_checkpoint_info:
            made.base_vae = model.vae
            made.checkpoint_info = model.sd_checkpoint_info

    def delete_base_vae():
        made.base_vae = made.checkpoint_info = None

    made.store_base_vae, made.delete_base_vae = store_base_vae, delete_base_vae
    return made


sd_models = types.SimpleNamespace()
devices = networks = safe = sd_vae = sd_samplers_common = types.SimpleNamespace()


def module(name, **contents):
    one = types.ModuleType(name)
    vars(one).update(contents)
    return one


@pytest.fixture
def a1111(monkeypatch):
    """The modules by their last names; importing them by their full names gets the same ones."""
    openaimodel = "modules.diffusionmodules.openaimodel"
    made = {
        "devices": module("modules.devices", unet_needs_upcast=False, checks=[]),
        "denoiser": module("modules.sd_samplers_cfg_denoiser"),
        "processing": module("modules.processing", decode_latent_batch=decode_latent_batch),
        "safe": module("modules.safe", allowed_zip_names_re=allowed_zip_names_re),
        "scripts": module("modules.scripts"),
        "samplers": module("modules.sd_samplers_kdiffusion"),
        "sampling": module("k_diffusion.sampling", to_d=to_d),
        "diffusion": module("sgm.models.diffusion"),
        "ldm": module(f"ldm.{openaimodel}", timestep_embedding=timestep_embedding),
        "sgm": module(f"sgm.{openaimodel}", timestep_embedding=timestep_embedding),
        "networks": module("networks", loaded_networks=[]),
        "sd_models": module(
            "modules.sd_models",
            load_model_weights=load_model_weights,
            apply_alpha_schedule_override=lambda model: setattr(model, "alphas_cumprod", "picture"),
            apply_token_merging=apply_token_merging,
            reload_model_weights=reload_model_weights,
        ),
        "sd_hijack": module("modules.sd_hijack"),
        "sd_vae": saved_vae(),
        "sd_samplers": module("modules.sd_samplers", create_sampler=create_sampler),
        "sd_samplers_common": module("modules.sd_samplers_common"),
    }
    made["devices"].test_for_nans = test_for_nans
    made["networks"].network_apply_weights = network_apply_weights
    made["safe"].check_zip_filenames = check_zip_filenames
    # The extension changes classes; these belong to one test.
    for room, original in (
        ("denoiser", CFGDenoiser),
        ("samplers", KDiffusionSampler),
        ("diffusion", DiffusionEngine),
        ("safe", RestrictedUnpickler),
        ("scripts", ScriptRunner),
        ("sd_models", SdModelData),
        ("sd_hijack", StableDiffusionModelHijack),
        ("sd_samplers_common", Sampler),
    ):
        setattr(made[room], original.__name__, type(original.__name__, (original,), {}))
    made["sd_models"].model_data = made["sd_models"].SdModelData()
    made["sd_hijack"].model_hijack = made["sd_hijack"].StableDiffusionModelHijack()
    for one in made.values():
        monkeypatch.setitem(sys.modules, one.__name__, one)
    for name in ("devices", "networks", "safe", "sd_models", "sd_vae", "sd_samplers_common"):
        monkeypatch.setitem(globals(), name, made[name])
    return types.SimpleNamespace(**made)
