"""Loading a converted folder compared with the single file that it was made from.

    python benchmarks/loading.py [--checkpoint FILE | --single] [--rounds 5] [--threads N]

Without --checkpoint it makes a file with SD1.5's shapes and random numbers below --work: 2.1 GB, or
4.3 GB in single precision, and 2.1 GB for the folder. Each load is the engine's own, without the
imports, in a fresh process. The two take turns; the first of each warms the page cache and does not
count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

FILE, FOLDER = "file.safetensors", "folder"
PAGE = 4096
MEASURES = {
    "float32": "loaded as for the CPU (single precision), s",
    "float32 peak": "peak, MB",
    "float16": "loaded as for a GPU (half precision), and read, s",
    "float16 peak": "peak, MB",
    "hashed": "the hash that the engine takes before, s",
}


def main() -> None:
    """Print a line for each measure: the folder, the file, and their ratio."""
    options = _arguments()
    if options.make:
        _make(options.make, options.single)
    elif options.load:
        _load(options.load, options.precision, options.threads)
    else:
        with tempfile.TemporaryDirectory(dir=options.work) as work:
            _compare(Path(work), options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--single", action="store_true", help="a file in single precision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's")
    parser.add_argument("--work", type=Path, help="a folder on the disk; default: /tmp")
    for hidden in ("--make", "--load"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(work: Path, options: argparse.Namespace) -> None:
    if options.checkpoint:
        (work / FILE).symlink_to(options.checkpoint.resolve())
    else:
        _child(__file__, "--make", work / FILE, *["--single"] * options.single)
    start = time.perf_counter()
    _, peak = _child("-m", "engine.models.convert", work / FILE, work / FOLDER)
    print(f"converted in {time.perf_counter() - start:.1f} s, peak {peak} MB")
    runs: dict[str, list[dict[str, float]]] = {FOLDER: [], FILE: []}
    for _ in range(options.rounds + 1):
        for name, found in runs.items():
            found.append(_measure(work / name, options.threads))
    for key, measure in MEASURES.items():
        folder, file = (statistics.median(run[key] for run in found[1:]) for found in runs.values())
        print(f"{measure}: folder {folder:.2f}, file {file:.2f}, ratio {folder / file:.2f}")


def _measure(path: Path, threads: int) -> dict[str, float]:
    """One round's figures of one of the two."""
    found: dict[str, float] = {}
    for precision in ("float32", "float16"):
        options = ("--precision", precision, "--threads", threads)
        answer, found[f"{precision} peak"] = _child(__file__, "--load", path, *options)
        found[precision], found["hashed"] = json.loads(answer)
    return found


def _child(*arguments: object) -> tuple[str, int]:
    """The output of a Python process, and its largest resident memory in MB."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    with process.stdout as output:
        answer = output.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {arguments}")
    return answer, usage.ru_maxrss * 1024 // 1_000_000


# In processes of their own ------------------------------------------------------------------------


def _load(path: Path, precision: str, threads: int) -> None:
    """Print the seconds of loading and of hashing as JSON."""
    import diffusers
    import torch

    from engine.models import loading, placement
    from engine.models.checkpoints import Checkpoints

    torch.set_num_threads(threads)
    for kind in loading.PIPELINES:
        getattr(diffusers, kind)  # importing it takes seconds
    # as on a GPU, also on a machine without one
    placement.measure, placement.precision = lambda: None, lambda _: getattr(torch, precision)
    start = time.perf_counter()
    pipe = loading.read_pipeline(path)
    for network in pipe.components.values():
        for tensor in network.parameters() if isinstance(network, torch.nn.Module) else ():
            # otherwise, weights that need no conversion are read only for the first picture
            tensor.view(-1).view(torch.uint8)[::PAGE].max()
    loaded = time.perf_counter() - start
    checkpoints = Checkpoints(path.parent)
    start = time.perf_counter()
    checkpoints.sha256(checkpoints.find(path.name.removesuffix(".safetensors")))
    print(json.dumps([loaded, time.perf_counter() - start]))


def _make(path: Path, is_single: bool) -> None:
    """Write a checkpoint of SD1.5's shapes."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    from engine.models import ldm

    with torch.device("meta"):  # shapes only; the defaults are those of SD1.5
        unet = UNet2DConditionModel(cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        text_encoder = CLIPTextModel(CLIPTextConfig(num_hidden_layers=12, **sizes))
    shapes = ldm.export_unet(unet.state_dict(), layers_per_block=2)
    shapes |= ldm.export_vae(vae.state_dict(), levels=4)
    shapes |= ldm.export_clip(text_encoder.state_dict())
    dtype = torch.float32 if is_single else torch.float16
    state = {key: (0.02 * torch.randn(meta.shape)).to(dtype) for key, meta in shapes.items()}
    save_file(state, path)


if __name__ == "__main__":
    main()
