"""A checkpoint in memory: loading it, the LoRAs on it, and one picture."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from engine import architecture, prompt, samplers, tokenizer
from engine.checkpoints import Checkpoint
from engine.errors import NansException
from engine.loras import Lora, LoraUse

log = logging.getLogger(__name__)

LONGEST_CAUSE = 200
# what safetensors, our reading of shapes, diffusers and peft raise for a file that is not right
LOAD_ERRORS = (SafetensorError, OSError, LookupError, StopIteration, ValueError, RuntimeError)
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")

# the log is the engine's; their warnings are about weights it looks after itself
diffusers.utils.logging.set_verbosity(logging.CRITICAL)
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Shot:
    """What one picture is made from, beside its text."""

    seed: int
    width: int
    height: int
    steps: int
    cfg_scale: float
    sampler: samplers.Sampler
    scheduler: samplers.Scheduler | None


def placement() -> tuple[str, torch.dtype]:
    """Where and how precisely to compute: half precision on a GPU, single on the CPU."""
    return ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)


def _shorten(error: BaseException) -> str:
    """The beginning, on one line, of a message that may list thousands of tensors."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_CAUSE]


class Model:
    """A loaded checkpoint. One thread uses it at a time."""

    def __init__(self, checkpoint: Checkpoint, sha256: str, pipe: Any) -> None:  # noqa: ANN401 - diffusers
        self.checkpoint = checkpoint
        self.sha256 = sha256
        self.pipe = pipe

    @classmethod
    def load(cls, checkpoint: Checkpoint, sha256: str) -> "Model":
        """Read a single-file checkpoint (SD1.x, SDXL), offline.

        Raises RuntimeError with a short text where the file is gone, damaged or no such
        checkpoint, Unsupported where it is one that takes more than a prompt.
        """
        try:
            pipe = _read_pipeline(checkpoint.path)
        except LOAD_ERRORS as error:
            text = f"cannot load checkpoint {checkpoint.name!r}: {_shorten(error)}"
            raise RuntimeError(text) from error
        return cls(checkpoint, sha256, pipe)

    def encode(self, text: str, negative: str, clip_skip: int) -> dict[str, torch.Tensor]:
        """Both prompts (without tags) as keyword arguments for `picture`."""
        return prompt.encode(self.pipe, text, negative, clip_skip)

    @contextmanager
    def with_loras(self, uses: Sequence[LoraUse]) -> Iterator[None]:
        """Apply the LoRAs; afterwards the model is as before, bit for bit.

        Never fused: subtracting what was added leaves rounding errors behind. Raises RuntimeError
        for a file that is damaged or does not fit this checkpoint.
        """
        # a file's name may hold what an adapter's must not
        active = {f"lora{i}": use for i, use in enumerate(uses) if use.te or use.unet}
        try:
            for name, use in active.items():
                self._load_lora(name, use.lora)
            if active:
                weights = [self._weights(use) for use in active.values()]
                self.pipe.set_adapters(list(active), weights)
            yield
        finally:
            if active:
                self.pipe.unload_lora_weights()

    def _load_lora(self, name: str, lora: Lora) -> None:
        try:
            self.pipe.load_lora_weights(load_file(lora.path), adapter_name=name)
        except LOAD_ERRORS as error:
            raise self._unfit(lora, _shorten(error)) from None  # else the log has every tensor
        if not any(name in names for names in self.pipe.get_list_adapters().values()):
            raise self._unfit(lora, "it changes none of the model's layers")

    def _unfit(self, lora: Lora, cause: str) -> RuntimeError:
        return RuntimeError(
            f"LoRA {lora.name!r} does not fit checkpoint {self.checkpoint.stem!r}: {cause}"
        )

    def _weights(self, use: LoraUse) -> dict[str, float]:
        encoders = [name for name in TEXT_ENCODERS if hasattr(self.pipe, name)]
        return dict.fromkeys(encoders, use.te) | {"unet": use.unet}

    def picture(
        self,
        conditioning: dict[str, torch.Tensor],
        shot: Shot,
        on_step: Callable[[int, int], bool],
    ) -> Image.Image:
        """One RGB picture, its sides rounded down to multiples of 8.

        `on_step(done, steps)` is called after each step; true ends the picture there, which is
        then decoded as far as it came. Raises NansException.
        """

        def after_step(pipe: Any, index: int, _time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
            # samplers of second order call the model twice in a step
            done = (index + 1) * shot.steps // pipe.num_timesteps
            if on_step(done, shot.steps):
                pipe._interrupt = True  # noqa: SLF001 - the way diffusers documents
            return kwargs

        prediction = self.pipe.scheduler.config.prediction_type
        self.pipe.scheduler = samplers.build(shot.sampler, shot.scheduler, prediction, shot.seed)
        pixels = self.pipe(
            **conditioning,
            width=shot.width // 8 * 8,
            height=shot.height // 8 * 8,
            num_inference_steps=shot.steps,
            guidance_scale=shot.cfg_scale,
            generator=torch.Generator().manual_seed(shot.seed),
            callback_on_step_end=after_step,
            output_type="np",
        ).images[0]
        return _to_image(pixels)


def _to_image(pixels: np.ndarray[Any, Any]) -> Image.Image:
    """(height, width, 3) in 0..1 -> a picture."""
    if not np.isfinite(pixels).all():
        raise NansException("A tensor with NaNs was produced: the picture is not a number.")
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def _read_pipeline(path: Path) -> Any:  # noqa: ANN401 - diffusers
    with safe_open(path, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        found = architecture.infer(shapes, file.metadata() or {})
    tokenizers = {"tokenizer": tokenizer.build()}
    if found.is_xl:
        tokenizers["tokenizer_2"] = tokenizer.build(padding="!")
    device, dtype = placement()
    kind = "StableDiffusionXLPipeline" if found.is_xl else "StableDiffusionPipeline"
    with TemporaryDirectory() as folder:
        found.write(Path(folder))
        pipe = getattr(diffusers, kind).from_single_file(
            path, config=folder, local_files_only=True, torch_dtype=dtype, **tokenizers
        )
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            # before the first picture: with gradients torch takes other kernels, and unloading a
            # LoRA would not restore the picture's last bits
            component.requires_grad_(False).eval()
    return pipe.to(device)
