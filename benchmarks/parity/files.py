"""The files of the parity requests, apart from the demo model: most are made from it.

    python -m benchmarks.parity.files DATA_DIR

writes them below a folder in A1111's layout. They are the same files each time. Both servers need
them, and `tests/engine/parity` draws with them.
"""

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine.models import ldm
from engine.prompt import tokenizer

DEMO = Path(__file__).parents[2] / "demo/Stable-diffusion/demo-shapes.safetensors"
# names that A1111's tokenizer reads as several tokens
SAFETENSORS, PICKLE, BUNDLED = "parity-three", "parity-two", "parity-bundled"
VAE = "parity-vae.safetensors"  # it must not begin with a checkpoint's name
LORA, DORA, BUNDLE = "parity-lora", "parity-dora", "parity-bundle"
UPSCALER = "parity-2x"
# The demo model, but its VAE adds no noise to a given picture: A1111's noise depends on the request
# before. The other one is also given a mask, as models for inpainting are.
STILL, INPAINTING = "demo-still", "demo-inpaint"
LEAST_LOG_VARIANCE = -30
RANK, WIDTH, LAYERS = 4, 32, 3
TABLE = f"{ldm.CLIP}text_model.embeddings.token_embedding.weight"
# A1111's table of names assumes two blocks a level: of the demo model it finds these layers
MATRICES = [f"lora_te_text_model_encoder_layers_{n}_mlp_fc1" for n in range(LAYERS)]

State = dict[str, torch.Tensor]


def write(folder: Path) -> None:
    """Write all files below this folder. Raises OSError."""
    demo = load_file(DEMO)
    for name in ("embeddings", "models/VAE", "models/Lora"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    words = {"emb_params": words_of(demo, "a red circle")}
    save_file(words, folder / f"embeddings/{SAFETENSORS}.safetensors")
    old = {"string_to_param": {"*": words_of(demo, "blue cross")}, "step": 7, "name": PICKLE}
    # A1111 v1.9.3 refuses the files of newer versions of torch, which are zip archives
    torch.save(old, folder / f"embeddings/{PICKLE}.pt", _use_new_zipfile_serialization=False)
    save_file(brighter(demo), folder / "models/VAE" / VAE)
    plain = lora()
    lengths = {f"{name}.dora_scale": torch.full((1, WIDTH), 2.0) for name in MATRICES}
    bundled = {f"bundle_emb.{BUNDLED}.emb_params": words_of(demo, "a heart")}
    for name, state in {LORA: plain, DORA: plain | lengths, BUNDLE: plain | bundled}.items():
        save_file(state, folder / f"models/Lora/{name}.safetensors")
    write_upscaler(folder / "models/ESRGAN")
    write_checkpoints(folder / "models/Stable-diffusion")


def write_upscaler(folder: Path) -> None:
    """Write the upscaling model as A1111 reads it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(upscaler(), folder / f"{UPSCALER}.pth", _use_new_zipfile_serialization=False)


def write_checkpoints(folder: Path) -> None:
    """Write the checkpoints for img2img. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with safe_open(DEMO, "pt") as file:
        metadata = file.metadata()
    state = still(load_file(DEMO))
    save_file(state, folder / f"{STILL}.safetensors", metadata)
    first = f"{ldm.UNET}input_blocks.0.0.weight"
    # the inputs for the mask and the masked picture
    further = state[first][:, [0, 1, 2, 3, 0]] * 0.3
    given = state | {first: torch.cat([state[first], further], 1).contiguous()}
    save_file(given, folder / f"{INPAINTING}.safetensors", metadata)


def still(demo: State) -> State:
    """The demo model with a VAE that encodes a picture without noise."""
    weight, bias = (f"{ldm.VAE}quant_conv.{name}" for name in ("weight", "bias"))
    found = demo | {weight: demo[weight].clone(), bias: demo[bias].clone()}
    half = len(found[bias]) // 2
    found[weight][half:] = 0
    found[bias][half:] = LEAST_LOG_VARIANCE
    return found


def upscaler() -> State:
    """An ESRGAN with the names of the first ones: it doubles a picture, and changes its colors."""
    wide, narrow = 8, 32  # the second is the one that all of them have
    shapes = {"0": (3, wide), "1.sub.1": (wide, wide), "3": (wide, wide), "5": (wide, wide)}
    shapes["7"] = (wide, 3)
    for block in (1, 2, 3):
        for number in range(1, 6):
            ends = (wide + (number - 1) * narrow, wide if number == 5 else narrow)  # noqa: PLR2004
            shapes[f"1.sub.0.RDB{block}.conv{number}.0"] = ends
    generator, state = torch.Generator().manual_seed(2), {}
    for name, (given, made) in shapes.items():
        weight = torch.randn(made, given, 3, 3, generator=generator) * (2 / (9 * given)) ** 0.5
        state[f"model.{name}.weight"] = weight
        state[f"model.{name}.bias"] = torch.full((made,), 0.1)
    return state


def words_of(demo: State, text: str) -> torch.Tensor:
    """The vectors of a text's tokens, so that an embedding draws what the text says."""
    ids = tokenizer.build()(text, add_special_tokens=False).input_ids
    return demo[TABLE][ids].float()


def brighter(demo: State) -> State:
    """The demo model's VAE, but the last convolution gives other colors."""
    state = {k.removeprefix(ldm.VAE): v for k, v in demo.items() if k.startswith(ldm.VAE)}
    last = "decoder.conv_out.weight"
    return state | {last: (state[last] * torch.tensor([1.1, 0.8, 0.6])[:, None, None, None]).half()}


def lora() -> State:
    """A LoRA for the text encoder."""
    generator, state = torch.Generator().manual_seed(1), {}
    for name in MATRICES:
        state[f"{name}.lora_down.weight"] = torch.randn(RANK, WIDTH, generator=generator)
        state[f"{name}.lora_up.weight"] = torch.randn(4 * WIDTH, RANK, generator=generator) / RANK
        state[f"{name}.alpha"] = torch.tensor(float(RANK))
    return state


if __name__ == "__main__":
    write(Path(sys.argv[1]))
