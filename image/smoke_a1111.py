"""Draws a picture with A1111, so that the build fails if a package or a file is missing.

Run by A1111's Python in the WebUI's folder. It imports all of A1111 with its extensions and
xformers, and makes a tiny checkpoint. With this it draws on the CPU, with and without the speedups
of our extension; both pictures must be equal.

usage: smoke_a1111.py EXTENSION=0|1...     the extensions that must (1) or must not be there
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CPU = ("--skip-torch-cuda-test", "--use-cpu", "all", "--no-half", "--opt-sdp-attention")
UNET = {  # as Stable Diffusion 1, but with a tenth of its channels
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 768,
    "use_checkpoint": True,
    "legacy": False,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
CONFIG = {  # of configs/v1-inference.yaml
    "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
    "params": {
        "linear_start": 0.00085,
        "linear_end": 0.0120,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": 4,
        "conditioning_key": "crossattn",
        "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": UNET,
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": 4,
                "ddconfig": VAE,
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    },
}
JOB = {
    "prompt": "a (fox:1.2) in the snow",
    "negative_prompt": "blurry",
    "width": 128,
    "height": 128,
    "steps": 4,
    "seed": 1,
}
LARGEST_DIFFERENCE = 1  # of 255
SMALLEST_CONTRAST = 5  # standard deviation of all values, of 255


def import_all(*flags: str) -> None:
    """Import what A1111 imports at its start."""
    sys.path.insert(0, ".")
    sys.argv = ["webui.py", "--api", "--nowebui", *flags]
    from modules import initialize

    initialize.imports()


def check_extensions(wanted: dict[str, bool]) -> None:
    """Check that A1111 has loaded exactly the wanted ones: it starts without a broken one."""
    from modules import scripts

    titles = {one.script_class().title().lower() for one in scripts.scripts_data}
    if wrong := [name for name, is_wanted in wanted.items() if (name in titles) != is_wanted]:
        sys.exit(f"smoke_a1111.py: wrong extensions, see above: {', '.join(wrong)}")
    if wanted.get("adetailer"):  # imported only when a job detects something
        import mediapipe
        import ultralytics

        print("imported:", mediapipe.solutions.face_mesh.__name__, ultralytics.__version__)


def check_imports(wanted: dict[str, bool]) -> None:
    """Import also what only some jobs need."""
    import_all("--xformers", *CPU)  # without --xformers A1111 blocks the import of xformers
    import clip
    import xformers.ops
    from ldm.models.diffusion import ddpm
    from modules import extensions, scripts, timer
    from modules.api import api
    from sgm.models import diffusion

    extensions.list_extensions()
    scripts.load_scripts()
    check_extensions(wanted)
    print("imported:", *(module.__name__ for module in (api, clip, ddpm, diffusion, xformers.ops)))
    print(timer.startup_timer.summary())


def write_checkpoint(path: Path) -> None:
    """Write random weights, and beside them the configuration from which A1111 builds the model."""
    import torch
    from ldm.models.autoencoder import AutoencoderKL
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    text = CLIPTextConfig.from_pretrained("openai/clip-vit-large-patch14")
    parts = {
        "model.diffusion_model": UNetModel(**UNET),
        "first_stage_model": AutoencoderKL(VAE, {"target": "torch.nn.Identity"}, 4),
        "cond_stage_model.transformer": CLIPTextModel(text),
    }
    state = {}
    for name, part in parts.items():
        for key, value in part.state_dict().items():
            # The last layers of a new model are zero, so that every picture would be gray. With a
            # bias of zero, A1111 would divide the text encoder's output by its mean, 0.
            weights = value if value.any() else torch.randn(value.shape) * 0.05
            state[f"{name}.{key}"] = weights.contiguous()
    path.parent.mkdir(parents=True)
    save_file(state, path)
    path.with_suffix(".yaml").write_text(json.dumps({"model": CONFIG}))


def draw(data: Path, picture: Path) -> None:
    """Do a job through A1111's API, without a server."""
    import_all(*CPU, "--data-dir", str(data), "--no-download-sd-model", "--do-not-download-clip")
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from modules import initialize, script_callbacks
    from modules.api.api import Api
    from modules.call_queue import queue_lock

    initialize.initialize()
    app = FastAPI()
    Api(app, queue_lock)
    script_callbacks.before_ui_callback()
    script_callbacks.app_started_callback(None, app)
    answer = TestClient(app).post("/sdapi/v1/txt2img", json=JOB)
    answer.raise_for_status()
    picture.write_bytes(base64.b64decode(answer.json()["images"][0]))


def compare(pictures: list[Path]) -> None:
    """End with an error if the pictures are empty or different."""
    import numpy as np
    from PIL import Image

    first, second = (np.asarray(Image.open(path).convert("RGB"), dtype=int) for path in pictures)
    contrast, difference = first.std(), abs(first - second)
    print(
        f"drawn: {first.shape[1]}x{first.shape[0]}, contrast {contrast:.1f}; with and without"
        f" speedups: largest difference {difference.max()} of 255, mean {difference.mean():.4f}"
    )
    if contrast < SMALLEST_CONTRAST:
        sys.exit("smoke_a1111.py: the picture is empty: A1111 draws wrongly with these packages")
    if difference.max() > LARGEST_DIFFERENCE:
        sys.exit(
            f"smoke_a1111.py: the speedups change a value by {difference.max()} of 255, and"
            f" {LARGEST_DIFFERENCE} is allowed: correct image/a1111_extension"
        )


def main(extensions: dict[str, bool]) -> None:
    """Check everything; the pictures are drawn in processes of their own."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    check_imports(extensions)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder, "models/Stable-diffusion/tiny.safetensors"))
        pictures = []
        for speedups in ("false", "true"):
            pictures.append(Path(folder, f"{speedups}.png"))
            subprocess.run(
                [sys.executable, __file__, folder, pictures[-1]],
                env=os.environ | {"A1111_SPEEDUPS": speedups},
                check=True,
            )
        compare(pictures)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if any("=" in argument for argument in arguments) or not arguments:
        pairs = (argument.split("=") for argument in arguments)
        main({name: value == "1" for name, value in pairs})
    else:
        draw(*map(Path, arguments))
