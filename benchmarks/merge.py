"""Merging a LoRA into a checkpoint compared with `cp`, and with a merge in memory.

    python benchmarks/merge.py [--rounds 3] [--rank 64] [--folder /tmp]

First part: a checkpoint of SDXL's shapes (6.9 GB in half precision) and a LoRA for all linear
layers of its transformer blocks and text encoders. `cp` and the merge take turns, each in its own
process; both write their file to disk (`sync`), and both read from the page cache.

Second part: SD1's shapes (2.1 GB). The other side does what diffusers and peft do on a CPU, without
their modules: all weights in memory, each delta computed in single precision, rounded, and added in
half precision.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT)]

from engine.models import ldm  # noqa: E402
from worker.formats.safetensors_header import Tensor  # noqa: E402
from worker.models.merge.checkpoint_layers import find_layers  # noqa: E402

Shapes = dict[str, tuple[int, ...]]
BLOCK = 1 << 24  # random numbers, which repeat
SCALE = 0.02

# The peak memory of this program alone; getrusage includes the process that started it.
PEAK = """
def peak():
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
"""
MERGE = """
import sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from worker.models.merge.merge import LoraToMerge, merge
base, lora, target = map(Path, sys.argv[2:])
begun = time.perf_counter()
merge(base, [LoraToMerge(lora, "lora", "ab")], target, {})
print(time.perf_counter() - begun, peak())
"""
IN_MEMORY = """
import os, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import torch
from safetensors.torch import load_file, save_file
from worker.models.merge.checkpoint_layers import find_layers
from worker.formats.safetensors_header import Tensor
base, lora, target = map(Path, sys.argv[2:])
begun = time.perf_counter()
weights, parts = load_file(base), load_file(lora)
places = find_layers({k: Tensor("F16", tuple(v.shape)) for k, v in weights.items()})
for name in {key.partition(".")[0] for key in parts}:
    up, down = (parts[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
    delta = parts[f"{name}.alpha"].item() / len(down) * up.flatten(1) @ down.flatten(1)
    place = places[name]
    rows = weights[place.key][place.first : place.end]
    rows += delta.to(rows.dtype).reshape(rows.shape)
save_file(weights, target)
descriptor = os.open(target, os.O_RDONLY)
os.fsync(descriptor)
print(time.perf_counter() - begun, peak())
"""


def main() -> None:
    """Run and print both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="on a disk with 21 GB; a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        beside_cp(Path(name), options.rounds, options.rank)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        beside_memory(Path(name), options.rounds, options.rank)


def beside_cp(folder: Path, rounds: int, rank: int) -> None:
    """Time the merge and `cp` in turn."""
    base, lora = write_files(folder, sdxl_shapes(), rank)
    copies, merges, peaks = [], [], []
    for _ in range(rounds):
        warm(base, lora)
        begun = time.perf_counter()
        copy = folder / "copy"
        subprocess.run(["sh", "-c", f"cp {base} {copy} && sync {copy}"], check=True)
        copies.append(time.perf_counter() - begun)
        copy.unlink()
        warm(base, lora)
        seconds, peak = run(MERGE, base, lora, folder / "merged")
        (folder / "merged").unlink()
        merges.append(seconds)
        peaks.append(peak)
    ratio = statistics.median(merges) / statistics.median(copies)
    print(f"SDXL, {base.stat().st_size / 1e9:.1f} GB, LoRA of rank {rank}")
    print(f"  cp      {shown(copies)}")
    print(f"  merge   {shown(merges)}, peak memory {max(peaks):.0f} MB")
    print(f"  merge / cp, medians: {ratio:.2f}")


def beside_memory(folder: Path, rounds: int, rank: int) -> None:
    """Time the two kinds of merge in turn; compare their results."""
    base, lora = write_files(folder, sd1_shapes(), rank)
    targets = {"merge": folder / "merged", "in memory": folder / "fused"}
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in targets}
    for _ in range(rounds):
        for (name, target), code in zip(targets.items(), (MERGE, IN_MEMORY), strict=True):
            target.unlink(missing_ok=True)
            figures[name].append(run(code, base, lora, target))
    print(f"SD1, {base.stat().st_size / 1e9:.1f} GB, LoRA of rank {rank}")
    for name, seen in figures.items():
        seconds, peaks = zip(*seen, strict=True)
        print(f"  {name:10}{shown(seconds)}, peak memory {max(peaks):.0f} MB")
    print(f"  largest difference of a number: {largest_difference(*targets.values()):.2g}")


def run(code: str, *files: Path) -> tuple[float, float]:
    """Run code in a fresh process; returns the seconds and peak megabytes that it prints."""
    command = [sys.executable, "-c", PEAK + code, str(PROJECT), *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


def shown(seconds: list[float] | tuple[float, ...]) -> str:
    """Median and range."""
    return f"{statistics.median(seconds):5.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


def warm(*files: Path) -> None:
    """Read files into the page cache."""
    for file in files:
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


def largest_difference(one: Path, other: Path) -> float:
    """The largest difference between two files with the same tensors."""
    with safe_open(one, framework="pt") as first, safe_open(other, framework="pt") as second:
        pairs = ((first.get_tensor(k), second.get_tensor(k)) for k in first.keys())  # noqa: SIM118
        return max(float((a.float() - b.float()).abs().max()) for a, b in pairs)


# Files --------------------------------------------------------------------------------------------


def write_files(folder: Path, shapes: Shapes, rank: int) -> tuple[Path, Path]:
    """A checkpoint and a LoRA for it."""
    base, lora = folder / "base.safetensors", folder / "lora.safetensors"
    write(base, shapes)
    write(lora, lora_shapes(shapes, rank))
    return base, lora


def write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of random half-precision numbers, the same every time."""
    position, header = 0, {}
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    drawn = np.random.default_rng(0).standard_normal(BLOCK, dtype=np.float32) * SCALE
    data = memoryview(drawn.astype(np.float16).view(np.uint8))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while position:
            position -= file.write(data[: min(len(data), position)])


def lora_shapes(checkpoint: Shapes, rank: int) -> Shapes:
    """What kohya trains by default: linear layers of transformer blocks and text encoders."""
    found: Shapes = {}
    taken = set()
    places = find_layers({k: Tensor("F16", shape) for k, shape in checkpoint.items()})
    for name, place in places.items():
        shape = checkpoint[place.key]
        usual = place.in_text_encoder or any(
            part in name for part in ("transformer_blocks", "proj_in", "proj_out")
        )
        if usual and (place.key, place.first) not in taken and len(shape) == 2:  # noqa: PLR2004
            taken.add((place.key, place.first))
            found[f"{name}.lora_down.weight"] = (rank, shape[1])
            found[f"{name}.lora_up.weight"] = (place.end - place.first, rank)
            found[f"{name}.alpha"] = ()
    return found


def sdxl_shapes() -> Shapes:
    """Name -> shape of every tensor of an SDXL checkpoint."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=20,
                projection_dim=1280,
            )
        )
    text = ldm.export_clip(clip().state_dict(), ldm.CLIP_XL)
    text |= ldm.export_openclip(second.state_dict())
    return shapes_of(ldm.export_unet(unet.state_dict(), 2) | text)


def sd1_shapes() -> Shapes:
    """Name -> shape of every tensor of an SD1.5 checkpoint."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    text = ldm.export_clip(clip().state_dict(), ldm.CLIP)
    return shapes_of(ldm.export_unet(unet.state_dict(), 2) | text)


def clip() -> CLIPTextModel:
    """SD1's text encoder, which is SDXL's first; without weights in memory."""
    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    with torch.device("meta"):
        return CLIPTextModel(config)


def shapes_of(state: Mapping[str, torch.Tensor]) -> Shapes:
    """With the VAE, which both families share."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    state = dict(state) | ldm.export_vae(vae.state_dict(), 4)
    return {name: tuple(tensor.shape) for name, tensor in sorted(state.items())}


if __name__ == "__main__":
    main()
