"""Tiny checkpoints of each family, and their requests to a real A1111.

    python -m benchmarks.parity.families DATA_DIR CLIP

writes them below a folder in A1111's layout, each with the `.yaml` that A1111 needs for other
widths than the published models'. CLIP is a folder with CLIP's tokenizer (`vocab.json`,
`merges.txt`, `tokenizer_config.json`). `families_in_a1111` must be importable for A1111.

    python -m benchmarks.parity.families --record http://127.0.0.1:7860

writes the pictures that `tests/engine/parity/test_families.py` compares with. The weights depend
on the tensors' names alone, so that every version of the libraries makes the same files, and the
VAEs add no noise to a picture that they encode (see docs/internals/engine-parity.md).
"""

import json
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from fakes import tiny_models

from benchmarks.parity.__main__ import Fields, Server, record_sheet
from engine.models import ldm

FOLDER = Path(__file__).parents[2] / "tests/engine/parity"
SIDE = 48
STD_OF_EMBEDDINGS, STD_OF_BIASES, NO_VARIANCE = 0.3, 0.05, -30.0

# {name: (kind of `tiny_models`, what its UNet predicts)}
FAMILIES: dict[str, tuple[str, str]] = {
    "sd1": ("SD1", "epsilon"),
    "sd2": ("SD2", "epsilon"),
    "sd2-v": ("SD2", "v_prediction"),
    "inpainting": ("inpainting", "epsilon"),
    "sdxl": ("SDXL", "epsilon"),
    "sdxl-v": ("SDXL", "v_prediction"),
    "refiner": ("refiner", "epsilon"),
    # as deep as the published one: A1111 has the depths built in
    "ssd-1b": ("SSD-1B, whole depth", "epsilon"),
}
TEXTS: Fields = {
    "prompt": "a (green:1.4) [star:circle:0.5] on a lawn",
    "negative_prompt": "gray",
    "sampler_name": "Euler a",
    "override_settings": {"CLIP_stop_at_last_layers": 2},
}
HIGHRES: Fields = {
    "width": 32,
    "height": 32,
    "enable_hr": True,
    "hr_scale": 1.5,
    "denoising_strength": 0.6,
    "hr_upscaler": "Lanczos",
}
MORE: dict[str, tuple[str, Fields]] = {
    "inpainting, tiling": ("inpainting", {"tiling": True}),
    "inpainting, highres fix": ("inpainting", HIGHRES),
    "sdxl, no negative prompt, DDIM": ("sdxl", {"sampler_name": "DDIM"}),
    "sdxl, highres fix": ("sdxl", HIGHRES),
    "sdxl-v, zero terminal SNR": (
        "sdxl-v",
        {"override_settings": {"sd_noise_schedule": "Zero Terminal SNR"}},
    ),
    "sdxl, refiner": ("sdxl", {"refiner_checkpoint": "refiner", "refiner_switch_at": 0.5}),
    "ssd-1b, refiner": ("ssd-1b", {"refiner_checkpoint": "refiner", "refiner_switch_at": 0.8}),
    "sd1, refiner of SD2": ("sd1", {"refiner_checkpoint": "sd2", "refiner_switch_at": 0.5}),
    "sd1, second pass with SDXL": ("sd1", HIGHRES | {"hr_checkpoint_name": "sdxl"}),
}


def recorded_requests() -> dict[str, Fields]:
    """{name: fields}, the checkpoint in `override_settings`."""
    small = {"width": SIDE, "height": SIDE, "steps": 8, "cfg_scale": 3}
    found = {}
    for name, (family, fields) in [*((name, (name, TEXTS)) for name in FAMILIES), *MORE.items()]:
        options = {"sd_model_checkpoint": family} | fields.get("override_settings", {})
        found[name] = small | fields | {"override_settings": options}
    return found


def steady(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights of this tensor: random, of a size that keeps the numbers in a network alike."""
    source = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
    values = source.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        is_table = "embedding" in name
        values *= STD_OF_EMBEDDINGS if is_table else float(np.prod(shape[1:])) ** -0.5
    else:
        is_norm = any(part in name for part in ("norm", "ln_", "layers.0", "out.0"))
        values = values * STD_OF_BIASES + (is_norm and name.endswith("weight"))
    return torch.from_numpy(values).half()


def checkpoint(kind: str) -> dict[str, torch.Tensor]:
    """A checkpoint of this kind: {name in the file: tensor}."""
    state = tiny_models.export(tiny_models.make_kind(kind))
    state = {name: steady(name, tuple(tensor.shape)) for name, tensor in state.items()}
    channels = tiny_models.LATENT_CHANNELS
    state[f"{ldm.VAE}quant_conv.weight"][channels:] = 0
    state[f"{ldm.VAE}quant_conv.bias"][channels:] = NO_VARIANCE
    return state


def write(folder: Path) -> None:
    """Write all checkpoints into this folder. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (kind, prediction) in FAMILIES.items():
        metadata = {"modelspec.title": name, "prediction_type": prediction}
        save_file(checkpoint(kind), folder / f"{name}.safetensors", metadata)


def write_for_a1111(data_dir: Path, tokenizer: Path) -> None:
    """Write the checkpoints, their configurations and those of CLIP. Raises OSError."""
    folder = data_dir / "models/Stable-diffusion"
    write(folder)
    for width in (tiny_models.WIDTH, tiny_models.XL_WIDTHS[0]):
        target = data_dir / f"clip-{width}"
        shutil.copytree(tokenizer, target, dirs_exist_ok=True)
        (target / "config.json").write_text(json.dumps(_clip(width)), encoding="utf-8")
    for name in FAMILIES:
        # JSON is YAML
        text = json.dumps({"model": _model(name, data_dir)}, indent=1)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def _clip(width: int) -> Fields:
    own = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    text = (
        tiny_models.text_encoder(width).config.to_dict() | own | {"model_type": "clip_text_model"}
    )
    return {"model_type": "clip", "projection_dim": width, "text_config": text}


def _part(target: str, **params: Any) -> Fields:  # noqa: ANN401 - YAML
    return {"target": target, "params": params}


def _model(name: str, data_dir: Path) -> Fields:
    kind, prediction = FAMILIES[name]
    is_xl = kind not in ("SD1", "SD2", "inpainting")
    return (_xl_model if is_xl else _sd_model)(kind, prediction, data_dir)


def _vae(target: str, **more: str) -> Fields:
    config = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    loss = {"target": "torch.nn.Identity"}
    return _part(target, embed_dim=4, monitor="x", ddconfig=config | more, lossconfig=loss)


UNET: Fields = {
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 2,
    "legacy": False,
    "use_spatial_transformer": True,
    "use_checkpoint": False,
}
LEVELS: Fields = {"attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 2, 2]}


def _sd_model(kind: str, prediction: str, data_dir: Path) -> Fields:
    is_inpainting = kind == "inpainting"
    heads = {"num_heads": 1, "use_linear_in_transformer": True} if kind == "SD2" else {}
    unet = UNET | LEVELS | {"image_size": 32, "transformer_depth": 1, "num_heads": 8} | heads
    unet |= {"in_channels": 9 if is_inpainting else 4, "context_dim": tiny_models.WIDTH}
    texts = "ldm.modules.encoders.modules."
    clip = _part(f"{texts}FrozenCLIPEmbedder", version=str(data_dir / f"clip-{tiny_models.WIDTH}"))
    openclip = _part(
        f"{texts}FrozenOpenCLIPEmbedder", arch="tiny", version="x", layer="penultimate"
    )
    own = {"finetune_keys": None} if is_inpainting else {"image_size": 64}
    return _part(
        f"ldm.models.diffusion.ddpm.Latent{'Inpaint' if is_inpainting else ''}Diffusion",
        **own,
        linear_start=0.00085,
        linear_end=0.012,
        timesteps=1000,
        channels=4,
        num_timesteps_cond=1,
        first_stage_key="jpg",
        cond_stage_key="txt",
        parameterization="v" if prediction == "v_prediction" else "eps",
        conditioning_key="hybrid" if is_inpainting else "crossattn",
        cond_stage_trainable=False,
        scale_factor=0.18215,
        use_ema=False,
        unet_config=_part("tiny_classes.UNet", **unet),
        first_stage_config=_vae("ldm.models.autoencoder.AutoencoderKL"),
        cond_stage_config=openclip if kind == "SD2" else clip,
    )


def _xl_model(kind: str, prediction: str, data_dir: Path) -> Fields:
    scaling = "VScaling" if prediction == "v_prediction" else "EpsScaling"
    diffusion = "sgm.modules.diffusionmodules."
    return _part(
        "sgm.models.diffusion.DiffusionEngine",
        scale_factor=0.13025,
        disable_first_stage_autocast=True,
        denoiser_config=_part(
            f"{diffusion}denoiser.DiscreteDenoiser",
            num_idx=1000,
            weighting_config=_part(f"{diffusion}denoiser_weighting.EpsWeighting"),
            scaling_config=_part(f"{diffusion}denoiser_scaling.{scaling}"),
            discretization_config=_part(f"{diffusion}discretizer.LegacyDDPMDiscretization"),
        ),
        network_config=_part("tiny_classes.XlUNet", **_xl_unet(kind)),
        conditioner_config=_part(
            "sgm.modules.GeneralConditioner", emb_models=_embedders(kind, data_dir)
        ),
        first_stage_config=_vae(
            "sgm.models.autoencoder.AutoencoderKLInferenceWrapper", attn_type="vanilla"
        ),
    )


def _xl_unet(kind: str) -> Fields:
    own: Fields
    if kind == "refiner":
        own = {"channel_mult": [1, 2, 2, 2], "transformer_depth": 2}
        own |= {"adm_in_channels": 1344, "context_dim": tiny_models.XL_WIDTHS[1]}
    else:
        depth = [1, 2, 3] if kind == "SDXL" else [1, 2, 10]  # A1111 takes SSD-1B's from SDXL's
        own = {"channel_mult": [1, 2, 2], "transformer_depth": depth}
        own |= {"adm_in_channels": 1600, "context_dim": sum(tiny_models.XL_WIDTHS)}
    fixed = {"in_channels": 4, "num_classes": "sequential", "attention_resolutions": [4, 2]}
    heads = {"num_head_channels": 64, "use_linear_in_transformer": True}
    return UNET | fixed | heads | {"spatial_transformer_attn_type": "softmax"} | own


def _embedders(kind: str, data_dir: Path) -> list[Fields]:
    texts = "sgm.modules.encoders.modules."
    folder = str(data_dir / f"clip-{tiny_models.XL_WIDTHS[0]}")
    first = _part(f"{texts}FrozenCLIPEmbedder", layer="hidden", layer_idx=1, version=folder)
    second = _part(
        f"{texts}FrozenOpenCLIPEmbedder2",
        arch="tiny",
        version="x",
        layer="penultimate",
        always_return_pooled=True,
        legacy=False,
    )
    keys = ["original_size_as_tuple", "crop_coords_top_left"]
    keys.append("aesthetic_score" if kind == "refiner" else "target_size_as_tuple")
    numbers = _part(f"{texts}ConcatTimestepEmbedderND", outdim=256)
    found = [("txt", second)] if kind == "refiner" else [("txt", first), ("txt", second)]
    found += [(key, numbers) for key in keys]
    return [{"is_trainable": False, "input_key": key} | part for key, part in found]


def main(arguments: list[str]) -> None:
    """Write the files, or record the pictures."""
    if arguments[0] == "--record":
        sheet = FOLDER / "families.png"
        server = Server(arguments[1], "sd1")
        record_sheet(server, sheet, sheet.with_suffix(".json"), recorded_requests(), SIDE)
    else:
        write_for_a1111(Path(arguments[0]).resolve(), Path(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
